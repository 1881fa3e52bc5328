"""``python -m devices keyring``: make and sign the keyrings that devices trust, on a machine without network.

    DIR/1/keyring.json  keyring.sig      every version that ever was: a device takes them one after the other
    DIR/2/keyring.json                   a draft, as long as no root key has signed it

``new``, ``add`` and ``revoke`` write drafts; ``sign`` adds one line per root key; what is signed is never changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.bundle import write_whole
from toolkit.errors import EdgeAudioError, SignatureError, UsageError
from toolkit.keyring import (
    KEYRING,
    MAX_KEYRING_BYTES,
    SIGNATURES,
    Key,
    Keyring,
    Revocation,
    check_next,
    check_order,
    lacking_signatures,
    parse_keyring,
    read_signers,
)
from toolkit.signature import PACKAGE_TRUST, read_private_key, read_public_key, read_trusted_keys, sign


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("keyring", help="make and sign the keyrings that devices trust",
                                 description="Which keys may sign bundles for devices: versions in DIR, kept for ever.")
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for step, run, text in ((new, run_new, "begin DIR with version 1"),
                            (add, run_add, "trust more keys from the next version on"),
                            (revoke, run_revoke, "never trust these keys again"),
                            (sign_draft, run_sign, "sign the last version with root keys"),
                            (show, run_show, "check all versions, print the last")):
        name = step.__name__.partition("_")[0]
        one = steps.add_parser(name, help=text, description=step.__doc__.splitlines()[0])
        one.add_argument("folder", metavar="DIR", type=Path)
        if step in (new, add):
            for role, use in (("root", "keyrings"), ("bundle", "bundles")):
                one.add_argument(f"--{role}", metavar="KEY.pub", type=Path, nargs="+", default=[], action="extend",
                                 help=f"keys that may sign {use}")
        if step is revoke:
            one.add_argument("keys", metavar="KEY", nargs="+", help="key id or KEY.pub")
            one.add_argument("--reason", required=True, help="devices print it beside what they refuse")
        if step is sign_draft:
            one.add_argument("keys", metavar="KEY.key", nargs="+", type=Path, help="private root keys")
        if step in (new, add, revoke):
            one.add_argument("--threshold", metavar="N", type=int, default=1 if step is new else None,
                             help="root keys that must sign a keyring" + (" (default: 1)" if step is new else ""))
        one.set_defaults(run=run)


def run_new(arguments: argparse.Namespace) -> None:
    _report(arguments.folder, new(arguments.folder, arguments.root, arguments.bundle, arguments.threshold))


def run_add(arguments: argparse.Namespace) -> None:
    _report(arguments.folder, add(arguments.folder, arguments.root, arguments.bundle, arguments.threshold))


def run_revoke(arguments: argparse.Namespace) -> None:
    _report(arguments.folder, revoke(arguments.folder, arguments.keys, arguments.reason, arguments.threshold))


def run_sign(arguments: argparse.Namespace) -> None:
    _report(arguments.folder, sign_draft(arguments.folder, arguments.keys))


def run_show(arguments: argparse.Namespace) -> None:
    _report(arguments.folder, show(arguments.folder))


def _report(folder: Path, version: Version) -> None:
    print(json.dumps({"folder": str(folder), **version.keyring.summary(), "signed_by": sorted(version.signed_by),
                      "lacks": version.lacks or None}))
    if version.lacks:
        print(f"devices: {version.path}: {'; '.join(version.lacks)}; no device takes it before", file=sys.stderr)
    for key_id in sorted({key.id for key in version.keyring.bundle_keys} & _development_keys()):
        print(f"devices: the bundle key {key_id} is the development key, with which anybody can sign; revoke it before "
              f"the devices are used in earnest", file=sys.stderr)


# --- the steps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One version in the folder, checked against those before it."""

    path: Path  # of keyring.json
    keyring: Keyring
    data: bytes
    signatures: bytes = b""
    signed_by: frozenset[str] = frozenset()  # root keys, of this version and the one before
    lacks: tuple[str, ...] = ()  # what devices would complain of; (): complete


def new(folder: Path, root: Iterable[Path], bundle: Iterable[Path], threshold: int = 1) -> Version:
    """Begin a folder with version 1, the keyring that devices take from whoever installs them."""
    if _numbers(folder):
        raise UsageError(f"{folder}: holds keyrings already; add and revoke make the next version")
    roots, bundles = _read_keys(root), _read_keys(bundle)
    if not roots:
        raise UsageError("a keyring needs at least one root key; give --root KEY.pub (python -m devices keygen)")
    return _write_draft(folder, Keyring(1, threshold, _sorted(roots), _sorted(bundles), ()))


def add(folder: Path, root: Iterable[Path] = (), bundle: Iterable[Path] = (), threshold: int | None = None) -> Version:
    """Trust more keys, or ask for another number of root keys, from the next version on."""
    keyring = _next(folder)
    roots, bundles = _read_keys(root), _read_keys(bundle)
    if not roots and not bundles and threshold in (None, keyring.threshold):
        raise UsageError("nothing to add; give --root KEY.pub, --bundle KEY.pub or another --threshold")
    for present, keys in ((keyring.root_keys, roots), (keyring.bundle_keys, bundles)):
        if twice := {key.id for key in present} & keys.keys():
            raise UsageError(f"{folder}: has the key {min(twice)} already; leave it out")
    return _write_draft(folder, replace(
        keyring, threshold=threshold or keyring.threshold,
        root_keys=_sorted({key.id: key for key in keyring.root_keys} | roots),
        bundle_keys=_sorted({key.id: key for key in keyring.bundle_keys} | bundles)))


def revoke(folder: Path, keys: Iterable[str], reason: str, threshold: int | None = None) -> Version:
    """Never trust these keys again, as root or as bundle key, from the next version on."""
    keyring = _next(folder)
    known = {key.id for key in keyring.root_keys + keyring.bundle_keys}
    ids = {key if re.fullmatch(r"[0-9a-f]{16}", key) else read_public_key(key).key_id for key in keys}
    if strangers := sorted(ids - known):
        said = "revoked already" if strangers[0] in keyring.reasons() else "not among its keys"
        raise UsageError(f"{folder}: the key {strangers[0]} is {said}; its keys are {', '.join(sorted(known))}")
    return _write_draft(folder, replace(
        keyring, threshold=threshold or keyring.threshold,
        root_keys=tuple(key for key in keyring.root_keys if key.id not in ids),
        bundle_keys=tuple(key for key in keyring.bundle_keys if key.id not in ids),
        revoked=_sorted({item.id: item for item in keyring.revoked} | {id: Revocation(id, reason) for id in ids})))


def sign_draft(folder: Path, keys: Iterable[Path]) -> Version:
    """Add the signatures of root keys, of this version or the one before, to the last version."""
    *before, last = read_versions(folder)
    roots = {key.id for version in [*before[-1:], last] for key in version.keyring.root_keys}
    signatures, signed_by = last.signatures, set(last.signed_by)
    for path in keys:
        key = read_private_key(path)
        key_id = key.public_key().key_id
        if key_id not in roots:
            raise UsageError(f"{path}: the key {key_id} is no root key of this or the last keyring; its signature "
                             f"would count for nothing")
        if key_id in signed_by:
            raise UsageError(f"{last.path}: is signed by the key {key_id} already; leave it out")
        signatures += sign(last.data, key)
        signed_by.add(key_id)
    write_whole(last.path.with_name(SIGNATURES), signatures)
    return read_versions(folder)[-1]


def show(folder: Path) -> Version:
    """Check all versions as a device would, and print the last."""
    return read_versions(folder)[-1]


def newer_than(folder: Path, version: int | None) -> list[tuple[bytes, bytes]]:
    """(keyring.json, keyring.sig) of every complete version that a device needs, in the order in which it takes them.

    ``version`` is the device's, None if it has none: then the last one alone, for the first is trusted as it comes.
    """
    complete = [item for item in read_versions(folder) if not item.lacks]
    wanted = complete[-1:] if version is None else [item for item in complete if item.keyring.version > version]
    return [(item.data, item.signatures) for item in wanted]


# --- the folder -----------------------------------------------------------------------------------


def read_versions(folder: Path) -> list[Version]:
    """All versions, 1 first, each checked as a device that holds the one before would; the last may lack signatures."""
    numbers = _numbers(folder)
    if not numbers:
        raise UsageError(f"{folder}: holds no keyring; python -m devices keyring new begins one")
    if numbers != list(range(1, len(numbers) + 1)):
        raise UsageError(f"{folder}: holds the versions {', '.join(map(str, numbers))}, expected all from 1 on; copy "
                         f"back those that are missing")
    versions: list[Version] = []
    for number in numbers:
        path, present = folder / str(number) / KEYRING, versions[-1].keyring if versions else None
        data, signatures = _read(path), _read(path.with_name(SIGNATURES), b"")
        keyring = parse_keyring(data, str(path))
        check_order(keyring, present, str(path))
        if keyring.version != number:
            raise SignatureError(f"{path}: version is {keyring.version}, expected {number}, the name of its folder")
        if number < numbers[-1]:
            check_next(data, signatures, present, str(path))
        roots = keyring.root_keys + (present.root_keys if present else ())
        signed_by = read_signers(data, signatures, roots, str(path.with_name(SIGNATURES))) if signatures else set()
        lacks = lacking_signatures(keyring, present, signed_by)
        versions.append(Version(path, keyring, data, signatures, frozenset(signed_by), tuple(lacks)))
    return versions


def _next(folder: Path) -> Keyring:
    """What add and revoke change: the draft, or a copy of the last version under the next number."""
    last = read_versions(folder)[-1]
    if not last.signatures:
        return last.keyring
    if last.lacks:
        raise UsageError(f"{last.path}: {'; '.join(last.lacks)}; let it be signed, or delete its keyring.sig to change "
                         f"it")
    return replace(last.keyring, version=last.keyring.version + 1)


def _write_draft(folder: Path, keyring: Keyring) -> Version:
    path = folder / str(keyring.version) / KEYRING
    data = keyring.to_bytes()
    parse_keyring(data, str(path))
    if public := {key.id for key in keyring.root_keys} & _development_keys():
        raise UsageError(f"{path}: the root key {min(public)} is the development key, with which anybody can sign; "
                         f"python -m devices keygen makes one of your own")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeAudioError(f"{path.parent}: cannot be made ({error.strerror}); check the folder") from None
    write_whole(path, data)
    return read_versions(folder)[-1]


def _development_keys() -> set[str]:
    return {key.key_id for key in read_trusted_keys(PACKAGE_TRUST)}


def _read_keys(paths: Iterable[Path]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for path in paths:
        key = Key.of(read_public_key(path))
        if key.id in keys:
            raise UsageError(f"{path}: the key {key.id} is given twice; leave one out")
        keys[key.id] = key
    return keys


def _sorted(items: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(items[key_id] for key_id in sorted(items))


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EdgeAudioError(f"{folder}: cannot be read ({error.strerror}); check the folder") from None
    return sorted(int(name) for name in names
                  if re.fullmatch(r"[1-9][0-9]{0,8}", name) and (folder / name / KEYRING).exists())


def _read(path: Path, default: bytes | None = None) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEYRING_BYTES + 1)
    except OSError as error:
        if default is not None and isinstance(error, FileNotFoundError):
            return default
        raise EdgeAudioError(f"{path}: cannot be read ({error.strerror}); check the folder") from None
