"""Step = whole: the two faces of every architecture, in float."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")

from models.layers import build_step, build_whole
from models.train import load_architecture
from toolkit.errors import ConfigError


@pytest.mark.parametrize("parameters", [{}, {"width": 12, "blocks": 2, "kernel": 5, "growth": 0}])
def test_float_step_equals_float_whole(parameters):
    module = load_architecture("ds_tc_resnet")
    whole, net = build_whole(module.build, 40, 10, parameters)
    rng = np.random.default_rng(0)
    whole.set_weights([w + 0.1 * rng.standard_normal(w.shape).astype(np.float32) ** 2 for w in whole.get_weights()])
    step = build_step(module.build, 40, 10, parameters, module.STRIDE, net.layers)
    frames = rng.standard_normal((1, 60, 40)).astype(np.float32)
    expected = whole(frames, training=False).numpy()

    states = {t.name: np.zeros(t.shape, np.float32) for t in step.inputs if t.name != "frames"}
    scores = []
    for i in range(0, frames.shape[1], module.STRIDE):
        out = step({"frames": frames[:, i : i + module.STRIDE], **states}, training=False)
        scores.append(out["scores"].numpy())
        states = {name: out[f"{name}_out"].numpy() for name in states}
    assert np.abs(np.concatenate(scores, axis=1) - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_whole_is_causal():
    module = load_architecture("ds_tc_resnet")
    whole, _ = build_whole(module.build, 40, 10, {"width": 8, "blocks": 2})
    frames = np.random.default_rng(1).standard_normal((1, 40, 40)).astype(np.float32)
    changed = frames.copy()
    changed[:, 30:] += 1
    before, after = whole(frames).numpy(), whole(changed).numpy()
    assert (before[:, :15] == after[:, :15]).all() and not (before[:, 15:] == after[:, 15:]).any(axis=2).all()


def test_an_architecture_may_lie_anywhere(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "STRIDE = 1\ndef build(net, x, n_labels):\n    return net.conv(x, n_labels, 3, 'label', bias=True)\n"
    )
    whole, _ = build_whole(load_architecture(str(path)).build, 40, 3, {})
    assert whole(np.zeros((1, 10, 40), np.float32)).shape == (1, 10, 3)


@pytest.mark.parametrize("name", ["ds_tc_resnets", "/nowhere/mine.py"])
def test_an_unknown_architecture_is_one_sentence(name):
    with pytest.raises(ConfigError, match="ds_tc_resnet"):
        load_architecture(name)
