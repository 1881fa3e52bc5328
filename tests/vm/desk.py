"""The host's side of the deployments: keys, bundles and wheels of its own, and a folder that a web server shows."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from arm_image import CheckFailed

from toolkit.bundle import load_bundle, write_bundle
from toolkit.signature import read_private_key

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE, BUNDLE = "rpi4", "kws"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")  # that the released bundle is signed as
HEALTH_S = "60"  # an emulated device starts slowly
PYTHON = ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3")  # the guest's
PLATFORMS = tuple(f"--platform=manylinux{tag}_aarch64" for tag in ("_2_36", "_2_34", "_2_28", "_2_17", "2014"))


@dataclass(frozen=True)
class Desk:
    """What a host has before its first deployment."""

    folder: Path
    wheel: str  # the name of the toolkit's

    @property
    def keys(self) -> str:
        return str(self.folder / "keys")

    @property
    def site(self) -> Path:
        """The published folder."""
        return self.folder / "site"

    @property
    def runtime(self) -> list[str]:
        return ["--wheel", str(self.folder / self.wheel), "--requirements", str(self.folder / "requirements")]

    def order(self, version: str, *more: str, health_s: str = HEALTH_S) -> list[str]:
        return ["deploy", PROFILE, str(self.folder / f"{version}.eab"), "--health-s", health_s, *more]

    def publish(self, version: str) -> None:
        """With a wheel that is not the one of ``runtime``, so that the device must make an environment itself."""
        program("-m", "devices", "publish", str(self.site), PROFILE, str(self.folder / f"{version}.eab"),
                "--key", f"{self.keys}/bundle.key", *self.runtime, "--wheel", str(self.folder / "later" / self.wheel))

    @contextlib.contextmanager
    def serve(self) -> Iterator[int]:
        """The published folder, on a free port of this machine's loopback."""
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Quiet, directory=str(self.site))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()


def make_desk(folder: Path, cache: Path) -> Desk:
    """Fill the folder; ``cache``: pip's. CheckFailed without a compiler or a network."""
    program("-m", "devices", "keygen", str(folder / "keys"))
    key = read_private_key(folder / "keys" / "bundle.key")
    released = load_bundle(BUNDLE, "require")
    members = {role: (released.manifest.members[role].file, data) for role, data in released.members.items()}
    for version in VERSIONS:
        write_bundle(folder / f"{version}.eab", replace(released.manifest, version=version), members, key)
    program("-m", "devices.wheels", "aarch64", "--into", str(folder / "later"), SOURCE_DATE_EPOCH="1000000000")
    wheel = Path(json.loads(program("-m", "devices.wheels", "aarch64", "--into", str(folder)))["wheel"])
    program("-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:", *PLATFORMS, *PYTHON,
            f"--cache-dir={cache}", f"--dest={folder / 'requirements'}", f"{wheel}[listen]")
    (folder / "requirements" / wheel.name).unlink()
    return Desk(folder, wheel.name)


def program(*arguments: str, **environment: str) -> str:
    """What a Python program in the checkout prints; CheckFailed with its last words if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY,
                          env={**os.environ, **environment})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckFailed(f"`{' '.join(arguments[:3])}` ended with {done.returncode}: {last}")
    return done.stdout
