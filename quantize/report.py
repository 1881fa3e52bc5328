"""What the int8 model costs and what it still knows: measured, judged by the gate, and written down."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.compare import paired_bootstrap
from models.data import Dataset, load_dataset
from models.decide import predictions
from models.epochs import codes_of
from models.evaluate import Result, accuracy_entry, evaluate_stream, load_folder, predict, result_of
from models.recipe import Recipe
from models.waves import load_waves
from toolkit.bundle import Bundle, load_bundle
from toolkit.config import dump_config
from toolkit.errors import BudgetError
from toolkit.profile import DeviceProfile

from .baseline import Baseline, write_baseline
from .convert import Converted, float_scores
from .facts import arena_of, cost_of, facts_of
from .gate import Fact, Line, allowed, breaches, gate, sentence, shown
from .html import page
from .markdown import markdown
from .pack import Packer


@dataclass(frozen=True)
class Evaluation:
    """The clips that accuracy is measured on."""

    waves: np.ndarray  # int16 [n, samples], of a folder per label
    truth: np.ndarray  # their classes [n]
    dataset: Dataset | None  # of which the split report is measured too

    @staticmethod
    def of(recipe: Recipe, arguments) -> Evaluation:
        """Those of --evaluation and --data. Raises DataError, and AudioFileError, for a label without clips: read it
        before anything is computed."""
        rate = recipe.features.sample_rate_hz
        waves, truth = load_folder(arguments.evaluation, recipe.labels, recipe.data.clip_s, rate)
        return Evaluation(waves, truth, load_dataset(arguments.data, recipe.data, rate) if arguments.data else None)


def measure(
    packer: Packer,
    converted: Converted,
    weights: Path,
    codes: np.ndarray,
    evaluation: Evaluation,
    out: Path,
    parity: dict[str, dict[int, int]],
    runtimes: list[str],
) -> tuple[dict, dict[str, Fact]]:
    """(the report without a gate, the facts for the gate). codes: int8 [n, T, width] of representative clips; parity:
    per further runtime {difference in LSB: scores}. Writes the bundle beside the report, as NAME.new.eab."""
    recipe, model, path = packer.recipe, converted.model, out / f"{packer.recipe.name}.new.eab"
    bundle = packer.pack(path, converted, weights)
    embedded, _ = _float_and_int8(recipe, weights, converted.stride, bundle, evaluation.waves, evaluation.truth)
    report = described(recipe, converted, bundle, runtimes, parity) | {"embedded": embedded, "report": None}
    if evaluation.dataset:
        dataset, rate = evaluation.dataset, recipe.features.sample_rate_hz
        clips = dataset.clips("report")
        waves, truth = load_waves(clips, recipe.data.clip_s, rate), dataset.classes(clips)
        report["report"], result = _float_and_int8(recipe, weights, converted.stride, bundle, waves, truth)
        report["stream"] = evaluate_stream(bundle, dataset, "report")
        figures = [accuracy_entry(result, recipe, dataset.root.name, "report")]
        report["accuracy"] = {"model_sha256": report["model_sha256"], "figures": figures}
        bundle = packer.pack(path, converted, weights, figures=figures)
    arena = arena_of(model, codes[:2])
    known = packer.known if packer.known.get("model_sha256") == report["model_sha256"] else {}
    report |= {"bundle_sha256": bundle.sha256, "bundle_bytes": path.stat().st_size, "arena": arena.to_dict()}
    report["block"] = cost_of(bundle, load_bundle(recipe.budget.cost_reference))
    return report, facts_of(report, bundle, arena, known)


def described(recipe: Recipe, converted: Converted, bundle: Bundle, runtimes: list[str], parity: dict) -> dict:
    """What a report says of any model before anything is measured on clips."""
    model = converted.model
    return {
        "name": recipe.name,
        "version": recipe.version,
        "model_bytes": len(model),
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "compressed_bytes": len(zlib.compress(model, 9)),
        "macs_per_second": converted.macs_per_second,
        "ops": list(bundle.manifest.model.ops),
        "runtimes": runtimes,
        "parity_lsb": parity,
    }


def judge(
    recipe: Recipe, profiles: Sequence[DeviceProfile], baseline: Baseline | None, report: dict, facts: dict, out: Path
) -> list[Line]:
    """The gate's lines; adds them, the facts, the verdict, the sentence and the bundle's path to the report."""
    lines = gate(recipe, profiles, baseline, facts)
    report["measured"] = {name: asdict(fact) for name, fact in facts.items()}
    report["profiles"] = [asdict(profile) for profile in profiles]
    report["baseline"] = baseline and asdict(baseline)
    report["gate"] = [asdict(line) for line in lines]
    passed = not breaches(lines)
    report["verdict"] = "pass" if passed else "fail"
    report["sentence"] = None if passed else f"{sentence(lines)}; the report is {out / 'report.html'}."
    report["bundle"] = str(out / f"{recipe.name}.eab") if passed else None
    return lines


def write_report(out: Path, recipe: Recipe, model: bytes, report: dict, facts: dict[str, Fact]) -> None:
    """report.json, report.md, report.html, baseline.json, recipe.yaml, model.tflite; the bundle gets its name only if
    the gate is passed."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(markdown(report), "utf-8")
    (out / "report.html").write_text(page(report), "utf-8")
    (out / "recipe.yaml").write_text(dump_config(recipe))
    (out / "model.tflite").write_bytes(model)
    write_baseline(out / "baseline.json", recipe.name, recipe.version, report["model_sha256"], facts)
    new = out / f"{recipe.name}.new.eab"
    if report["verdict"] == "pass":
        new.replace(out / f"{recipe.name}.eab")
    else:
        new.unlink()


def conclude(report: dict, lines: Sequence[Line], say: Callable[[str], None], keys: Sequence[str]) -> None:
    """Says every line of the gate; prints the result of a gate that is passed, else raises BudgetError."""
    for line in lines:
        measured, limit = shown(line.name, line.measured), allowed(line.name, line.limit)
        say(f"{line.verdict:12} {line.title}: {measured} ({limit}, {line.source})")
    if report["sentence"]:
        raise BudgetError(report["sentence"])
    print(json.dumps({key: report[key] for key in keys}))


def _float_and_int8(
    recipe: Recipe, weights: Path, stride: int, bundle: Bundle, waves: np.ndarray, truth: np.ndarray
) -> tuple[dict, Result]:
    """(accuracy of both, and the loss with its interval; the result of int8)."""
    codes = codes_of(waves, recipe.features, recipe.decision.flush_frames * recipe.features.hop_length)
    in_float = predictions(float_scores(recipe, weights, codes), recipe, stride)
    int8 = predict(bundle, waves)
    loss = paired_bootstrap((in_float == truth)[None], (int8 == truth)[None])
    results = {"float": result_of(recipe.labels, truth, in_float), "int8": result_of(recipe.labels, truth, int8)}
    compared = {name: {**r.to_dict(), "confusion": r.confusion.tolist()} for name, r in results.items()}
    compared["loss"] = dict(zip(("value", "low", "high"), (round(v, 4) for v in loss)))
    return compared | {"labels": list(recipe.labels)}, results["int8"]
