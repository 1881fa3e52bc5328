"""``python -m devices publish DIR PROFILE BUNDLE... --wheel WHEEL``: a release for devices that fetch it themselves.

    DIR/index.json, index.sig          what each profile is to run; signed with a bundle key
    DIR/blobs/SHA256                   bundles and wheels
    DIR/keyrings/N.json, N.sig         all versions of the keyring, for a device that trusts an older one

Any web server serves it, and a USB stick carries it: it is never believed (toolkit/ota/pull.py). Files get their names
when they are whole, those that an index names before the index. Each profile is published by a call of its own, and
keeps what it has while others are. The same call again changes nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.keyring import newer_than
from devices.plan import Order, make_order
from devices.trust import read_trust
from toolkit.bundle import write_whole
from toolkit.errors import BundleFormatError, DeployError, SignatureError, UsageError
from toolkit.keyring import parse_keyring
from toolkit.manifest import Name, canonical_json, decode
from toolkit.profile import load_profile
from toolkit.signature import PrivateKey, TrustedKeys, check_signature, read_private_key, sign

SCHEMA = 1
INDEX, SIGNATURE, NEXT = "index.json", "index.sig", ".index.json.next"
CHANNEL = "stable"
DEVELOPMENT_KEY = Path(__file__).parent / "keys" / "development.key"
MAX_VERSION = 2**31 - 1


@dataclass(frozen=True)
class Publisher:
    """Who publishes where, and who is believed of what is there already."""

    folder: Path
    key: PrivateKey
    keys: TrustedKeys  # whose bundles devices take; without a folder of these, those of ``key``
    keyrings: tuple[tuple[bytes, bytes], ...] = ()  # (keyring.json, keyring.sig) of version 1, 2, ...
    channel: str = CHANNEL


def make_publisher(folder: Path, key: PrivateKey, trust: Path | None = None, channel: str = CHANNEL) -> Publisher:
    """SignatureError if devices that trust the keys or keyrings in ``trust`` would not take what ``key`` signs."""
    public = key.public_key()
    _check_name("channel", channel)
    if trust is None:
        return Publisher(folder, key, TrustedKeys([public]), (), channel)
    trusted = read_trust(trust)
    if public.key_id not in {each.key_id for each in trusted.keys}:
        raise SignatureError(f"{trust}: does not name the key {public.key_id} as a bundle key, so no device would take "
                             f"the index; sign with another one (--key)")
    keyrings = tuple(newer_than(trust, 0)) if trusted.keyrings else ()
    return Publisher(folder, key, trusted.keys, keyrings, channel)


def publish(publisher: Publisher, order: Order, again: bool = False, version: int = 1) -> dict[str, Any]:
    """Offer ``order`` to the devices of its profile: {folder, channel, version, profile, release, is_new, ...}.

    ``again``: devices that went back from this very release shall try it once more. ``version``: of the index, at
    least. SignatureError for bundles, or an index that is there, which are not signed by the publisher's keys;
    DeployError for a folder that cannot be used.
    """
    name, folder = order.profile.name, publisher.folder
    _check_name("profile", name)
    order.check_signatures(publisher.keys)
    with _alone(folder):
        present = _read_index(publisher)
        old = present["profiles"].get(name)
        release = order.release(old and old["release"])
        is_same = old is not None and old["release"] == release and not again
        offers = present["profiles"] | {name: {
            "architecture": order.profile.architecture, "release": release,
            "since": old["since"] if is_same else _next_version(present, version)}}
        sizes = present["blobs"] | {digest: len(file.data) for digest, file in order.files.items()}
        blobs = {digest: sizes[digest] for offer in offers.values() for digest in _digests(offer["release"])}
        index = present | {"profiles": offers, "blobs": blobs}
        if publisher.keyrings:
            index["keyring"] = parse_keyring(publisher.keyrings[-1][0]).version
        is_new = index != present
        if is_new:
            index["version"] = _next_version(present, version)
        _write_files(publisher, order, blobs)
        _write_index(publisher, index)
        if is_new:
            _remove_blobs(folder, {*blobs, *present["blobs"]})  # those of the last index are perhaps being fetched
    return {"folder": str(folder), "channel": publisher.channel, "version": index["version"], "profile": name,
            "release": hashlib.sha256(_canonical(release)).hexdigest()[:16], "is_new": is_new,
            "blobs": len(blobs), "bytes": sum(blobs.values())}


def _next_version(present: Mapping[str, Any], at_least: int) -> int:
    version = max(present["version"] + 1, at_least)
    if not 1 <= version <= MAX_VERSION:
        raise UsageError(f"the index would get the version {version}, expected 1 to {MAX_VERSION}")
    return version


def _digests(release: Mapping[str, Any]) -> set[str]:
    """SHA-256 of every file that the release is made of."""
    runtime = release["runtime"]
    return {item["sha256"] for item in (runtime, *runtime["requirements"], *release["bundles"])}


def _check_name(what: str, name: str) -> None:
    try:
        decode(Name, name, what)
    except BundleFormatError as error:
        raise UsageError(str(error)) from None


def _canonical(value: Any) -> bytes:
    return canonical_json(value).removesuffix(b"\n")  # as toolkit/ota/release.py


# --- the folder -----------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder is there, and nobody else publishes into it; an error of the disk is one sentence."""
    try:
        for path in (folder / "blobs", folder / "keyrings"):
            path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # without it, two could give one version to two indexes
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DeployError(f"{error.filename or folder}: {error.strerror}; check the folder and free space") from None


def _read_index(publisher: Publisher) -> dict[str, Any]:
    """The index that is there, once its signature is proven, for it is signed anew with what others have in it."""
    folder = publisher.folder
    path, beside = folder / INDEX, folder / NEXT
    signature = (folder / SIGNATURE).read_bytes() if (folder / SIGNATURE).exists() else None
    if beside.exists() and signature == sign(beside.read_bytes(), publisher.key):  # cut off between the two renames
        os.replace(beside, path)
    if not path.exists():
        return {"schema": SCHEMA, "channel": publisher.channel, "version": 0, "keyring": None, "profiles": {},
                "blobs": {}}
    data = path.read_bytes()
    try:
        check_signature(data, signature, "require", publisher.keys, str(path))
    except SignatureError as error:
        raise SignatureError(f"{error}; if it is yours and the key was revoked, remove {INDEX} and {SIGNATURE} and "
                             f"publish every profile anew, with --index-version above the last") from None
    index = json.loads(data)
    if index["schema"] != SCHEMA or index["channel"] != publisher.channel:
        raise DeployError(f"{path}: schema {index['schema']} and channel {index['channel']}, expected {SCHEMA} and "
                          f"{publisher.channel}; publish each channel into a folder of its own")
    return index


def _write_files(publisher: Publisher, order: Order, blobs: Mapping[str, int]) -> None:
    """What the index names, if it is not there yet."""
    for digest, size in blobs.items():
        path, file = publisher.folder / "blobs" / digest, order.files.get(digest)
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            continue
        if file is None:
            raise DeployError(f"{path}: is missing or damaged ({size} bytes); publish it again (the wheel: --wheel)")
        write_whole(path, file.data)
    for keyring, signatures in publisher.keyrings:
        number = parse_keyring(keyring).version
        for suffix, data in (("sig", signatures), ("json", keyring)):  # whoever sees the second finds the first
            path = publisher.folder / "keyrings" / f"{number}.{suffix}"
            if not path.exists() or path.read_bytes() != data:
                write_whole(path, data)


def _write_index(publisher: Publisher, index: Mapping[str, Any]) -> None:
    """Both files, or what ``_read_index`` completes: between the two renames a device sees a wrong signature."""
    data = canonical_json(index)
    signature = sign(data, publisher.key)
    path = publisher.folder / INDEX
    if path.exists() and (path.read_bytes(), path.with_name(SIGNATURE).read_bytes()) == (data, signature):
        return
    write_whole(publisher.folder / NEXT, data)
    write_whole(publisher.folder / SIGNATURE, signature)
    os.replace(publisher.folder / NEXT, path)


def _remove_blobs(folder: Path, needed: set[str]) -> None:
    for path in (folder / "blobs").iterdir():
        if path.name not in needed:
            path.unlink()


# --- the command ----------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("publish", help="a folder on a web server, from which devices fetch their release",
                                 description="Devices of this profile then run this, as soon as they ask: "
                                             "edge-audio update URL.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="is made, or holds what was published before")
    parser.add_argument("profile", metavar="PROFILE", help="name in devices/profiles, or a .yaml file")
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", help="path, or name of a released bundle")
    parser.add_argument("--wheel", type=Path, help="the toolkit's (make wheels); else the one published before stays")
    parser.add_argument("--requirements", metavar="DIR", type=Path,
                        help="wheels of what that needs; else the device's pip asks its index")
    parser.add_argument("--key", metavar="BUNDLE.key", type=Path, default=DEVELOPMENT_KEY,
                        help="private bundle key that signs the index (default: the development key)")
    parser.add_argument("--trust", metavar="DIR", type=Path,
                        help="whom the devices trust: public keys, or keyrings, which are published as well "
                             "(default: the key that signs)")
    parser.add_argument("--channel", default=CHANNEL, help="name that devices follow (default: %(default)s)")
    parser.add_argument("--device", metavar="MIC", help="microphone: index or part of its name (else the profile's)")
    parser.add_argument("--microphone-channel", metavar="N", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--threshold", metavar="X", type=float, help="of detections (default: the bundle's)")
    parser.add_argument("--again", action="store_true", help="devices that went back from it try it once more")
    parser.add_argument("--index-version", metavar="N", type=int, default=1,
                        help="at least; for a folder that was lost, above the last that devices took")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    key = read_private_key(arguments.key)
    publisher = make_publisher(arguments.folder, key, arguments.trust, arguments.channel)
    order = make_order(load_profile(arguments.profile), arguments.bundles, arguments.wheel, arguments.requirements,
                       arguments.device, arguments.microphone_channel, arguments.threshold)
    result = publish(publisher, order, arguments.again, arguments.index_version)
    print(json.dumps(result), flush=True)
    if key == read_private_key(DEVELOPMENT_KEY):
        print("devices: the index is signed with the development key, with which anybody can sign; devices in earnest "
              "need one of your own (python -m devices keygen)", file=sys.stderr)
    new = "" if result["is_new"] else ", as before"
    print(f"{result['folder']}: version {result['version']} offers the release {result['release']} to "
          f"{result['profile']}{new}", file=sys.stderr)
