"""What the int8 model costs and what it still knows: figures, budgets, bundle, and the report of all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.decide import predictions
from models.epochs import codes_of
from models.evaluate import Result, accuracy_entry, evaluate_bundle, evaluate_stream, load_folder, result_of
from models.recipe import Recipe
from models.waves import load_waves
from toolkit.config import dump_config

from .convert import Converted, float_scores
from .pack import Packer


def measure(
    recipe: Recipe, converted: Converted, weights: Path, arguments, zoo: Path, parity: dict, runtimes: list[str]
) -> dict:
    """Everything that the gate and the report need; writes the bundle beside them (under its final name only if the
    gate lets it, see write_report)."""
    rate, out = recipe.features.sample_rate_hz, arguments.out or Path("build/quantize") / recipe.name
    model, macs = converted.model, converted.macs_per_second
    packer, path = Packer.of(recipe, zoo, arguments.key), out / f"{recipe.name}.new.eab"
    bundle = packer.pack(path, converted, weights)
    waves, truth = load_folder(arguments.evaluation, recipe.labels, recipe.data.clip_s, rate)
    report = {
        "name": recipe.name,
        "model_bytes": len(model),
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "macs_per_second": macs,
        "ops": list(bundle.manifest.model.ops),
        "runtimes": runtimes,
        "parity_lsb": parity,
        "embedded": _float_and_int8(recipe, weights, converted.stride, bundle, waves, truth),
        "report": None,
    }
    if arguments.data:
        dataset = load_dataset(arguments.data, recipe.data, rate)
        clips = dataset.clips("report")
        waves = load_waves(clips, recipe.data.clip_s, rate)
        report["report"] = _float_and_int8(recipe, weights, converted.stride, bundle, waves, dataset.classes(clips))
        report["stream"] = evaluate_stream(bundle, dataset, "report")
        result = evaluate_bundle(bundle, waves, dataset.classes(clips))
        known = [accuracy_entry(result, recipe, arguments.data.name, "report")]
        report["accuracy"] = {"model_sha256": report["model_sha256"], "figures": known}
        bundle = packer.pack(path, converted, weights, figures=known)
    report["bundle_sha256"] = bundle.sha256
    report["gate"] = gate(recipe, report)
    return report


def gate(recipe: Recipe, report: dict) -> list[dict]:
    """One line per limit of the recipe: {limit_name, limit, measured, verdict}."""
    budget, measured = recipe.budget, report["report"]
    lines = [
        ("model_bytes", budget.model_bytes, report["model_bytes"], 1),
        ("macs_per_second", budget.macs_per_second, report["macs_per_second"], 1),
        ("accuracy on embedded", budget.embedded_accuracy_floor, report["embedded"]["int8"]["accuracy"], -1),
    ]
    if measured:
        loss = round(measured["float"]["accuracy"] - measured["int8"]["accuracy"], 4)
        lines.append(("loss of accuracy by int8 on report", budget.max_accuracy_loss, loss, 1))
        lines.append(("accuracy on report", budget.accuracy_floor, measured["int8"]["accuracy"], -1))
    return [
        {
            "limit_name": name,
            "limit": limit,
            "measured": value,
            "verdict": "ok" if (limit - value) * sign >= 0 else "FAIL",
        }
        for name, limit, value, sign in lines
        if limit is not None
    ]


def write_report(out: Path, recipe: Recipe, model: bytes, report: dict) -> None:
    """report.json, report.md, recipe.yaml, model.tflite; the bundle gets its name only if the gate is passed."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "recipe.yaml").write_text(dump_config(recipe))
    (out / "model.tflite").write_bytes(model)
    lines = [
        f"# {recipe.name} {recipe.version}",
        "",
        f"{report['model_bytes']} bytes, {report['macs_per_second']} MAC per second of audio.",
        "",
    ]
    lines += ["| set | float | int8 step | clips |", "|---|---|---|---|"]
    for name in ("embedded", "report"):
        if report[name]:
            f, q = report[name]["float"], report[name]["int8"]
            interval = f"{q['low']:.2%} to {q['high']:.2%}"
            lines.append(f"| {name} | {f['accuracy']:.2%} | {q['accuracy']:.2%} ({interval}) | {q['clips']} |")
    lines += ["", "| limit | allowed | measured | verdict |", "|---|---|---|---|"]
    lines += [f"| {g['limit_name']} | {g['limit']} | {g['measured']} | {g['verdict']} |" for g in report["gate"]]
    lines += [
        "",
        f"step = resized whole exactly in {', '.join(report['runtimes'])}; "
        f"difference of the runtimes in LSB: {report['parity_lsb']}",
    ]
    (out / "report.md").write_text("\n".join(lines) + "\n")
    new = out / f"{recipe.name}.new.eab"
    if all(line["verdict"] == "ok" for line in report["gate"]):
        new.replace(out / f"{recipe.name}.eab")
    else:
        new.unlink()


def _float_and_int8(recipe: Recipe, weights: Path, stride: int, bundle, waves: np.ndarray, truth: np.ndarray) -> dict:
    codes = codes_of(waves, recipe.features, recipe.decision.flush_frames * recipe.features.hop_length)
    predicted = predictions(float_scores(recipe, weights, codes), recipe, stride)
    in_float: Result = result_of(recipe.labels, truth, predicted)
    return {"float": in_float.to_dict(), "int8": evaluate_bundle(bundle, waves, truth).to_dict()}
