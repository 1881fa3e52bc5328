"""From a verified int8 model to a signed bundle that carries its own acceptance test."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from models.decide import decision_of
from models.epochs import requantization
from models.recipe import Recipe
from models.waves import read_wave
from toolkit import manifest as m
from toolkit.bundle import Bundle, write_bundle
from toolkit.config import dump_config
from toolkit.features import FrontEnd, front_end_id, make_tables
from toolkit.interpreter import StepModel
from toolkit.signature import PrivateKey

from .convert import Converted
from .verify import MAX_LSB, run_everywhere

SELFTEST_S = 6.0
TOOLS = ("tensorflow", "tf-keras", "tflite-runtime", "ai-edge-litert", "numpy")


def pack(
    path: Path,
    recipe: Recipe,
    converted: Converted,
    weights: Path,
    selftest: Path,
    accuracy: list[dict],
    licences: list[dict],
    card: str,
    key: PrivateKey | None,
) -> Bundle:
    """Writes the bundle and returns it, loaded and checked. selftest: a recording, of which SELFTEST_S are used."""
    model, features, step = converted.model, recipe.features, StepModel(converted.model)
    tables = make_tables(features)
    quantize = requantization(features)
    samples = read_wave(selftest, features.sample_rate_hz)[: int(SELFTEST_S * features.sample_rate_hz)]
    expected_features = FrontEnd(tables).process(samples)
    codes = quantize.apply(expected_features)
    results = run_everywhere(model, codes[None])
    described = m.Model(
        frames_per_step=step.frames_per_step,
        input=_tensor(step.input),
        output=_tensor(step.output),
        states=tuple(m.State(a.name, b.name, a.shape, a.scale, a.zero_point) for a, b in step.states),
        requantize=m.Requantize(**asdict(quantize)),
        ops=step.ops(),
        size_bytes=len(model),
        arena_bytes=None,
        macs_per_second=converted.macs_per_second,
    )
    document = m.Manifest(
        task=recipe.task,
        name=recipe.name,
        version=recipe.version,
        front_end=m.FrontEnd(front_end_id(features, tables), asdict(features)),
        labels=recipe.labels,
        tap="raw",
        decision=decision_of(recipe, converted.stride),
        model=described,
        accuracy=tuple(m.Accuracy(**{**entry, "seeds": tuple(entry["seeds"])}) for entry in accuracy),
        data_licences=tuple(m.DataLicence(**entry) for entry in licences),
        tools=_tools(),
        created_from=m.CreatedFrom(_sha256(dump_config(recipe).encode()), _sha256(weights.read_bytes())),
        selftest=m.Selftest(tuple(r.runtime for r in results), MAX_LSB),
    )
    members = {
        "model": ("model.tflite", model),
        "tables": ("tables.bin", tables.blob),
        "selftest_input": ("selftest_input.s16le", samples.astype("<i2").tobytes()),
        "selftest_features": ("selftest_features.s16le", expected_features.astype("<i2").tobytes()),
        "card": ("card.md", card.encode()),
    }
    for result in results:
        members[m.SCORES_ROLE + result.runtime] = (f"selftest_scores.{result.runtime}.s8", result.scores[0].tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_bundle(path, document, members, key)


def _tensor(info) -> m.Tensor:
    return m.Tensor(info.name, info.shape, info.scale, info.zero_point)


def _tools() -> dict[str, str]:
    found = {}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
