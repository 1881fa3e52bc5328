"""The index of a published folder, and what a device remembers of those it took.

    index.json     canonical JSON: channel, version, for each profile its release, of every file SHA-256 and size
    index.sig      one line of signature.sign() by a bundle key, over the bytes of index.json as they are

A channel's version only grows, and a device takes no version below the last one that it took, nor another index of the
same version: what was published once cannot come back (TUF's rollback attack), and no two devices can be told different
things under one number. If the key that signed the last one was revoked since, its version counts for nothing: a thief
could have signed the largest there is, and have locked the owner out (TUF's fast-forward attack).

There is no expiry: a device that believes it is 1970 can hold nothing against a date. So whoever serves an old index
for ever, or answers nothing, keeps a device where it is (TUF's freeze attack), and it does not notice. It can be seen
from outside: `edge-audio ota status` gives the version that was taken last.

(This file does without ``from __future__ import annotations``: ``decode`` reads the types of the fields as objects.)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from toolkit.digest import sha256
from toolkit.errors import BundleFormatError, DeployError, SignatureError, UnsupportedError
from toolkit.manifest import Check, Name, Sha256, canonical_json, decode, encode
from toolkit.ota import disk
from toolkit.ota.layout import Root
from toolkit.ota.receive import MAX_BLOB_BYTES
from toolkit.ota.release import Release, parse_release
from toolkit.signature import TrustedKeys, check_signature, parse_signature

SCHEMA = 1
INDEX, SIGNATURE = "index.json", "index.sig"
MAX_INDEX_BYTES, MAX_SIGNATURE_BYTES = 1 << 20, 256
MAX_VERSION = 2**31 - 1
Version = Annotated[int, Check(lambda value: 1 <= value <= MAX_VERSION, f"a number from 1 to {MAX_VERSION}")]
Size = Annotated[int, Check(lambda value: 1 <= value <= MAX_BLOB_BYTES, f"a size from 1 to {MAX_BLOB_BYTES} bytes")]
KeyId = Annotated[str, Check(lambda text: len(text) == 16, "16 hex digits")]


@dataclass(frozen=True)
class Offer:
    """What devices of one profile are to run."""

    architecture: Literal["x86-64", "aarch64", "armv7"]
    since: Version  # of the index: a device tries a release once, and once more when this has grown
    release: Release


@dataclass(frozen=True)
class Index:
    """``index.json``, schema 1."""

    channel: Name
    version: Version
    keyring: Version | None  # lies beside it, up to this version; a device that follows keyrings must have reached it
    profiles: Mapping[Name, Offer]
    blobs: Mapping[Sha256, Size]
    schema: Literal[1] = SCHEMA


@dataclass(frozen=True)
class Trial:
    """Of an offered release, on this device."""

    release: str
    since: Version
    attempts: int
    is_over: bool  # False: still going on, or its end came suddenly
    reason: str | None  # why it went back


@dataclass(frozen=True)
class Taken:
    """The last index of a channel that this device took."""

    version: Version
    sha256: Sha256
    signed_by: KeyId
    profile: Name | None
    trial: Trial | None = None


@dataclass(frozen=True)
class _Memory:
    """ROOT/index.json."""

    channels: Mapping[Name, Taken] = field(default_factory=dict)
    schema: Literal[1] = SCHEMA


def check_index(data: bytes, signature: bytes, keys: TrustedKeys, where: str) -> tuple[Index, str]:
    """(the index in ``data``, id of the key that signed it); SignatureError, UnsupportedError or DeployError."""
    parse_signature(signature, f"{where}: {SIGNATURE}")
    signed_by, _ = check_signature(data, signature, "require", keys, f"{where}: {INDEX}")
    return parse_index(data, f"{where}: {INDEX}"), str(signed_by)


def parse_index(data: bytes, where: str = INDEX) -> Index:
    """The index in ``data``, looked at alone."""
    try:
        value = json.loads(data.decode("ascii"))
        schema = value.get("schema") if isinstance(value, dict) else None
        if type(schema) is int and schema != SCHEMA:
            raise UnsupportedError(f"{where}: schema is {schema}, this version of edge-audio-toolkit reads schema "
                                   f"{SCHEMA}; update this device over SSH first.")
        index = decode(Index, value, where)
    except (ValueError, RecursionError) as error:
        raise DeployError(f"{where}: not JSON in ASCII ({error}); publish it again.") from None
    except BundleFormatError as error:
        raise DeployError(f"{error}; publish it again.") from None
    if canonical_json(encode(index)) != data:
        raise DeployError(f"{where}: not in canonical form; publish it again.")
    for name, offer in index.profiles.items():
        parse_release(offer.release.to_bytes(), f"{where}: {name}")
        if lacking := sorted(offer.release.blobs - index.blobs.keys()):
            raise DeployError(f"{where}: {name} needs the file {lacking[0]}, of which no size is given; publish it "
                              f"again.")
        if offer.since > index.version:
            raise DeployError(f"{where}: {name} is offered since {offer.since}, expected at most {index.version}, the "
                              f"version; publish it again.")
    return index


def last_taken(root: Root, channel: str) -> Taken | None:
    """What the device remembers of the channel."""
    return _read(root).channels.get(channel)


def remember(root: Root, channel: str, taken: Taken) -> None:
    """In place of what was remembered of the channel; nothing is written if it is the same."""
    memory = _read(root)
    if memory.channels.get(channel) != taken:
        memory = _Memory({**memory.channels, channel: taken})
        disk.write_whole(root.index_file, canonical_json(encode(memory)))


def follows(data: bytes, index: Index, signed_by: str, last: Taken | None, revoked: Mapping[str, str],
            where: str) -> Taken:
    """``index`` as taken after ``last``; SignatureError if it is older, or another of the same version."""
    digest = sha256(data).hexdigest()
    if last is not None and last.signed_by not in revoked:
        if index.version < last.version:
            raise SignatureError(f"{where}: version is {index.version}, but {last.version} was taken already; an older "
                                 f"index is never taken again.")
        if index.version == last.version and digest != last.sha256:
            raise SignatureError(f"{where}: version {index.version} was taken already, and was another; publish it "
                                 f"under the next version.")
    profile, trial = (last.profile, last.trial) if last else (None, None)
    return Taken(index.version, digest, signed_by, profile, trial)


def _read(root: Root) -> _Memory:
    value: Any = root.read_json(root.index_file)
    try:
        return _Memory() if value is None else decode(_Memory, value, str(root.index_file))
    except BundleFormatError as error:
        raise DeployError(f"{error}; remove the file to begin anew with the next index.") from None
