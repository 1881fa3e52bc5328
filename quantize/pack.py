"""From a verified int8 model to a signed bundle that carries its own acceptance test."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
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
from toolkit.signature import PrivateKey, read_private_key

from .__main__ import DEVELOPMENT_KEY, SAMPLES
from .convert import Converted
from .verify import MAX_LSB, run_everywhere

SELFTEST_S = 6.0  # of the sample scene
TOOLS = ("tensorflow", "tf-keras", "tflite-runtime", "ai-edge-litert", "numpy")


@dataclass(frozen=True)
class Packer:
    """What all bundles of one recipe have in common."""

    recipe: Recipe
    key: PrivateKey | None
    licences: list[dict]
    card: str
    known: dict  # what a release measured (quantize/release.py); holds for one flatbuffer only

    @staticmethod
    def of(recipe: Recipe, zoo: Path, key: Path | None = DEVELOPMENT_KEY) -> Packer:
        """With what the folder models/zoo/NAME holds, if anything. Raises SignatureError."""

        def read(name: str, nothing):
            path = zoo / name
            return (
                (json.loads(path.read_text()) if path.suffix == ".json" else path.read_text())
                if path.exists()
                else nothing
            )

        card = read("card.md", f"# {recipe.name} {recipe.version}\n")
        private = read_private_key(key) if key else None
        return Packer(recipe, private, read("licences.json", []), card, read("accuracy.json", {}))

    def pack(
        self,
        path: Path,
        converted: Converted,
        weights: Path,
        decision: m.Decision | None = None,
        figures: list[dict] | None = None,
    ) -> Bundle:
        """Writes the bundle and returns it, loaded and checked. decision, figures: None takes those that a release
        measured for this flatbuffer, else the recipe's decision and no figures."""
        recipe, model, step = self.recipe, converted.model, StepModel(converted.model)
        known = self.known if self.known.get("model_sha256") == _sha256(model) else {}
        if decision is None:
            decision = m.Decision(**known["decision"]) if known else decision_of(recipe, converted.stride)
        features, tables, quantize = recipe.features, make_tables(recipe.features), requantization(recipe.features)
        samples = read_wave(SAMPLES / "scene.wav", features.sample_rate_hz)[: int(SELFTEST_S * features.sample_rate_hz)]
        expected_features = FrontEnd(tables).process(samples)
        results = run_everywhere(model, quantize.apply(expected_features)[None])
        described = m.Model(
            frames_per_step=step.frames_per_step,
            input=_tensor(step.input),
            output=_tensor(step.output),
            states=tuple(m.State(a.name, b.name, a.shape, a.scale, a.zero_point) for a, b in step.states),
            requantize=m.Requantize(**asdict(quantize)),
            ops=step.ops(),
            size_bytes=len(model),
            arena_bytes=known["details"]["arena"]["arena_bytes"] if known else None,
            macs_per_second=converted.macs_per_second,
        )
        document = m.Manifest(
            task=recipe.task,
            name=recipe.name,
            version=recipe.version,
            front_end=m.FrontEnd(front_end_id(features, tables), asdict(features)),
            labels=recipe.labels,
            tap="raw",
            decision=decision,
            model=described,
            accuracy=tuple(
                m.Accuracy(**{**entry, "seeds": tuple(entry["seeds"])})
                for entry in (known.get("figures", []) if figures is None else figures)
            ),
            data_licences=tuple(m.DataLicence(**entry) for entry in self.licences),
            tools=_tools(),
            created_from=m.CreatedFrom(_sha256(dump_config(recipe).encode()), _sha256(weights.read_bytes())),
            selftest=m.Selftest(tuple(r.runtime for r in results), MAX_LSB),
        )
        members = {
            "model": ("model.tflite", model),
            "tables": ("tables.bin", tables.blob),
            "selftest_input": ("selftest_input.s16le", samples.astype("<i2").tobytes()),
            "selftest_features": ("selftest_features.s16le", expected_features.astype("<i2").tobytes()),
            "card": ("card.md", self.card.encode()),
        }
        for result in results:
            members[m.SCORES_ROLE + result.runtime] = (
                f"selftest_scores.{result.runtime}.s8",
                result.scores[0].tobytes(),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_bundle(path, document, members, self.key)


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
