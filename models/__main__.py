"""python -m models train | evaluate | fetch: the commands that make and measure float models."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from toolkit.errors import EdgeAudioError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a recipe; the same command resumes")
    train.add_argument("recipe", type=Path)
    train.add_argument("--data", type=Path, required=True, help="root of the data set")
    train.add_argument("--run", type=Path, help="folder of the result (default: runs/NAME-SEED)")
    train.add_argument("--seed", type=int, help="instead of the recipe's train.seed")
    train.add_argument("--cache", type=Path, default=Path("runs/epochs"), help="where augmented epochs are kept")
    evaluate = commands.add_parser("evaluate", help="accuracy of a bundle on a split, as clips and as one stream")
    evaluate.add_argument("recipe", type=Path)
    evaluate.add_argument("--data", type=Path, required=True)
    evaluate.add_argument("--bundle", default=None, help="path or released name (default: the recipe's name)")
    evaluate.add_argument("--split", choices=("tune", "report", "test"), default="report")
    evaluate.add_argument("--threshold", type=float, help="of the stream, instead of the bundle's")
    fetch = commands.add_parser("fetch", help="download a public data set")
    fetch.add_argument("name", help="speech_commands")
    fetch.add_argument("dest", type=Path, nargs="?", default=Path("data"))
    arguments = parser.parse_args(argv)
    try:
        return {"train": _train, "evaluate": _evaluate, "fetch": _fetch}[arguments.command](arguments)
    except EdgeAudioError as error:
        print(f"models: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("models: stopped; the same command resumes", file=sys.stderr)
        return 130


def _train(arguments) -> int:
    import dataclasses

    from models.charts import draw_training
    from models.recipe import load_recipe
    from models.train import train

    recipe = load_recipe(arguments.recipe)
    if arguments.seed is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=arguments.seed))
    run = arguments.run or Path("runs") / f"{recipe.name}-{recipe.train.seed}"
    last = train(recipe, arguments.data, run, arguments.cache, lambda text: print(text, file=sys.stderr, flush=True))
    draw_training(recipe, arguments.data, run)
    print(json.dumps({"run": str(run), **last}))
    return 0


def _evaluate(arguments) -> int:
    from models.data import load_dataset
    from models.evaluate import evaluate_bundle, evaluate_stream
    from models.recipe import load_recipe
    from models.waves import load_waves
    from toolkit.bundle import load_bundle

    recipe = load_recipe(arguments.recipe)
    bundle = load_bundle(arguments.bundle or recipe.name)
    dataset = load_dataset(arguments.data, recipe.data, recipe.features.sample_rate_hz)
    clips = dataset.clips(arguments.split)
    waves = load_waves(clips, recipe.data.clip_s, recipe.features.sample_rate_hz)
    result = evaluate_bundle(bundle, waves, dataset.classes(clips))
    print(
        json.dumps(
            {"bundle": bundle.manifest.name, "sha256": bundle.sha256, "split": arguments.split, **result.to_dict()}
        )
    )
    print(json.dumps({"stream": evaluate_stream(bundle, dataset, arguments.split, arguments.threshold)}))
    return 0


def _fetch(arguments) -> int:
    from models.fetch import fetch

    print(fetch(arguments.name, arguments.dest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
