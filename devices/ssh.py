"""One connection to a device: the OpenSSH client as a subprocess, so that the user's config, agent and jump hosts work.

    with Ssh("pi@kitchen") as device:
        device.run("uname -m").stdout

The first use starts a master (``ssh -M -N``), whose socket lies in a temporary folder; every command then goes through
it without a new handshake. Nothing is ever asked: a key that is missing or locked, a host that is not known yet and a
password are each one sentence. A connection that is dropped is a ConnectionLost, at most 20 s later.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.errors import DeployError, MissingPartError, UsageError

CONNECT_TIMEOUT_S = 15  # for each connection, of which a jump host makes two
PATIENCE_S = 90  # for all of them, and their logins
KEEP_ALIVE_S, KEEP_ALIVE_COUNT = 5, 3
PIECE_BYTES = 64 << 10
OWN_OPTIONS = (
    "BatchMode=yes", f"ConnectTimeout={CONNECT_TIMEOUT_S}", f"ServerAliveInterval={KEEP_ALIVE_S}",
    f"ServerAliveCountMax={KEEP_ALIVE_COUNT}", "ControlPersist=no", "RequestTTY=no", "RemoteCommand=none",
    "ClearAllForwardings=yes", "PermitLocalCommand=no",
)
LOST = 255  # ssh's own exit status for a failed connection; no command of ours ends with it


class ConnectionLost(DeployError):
    """The connection could not be made, or ended in the middle of a command."""


class Ssh:
    """A device, by its name for ``ssh``. ``options`` are whole ``-o`` options and win over the user's config.

    UsageError for a target that ssh would take for an option; MissingPartError without an ssh client.
    """

    def __init__(self, target: str, port: int | None = None, identity: str | None = None, options: Sequence[str] = ()):
        if not re.fullmatch(r"[A-Za-z0-9_][^\s]*", target):
            raise UsageError(f"host is {target!r}, expected user@host or a name of your ssh config")
        if shutil.which("ssh") is None:
            raise MissingPartError("no ssh client is installed (Debian: openssh-client)")
        self.target = target
        self._folder = Path(tempfile.mkdtemp(prefix="edge-"))  # short: a socket's path has at most 107 bytes
        self._socket, self._log = self._folder / "s", self._folder / "log"
        self._master: subprocess.Popen | None = None
        self._arguments = [part for option in (*options, *OWN_OPTIONS) for part in ("-o", option)]
        self._arguments += ["-S", str(self._socket)]
        self._arguments += ["-p", str(port)] if port else []
        self._arguments += ["-i", identity] if identity else []

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, command: str, stdin: bytes = b"",
            on_sent: Callable[[int], None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a shell command there to its end: exit status, stdout and stderr as text; ConnectionLost.

        ``on_sent`` is called with the number of bytes of ``stdin`` that have left, after each piece.
        """
        self._connect()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # files never fill up, as pipes do
            process = subprocess.Popen(self._ssh(command), stdin=subprocess.PIPE, stdout=out, stderr=err)
            try:
                _feed(process, stdin, on_sent)
                status = process.wait()
            finally:
                if process.poll() is None:  # Ctrl-C
                    process.kill()
                    process.wait()
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        if status == LOST:
            raise ConnectionLost(f"{self.target}: the connection was lost ({_reason(self._said() + texts[1])}); "
                                 f"the same command goes on where it stopped")
        return subprocess.CompletedProcess(command, status, *texts)

    def pass_through(self, command: str) -> int:
        """Run a shell command whose stdout and stderr are this process's: the exit status; ConnectionLost."""
        self._connect()
        status = subprocess.run(self._ssh(command), stdin=subprocess.DEVNULL).returncode
        if status == LOST:
            raise ConnectionLost(f"{self.target}: the connection was lost; give the command again")
        return status

    def close(self) -> None:
        """End the connection; commands that still run there go on without it."""
        if self._master is not None:
            self._master.terminate()
            self._master.wait()
            self._master = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ssh(self, command: str) -> list[str]:
        return ["ssh", *self._arguments, "-o", "ControlMaster=no", "--", self.target, command]

    def _connect(self) -> None:
        """Start the master, and wait until it takes commands; a living one is kept."""
        if self._master is not None and self._master.poll() is None:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        with self._log.open("wb") as log:
            self._master = subprocess.Popen(["ssh", *self._arguments, "-M", "-N", "--", self.target],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while not self._socket.exists():
            if time.monotonic() > deadline:
                self._master.kill()
                self._master.wait()
            if self._master.poll() is not None:
                raise ConnectionLost(f"{self.target}: {_why_no_connection(self._said())}")
            time.sleep(0.02)

    def _said(self) -> str:
        return self._log.read_text("utf-8", "replace")


def _feed(process: subprocess.Popen, data: bytes, on_sent: Callable[[int], None] | None) -> None:
    """Write ``data`` to the process's stdin, as far as it reads, and close it."""
    try:
        for start in range(0, len(data), PIECE_BYTES):
            process.stdin.write(data[start:start + PIECE_BYTES])
            process.stdin.flush()
            if on_sent is not None:
                on_sent(min(start + PIECE_BYTES, len(data)))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended before: its exit status says why


def _reason(text: str) -> str:
    """What ssh said last, as a part of a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "ssh gave no reason"


def _why_no_connection(log: str) -> str:
    said = _reason(log)
    for pattern, way_out in (
        (r"Host key verification failed", "connect once by hand (ssh HOST), and compare the fingerprint with the "
                                          "device's, or remove a key that is out of date with ssh-keygen -R HOST"),
        (r"Permission denied", "put your public key there with ssh-copy-id, or name another with --identity; a key "
                               "with a passphrase must be in the agent (ssh-add)"),
        (r"Could not resolve|Name or service not known", "correct the name, or give the address"),
        (r"timed out|No route|unreachable|refused", "is it switched on, in this network, and sshd running?"),
    ):
        if re.search(pattern, log):
            return f"no connection ({said}); {way_out}"
    return f"no connection ({said}); try ssh HOST by hand"
