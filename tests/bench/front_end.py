"""What a 10 ms frame costs: CPU time and instructions of the toolkit's front end, beside those of its peers.

    python tests/bench/front_end.py [--no-gate] [--no-instructions]

CPU time is that of this process (user and system), of interleaved repetitions; read it as the ratio to pymicro-features
of the same run. Instructions are callgrind's, of a run over more audio minus one over less, so that starting up is
not in them. stdout: one JSON line per measurement; stderr: a table. Exit 1 if a bar is missed. A package that is not
installed is skipped, with the command that installs it; STRICT=1 makes a bar that could not be checked a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import peers
from peers import BATCHES, HOP, OURS, PEERS, REFERENCE, STREAMED

from toolkit import native
from toolkit.errors import EdgeAudioError
from toolkit.features import FeatureConfig, make_tables

MODES = (STREAMED, BATCHES)
REPETITIONS = 15
SHORTEST_S = 0.03  # of one timing
BARS = [  # (front end, mode, field, at most)
    (OURS, STREAMED, "instructions_in_c", 36_500),  # half of the 73,281 of pymicro-features
    (OURS, STREAMED, "ratio", 0.5),
    (OURS, BATCHES, "ratio", 0.35),
]


def start_all() -> tuple[dict[str, peers.Process], list[str]]:
    """(the front ends that are installed, one line for each that is not)."""
    started, skipped = {}, []
    for name, peer in PEERS.items():
        try:
            started[name] = peer.start()
        except ImportError:
            skipped.append(f"{name}: not installed; pip install {peer.package}")
        except Exception as error:  # of any library: a peer that does not start must not hide the others
            if not peer.package:
                raise
            skipped.append(f"{name}: it does not start ({error})")
    return started, skipped


def timed_us(process: peers.Process, blocks: list) -> float:
    """CPU microseconds per frame of input."""
    start = time.process_time_ns()
    for block in blocks:
        process(block)
    hops = sum(len(block) // (2 if isinstance(block, bytes) else 1) for block in blocks) / HOP
    return (time.process_time_ns() - start) / 1000 / hops


def measure_cpu(started: dict[str, peers.Process]) -> list[dict]:
    """One measurement per front end and mode; their repetitions take turns, so that all see the same machine."""
    samples = peers.speech(20)
    blocks, times = {}, {}
    for name, process in started.items():
        for mode in MODES:
            cut = PEERS[name].blocks(samples, mode)
            few = cut[:50] if mode == STREAMED else cut[:2]
            timed_us(process, few)  # first calls trace and fill caches
            begin = time.process_time()
            timed_us(process, few)
            enough = len(few) * SHORTEST_S / max(time.process_time() - begin, 1e-6)
            blocks[name, mode] = cut[: max(len(few), min(len(cut), int(enough) + 1))]
            times[name, mode] = []
    for _ in range(REPETITIONS):
        for (name, mode), kept in times.items():
            kept.append(timed_us(started[name], blocks[name, mode]))
    reference = times.get((REFERENCE, STREAMED))
    found = []
    for (name, mode), kept in times.items():
        row = {"front_end": name, "mode": mode, "block_ms": PEERS[name].block(mode) // 16}
        row |= {"cpu_us_min": round(min(kept), 3), "cpu_us_median": round(median(kept), 3)}
        if reference:
            row["ratio"] = round(min(kept) / min(reference), 4)
            row["ratio_median"] = round(median(a / b for a, b in zip(kept, reference, strict=True)), 4)
        found.append(row)
    return found


def collected(command: list[str], toggle: str) -> int:
    """Instructions that callgrind counts while the command runs, in all of it or in the function `toggle`."""
    with tempfile.TemporaryDirectory() as folder:
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        done = subprocess.run([*valgrind, *([f"--toggle-collect={toggle}"] if toggle else []), *command],
                              capture_output=True, text=True, env={**os.environ, **peers.ENVIRONMENT})
    if done.returncode != 0:
        raise RuntimeError(f"callgrind {command}: {done.stderr.strip().splitlines()[-1]}")
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def per_frame(command_for: Callable[[int], list[str]], toggle: str = "") -> int:
    """Without starting up: the instructions of 7 s of audio less those of 2 s."""
    return round((collected(command_for(7), toggle) - collected(command_for(2), toggle)) / (5 * 16000 / HOP))


def core_instructions() -> int:
    """Of ea_frontend_process, per frame, in blocks of 20 ms."""
    core = native.LIBRARY.parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tables").write_bytes(make_tables(FeatureConfig()).blob)
        subprocess.run([os.environ.get("CC", "gcc"), "-O2", f"-I{core}", str(Path(__file__).with_name("stream.c")),
                        str(native.LIBRARY), f"-Wl,-rpath,{core}", "-o", str(folder / "stream")], check=True)

        def command(seconds: int) -> list[str]:
            samples = folder / f"samples{seconds}"
            samples.write_bytes(peers.speech(seconds).tobytes())
            return [str(folder / "stream"), str(folder / "tables"), str(samples), "320"]

        return per_frame(command, "ea_frontend_process")


def measure_instructions(names: Iterable[str]) -> list[dict]:
    found = []
    for name in names:
        peer = PEERS[name]
        if peer.too_slow_to_count:
            continue
        print(f"counting instructions of {name} ...", file=sys.stderr)
        for mode in MODES:
            def command(seconds: int, name: str = name, mode: str = mode) -> list[str]:
                return [sys.executable, str(Path(peers.__file__)), name, mode, str(seconds)]

            row = {"front_end": name, "mode": mode, "block_ms": peer.block(mode) // 16}
            row["instructions"] = per_frame(command)
            if name == OURS and mode == STREAMED:
                row["instructions_in_c"] = core_instructions()
            elif name == REFERENCE and mode == STREAMED:
                row["instructions_in_c"] = per_frame(command, "FrontendProcessSamples")
            found.append(row)
    return found


def print_table(found: list[dict]) -> None:
    rows: dict[tuple[str, str], dict] = {}
    for row in found:
        rows.setdefault((row["front_end"], row["mode"]), {}).update(row)
    columns = [("ratio", "ratio", 8, ".3f"), ("ratio_median", "median", 8, ".3f"), ("cpu_us_min", "CPU us", 9, ".2f"),
               ("cpu_us_median", "median", 9, ".2f"), ("instructions", "instructions", 14, ",d"),
               ("instructions_in_c", "of them in C", 14, ",d")]
    titles = "".join(f"{title:>{width}}" for _, title, width, _ in columns)
    print(f"\n{'one 10 ms frame':24}{'fed, ms':>9}{titles}", file=sys.stderr)
    for (name, _), row in rows.items():
        values = "".join(f"{format(row[key], form) if key in row else '-':>{width}}" for key, _, width, form in columns)
        print(f"{name:24}{row['block_ms']:9}{values}", file=sys.stderr)


def check_bars(found: list[dict]) -> tuple[list[str], list[str]]:
    """(bars that are missed, bars that could not be checked), a sentence each."""
    missed, unchecked = [], []
    for name, mode, field, limit in BARS:
        values = [row[field] for row in found if (row["front_end"], row["mode"]) == (name, mode) and field in row]
        what = f"{field} of {name}, {mode},"
        if not values:
            unchecked.append(f"{what} was not measured (at most {limit:,}).")
        elif values[0] > limit:
            missed.append(f"{what} is {values[0]:,}; the bar is {limit:,} at most.")
    return missed, unchecked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-gate", action="store_true", help="only print; exit 0 whatever was measured")
    parser.add_argument("--no-instructions", action="store_true", help="skip callgrind, which takes two minutes")
    options = parser.parse_args()

    try:
        started, skipped = start_all()
    except EdgeAudioError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = measure_cpu(started)
    if not options.no_instructions:
        try:
            found += measure_instructions(started)
            skipped += [f"{name}: instructions not counted; it takes minutes to start under callgrind"
                        for name in started if PEERS[name].too_slow_to_count]
        except FileNotFoundError as error:
            skipped.append(f"instructions: {error.filename} is not installed; sudo apt install valgrind gcc")
        except (RuntimeError, subprocess.CalledProcessError) as error:
            skipped.append(f"instructions: {error}")
    for row in found:
        print(json.dumps(row), flush=True)
    print_table(found)
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    missed, unchecked = check_bars(found)
    for line in missed + unchecked:
        print(line, file=sys.stderr)
    return int(not options.no_gate and bool(missed or (unchecked and os.environ.get("STRICT", "0") not in ("", "0"))))


if __name__ == "__main__":
    sys.exit(main())
