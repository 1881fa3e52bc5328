"""Deployments from end to end, to a booted arm64 Debian under QEMU: `python tests/vm/check_vm.py` (`make check-vm`).

What no test with a fake systemctl can show: the units as systemd reads them, with their sandbox, watchdog and timer; a
reboot; and the power that fails. The device is Debian's kernel, systemd, sshd and Python, with a microphone (snd-aloop)
that hears models/samples/scene.wav; the host is this checkout: `python -m devices deploy`, `status`, `rollback`, `logs`
and `publish`, with keys, bundles and wheels of its own. One line per step on stderr, one JSON line on stdout, exit 1 if
a step failed. The image is made once, in --cache (1.5 GB); it and the wheels need the network, nothing later does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY)]

from arm_image import CheckFailed, make_image, require_tools  # noqa: E402
from desk import Desk, make_desk  # noqa: E402
from machine import Machine  # noqa: E402
from steps import NEEDED, SCENE, STEPS  # noqa: E402


def say(text: str) -> None:
    print(f"check-vm: {text}", file=sys.stderr, flush=True)


def run_steps(vm: Machine, desk: Desk) -> Iterator[dict]:
    """Each step's outcome: {step, seconds, passed, found or reason}."""
    for step in STEPS:
        name, started = step.__name__.replace("_", " "), time.monotonic()
        try:
            outcome = {"passed": True, "found": step(vm, desk)}
        except CheckFailed as error:
            outcome = {"passed": False, "reason": str(error)}
        seconds = round(time.monotonic() - started, 1)
        words = outcome.get("found") or outcome.get("reason") or ""
        say(f"{name:20} {seconds:6.1f} s  {'passed' if outcome['passed'] else 'FAILED'}  {words}")
        yield {"step": name, "seconds": seconds, **outcome}
        if step in NEEDED and not outcome["passed"]:
            return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A deployment from end to end, to a booted Debian for arm64.")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "build" / "vm", help="of the image")
    options = parser.parse_args(arguments)
    cache = options.cache.resolve()
    started, run = time.monotonic(), cache / "run"
    try:
        require_tools()
        image = make_image(cache, SCENE, say)
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        desk = make_desk(run, cache / "pip")
    except CheckFailed as error:
        say(str(error))
        return 1
    vm = Machine(image, run)
    try:
        outcomes = list(run_steps(vm, desk))
    finally:
        vm.close()
    passed = sum(outcome["passed"] for outcome in outcomes)
    print(json.dumps({"steps": outcomes, "passed": passed, "of": len(STEPS),
                      "seconds": round(time.monotonic() - started)}))
    return int(passed < len(STEPS))


if __name__ == "__main__":
    sys.exit(main())
