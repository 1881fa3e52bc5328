"""Uploads: bytes on stdin become a blob when they are complete and have the hash that they are named by."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

from toolkit.digest import sha256
from toolkit.errors import DeployError, UsageError
from toolkit.ota import disk
from toolkit.ota.layout import Root
from toolkit.ota.release import Release

CHUNK_BYTES = 256 << 10
MAX_BLOB_BYTES = 256 << 20
SILENCE_S = 60.0  # a host that vanished without a word must not hold the lock for hours


def missing(root: Root, release: Release) -> list[dict[str, Any]]:
    """What a host has to send before the release can be staged: {sha256, received_bytes} each."""
    needed = {bundle.sha256 for bundle in release.bundles}
    if not root.is_ready(release.runtime.key):
        needed |= release.blobs
    absent = sorted(digest for digest in needed if not (root.blobs / digest).exists())
    return [{"sha256": digest, "received_bytes": _size(_part(root, digest))} for digest in absent]


def receive(root: Root, digest: str, size: int, offset: int, source: int) -> dict[str, Any]:
    """Appends what the descriptor ``source`` gives: {sha256, received_bytes, is_complete}.

    What came stays for the next call to go on from, whatever ended this one; but bytes that cannot become the blob
    (too many, or of another hash) are removed. UsageError for sizes that make no sense, else DeployError.
    """
    if not 1 <= size <= MAX_BLOB_BYTES or not 0 <= offset <= size:
        raise UsageError(f"--size is {size} and --offset {offset}, expected 1 to {MAX_BLOB_BYTES} and 0 to the size.")
    blob, part = root.blobs / digest, _part(root, digest)
    if not blob.exists():
        received = _size(part)
        if offset != received:
            raise DeployError(f"{digest}: {received} bytes are here, --offset is {offset}; go on from {received}.")
        free = disk.free_bytes(root.path)
        if free < size - offset:
            raise DeployError(f"{root.path}: {size - offset} bytes are to come, {free} are free; "
                              f"free some space, for example with `edge-audio ota clean`, and send it again.")
        with disk.telling(part), open(part, "ab", buffering=0) as file:
            received = _append(file, source, offset, size)
        if received < size:
            return {"sha256": digest, "received_bytes": received, "is_complete": False}
        _complete(part, blob, digest, received, size)
    return {"sha256": digest, "received_bytes": size, "is_complete": True}


def checked_blob(root: Root, digest: str, name: str) -> Path:
    """Where the blob is, which still has its hash; DeployError if it is missing or damaged."""
    path = root.blobs / digest
    if not path.exists():
        raise DeployError(f"{name}: its bytes ({digest}) are not on the device; send them first (receive).")
    if _hash(path) != digest:
        disk.remove(path)
        raise DeployError(f"{name}: its bytes were damaged on the device and are removed; send them again (receive).")
    return path


def _append(file, source: int, received: int, size: int) -> int:
    """Copies until the end of the source, or one chunk past ``size``; the number of bytes that are here then."""
    while received <= size:
        if not select.select([source], [], [], SILENCE_S)[0]:
            raise DeployError(f"no byte came for {SILENCE_S:g} s, {received} of {size} are here; go on from there.")
        data = os.read(source, CHUNK_BYTES)
        if not data:
            break
        received += len(data)
        while data and received <= size:  # not a byte more than was announced reaches the disk
            data = data[file.write(data):]
    return received


def _complete(part: Path, blob: Path, digest: str, received: int, size: int) -> None:
    """The part becomes the blob, or is removed."""
    problem = f"more than the announced {size} bytes came" if received > size else None
    if problem is None and _hash(part) != digest:
        problem = f"its {size} bytes have another hash"
    if problem:
        disk.remove(part)
        raise DeployError(f"{digest}: {problem}; what came is removed, send it again from the start.")
    with disk.telling(part):
        disk.sync(part)
    disk.rename(part, blob)
    with disk.telling(part):
        disk.sync(part.parent)


def _hash(path: Path) -> str:
    digest = sha256()
    with disk.telling(path), open(path, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _part(root: Root, digest: str) -> Path:
    return root.incoming / f"{digest}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
