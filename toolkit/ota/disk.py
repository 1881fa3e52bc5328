"""Changes that survive a power cut: after each of these calls the change is on the disk, whole, or it has not begun.

Names of things half made begin with a dot and end in .new or .old (``new_name``); ``leftovers`` finds them. One writer
is assumed: whoever holds the lock of the root. An error of the operating system becomes one sentence (DeployError).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import DeployError

WAYS_OUT = {
    errno.ENOSPC: "free some space, for example with `edge-audio ota clean`, and run the command again",
    errno.EDQUOT: "free some space, for example with `edge-audio ota clean`, and run the command again",
    errno.EACCES: "run the command as the owner of the folder, or with sudo",
    errno.EPERM: "run the command as the owner of the folder, or with sudo",
    errno.EROFS: "make the file system writable and run the command again",
    errno.EIO: "the disk may be failing; run the command again, and change the disk if it stays so",
}


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """OSError as one sentence that begins with the path."""
    try:
        yield
    except OSError as error:
        way_out = WAYS_OUT.get(error.errno, "correct that and run the command again")
        raise DeployError(f"{path}: {error.strerror or error}; {way_out}.") from None


def new_name(path: Path) -> Path:
    """Where it is made before it is renamed to ``path``."""
    return path.with_name(f".{path.name}.new")


def leftovers(folder: Path) -> list[Path]:
    """What calls that were cut off have left in the folder."""
    return sorted(path for pattern in (".*.new", ".*.old") for path in folder.glob(pattern))


def sync(path: Path) -> None:
    """The contents of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """A file in a folder that nobody uses yet; its name is on the disk after ``sync`` of the folder."""
    with telling(path), open(path, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    """A file that takes the place of an older one."""
    write(new_name(path), data, mode)
    put_in_place(path)


def prepare_link(path: Path, target: str) -> None:
    """A symbolic link beside ``path``, which ``put_in_place`` makes the link that counts."""
    with telling(path):
        new_name(path).unlink(missing_ok=True)
        os.symlink(target, new_name(path))
        sync(path.parent)


def link_to(path: Path, target: str) -> None:
    """A symbolic link that takes the place of an older one."""
    prepare_link(path, target)
    put_in_place(path)


def put_in_place(path: Path) -> None:
    """What was made under ``new_name`` takes the place of ``path``."""
    rename(new_name(path), path)


def rename(source: Path, target: Path) -> None:
    with telling(target):
        os.rename(source, target)
        sync(target.parent)


def make_folder(path: Path) -> None:
    """The folder and those above it; nothing if it is there."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with telling(path):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def remove(path: Path) -> None:
    """A file, a link or a folder; nothing if there is none. A folder loses its name first: no part of it stays."""
    with telling(path):
        if path.is_symlink() or not path.is_dir():
            if os.path.lexists(path):
                path.unlink()
                sync(path.parent)
            return
        doomed = path if path.name.startswith(".") else path.with_name(f".{path.name}.old")
        if doomed != path:
            if doomed.exists():
                shutil.rmtree(doomed)
            os.rename(path, doomed)
            sync(path.parent)
        shutil.rmtree(doomed)


def free_bytes(path: Path) -> int:
    """Free for us in the file system of the path, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    with telling(path):
        figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize
