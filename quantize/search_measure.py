"""What a trained trial of a search costs, and its accuracy on tune: by the bits of its numbers.

    8     the int8 model, as it ships
    4     the int8 model whose kernels share 16 values each (quantize/cluster.py): its operations, time and memory are
          those of 8, and it is stored in fewer bytes where it is stored compressed
    16    int16 activations and the same int8 weights (quantize/int16.py): what int8 loses by its activations
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.decide import predictions
from models.epochs import codes_of
from models.evaluate import evaluate_bundle, result_of
from models.recipe import Recipe
from models.waves import load_waves
from toolkit.config import dump_config
from toolkit.features import make_tables
from toolkit.flatbuffer import read_model
from toolkit.interpreter import INPUT, OUTPUT

from .calibrate import representative_codes
from .cluster import share_weights
from .convert import convert, int16_model, macs_per_step
from .facts import arena_of, memory_of
from .int16 import scores_of
from .pack import Packer
from .search_space import SHARED, SHIPPED, WIDE
from .verify import check_integer

MEASURED = ("accuracy", "low", "high", "clips")


def measure(recipe: Recipe, data: Path, folder: Path, weights: Path) -> dict:
    """MEASURED and facts of the int8 model; writes its bundle, model.eab. Raises VerificationError."""
    codes = representative_codes(recipe, data, is_dataset=True)
    converted = convert(recipe, weights, codes)
    check_integer(converted.model)
    bundle = Packer.of(recipe, folder).pack(folder / "model.eab", converted, weights)
    result, model = evaluate_bundle(bundle, *_tune(recipe, data)).to_dict(), converted.model
    facts = _facts(recipe, model) | {
        "macs_per_second": converted.macs_per_second,
        "bundle_bytes": (folder / "model.eab").stat().st_size,
        "arena_bytes": arena_of(model, codes[:2]).bytes,
    }
    return {key: result[key] for key in MEASURED} | {"facts": facts}


def measure_shared(recipe: Recipe, data: Path, folder: Path, weights: Path) -> dict:
    """As measure, with weights.npz of shared values, and the recipe with which quantize.qat trains them further."""
    count = 2**SHARED
    share_weights(weights, folder / "weights.npz", count)
    recipe = replace(recipe, quantize=replace(recipe.quantize, clusters=count))
    (folder / "recipe.yaml").write_text(dump_config(recipe))
    return measure(recipe, data, folder, folder / "weights.npz")


def measure_wide(recipe: Recipe, data: Path, folder: Path, weights: Path) -> dict:
    """As measure, of model.tflite with int16 activations; no bundle holds one, and its arena is not measured."""
    model = int16_model(recipe, weights, representative_codes(recipe, data, is_dataset=True))
    (folder / "model.tflite").write_bytes(model)
    graph, (waves, truth) = read_model(model), _tune(recipe, data)
    frames, scores = (graph.tensors[i].shape[1] for i in (graph.inputs[INPUT], graph.outputs[OUTPUT]))
    stride = frames // scores
    codes = codes_of(waves, recipe.features, recipe.decision.flush_frames * recipe.features.hop_length)
    predicted = predictions(scores_of(model, codes[:, : codes.shape[1] // stride * stride]), recipe, stride)
    result = result_of(recipe.labels, truth, predicted).to_dict()
    steps_per_second = recipe.features.sample_rate_hz / recipe.features.hop_length / frames
    facts = _facts(recipe, model) | {"macs_per_second": round(macs_per_step(model) * steps_per_second)}
    return {key: result[key] for key in MEASURED} | {"facts": facts}


MEASURES = {SHIPPED: measure, SHARED: measure_shared, WIDE: measure_wide}


def _facts(recipe: Recipe, model: bytes) -> dict:
    """Those that the flatbuffer alone decides."""
    return {
        "model_bytes": len(model),
        "compressed_bytes": len(zlib.compress(model, 9)),
        "firmware_bytes": len(model) + len(make_tables(recipe.features).blob),
        "memory_bytes": memory_of(model),
        "ops": sorted({op.name for op in read_model(model).operators}),
    }


def _tune(recipe: Recipe, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """(clips int16 [n, samples], their classes [n]) of the split tune."""
    dataset = load_dataset(data, recipe.data, recipe.features.sample_rate_hz)
    clips = dataset.clips("tune")
    return load_waves(clips, recipe.data.clip_s, recipe.features.sample_rate_hz), dataset.classes(clips)
