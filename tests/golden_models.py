"""Small int8 step models of every architecture, with random weights: `python tests/golden_models.py [NAME]` writes
tests/golden/NAME.tflite anew. It needs TensorFlow (requirements-host.txt); the tests that read them do not.

They are as the converter makes them of models/architectures/, without names (quantize/slim.py), and so narrow that they
stay below 20 kB. Not what is recognized matters here, but that every runtime computes the same integers of it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "golden"
LABELS, CLIPS, FRAMES = 10, 2, 64
MODELS = {  # name: (features, parameters)
    "ds_tc_resnet": (40, {"width": 24, "blocks": 3, "front": 4}),
    "ds_cnn": (10, {"width": 24, "blocks": 2}),
    "bc_resnet": (24, {"scale": 0.75}),
}
STAGES = ((8, 1, 1, 3), (12, 2, 2, 3), (16, 1, 2, 5))  # of bc_resnet: a third of its blocks, each kind of them


def main(names: list[str]) -> None:
    for name in names or MODELS:
        data = make(name, *MODELS[name])
        (FOLDER / f"{name}.tflite").write_bytes(data)
        print(f"{name}.tflite {len(data)} bytes", file=sys.stderr)


def make(name: str, n_features: int, parameters: dict) -> bytes:
    """The step model of an architecture, calibrated on random clips from the reset state."""
    sys.path.insert(0, str(ROOT))
    from models.layers import build_step, build_whole, tf
    from quantize.convert import int8_model

    random = np.random.default_rng(1)
    architecture = importlib.import_module(f"models.architectures.{name}")
    if name == "bc_resnet":
        architecture.STAGES = STAGES
    whole, net = build_whole(architecture.build, n_features, LABELS, parameters)
    for layer in net.layers.values():
        for weight in layer.weights:
            weight.assign(random_weight(random, weight.name, weight.shape))
    step = build_step(architecture.build, n_features, LABELS, parameters, architecture.STRIDE, net.layers)
    run = tf.function(lambda inputs: step(inputs, training=False))
    clips = random.normal(0, 1, (CLIPS, FRAMES, n_features)).astype(np.float32)

    def representative_dataset():
        for clip in clips:
            states = {t.name: np.zeros(t.shape, np.float32) for t in step.inputs if t.name != "frames"}
            for i in range(0, FRAMES, architecture.STRIDE):
                inputs = {"frames": clip[None, i : i + architecture.STRIDE], **states}
                yield inputs
                outputs = run(inputs)
                states = {key: outputs[f"{key}_out"].numpy() for key in states}

    return int8_model(step, representative_dataset)


def random_weight(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Such that signals keep their size from layer to layer, and every channel has a scale of its own."""
    if "kernel" in name:
        taps = np.prod(shape[:2]) if "depthwise" in name else np.prod(shape[:3])
        return random.normal(0, 1.5 / np.sqrt(taps), shape)
    if "variance" in name or "gamma" in name:
        return random.uniform(0.5, 1.5, shape)
    return random.normal(0, 0.2, shape)


if __name__ == "__main__":
    main(sys.argv[1:])
