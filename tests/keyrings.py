"""Keyrings of six keys, signed as a test likes, and a device that must refuse some of them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from toolkit.errors import SignatureError
from toolkit.keyring import Key, Keyring, Revocation
from toolkit.ota.trust import accept, install_keyring
from toolkit.signature import PrivateKey, sign

A, B, C, X, Y, Z = (PrivateKey(bytes([number]) * 32, name) for number, name in enumerate("ABCXYZ", 1))


@functools.cache
def key_id(key: PrivateKey) -> str:
    return key.public_key().key_id


def keyring(version: int = 1, root=(A, B), bundle=(X,), revoked=(), threshold: int = 1) -> Keyring:
    def listed(keys):
        return tuple(sorted((Key.of(key.public_key()) for key in keys), key=lambda key: key.id))

    return Keyring(version, threshold, listed(root), listed(bundle), tuple(
        sorted((Revocation(key_id(key), f"{key.comment} was lost") for key in revoked), key=lambda item: item.id)))


def signed(ring: Keyring, *keys: PrivateKey) -> tuple[bytes, bytes]:
    return ring.to_bytes(), b"".join(sign(ring.to_bytes(), key) for key in keys)


def make_device(folder: Path) -> Path:
    """ROOT of a device that trusts version 1: root keys A, B of which 1 must sign, bundle key X."""
    root = folder / "root"
    root.mkdir()
    assert install_keyring(root, *signed(keyring(), A)) is True
    return root


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below, by path: its bytes, and where links point."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
            for path in paths if path.is_symlink() or path.is_file()}


def refused(root: Path, data: bytes, signatures: bytes, words: str, error=SignatureError) -> None:
    """One sentence that holds ``words``, and nothing on the device has changed."""
    before = contents(root)
    with pytest.raises(error, match=words) as raised:
        accept(root, data, signatures)
    assert type(raised.value) is error and "\n" not in str(raised.value)
    assert str(raised.value).startswith(("keyring.json", "keyring.sig", str(root)))
    assert contents(root) == before
