"""python -m models train | evaluate | compare | mine | fetch | speak: make and measure float models."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from toolkit.arguments import Parser
from toolkit.errors import EdgeAudioError


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m models", description=__doc__)
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
    streams = evaluate.add_argument_group("long streams", "misses against false accepts per hour, see models/det.py")
    streams.add_argument("--stream", action="store_true", help="print the whole trade-off instead")
    streams.add_argument("--negatives", type=Path, nargs="+", default=[], help="folders of audio without keywords")
    streams.add_argument("--noise", type=Path, nargs="+", default=[], help="folders of more background noise")
    streams.add_argument("--snr-db", type=float, nargs="+", default=[], help="over noise too, this far below the words")
    streams.add_argument("--target-fa-per-hour", type=float, default=0.5, help="which false accepts are allowed (0.5)")
    streams.add_argument("--mlperf", metavar="WORD", help="also the stream of MLPerf Tiny, of this keyword")
    streams.add_argument("--png", type=Path, help="draw the trade-off")
    compare = commands.add_parser("compare", help="run folders and bundles side by side: accuracy, size, cost")
    compare.add_argument("model", nargs="+", help="folder of a training (with its bundle NAME.eab), or bundle")
    compare.add_argument("--data", type=Path, help="root of the data set; without it no accuracy is measured")
    compare.add_argument("--recipe", type=Path, help="of the bundles that stand without a run folder")
    compare.add_argument("--split", choices=("tune", "report", "test"), default="report")
    compare.add_argument("--out", type=Path, help="file of the table in Markdown (default: stderr)")
    mine = commands.add_parser("mine", help="pieces of training speech that a bundle takes for a keyword")
    mine.add_argument("bundle", help="path or released name")
    mine.add_argument("recordings", type=Path, nargs="+", help="folders of speech without keywords, of training")
    mine.add_argument("--out", type=Path, required=True, help="new folder, for data.hard_negatives of a recipe")
    mine.add_argument("--threshold", type=float, default=0.15, help="posterior from which on a piece is kept (0.15)")
    fetch = commands.add_parser("fetch", help="download a public data set")
    fetch.add_argument("name", help="speech_commands")
    fetch.add_argument("dest", type=Path, nargs="?", default=Path("data"))
    _add_speak(commands.add_parser("speak", help="make a spoken corpus by text-to-speech; the same command resumes"))
    try:
        arguments = parser.parse_args(argv)
        work = {
            "train": _train,
            "evaluate": _evaluate,
            "compare": _compare,
            "mine": _mine,
            "fetch": _fetch,
            "speak": _speak,
        }
        return work[arguments.command](arguments)
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
    from models.strategy import make_crew
    from models.train import train

    recipe = load_recipe(arguments.recipe)
    if arguments.seed is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=arguments.seed))
    run = arguments.run or Path("runs") / f"{recipe.name}-{recipe.train.seed}"
    last = train(recipe, arguments.data, run, arguments.cache, lambda text: print(text, file=sys.stderr, flush=True))
    if make_crew(recipe.train).is_chief:
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
    if arguments.stream:
        return _evaluate_streams(arguments, bundle, dataset)
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


def _evaluate_streams(arguments, bundle, dataset) -> int:
    from models.charts import draw_det
    from models.det import table
    from models.evaluate import choose_threshold, score_streams, stream_lines
    from models.mlperf import evaluate_mlperf
    from models.streams import condition
    from toolkit.interpreter import runtime_name

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    target, snrs_db = arguments.target_fa_per_hour, (None, *arguments.snr_db)
    folders = {"negatives": arguments.negatives, "noise": arguments.noise}
    scores = score_streams(bundle, dataset, arguments.split, **folders, snrs_db=snrs_db, say=say)
    curves, threshold, why = choose_threshold(scores, target, arguments.threshold)
    of = {"bundle": bundle.manifest.name, "version": bundle.manifest.version, "sha256": bundle.sha256}
    chosen = {"threshold": threshold, "because": why, "target_fa_per_hour": target}
    print(json.dumps({"stream": {**of, "runtime": runtime_name(), "split": arguments.split, **chosen}}))
    for line in stream_lines(scores, curves, threshold, target):
        print(json.dumps(line))
    for snr_db, points in zip(snrs_db, curves):
        say(f"{arguments.split}, {condition(snr_db)}\n{table(points, target, threshold)}")
    say(f"* {why}")
    if arguments.mlperf:
        result = evaluate_mlperf(bundle, dataset, arguments.split, arguments.mlperf, **folders, threshold=threshold)
        print(json.dumps({"mlperf": result}))
    if arguments.png:
        draw_det(dict(zip(map(condition, snrs_db), curves)), threshold, target, arguments.png)
    return 0


def _compare(arguments) -> int:
    from models.compare import compare, markdown
    from models.recipe import load_recipe

    recipe = load_recipe(arguments.recipe) if arguments.recipe else None
    rows = compare(arguments.model, recipe, arguments.data, arguments.split)
    if arguments.out:
        arguments.out.write_text(markdown(rows))
    else:
        print(markdown(rows), file=sys.stderr)
    for row in rows:
        print(json.dumps(row))
    return 0


def _mine(arguments) -> int:
    from models.mine import mine
    from toolkit.bundle import load_bundle

    it = arguments
    found = mine(load_bundle(it.bundle), it.recordings, it.out, it.threshold, lambda text: print(text, file=sys.stderr))
    print(json.dumps({"made": str(it.out), "pieces": found}))
    return 0


def _fetch(arguments) -> int:
    from models.fetch import fetch

    print(fetch(arguments.name, arguments.dest))
    return 0


def _add_speak(speak: argparse.ArgumentParser) -> None:
    kinds = speak.add_subparsers(dest="kind", required=True)
    words = kinds.add_parser("words", help="clips of one second of single words, DEST/WORD/VOICE_TAKE.wav")
    words.add_argument("dest", metavar="DEST", type=Path)
    words.add_argument("--words", nargs="+", required=True, help="the keywords, or any words")
    words.add_argument("--takes", type=int, default=100, help="clips of each of them (100)")
    words.add_argument("--spellings", nargs="+", default=[], help="of the one word: read in its place, one a take")
    words.add_argument("--others", type=Path, metavar="FILE", help="more words, one per line, as models/words.txt")
    words.add_argument("--other-takes", type=int, default=8, help="clips of each word of the file (8)")
    text = kinds.add_parser("text", help="running speech without the keywords, DEST/VOICE_NNN.flac")
    text.add_argument("dest", metavar="DEST", type=Path)
    text.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help="plain texts in English")
    text.add_argument("--without", nargs="+", default=[], metavar="WORD", help="no sentence in which these are heard")
    text.add_argument("--hours", type=float, default=1.0, help="of speech with its pauses (1)")
    text.add_argument("--minutes", type=float, default=10.0, help="of each recording (10)")
    text.add_argument("--credit", nargs="+", default=[], help="source and licence of the texts, for about.json")
    for kind in (words, text):
        kind.add_argument("--split", choices=("train", "tune", "report"), required=True, help="whose voices speak")
        kind.add_argument("--voices", nargs="+", default=[], help="of the split (default: all), see models/voices.py")
        kind.add_argument("--seed", type=int, default=0)


def _speak(arguments) -> int:
    from models.speak import choose_voices, make_text, make_words

    it, voices = arguments, choose_voices(arguments.split, arguments.voices)
    if it.kind == "words":
        about = make_words(it.dest, it.words, it.takes, it.others, it.other_takes, voices, it.seed, it.spellings)
    else:
        about = make_text(it.dest, it.text, it.without, it.split, voices, it.hours, it.minutes, it.credit, it.seed)
    print(json.dumps({"made": str(it.dest), **about["result"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
