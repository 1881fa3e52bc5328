"""python -m quantize.release RECIPE --data DIR --runs RUN...: from trainings of several seeds to the released bundle.

Each run is converted and measured in int8 on `tune` and `report`. The one with the best `tune` accuracy is released;
what is published is its `report` accuracy and the mean over all seeds. Writes models/zoo/NAME (weights.npz,
accuracy.json, card.md) and toolkit/bundles/NAME.eab, which `make quantize` then reproduces without the data set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.decide import predictions
from models.epochs import codes_of
from models.evaluate import accuracy_entry, evaluate_stream, load_folder, mean_accuracy, predict, result_of
from models.recipe import load_recipe
from models.waves import load_waves
from toolkit.errors import BudgetError, EdgeAudioError
from toolkit.signature import read_private_key

from .__main__ import DEVELOPMENT_KEY, ROOT, SAMPLES, say
from .calibrate import representative_codes
from .card import make_card
from .convert import convert, float_scores
from .pack import pack
from .verify import check_integer

SPLITS = ("tune", "report")


def release(recipe, data: Path, runs: list[Path]) -> dict:
    """Writes the release; returns what accuracy.json holds."""
    zoo, rate = ROOT / "models" / "zoo" / recipe.name, recipe.features.sample_rate_hz
    dataset = load_dataset(data, recipe.data, rate)
    clips = {split: dataset.clips(split) for split in SPLITS}
    waves = {split: load_waves(clips[split], recipe.data.clip_s, rate) for split in SPLITS}
    truth = {split: dataset.classes(clips[split]) for split in SPLITS}
    flush = recipe.decision.flush_frames * recipe.features.hop_length
    calibration = representative_codes(recipe, SAMPLES / "calibration", is_dataset=False)
    licences = json.loads((zoo / "licences.json").read_text())
    key = read_private_key(DEVELOPMENT_KEY)

    tried = []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            seed = load_recipe(run / "recipe.yaml").train.seed
            say(f"seed {seed}: converting and measuring {run}")
            weights = run / "weights.npz"
            converted = convert(recipe, weights, calibration)
            check_integer(converted.model)
            bundle = pack(
                Path(folder) / "x.eab", recipe, converted, weights, SAMPLES / "scene.wav", [], licences, "#", key
            )
            result = {"seed": seed, "run": run, "converted": converted, "bundle": bundle}
            for split in SPLITS:
                codes = codes_of(waves[split], recipe.features, flush)
                in_float = predictions(float_scores(recipe, weights, codes), recipe, converted.stride)
                result[split] = {
                    "float": in_float == truth[split],
                    "int8": predict(bundle, waves[split]) == truth[split],
                }
            tried.append(result)
            say(
                f"seed {seed}: "
                + ", ".join(
                    f"{s} float {result[s]['float'].mean():.4f} int8 {result[s]['int8'].mean():.4f}" for s in SPLITS
                )
            )

    best = max(tried, key=lambda t: t["tune"]["int8"].mean())
    bundle, model = best["bundle"], best["converted"].model
    chosen = result_of(recipe.labels, truth["report"], predict(bundle, waves["report"]))
    embedded_waves, embedded_truth = load_folder(SAMPLES / "evaluation", recipe.labels, recipe.data.clip_s, rate)
    mean = mean_accuracy(np.stack([t["report"]["int8"] for t in tried]))
    seeds = sorted(t["seed"] for t in tried)
    figure = {**accuracy_entry(chosen, recipe, "Speech Commands v0.02", "report"), "seeds": [best["seed"]]}
    of_all = dict(zip(("value", "low", "high"), (round(v, 4) for v in mean)))
    figures = [figure, {**figure, "metric": "mean accuracy int8 step over trainings", **of_all, "seeds": seeds}]
    details = {
        "seeds": [
            {
                "seed": t["seed"],
                **{f"{s}_{k}": round(float(t[s][k].mean()), 4) for s in SPLITS for k in ("float", "int8")},
            }
            for t in tried
        ],
        "report": chosen.to_dict(),
        "embedded": result_of(recipe.labels, embedded_truth, predict(bundle, embedded_waves)).to_dict(),
        "stream": [evaluate_stream(bundle, dataset, split) for split in SPLITS],
        "model_bytes": len(model),
        "macs_per_second": best["converted"].macs_per_second,
    }
    known = {"model_sha256": hashlib.sha256(model).hexdigest(), "figures": figures, "details": details}
    floor = recipe.budget.mean_accuracy_floor
    if floor is not None and mean[0] < floor:
        raise BudgetError(
            f"the mean accuracy on report is {mean[0]:.4f}, the recipe's floor is {floor}; nothing was released."
        )
    weights = zoo / "weights.npz"
    shutil.copyfile(best["run"] / "weights.npz", weights)
    (zoo / "accuracy.json").write_text(json.dumps(known, indent=1) + "\n")
    (zoo / "card.md").write_text(make_card(recipe, (zoo / "about.md").read_text(), known, licences))
    pack(
        ROOT / "toolkit" / "bundles" / f"{recipe.name}.eab",
        recipe,
        best["converted"],
        weights,
        SAMPLES / "scene.wav",
        figures,
        licences,
        (zoo / "card.md").read_text(),
        key,
    )
    return known


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m quantize.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="run folders of `python -m models train`, one per seed"
    )
    arguments = parser.parse_args(argv)
    try:
        print(json.dumps(release(load_recipe(arguments.recipe), arguments.data, arguments.runs)))
        return 0
    except EdgeAudioError as error:
        print(f"release: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
