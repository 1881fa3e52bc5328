"""The folder of a device (drawn in ``toolkit/ota/__init__.py``): its paths, its three links, its floor and its lock."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import DeployError
from toolkit.ota import disk
from toolkit.ota.release import Release, highest, parse_release

DEFAULT_ROOT = "/opt/edge-audio"
FOLDERS = ("blobs", "incoming", "runtimes", "releases")
LOCK_WAIT_S = 5.0  # for a command that takes moments, such as `status`


class Root:
    """Reads the folder afresh at every call; changes nothing but the lock."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self.blobs, self.incoming, self.runtimes, self.releases = (self.path / name for name in FOLDERS)
        self.boot, self.trust = self.path / "boot", self.path / "trust"
        self.outcome_file, self.floor_file = self.path / "outcome.json", self.path / "floor.json"
        self.index_file = self.path / "index.json"
        self.lock_descriptor: int | None = None  # while it is held

    # --- links ---

    def link(self, name: str) -> Path:
        return self.path / name

    def linked(self, name: str) -> str | None:
        """The ID that ``current``, ``committed`` or ``previous`` names, None where there is no link."""
        try:
            return os.path.basename(os.readlink(self.link(name)))
        except OSError:
            return None

    @property
    def current(self) -> str | None:
        return self.linked("current")

    @property
    def committed(self) -> str | None:
        return self.linked("committed")

    @property
    def previous(self) -> str | None:
        """The one committed before, if another one is committed now."""
        previous = self.linked("previous")
        return previous if previous != self.committed else None

    # --- contents ---

    def release(self, release_id: str) -> Release:
        """The staged release; DeployError if there is none."""
        path = self.releases / release_id / "release.json"
        if not path.exists():
            raise DeployError(f"{self.path}: there is no release {release_id}; stage it first.")
        with disk.telling(path):
            return parse_release(path.read_bytes(), str(path))

    def staged(self) -> list[str]:
        """IDs of the releases that are whole."""
        return sorted(path.name for path in self.releases.glob("[!.]*"))

    def is_ready(self, key: str) -> bool:
        """Is that runtime finished?"""
        return (self.runtimes / key / "ready").exists()

    def floor(self) -> dict[str, str]:
        """The lowest versions taken: those of floor.json or of the committed release, whichever is higher."""
        committed = self.committed
        return highest(self.read_json(self.floor_file) or {}, self.release(committed).versions if committed else {})

    def read_json(self, path: Path) -> dict | None:
        """An object that we wrote, None if there is none."""
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DeployError(f"{path}: cannot be read ({error}); remove it and run the command again.") from None
        return value

    # --- lock ---

    def make(self) -> None:
        """The folder with its folders."""
        for name in FOLDERS:
            disk.make_folder(self.path / name)

    @contextmanager
    def lock(self, wait_s: float = LOCK_WAIT_S) -> Iterator[bool]:
        """Holds the lock, if True is yielded; False: somebody else did, for as long as we waited."""
        with disk.telling(self.path / "lock"):
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            is_held, deadline = False, time.monotonic() + wait_s
            while not is_held:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    is_held = True
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(0.05)
            self.lock_descriptor = descriptor if is_held else None
            yield is_held
        finally:
            self.lock_descriptor = None
            os.close(descriptor)
