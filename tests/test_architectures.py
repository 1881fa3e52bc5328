"""Every architecture: step = whole in float, causal, learns; converted: integers only, step = resized whole, and near
the float model in every runtime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")

from models.epochs import MODEL_SCALE
from models.layers import build_step, build_whole, keras, tf
from models.recipe import load_recipe
from models.train import load_architecture, make_model, save_weights
from quantize.convert import convert, float_scores
from quantize.verify import lsb_histogram, run_everywhere

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "models" / "architectures").glob("[a-z]*.py"))
SMALL = {  # (width of a frame, parameters)
    "bc_resnet": (40, {"scale": 0.5}),
    "crnn": (40, {"filters": 8, "width": 12, "units": 16}),
    "ds_cnn": (10, {"width": 16, "blocks": 2}),
    "ds_tc_resnet": (40, {"width": 12, "blocks": 2, "kernel": 5, "growth": 0}),
}
MINE = """
STRIDE = 2

def build(net, x, n_labels, units):
    x = net.conv(net.bands(x), 4, (6, 5), "stem", stride=(STRIDE, 4), bias=True)
    x = net.conv(x, 8, (1, 10), "mix", same=False)
    x = net.lstm(net.lstm(x, units, "first"), units, "second")
    return net.conv(x, n_labels, 1, "label", bias=True)
"""
MINE_MACS_PER_STEP = 10 * 6 * 5 * 1 * 4 + 10 * 4 * 8 + (8 + 6) * 4 * 6 + (6 + 6) * 4 * 6 + 6 * 4
RECIPE = """
schema: 1
name: small
data: {{words: [a, b]}}
model: {{architecture: {architecture}, parameters: {parameters}}}
features: {features}
"""


def stepped(step, frames, stride):
    """Scores of float frames [1, T, n], one step after another."""
    run = tf.function(lambda inputs: step(inputs, training=False))
    states = {t.name: np.zeros(t.shape, np.float32) for t in step.inputs if t.name != "frames"}
    scores = []
    for i in range(0, frames.shape[1], stride):
        out = run({"frames": frames[:, i : i + stride], **states})
        scores.append(out["scores"].numpy())
        states = {name: out[f"{name}_out"] for name in states}
    return np.concatenate(scores, axis=1)


def disturb(model, rng):
    """No weight, mean or variance stays at its first value of 0 or 1."""
    model.set_weights([w + 0.1 * rng.standard_normal(w.shape).astype(np.float32) ** 2 for w in model.get_weights()])


def test_every_architecture_is_tested():
    assert sorted(SMALL) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("small", [True, False])
def test_float_step_equals_float_whole(name, small):
    module, (width, parameters) = load_architecture(name), SMALL[name]
    parameters = parameters if small else {}
    whole, net = build_whole(module.build, width, 10, parameters)
    rng = np.random.default_rng(0)
    disturb(whole, rng)
    step = build_step(module.build, width, 10, parameters, module.STRIDE, net.layers)
    frames = rng.standard_normal((1, 60, width)).astype(np.float32)
    expected = whole(frames, training=False).numpy()
    assert expected.shape == (1, 60 // module.STRIDE, 10)
    error = np.abs(stepped(step, frames, module.STRIDE) - expected).max()
    assert error < 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_whole_is_causal(name):
    module, (width, parameters) = load_architecture(name), SMALL[name]
    whole, _ = build_whole(module.build, width, 10, parameters)
    frames = np.random.default_rng(1).standard_normal((1, 40, width)).astype(np.float32)
    changed = frames.copy()
    changed[:, 32:] += 1
    before, after, then = whole(frames).numpy(), whole(changed).numpy(), 32 // module.STRIDE
    assert (before[:, :then] == after[:, :then]).all() and not (before[:, then:] == after[:, then:]).any(axis=2).all()


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls(name):
    keras.utils.set_random_seed(2)
    module, (width, parameters) = load_architecture(name), SMALL[name]
    whole, _ = build_whole(module.build, width, 4, {**parameters, "dropout": 0.0})
    optimizer = keras.optimizers.Adam(1e-2)
    frames = np.random.default_rng(2).standard_normal((16, 40, width)).astype(np.float32)
    labels = np.arange(16) % 4

    @tf.function
    def train_step():
        with tf.GradientTape() as tape:
            scores = tf.reduce_mean(whole(frames, training=True), 1)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
        optimizer.apply_gradients(zip(tape.gradient(loss, whole.trainable_variables), whole.trainable_variables))
        return loss

    losses = [float(train_step()) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def integrate(lstm):
    """All gates of an LSTM stay open: its cell goes to one end of its range, and must come back from there."""
    kernel, recurrent, bias = lstm.get_weights()
    gates = np.ones(bias.shape, bool)
    gates[len(bias) // 2 : 3 * len(bias) // 4] = False  # in the order input, forget, cell, output
    share = np.where(gates, 0.003, 1)
    lstm.set_weights([share * kernel, 0.01 * recurrent, np.where(gates, 6, 0)])


def converted(tmp_path, architecture, width, parameters, integrator=None):
    """(recipe, weights, calibration codes, Converted) of a network that has seen nothing."""
    features = "{n_mfcc: 10, output_fraction_bits: 8}" if width == 10 else "{}"
    path, weights = tmp_path / "small.yaml", tmp_path / "weights.npz"
    path.write_text(RECIPE.format(architecture=architecture, parameters=parameters, features=features))
    recipe = load_recipe(path)
    whole, _, _ = make_model(recipe)
    rng = np.random.default_rng(3)
    disturb(whole, rng)
    level = np.repeat(rng.permutation([[60, -60], [-60, 60]] * 3)[..., None], 60, axis=1)
    codes = np.clip(level + rng.normal(0, 30, (6, 120, width)), -128, 127).astype(np.int8)
    frames, normalize = codes * np.float32(MODEL_SCALE), tf.function(lambda x: whole(x, training=True))
    for _ in range(100):  # means and variances of the batch normalizations
        normalize(frames)
    if integrator:
        integrate(next(layer for layer in whole.layers if layer.name == integrator))
    save_weights(weights, whole)
    return recipe, weights, codes, convert(recipe, weights, codes)


def check(recipe, weights, codes, made):
    """Integers only, step = resized whole, the runtimes equal, near the float scores."""
    (weights.parent / "model.tflite").write_bytes(made.model)
    program = "import sys; from quantize.verify import check_integer; check_integer(open(sys.argv[1], 'rb').read())"
    command = [sys.executable, "-c", program, str(weights.parent / "model.tflite")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # where there is no TensorFlow
    assert done.returncode == 0, done.stderr[-1000:]
    results = run_everywhere(made.model, codes)
    assert [r.runtime.rsplit("-", 1)[0] for r in results] == ["tflite-runtime", "ai-edge-litert"]
    assert lsb_histogram(*results).keys() == {0}
    wanted, scores = float_scores(recipe, weights, codes), results[0].scores.astype(float)
    slope, offset = np.polyfit(scores.ravel(), wanted.ravel(), 1)  # scale and zero point, as fitted
    assert np.std(slope * scores + offset - wanted) < 0.15 * np.std(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_exact_and_near_float(tmp_path, name):
    width, parameters = SMALL[name]
    check(*converted(tmp_path, name, width, parameters))


def test_an_architecture_of_another_repository_converts(tmp_path):
    """Two LSTMs behind a convolution over both axes, in a file of one's own."""
    (tmp_path / "mine.py").write_text(MINE)
    *settings, made = converted(tmp_path, tmp_path / "mine.py", 40, {"units": 6}, integrator="first")
    assert made.stride == 2 and made.macs_per_second == MINE_MACS_PER_STEP * 50
    check(*settings, made)
