"""Whose bundles this device takes: the keyring (``toolkit.keyring``) in force, and how the next one takes its place.

    ROOT/trust -> trusts/VERSION    keyring.json, keyring.sig, KEY_ID.pub of every bundle key, revoked
    ROOT/trust -> trusts/keys-...   or only *.pub and revoked: keys that whoever deploys may replace

Either is a folder that ``signature.read_trusted_keys`` reads. The rename of the link is the change. Once there is a
keyring, only the next keyring follows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from toolkit.bundle import MAX_FILE_BYTES, SIGNATURE, walk
from toolkit.errors import EdgeAudioError, SignatureError
from toolkit.keyring import (
    KEYRING,
    MAX_KEYRING_BYTES,
    MAX_SIGNATURES_BYTES,
    SIGNATURES,
    Keyring,
    check_next,
    parse_keyring,
)
from toolkit.ota import disk
from toolkit.signature import REVOKED, TrustedKeys, parse_signature, read_trusted_keys

TRUST, TRUSTS = "trust", "trusts"


def read_keyring(root: Path) -> Keyring | None:
    """The keyring in force, None before the first; SignatureError if what is there is damaged.

    Its signatures were checked when it came; nobody but the owner can write here. Damage is never taken for absence:
    any keyring would then do as the first.
    """
    path = root / TRUST / KEYRING
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEYRING_BYTES + 1)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not _is_keyring(root / TRUST):
            return None
        raise SignatureError(f"{path}: cannot be read ({error.strerror}); remove {root / TRUST} to trust the next "
                             f"keyring as the first") from None
    return parse_keyring(data, str(path))


def install_keyring(root: Path, keyring: bytes, signatures: bytes, where: str = KEYRING) -> bool:
    """Trust this keyring from now on; False if it is in force already, so that sending it twice does no harm.

    The caller holds the lock. Errors as ``check_next`` and ``read_keyring``, DeployError if the disk refuses; what was
    trusted before then stays. Earlier versions stay in ROOT/trusts, some kilobytes each, for whoever investigates.
    """
    present = read_keyring(root)
    if present is not None and present.to_bytes() == keyring:
        return False
    new = check_next(keyring, signatures, present, where)
    folder = root / TRUSTS / str(new.version)
    _write_folder(folder, new, keyring, signatures)
    if not (root / TRUST).is_symlink():
        disk.remove(root / TRUST)  # a folder cannot be renamed over; until the link is there nobody is trusted
    disk.link_to(root / TRUST, f"{TRUSTS}/{new.version}")
    return True


def accept(root: Path, keyring: bytes, signatures: bytes, where: str = KEYRING) -> dict[str, Any]:
    """``install_keyring``, then what is trusted, for a line of JSON: Keyring.summary() and is_new."""
    is_new = install_keyring(root, keyring, signatures, where)
    return {**parse_keyring(keyring, where).summary(), "is_new": is_new}


def read_pair(source: BinaryIO) -> tuple[bytes, bytes]:
    """keyring.json and keyring.sig that come in one stream, no more of it than may be right."""
    keyring, newline, signatures = source.read(MAX_KEYRING_BYTES + MAX_SIGNATURES_BYTES + 1).partition(b"\n")
    return keyring + newline, signatures


def _is_keyring(trust: Path) -> bool:
    """Does the link name a version of a keyring, whatever is left of it?"""
    return trust.is_symlink() and os.path.basename(os.readlink(trust)).isdecimal()


def _write_folder(folder: Path, new: Keyring, keyring: bytes, signatures: bytes) -> None:
    """The folder of a version, complete under another name first. One of this name that nothing links to makes way."""
    revoked = "".join(f"{key_id} {reason}\n" for key_id, reason in new.reasons().items())
    beside = disk.new_name(folder)
    disk.remove(beside)
    disk.make_folder(beside)
    disk.write(beside / KEYRING, keyring)
    disk.write(beside / SIGNATURES, signatures)
    disk.write(beside / REVOKED, revoked.encode())
    for key in new.bundle_keys:
        disk.write(beside / f"{key.id}.pub", key.to_public_key().to_text().encode())
    with disk.telling(beside):
        disk.sync(beside)
    disk.remove(folder)
    disk.put_in_place(folder)


# --- for status -----------------------------------------------------------------------------------


def report(root: Path, bundles: Iterable[Path]) -> dict[str, Any]:
    """{keyring_version: number or None, doubts: sentences}, of the trust and the installed ``bundles``; raises nothing.

    A bundle in doubt could not be staged again, because its key is trusted no more. It keeps running, for a device must
    not fall silent. Its bytes were checked when it was staged: here the key id is enough, and needs no library.
    """
    version, doubts = None, []
    try:
        keyring = read_keyring(root)
        version = keyring.version if keyring else None
        trusted = read_trusted_keys(root / TRUST)
    except EdgeAudioError as error:
        return {"keyring_version": version, "doubts": [str(error)]}
    for path in bundles:
        if doubt := _doubt(path, trusted):
            doubts.append(f"{path}: {doubt}; it keeps running until another is deployed that a trusted key signed")
    return {"keyring_version": version, "doubts": doubts}


def _doubt(path: Path, trusted: TrustedKeys) -> str | None:
    try:
        with path.open("rb") as file:
            line = walk(file.read(MAX_FILE_BYTES + 1), "the bundle").get(SIGNATURE, b"")
        key_id, _ = parse_signature(line, SIGNATURE)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except EdgeAudioError as error:
        return str(error)
    if key_id in trusted.revoked:
        return f"signed by the key {key_id}, which was revoked ({trusted.revoked[key_id]})"
    if key_id not in {key.key_id for key in trusted}:
        return f"signed by the key {key_id}, which is not trusted any more"
    return None
