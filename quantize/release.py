"""python -m quantize.release RECIPE --data DIR [--runs RUN...] --negatives-tune DIR... --negatives-report DIR...

From trainings of several seeds to the released bundle:

    runs -> int8, measured on tune and report
         -> the best on the streams of tune, and its threshold, from their detection-error trade-off
         -> what is published, on report: accuracy, loss by int8, conditions, streams, cost

Without --runs the weights stay, and the threshold is chosen and measured anew: on more hours, or other voices.

Writes models/zoo/NAME (weights.npz, accuracy.json, baseline.json, card.md, det.png) and toolkit/bundles/NAME.eab; `make
quantize` then reproduces that bundle without the data set.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from models.data import load_dataset
from models.recipe import load_recipe
from toolkit.arguments import Parser
from toolkit.errors import ConfigError, EdgeAudioError

from .__main__ import ROOT, SAMPLES, say
from .baseline import write_baseline
from .calibrate import representative_codes
from .card import make_card
from .convert import Converted, convert
from .facts import facts_of_release
from .figures import (
    check_release,
    choose_on_streams,
    measure_cost,
    measure_runs,
    measure_streams,
    publish,
    tune_target,
)
from .negatives import check_apart
from .pack import Packer
from .ranges import FILE as RANGES


def release(recipe, data: Path, runs: list[Path], negatives: dict[str, list[Path]]) -> dict:
    """Writes the release; returns what accuracy.json holds. negatives: folders of keyword-free audio by split, of which
    no recording may be in both. Raises BudgetError before anything is written."""
    zoo = ROOT / "models" / "zoo" / recipe.name
    dataset = load_dataset(data, recipe.data, recipe.features.sample_rate_hz)
    check_apart(negatives["tune"], negatives["report"])
    calibration = representative_codes(recipe, SAMPLES / "calibration", is_dataset=False)
    packer = Packer.of(recipe, zoo)
    with tempfile.TemporaryDirectory() as folder:
        scratch, png = Path(folder) / f"{recipe.name}.eab", Path(folder) / "det.png"
        tried = measure_runs(recipe, dataset, runs, calibration, lambda c, w: packer.pack(scratch, c, w))
        bundles = [packer.pack(scratch, t.converted, t.run / "weights.npz") for t in tried]
        number, decision, on_tune = choose_on_streams(recipe, bundles, dataset, negatives["tune"])
        best, weights = tried[number], tried[number].run / "weights.npz"
        say(f"seed {best.seed} misses fewest on the streams of tune; what is published of it")
        bundle = packer.pack(scratch, best.converted, weights, decision)
        streams = _streams(recipe, bundle, dataset, negatives, on_tune, png)
        figures, details = publish(recipe, dataset, tried, best, bundle)
        details |= {"streams": streams, **measure_cost(bundle, best.converted, calibration)}
        known = {
            "model_sha256": hashlib.sha256(best.converted.model).hexdigest(),
            "decision": dataclasses.asdict(decision),
            "figures": figures,
            "details": details,
        }
        check_release(recipe, known)
        zoo.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, zoo / "weights.npz")
        if recipe.quantize.method == "aware":
            shutil.copyfile(weights.with_name(RANGES), zoo / RANGES)
        shutil.copyfile(png, zoo / "det.png")
    _write(recipe, packer, best.converted, known)
    return known


def decide_again(recipe, data: Path, negatives: dict[str, list[Path]]) -> dict:
    """The released weights with a threshold, hold and window that are chosen anew, on these streams of tune, and what
    they give on those of report. What does not depend on them, the accuracy of clips, stays as it was measured. As
    release in all else; raises ConfigError where the weights are not those that were released."""
    zoo = ROOT / "models" / "zoo" / recipe.name
    dataset = load_dataset(data, recipe.data, recipe.features.sample_rate_hz)
    check_apart(negatives["tune"], negatives["report"])
    packer, weights = Packer.of(recipe, zoo), zoo / "weights.npz"
    if not packer.known:
        raise ConfigError(f"{recipe.name} has not been released yet: name its trainings with --runs.")
    converted = convert(recipe, weights, representative_codes(recipe, SAMPLES / "calibration", is_dataset=False))
    if packer.known.get("model_sha256") != hashlib.sha256(converted.model).hexdigest():
        raise ConfigError(
            f"{weights} does not give the model that {zoo / 'accuracy.json'} is about: name its trainings with --runs."
        )
    with tempfile.TemporaryDirectory() as folder:
        scratch, png = Path(folder) / f"{recipe.name}.eab", Path(folder) / "det.png"
        bundle = packer.pack(scratch, converted, weights)
        _, decision, on_tune = choose_on_streams(recipe, [bundle], dataset, negatives["tune"])
        bundle = packer.pack(scratch, converted, weights, decision)
        streams = _streams(recipe, bundle, dataset, negatives, on_tune, png)
        known = {
            **packer.known,
            "decision": dataclasses.asdict(decision),
            "details": packer.known["details"] | {"streams": streams},
        }
        check_release(recipe, known)
        shutil.copyfile(png, zoo / "det.png")
    _write(recipe, packer, converted, known)
    return known


def _streams(recipe, bundle, dataset, negatives: dict[str, list[Path]], on_tune: list[dict], png: Path) -> dict:
    """What accuracy.json says of the streams; draws the trade-off on report."""
    targets = {"target_fa_per_hour": recipe.budget.false_accepts_per_hour, "chosen_for": tune_target(recipe)}
    names = {split: ["/".join(folder.parts[-2:]) for folder in folders] for split, folders in negatives.items()}
    on_report = measure_streams(recipe, bundle, dataset, negatives["report"], bundle.manifest.decision, png)
    return {**targets, "tune": on_tune, **on_report, "negatives": names}


def _write(recipe, packer: Packer, converted: Converted, known: dict) -> None:
    """accuracy.json, baseline.json, card.md and the bundle, beside the weights that are in the zoo."""
    zoo = ROOT / "models" / "zoo" / recipe.name
    (zoo / "accuracy.json").write_text(json.dumps(known, indent=1) + "\n")
    facts = facts_of_release(known)
    write_baseline(zoo / "baseline.json", recipe.name, recipe.version, known["model_sha256"], facts)
    (zoo / "card.md").write_text(make_card(recipe, (zoo / "about.md").read_text(), known, packer.licences))
    Packer.of(recipe, zoo).pack(ROOT / "toolkit" / "bundles" / f"{recipe.name}.eab", converted, zoo / "weights.npz")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m quantize.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        help="run folders of `python -m models train`, one per seed; without: the released weights, decided anew",
    )
    for split in ("tune", "report"):
        parser.add_argument(
            f"--negatives-{split}", type=Path, nargs="+", required=True, help=f"keyword-free audio of {split}"
        )
    try:
        a = parser.parse_args(argv)
        negatives = {"tune": a.negatives_tune, "report": a.negatives_report}
        recipe = load_recipe(a.recipe)
        known = release(recipe, a.data, a.runs, negatives) if a.runs else decide_again(recipe, a.data, negatives)
        print(json.dumps(known))
        return 0
    except EdgeAudioError as error:
        print(f"release: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
