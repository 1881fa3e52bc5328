"""The installer on a virtual clock, for the kill matrix: `python -I -S kill_installer.py`, driven by stdin and stdout.

It runs as on a device that has nothing yet: with `-I -S` and the checkout as its only path, so the standard library is
all there is. The modules are loaded once, and every command runs in a fork of this process, in milliseconds. Time
passes only in sleep(), so a health gate of seconds is over at once, always after the same number of system calls; and
whenever the installer sleeps, a fake service writes its status file.

    in   {"side": folder, "argv": [...], "broken": how or null, "libraries": [paths], "traced": bool}
    out  process id; it reads SIDE/stdin and writes SIDE/stdout and SIDE/stderr
    in   an empty line: go on (if traced; whoever asks attaches strace before)
    out  exit status, negative for a signal
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import stat
import sys
import time
from pathlib import Path

START = 1_800_000_000.0  # of the virtual clock, in Unix time
PR_SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)  # where ptrace is for parents only (Yama, ptrace_scope 1)


class World:
    """Time that passes only in sleep(), and the service that lives in it."""

    def __init__(self, side: str):
        self.side, self.now, self.starts, self.started = side, START, 0, START
        self.sleep(1.0)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._tick()

    def _tick(self) -> None:
        """What a service does in passing time: its status file says that it listens, or that it has no microphone."""
        with open(f"{self.side}/starts", encoding="utf-8") as file:
            starts = file.read().split("\n")[:-1]
        with open(f"{self.side}/unhealthy", encoding="utf-8") as file:
            unhealthy = file.read().split()
        if len(starts) != self.starts:
            self.starts, self.started = len(starts), self.now
        running = starts[-1] if starts else ""
        if not running:  # stopped: systemd removes the folder of the status file
            if os.path.exists(f"{self.side}/status.json"):
                os.unlink(f"{self.side}/status.json")
            return
        healthy = running not in unhealthy
        status = {"schema": 1, "pid": self.starts, "release": running, "started": self.started, "time": self.now,
                  "state": "listening" if healthy else "no microphone", "microphone": "fake" if healthy else None,
                  "bundles": [], "blocks": int((self.now - self.started) * 50), "dropped_blocks": 0,
                  "lost_samples_estimate": 0, "block_ms": {"p50": 1.0, "p99": 2.0, "max": 3.0},
                  "block_deadline_ms": 20, "deaf_s": 0.0, "last_audio_age_s": 0.02 if healthy else None,
                  "detections": 0, "reopened": 0, "sentence": None if healthy else "the microphone is gone"}
        with open(f"{self.side}/status.new", "w", encoding="utf-8") as file:
            json.dump(status, file)
        os.replace(f"{self.side}/status.new", f"{self.side}/status.json")


def _break(how: str) -> None:
    """Make the installer wrong in one way."""
    fsync, replace = os.fsync, os.replace
    if how == "no fsync":
        os.fsync = os.fdatasync = lambda fd: None
        os.sync = lambda: None
    elif how == "no fsync of folders":
        os.fsync = lambda fd: None if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd)
    elif how == "rename in two steps":
        def in_two_steps(source, target, **folders):
            if os.path.lexists(target):
                os.unlink(target)
            replace(source, target, **folders)

        os.replace = os.rename = in_two_steps
    elif how == "the gate is always open":
        from toolkit.ota import health

        health.wait_until_healthy = lambda *arguments: None
    else:
        raise SystemExit(f"unknown way to break the installer: {how}")


def _run(request: dict, main) -> int:
    """In the child: the exit status of one command."""
    side = request["side"]
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        os.dup2(os.open(f"{side}/{name}", flags), number)
    world, really_sleep = World(side), time.sleep
    time.time = time.monotonic = world.time
    time.sleep = lambda seconds: (world.sleep if sys._getframe(1).f_globals["__name__"].startswith("toolkit.")
                                  else really_sleep)(seconds)
    if request["broken"]:
        _break(request["broken"])
    sys.path += request["libraries"]
    importlib.invalidate_caches()  # or a folder that has changed meanwhile would be listed anew: other system calls
    return main(request["argv"])


def serve() -> None:
    """Runs commands until stdin ends."""
    sys.path.insert(0, str(Path(__file__).absolute().parents[1]))
    from toolkit.ota.__main__ import main

    for line in sys.stdin:
        request = json.loads(line)
        os.environ.update(request["environment"])
        wait, go = os.pipe()
        if (child := os.fork()) == 0:
            status = 70
            try:
                os.setsid()
                ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
                os.close(go)
                os.read(wait, 1)
                status = _run(request, main)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:  # as Python itself would say it: the kill matrix takes it for a fault
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                os._exit(status or 0)
        print(child, flush=True)
        if request["traced"]:
            sys.stdin.readline()
        os.close(go)
        os.close(wait)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
