"""A real OpenSSH server on a free loopback port, with host key, user key and home of its own: a device for tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
SETTINGS = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv {environment}
"""


@dataclass
class Server:
    """Where it listens, and how a client gets in."""

    folder: Path
    port: int
    process: subprocess.Popen

    @property
    def target(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    @property
    def identity(self) -> str:
        return str(self.folder / "user_key")

    @property
    def options(self) -> list[str]:
        """``-o`` options: nothing of the real user's ssh takes part."""
        return [f"UserKnownHostsFile={self.folder}/known_hosts", "GlobalKnownHostsFile=/dev/null",
                "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "IdentityAgent=none"]

    @property
    def arguments(self) -> list[str]:
        """The same for the command line."""
        options = [part for option in self.options for part in ("--ssh-option", option)]
        return ["--host", self.target, "--port", str(self.port), "--identity", self.identity, *options]

    def drop_connections(self) -> int:
        """Kill the server's children, as a network that goes away would; how many."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), 9)
        return len(children)


@contextmanager
def serve(folder: Path, **environment: str) -> Iterator[Server]:
    """A running server, whose commands see ``environment``; skips where openssh-server or ssh is not installed."""
    if SERVER is None or shutil.which("ssh") is None:
        pytest.skip("openssh-server and openssh-client are not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its privilege separation wants it
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    environment = {"HOME": str(folder), **environment}  # so that no shell reads the real user's settings
    pairs = " ".join(f'"{name}={value}"' for name, value in environment.items())
    settings = SETTINGS.format(port=port, folder=folder, environment=pairs)
    (folder / "sshd_config").write_text(settings)
    with open(folder / "sshd.log", "wb") as log:
        process = subprocess.Popen([SERVER, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log)
    server = Server(folder, port, process)
    try:
        _wait_for(server)
        yield server
    finally:
        server.drop_connections()
        process.terminate()
        process.wait()


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return
        except OSError:
            log = (server.folder / "sshd.log").read_text()
            if server.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"sshd did not start: {log}")
            time.sleep(0.05)
