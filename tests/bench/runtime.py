"""What listening costs: CPU time of a bundle fed 20 ms blocks, beside pymicro-wakeword fed the same audio.

    python tests/bench/runtime.py [--bundle NAME_OR_PATH] [--no-gate]

Both go the way their users go: the toolkit's Pipeline as `edge-audio listen` calls it, pymicro-wakeword as its own
command does, each with front end, model and decision. Time is CPU time of this process (user and system); repetitions
take turns, so that all see the same machine, and each is compared with that of the reference beside it: read the
ratio. stdout: one JSON line per runner; stderr: a table. Exit 1 if the bar is missed. A package that is not installed
is skipped, with the command that installs it; STRICT=1 makes a bar that could not be checked a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles

import numpy as np
import peers

from toolkit.bundle import load_bundle
from toolkit.errors import EdgeAudioError
from toolkit.stream import FRAMES_PER_STEP, Pipeline

BLOCK = 320  # samples, 20 ms
SECONDS = 20  # of audio in one timing
REPETITIONS = 25
OURS = "toolkit"
PEER = "pymicro-wakeword"
REFERENCE = f"{PEER}, alexa"
BAR = 1.0  # CPU of the toolkit with its own FRAMES_PER_STEP, as a share of the reference's, median
Runner = Callable[[], None]  # through all the audio once


def toolkit_runner(bundle, frames_per_step: int, blocks: list) -> Runner:
    pipeline = Pipeline([bundle], frames_per_step=frames_per_step)

    def run() -> None:
        for block in blocks:
            pipeline.process(block)

    return run


def model_runner(bundle, frames_per_step: int, blocks: list) -> Runner:
    """The int8 model alone, as many steps of it."""
    stage = Pipeline([bundle], frames_per_step=frames_per_step).stages[0]
    model, hop = stage.model, stage.tables.hop_length
    codes = np.zeros((model.frames_per_step, stage.tables.width), np.int8)
    steps = len(blocks) * BLOCK // hop // model.frames_per_step

    def run() -> None:
        for _ in range(steps):
            model.process(codes)

    return run


def wake_word_runner(name: str, blocks: list) -> Runner:
    """As pymicro-wakeword's README and command do it."""
    from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model

    features, model = MicroWakeWordFeatures(), MicroWakeWord.from_builtin(Model(name))
    blocks = [block.tobytes() for block in blocks]

    def run() -> None:
        for block in blocks:
            for frame in features.process_streaming(block):
                model.process_streaming(frame)

    return run


def make_runners(bundle, blocks: list) -> tuple[dict[str, Runner], list[str]]:
    """(what can be run here, one line for each that cannot)."""
    least = bundle.manifest.model.frames_per_step
    runners = {}
    for frames in sorted({least, FRAMES_PER_STEP, 2 * FRAMES_PER_STEP}):
        runners[name_of(bundle, frames)] = toolkit_runner(bundle, frames, blocks)
        runners[f"its model alone, {frames} frames"] = model_runner(bundle, frames, blocks)
    try:
        for word in ("alexa", "okay_nabu"):
            runners[f"{PEER}, {word}"] = wake_word_runner(word, blocks)
    except ImportError:
        return runners, [f"{PEER}: not installed; pip install {PEER}"]
    return runners, []


def name_of(bundle, frames: int) -> str:
    return f"{OURS}, {bundle.manifest.name}, {frames} frames per step"


def measure(runners: dict[str, Runner], runtime: str) -> list[dict]:
    """One row per runner. ratio: of the least times; ratio_median, ratio_low, ratio_high: median and quartiles of the
    ratios to the reference's repetition of the same turn."""
    times = {name: [] for name in runners}
    for turn in range(1 + REPETITIONS):
        for name, run in runners.items():
            start = time.process_time_ns()
            run()
            if turn:  # the first one fills caches
                times[name].append((time.process_time_ns() - start) / 1000 / (SECONDS * 16000 / BLOCK))
    found = []
    for name, kept in times.items():
        row = {"runner": name, "runtime": "its own" if name.startswith(PEER) else runtime}
        row |= {"cpu_us_min": round(min(kept), 2), "cpu_us_median": round(median(kept), 2),
                "cpu_s_per_s": round(min(kept) / 1e6 * 16000 / BLOCK, 6)}
        if reference := times.get(REFERENCE):
            low, middle, high = quantiles([a / b for a, b in zip(kept, reference, strict=True)], n=4)
            row |= {"ratio": round(min(kept) / min(reference), 3), "ratio_median": round(middle, 3),
                    "ratio_low": round(low, 3), "ratio_high": round(high, 3)}
        found.append(row)
    return found


def print_table(found: list[dict]) -> None:
    titles = f"{'CPU us':>8}{'median':>8}{'ratio':>8}{'median':>8}{'quartiles':>16}"
    print(f"\n{'20 ms of audio':44}{titles}", file=sys.stderr)
    for row in found:
        text = f"{row['runner']:44}{row['cpu_us_min']:8.1f}{row['cpu_us_median']:8.1f}"
        if "ratio" in row:
            text += f"{row['ratio']:8.2f}{row['ratio_median']:8.2f}{row['ratio_low']:10.2f}{row['ratio_high']:6.2f}"
        print(text, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default="kws", help="a bundle's path or a released one's name (default: kws)")
    parser.add_argument("--no-gate", action="store_true", help="only print; exit 0 whatever was measured")
    options = parser.parse_args()

    try:
        bundle = load_bundle(options.bundle, "off")
        samples = peers.speech(SECONDS)
        runners, skipped = make_runners(bundle, [samples[i : i + BLOCK] for i in range(0, len(samples), BLOCK)])
    except EdgeAudioError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = measure(runners, Pipeline([bundle]).stages[0].model.runtime)
    for row in found:
        print(json.dumps(row), flush=True)
    print_table(found)
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    (ours,) = [row for row in found if row["runner"] == name_of(bundle, FRAMES_PER_STEP)]
    if "ratio_median" not in ours:
        print(f"The bar was not checked: {BAR} of the CPU time of {REFERENCE} at most.", file=sys.stderr)
        missed = os.environ.get("STRICT", "0") not in ("", "0")
    elif missed := ours["ratio_median"] > BAR:
        print(f"{ours['runner']}, takes {ours['ratio_median']} of the CPU time of {REFERENCE}; the bar is {BAR}.",
              file=sys.stderr)
    return int(missed and not options.no_gate)


if __name__ == "__main__":
    sys.exit(main())
