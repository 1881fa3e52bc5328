"""python -m quantize.own MODEL --recipe RECIPE: the same proof, gate, report and bundle for a model of your own.

MODEL is a step model: `frames` [1, T, n] and a ring buffer `NAME_state` per layer with a past enter, `scores`
[1, T / stride, labels] and each `NAME_state_out` leave.

    .tflite       int8 as it is; one code of `frames` is worth 1/32, its zero point 0
    .keras, .h5   in float, of tf_keras; converted to int8 with the clips of --representative

Of the recipe the name, version, words, features, decision and budget count: the network and its training were yours.
What is measured is int8; a limit on the loss from float to int8 is "not measured". The bundle is written only if every
limit is kept; a `card.md` beside MODEL goes into it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.epochs import MODEL_SCALE, codes_of
from models.evaluate import evaluate_bundle, load_folder
from models.recipe import Recipe, load_recipe
from toolkit.arguments import Parser
from toolkit.bundle import load_bundle
from toolkit.errors import EdgeAudioError, UnsupportedError, VerificationError
from toolkit.flatbuffer import read_model
from toolkit.interpreter import INPUT, OUT_SUFFIX, OUTPUT, STATE_SUFFIX, StepModel
from toolkit.profile import load_profile
from toolkit.signature import read_private_key

from .__main__ import DEVELOPMENT_KEY, ROOT, SAMPLES, say
from .baseline import read_baseline
from .calibrate import representative_codes
from .convert import Converted, in_child, int8_model, macs_per_step
from .facts import NOT_HERE, arena_of, cost_of, facts_of
from .gate import Fact
from .micro import run_micro
from .op_versions import check_op_versions
from .pack import Packer
from .report import conclude, described, judge, write_report
from .verify import check_integer, lsb_histogram, run_everywhere

KERAS = (".keras", ".h5")
RUN_CLIPS = 16  # of the evaluation set, that every runtime computes
NOT_MEASURED = "of a model of your own only the int8 accuracy on --evaluation is measured"


def main(argv: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m quantize.own", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("model", type=Path, help="a step model: .tflite in int8, or .keras or .h5 in float")
    add("--recipe", type=Path, required=True, help="name, version, words, features, decision, budget")
    add("--representative", type=Path, default=SAMPLES / "calibration", help="folder of clips that set int8's ranges")
    add("--evaluation", type=Path, default=SAMPLES / "evaluation", help="folder of clips per label")
    add("--out", type=Path, help="folder of the result (default: build/quantize/NAME)")
    add("--profile", action="append", default=[], metavar="NAME|FILE", help="a device that it must fit; repeatable")
    add("--baseline", type=Path, help="baseline.json of the last release")
    add("--key", type=Path, default=DEVELOPMENT_KEY, help="private key that signs the bundle")
    try:
        arguments = parser.parse_args(argv)
        return prove(arguments)
    except EdgeAudioError as error:
        print(f"quantize: {error}", file=sys.stderr)
        return error.exit_code


def prove(arguments) -> int:
    """The stage, in the order of the flow."""
    recipe = load_recipe(arguments.recipe)
    out = arguments.out or ROOT / "build" / "quantize" / recipe.name
    profiles = [load_profile(name) for name in dict.fromkeys([*recipe.budget.profiles, *arguments.profile])]
    baseline = read_baseline(arguments.baseline, recipe.name) if arguments.baseline else None
    rate = recipe.features.sample_rate_hz
    waves, truth = load_folder(arguments.evaluation, recipe.labels, recipe.data.clip_s, rate)
    converted = read_own(arguments.model, recipe, arguments.representative)
    report, facts = measure_own(recipe, converted, arguments.model, waves, truth, out, arguments.key)
    lines = judge(recipe, profiles, baseline, report, facts, out)
    write_report(out, recipe, converted.model, report, facts)
    conclude(report, lines, say, ("bundle", "bundle_sha256", "model_bytes", "macs_per_second", "embedded"))
    return 0


def read_own(path: Path, recipe: Recipe, representative: Path) -> Converted:
    """The int8 step model in a .tflite, or made of a .keras or .h5, checked against the recipe.

    Raises UnsupportedError for a model of another form, VerificationError for one that is not full-integer or that
    TensorFlow does not convert.
    """
    if path.suffix not in (".tflite", *KERAS):
        raise UnsupportedError(f"{path} is no model; expected a .tflite in int8, or {' or '.join(KERAS)} in float.")
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UnsupportedError(f"{path} cannot be read: {error.strerror or error}.") from None
    if path.suffix in KERAS:
        say(f"converting {path}, calibrated on {representative}")
        codes = representative_codes(recipe, representative, is_dataset=False)
        model = in_child(_int8_of_keras, path, recipe.features.width, len(recipe.labels), codes)
    read_model(model)
    try:
        return in_child(_checked, path, model, recipe, doing="the runtime")
    except EdgeAudioError:
        raise
    except Exception as error:  # the runtime does not look at what it reads: it may even crash
        raise VerificationError(f"{path} is damaged: {_first_line(error)}.") from None


def _checked(path: Path, model: bytes, recipe: Recipe) -> Converted:
    step = check_integer(model)
    check_op_versions(model)
    try:
        StepModel(model, 2 * step.frames_per_step)
    except (UnsupportedError, VerificationError) as error:
        raise UnsupportedError(
            f"{path} takes no longer steps than it was made with, as every model here must ({str(error).rstrip('.')}); "
            "reshape with -1 in place of T, and keep the end of the past as z[:, -length:]."
        ) from None
    features, labels = recipe.features, recipe.labels
    if (step.input.shape[2], step.output.shape[2]) != (features.width, len(labels)):
        raise UnsupportedError(
            f"{path} turns {step.input.shape[2]} features into {step.output.shape[2]} scores, and the recipe has "
            f"{features.width} features and {len(labels)} labels: {', '.join(labels)}."
        )
    steps_per_second = features.sample_rate_hz / features.hop_length / step.frames_per_step
    return Converted(model, step.stride, round(macs_per_step(model) * steps_per_second))


def measure_own(
    recipe: Recipe, converted: Converted, source: Path, waves: np.ndarray, truth: np.ndarray, out: Path, key: Path
) -> tuple[dict, dict]:
    """(the report without a gate, the facts for the gate), as quantize/report.py measures them, without float figures.

    waves, truth: clips int16 [n, samples] and their classes [n]. Writes the bundle beside the report, as NAME.new.eab.
    """
    model, features = converted.model, recipe.features
    say("comparing step with whole in every runtime")
    few = waves[:: max(1, len(waves) // RUN_CLIPS)]
    codes = codes_of(few, features, recipe.decision.flush_frames * features.hop_length)
    runs = run_everywhere(model, codes)
    others = [*runs[1:], *filter(None, [run_micro(model, codes)])]
    say("measuring accuracy and cost")
    card = source.with_name("card.md")
    card = card.read_text("utf-8", "replace") if card.exists() else f"# {recipe.name} {recipe.version}\n"
    packer, path = Packer(recipe, read_private_key(key), [], card, {}), out / f"{recipe.name}.new.eab"
    bundle, arena = packer.pack(path, converted, source), arena_of(model, codes[:2])
    result = evaluate_bundle(bundle, waves, truth)
    figures = {**result.to_dict(), "confusion": result.confusion.tolist()}
    parity = {other.runtime: lsb_histogram(runs[0], other) for other in others}
    report = described(recipe, converted, bundle, [run.runtime for run in runs], parity) | {
        "embedded": {"int8": figures, "labels": list(recipe.labels)},
        "report": None,
        "bundle_sha256": bundle.sha256,
        "bundle_bytes": path.stat().st_size,
        "arena": arena.to_dict(),
        "block": cost_of(bundle, load_bundle(recipe.budget.cost_reference)),
    }
    return report, facts_of(report, bundle, arena, {}) | {name: Fact(None, NOT_MEASURED) for name in NOT_HERE}


def _int8_of_keras(path: Path, width: int, labels: int, codes: np.ndarray) -> bytes:
    """In a process of its own: the flatbuffer of a float step model, calibrated on int8 codes [n, T, width]."""
    from models.layers import keras

    try:
        loaded = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever Keras makes of a file that it does not know
        raise UnsupportedError(f"tf_keras cannot load {path}: {_first_line(error)}.") from None
    entering = {tensor.name: tensor for tensor in getattr(loaded, "inputs", None) or []}
    leaving = getattr(loaded, "output", None) if entering else {}
    if not isinstance(leaving, dict):
        leaving = dict(zip(loaded.output_names or [], loaded.outputs or []))
    if not _is_step(entering, leaving, width, labels):
        raise UnsupportedError(
            f"{path} turns {_shapes(entering)} into {_shapes(leaving)}; a step model turns frames [1, T, {width}] "
            f"and each NAME_state [1, ...] into scores [1, T / stride, {labels}] and NAME_state_out."
        )
    step = keras.Model(entering, leaving, name="step")
    try:
        return int8_model(step, lambda: _representative(step, codes))
    except Exception as error:  # the converter has many kinds of them
        raise VerificationError(f"TensorFlow does not convert {path} to int8: {_first_line(error)}.") from None


def _is_step(entering: dict, leaving: dict, width: int, labels: int) -> bool:
    """Whether the named Keras tensors are those of a step model."""
    sides = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (entering, leaving)]
    if any(None in shape or shape[:1] != (1,) for side in sides for shape in side.values()):
        return False
    frames, scores = sides[0].pop(INPUT, ()), sides[1].pop(OUTPUT, ())
    return (
        len(frames) == len(scores) == 3
        and (frames[2], scores[2]) == (width, labels)
        and frames[1] % scores[1] == 0
        and all(name.endswith(STATE_SUFFIX) for name in sides[0])
        and sides[1] == {name + OUT_SUFFIX: shape for name, shape in sides[0].items()}
    )


def _shapes(tensors: dict) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"


def _representative(step, codes: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the step model over clips of int8 codes, each from the reset state, as the float model goes on."""
    from models.layers import tf

    run = tf.function(lambda inputs: step(inputs, training=False))
    zero = {t.name: np.zeros(t.shape, np.float32) for t in step.inputs if t.name != INPUT}
    _, n, width = next(t.shape for t in step.inputs if t.name == INPUT)
    clips = codes.astype(np.float32) * MODEL_SCALE
    for code in (-128, 127):  # the input's range is that of int8 itself, so that its scale is exactly MODEL_SCALE
        extreme = clips[:1, :n].copy()
        extreme[:, 0, _least_heard(step, width)] = code * MODEL_SCALE
        yield {INPUT: extreme, **zero}
    for clip in clips:
        states = zero
        for i in range(0, len(clip) - n + 1, n):
            inputs = {INPUT: clip[None, i : i + n], **states}
            yield inputs
            outputs = run(inputs)
            states = {name: outputs[name + OUT_SUFFIX].numpy() for name in zero}


def _least_heard(step, width: int) -> int:
    """The feature that the first layer weighs least, where it has a weight for each; else the first."""
    kernel = next((layer.weights[0].numpy() for layer in step.layers if layer.weights), np.zeros(0))
    if kernel.ndim < 2 or kernel.shape[-2] != width:
        return 0
    return int(np.abs(kernel).sum(axis=tuple(i for i in range(kernel.ndim) if i != kernel.ndim - 2)).argmin())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
