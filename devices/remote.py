"""The device's side of a deployment, as the host calls it: ``python -m toolkit.ota COMMAND`` over a connection.

Before anything is installed the toolkit's wheel runs there as it is, with the device's python3: a wheel is a zip, and
toolkit/ota needs the standard library alone. Without a wheel it is the installed runtime that speaks.
"""

from __future__ import annotations

import base64
import json
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from devices.plan import File
from devices.ssh import Ssh
from toolkit.errors import DeployError

ROOT = "/opt/edge-audio"
LINKS = ("current", "committed", "previous")
NOTHING_INSTALLED = 44  # exit status of INSTALLED where there is no runtime
INSTALLED = """for link in {links}; do python={root}/$link/runtime/bin/python
if [ -x "$python" ]; then exec "$python" -I -m toolkit.ota {arguments}; fi; done; exit {status}"""
FROM_WHEEL = ("import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
              "runpy.run_module('toolkit.ota', run_name='__main__', alter_sys=True)")

Say = Callable[[str], None]


class Remote:
    """One device behind ``ssh``; ``sudo``: its commands need sudo to change anything."""

    def __init__(self, ssh: Ssh, root: str = ROOT, sudo: bool = False):
        if not PurePosixPath(root).is_absolute() or root == "/" or not root.isprintable() or " " in root:
            raise DeployError(f"root is {root!r}, expected an absolute path without spaces, as {ROOT}")
        self.ssh, self.root, self.sudo = ssh, root, sudo
        self._ota: str | None = None  # how toolkit.ota is started; None: the installed one

    def shell(self, script: str, stdin: bytes = b"", on_sent: Callable[[int], None] | None = None):
        """Run a POSIX shell script there, as root where that needs sudo."""
        command = f"exec {'sudo -n ' if self.sudo else ''}sh -c {shlex.quote(script)}"
        return self.ssh.run(command, stdin, on_sent)

    def must(self, script: str, doing: str, stdin: bytes = b"") -> str:
        """stdout of a script that succeeded; DeployError, with what it said, if it did not."""
        done = self.shell(script, stdin)
        if done.returncode:
            raise DeployError(f"{self.ssh.target}: {doing} failed: {_last_line(done.stderr, done.returncode)}")
        return done.stdout

    def read(self, path: str) -> bytes | None:
        """The content of a file below the root, or at an absolute path; None if there is none."""
        path = shlex.quote(str(PurePosixPath(self.root) / path))
        text = self.must(f"if [ -e {path} ]; then base64 {path}; else echo -; fi", f"reading {path}")
        return None if text.strip() == "-" else base64.b64decode(text)

    def release(self, link: str) -> dict | None:
        """release.json behind a link of the root; None if there is none."""
        data = self.read(f"{link}/release.json")
        return None if data is None else json.loads(data)

    # --- toolkit.ota ------------------------------------------------------------------------------

    def ask(self, *arguments: str, stdin: bytes = b"", on_sent: Callable[[int], None] | None = None,
            allow_failure: bool = False) -> dict[str, Any]:
        """What a command of toolkit.ota prints; DeployError, with its sentence, if it fails.

        ``allow_failure``: a command that failed with an answer gives that.
        """
        done = self.shell(self._command(arguments), stdin, on_sent)
        lines = done.stdout.strip().splitlines()
        if done.returncode == NOTHING_INSTALLED:
            raise DeployError(f"{self.ssh.target}: nothing is installed in {self.root}; deploy a release first")
        if done.returncode and not (allow_failure and lines):
            raise DeployError(f"{self.ssh.target}: {_last_line(done.stderr, done.returncode)}")
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            raise DeployError(f"{self.ssh.target}: `ota {arguments[0]}` gave no answer; deploy with --wheel of the "
                              f"toolkit's present version") from None

    def status(self) -> dict[str, Any] | None:
        """``ota status``, with ``now``, the device's clock; None where nothing is installed."""
        done = self.shell(f"date +%s; {self._command(('status',))}")
        if done.returncode == NOTHING_INSTALLED:
            return None
        lines = done.stdout.strip().splitlines()
        if done.returncode or len(lines) < 2:
            raise DeployError(f"{self.ssh.target}: {_last_line(done.stderr, done.returncode)}")
        return {**json.loads(lines[-1]), "now": int(lines[0])}

    def _command(self, arguments: tuple[str, ...]) -> str:
        words = shlex.join([*arguments, "--root", self.root])
        if self._ota is not None:
            return f"{self._ota} {words}"
        return INSTALLED.format(links=" ".join(LINKS), root=shlex.quote(self.root), arguments=words,
                                status=NOTHING_INSTALLED)

    # --- files ------------------------------------------------------------------------------------

    def use_wheel(self, wheel: File, say: Say) -> int:
        """Let the toolkit.ota of this wheel speak from now on; bytes that were sent for it."""
        blob = f"{self.root}/blobs/{wheel.sha256}"
        upload = f"{self.root}/incoming/{wheel.sha256}.bootstrap"
        text = self.must(f"mkdir -p {self.root}/incoming {self.root}/blobs; if [ -e {blob} ]; then echo there; "
                         f"else cat {upload} 2>/dev/null | wc -c; fi", f"making {self.root}").strip()
        sent = 0
        if text != "there":
            offset = int(text) if int(text) <= len(wheel.data) else 0
            sent = len(wheel.data) - offset
            done = self.shell(f"cat {'>>' if offset else '>'} {upload}", wheel.data[offset:],
                              _progress(say, wheel.name, sent))
            if done.returncode:
                raise DeployError(f"{self.ssh.target}: {wheel.name} could not be written: "
                                  f"{_last_line(done.stderr, done.returncode)}; make room there")
            self.must(f"echo '{wheel.sha256}  {upload}' | sha256sum -c - >/dev/null 2>&1 || {{ rm -f {upload}; "
                      f"echo 'it arrived damaged; try again' >&2; exit 1; }}", f"sending {wheel.name}")
            self.must(f"{_with_wheel(upload)} receive {wheel.sha256} --root {self.root} "
                      f"--size {len(wheel.data)} --offset 0 < {upload} && rm -f {upload}", f"receiving {wheel.name}")
        self._ota = _with_wheel(blob)
        return sent

    def use_runtime(self, python: str) -> None:
        """Let the toolkit.ota of this environment speak from now on."""
        self._ota = f"{shlex.quote(python)} -I -m toolkit.ota"

    def send(self, file: File, offset: int, say: Say) -> int:
        """Send what is missing of a file, from ``offset``; bytes that were sent."""
        data = file.data[offset:]
        self.ask("receive", file.sha256, "--size", str(len(file.data)), "--offset", str(offset), stdin=data,
                 on_sent=_progress(say, file.name, len(data)))
        return len(data)


def _with_wheel(path: str) -> str:
    """Starts toolkit.ota from a wheel. Not by PYTHONPATH: pip, which it calls, would take it for installed."""
    return shlex.join(["python3", "-I", "-c", FROM_WHEEL, path])


def _last_line(text: str, status: int) -> str:
    """The sentence that a program ended with, without its name before it."""
    if status > 128:  # of a shell whose command a signal has ended
        return f"the command was killed there ({_signal(status - 128)}); `status` tells what runs now"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("edge-audio: ") if lines else f"it ended with status {status} and said nothing"


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _progress(say: Say, name: str, n_bytes: int) -> Callable[[int], None]:
    """Says how far the sending is, at every tenth, if there is enough to wait for."""
    say(f"sending {name} ({n_bytes / 1e6:.2f} MB)")
    start_s, told = time.monotonic(), 0

    def on_sent(sent: int) -> None:
        nonlocal told
        tenth = 10 * sent // n_bytes
        if tenth > told and tenth < 10 and n_bytes > 1_000_000:
            told, elapsed_s = tenth, time.monotonic() - start_s
            say(f"  {10 * tenth} %, {elapsed_s * (n_bytes - sent) / sent:.0f} s left")

    return on_sent
