"""Keyrings: whose bundles a device takes, who may change that, and which keys are trusted no more.

TUF's root role (specification 1.0, 2.1.1 and 5.3) without a clock and without a network. A keyring is two files:

    keyring.json    canonical JSON: version, root keys and how many of them must sign, bundle keys, revoked keys
    keyring.sig     one line of signature.sign() per root key, over the bytes of keyring.json as they are

Root keys stay offline and sign keyrings; bundle keys sign bundles, may be many, and come and go. A device takes the
first keyring from whoever installs it over SSH. From then on the next one must have the version that follows, and be
signed by enough root keys of the present keyring and by enough of its own: keys rotate one at a time, one stolen key
below the threshold changes nothing, and an old keyring cannot come back. A key once revoked stays revoked in all that
follow. A root key that the new keyring revokes still counts for the old one: a single root key could not be replaced
otherwise, and its thief gains nothing that he did not have.

There is no expiry. A device that boots without network and battery-backed clock believes it is 1970 or any other year;
an expiry date would then stop updates at random, or be no protection. So a device that is kept from hearing of a
revocation (TUF's freeze attack) goes on trusting: whoever asks its status sees the version of its keyring.

``toolkit.ota.trust`` keeps keyrings on a device, ``python -m devices keyring`` makes them.

(This file does without ``from __future__ import annotations``: ``decode`` reads the types of the fields as objects.)
"""

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from toolkit.errors import BundleFormatError, SignatureError, UnsupportedError
from toolkit.manifest import Check, canonical_json, decode, encode
from toolkit.signature import PublicKey, check_signature, parse_signature

SCHEMA = 1
KEYRING, SIGNATURES = "keyring.json", "keyring.sig"
MAX_KEYRING_BYTES = 64 << 10
MAX_SIGNATURES_BYTES = 8 << 10  # 66 lines
MAX_VERSION = 2**31 - 1


def _items(high: int) -> Check:
    return Check(lambda items: len(items) <= high, f"at most {high} items")


def _text(low: int) -> Check:
    return Check(lambda text: low <= len(text) <= 200 and text.isprintable(), f"{low} to 200 printable characters")


_in_order = Check(lambda items: [item.id for item in items] == sorted({item.id for item in items}),
                  "keys sorted by id, none twice")
KeyId = Annotated[str, Check(lambda text: re.fullmatch(r"[0-9a-f]{16}", text) is not None, "16 hex digits")]
Base64 = Annotated[str, Check(lambda text: re.fullmatch(r"[A-Za-z0-9+/]{43}=", text) is not None, "32 bytes in base64")]


@dataclass(frozen=True)
class Key:
    """A public key and its id."""

    id: KeyId
    public: Base64
    comment: Annotated[str, _text(0)]

    def to_public_key(self) -> PublicKey:
        return PublicKey(base64.b64decode(self.public), self.comment)

    @classmethod
    def of(cls, key: PublicKey) -> "Key":
        return cls(key.key_id, base64.b64encode(key.raw).decode(), key.comment)


@dataclass(frozen=True)
class Revocation:
    """A key that is never trusted again."""

    id: KeyId
    reason: Annotated[str, _text(1)]


@dataclass(frozen=True)
class Keyring:
    """``keyring.json``, schema 1."""

    version: Annotated[int, Check(lambda value: 1 <= value <= MAX_VERSION, f"a number from 1 to {MAX_VERSION}")]
    threshold: Annotated[int, Check(lambda value: 1 <= value <= 32, "a number from 1 to 32")]  # of root keys
    root_keys: Annotated[tuple[Key, ...], _items(32), _in_order]
    bundle_keys: Annotated[tuple[Key, ...], _items(32), _in_order]  # none: no bundle is taken until the next keyring
    revoked: Annotated[tuple[Revocation, ...], _items(256), _in_order]
    schema: Literal[1] = SCHEMA

    def to_bytes(self) -> bytes:
        """``keyring.json``: the one right byte sequence."""
        return canonical_json(encode(self))

    def reasons(self) -> dict[str, str]:
        """Of the revocations, by key id."""
        return {revocation.id: revocation.reason for revocation in self.revoked}

    def summary(self) -> dict[str, Any]:
        """Version, threshold and key ids, for a line of JSON."""
        return {"keyring_version": self.version, "threshold": self.threshold,
                "root_keys": [key.id for key in self.root_keys], "bundle_keys": [key.id for key in self.bundle_keys],
                "revoked": sorted(self.reasons())}


def parse_keyring(data: bytes, where: str = KEYRING) -> Keyring:
    """The keyring in ``data``, looked at alone; SignatureError or UnsupportedError, which begin with ``where``."""
    if len(data) > MAX_KEYRING_BYTES:
        raise SignatureError(f"{where}: larger than {MAX_KEYRING_BYTES} bytes, the limit for a keyring")
    try:
        value = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"{where}: not JSON in ASCII ({error}); fetch the keyring again") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is int and schema != SCHEMA:
        raise UnsupportedError(f"{where}: schema is {schema}, this version of edge-audio-toolkit reads schema {SCHEMA}"
                               f"; update the toolkit first")
    try:
        keyring = decode(Keyring, value, where)
    except BundleFormatError as error:
        raise SignatureError(str(error)) from None
    if keyring.to_bytes() != data:
        raise SignatureError(f"{where}: not in canonical form (sorted keys, none twice, no spaces, plain numbers); "
                             f"fetch the keyring again")
    _check_as_a_whole(keyring, where)
    return keyring


def _check_as_a_whole(keyring: Keyring, where: str) -> None:
    """What no field can tell alone."""
    for key in keyring.root_keys + keyring.bundle_keys:
        if Key.of(key.to_public_key()) != key:  # the id is that of the key, and base64's spare bits are zero
            raise SignatureError(f"{where}: the key {key.id} is not the one of its id; fetch the keyring again")
        if key.id in keyring.reasons():
            raise SignatureError(f"{where}: the key {key.id} is listed, but also revoked; a revoked key never returns")
    if len(keyring.root_keys) < keyring.threshold:
        raise SignatureError(f"{where}: threshold is {keyring.threshold}, expected at most {len(keyring.root_keys)}, "
                             f"the number of root keys; lower it or list more")


# --- what may follow what -------------------------------------------------------------------------


def check_next(keyring: bytes, signatures: bytes, present: Keyring | None, where: str = KEYRING) -> Keyring:
    """The keyring in ``keyring``, if it may follow ``present`` (None: it is the first, and vouches for itself).

    SignatureError or UnsupportedError, which begin with ``where``, if it may not; MissingPartError without a library.
    """
    new = parse_keyring(keyring, where)
    check_order(new, present, where)
    signed_by = read_signers(keyring, signatures, [*new.root_keys, *(present.root_keys if present else ())],
                             where.replace(KEYRING, SIGNATURES))
    if lacking := lacking_signatures(new, present, signed_by):
        raise SignatureError(f"{where}: {'; '.join(lacking)}; python -m devices keyring sign adds signatures")
    return new


def check_order(new: Keyring, present: Keyring | None, where: str = KEYRING) -> None:
    """SignatureError unless ``new`` has the version that follows, and forgets no revocation."""
    if present is None:
        return
    if new.version != present.version + 1:
        way_out = ("send the versions between first" if new.version > present.version else
                   "an older keyring is never taken again" if new.version < present.version else
                   "the present one has this version and is another")
        raise SignatureError(f"{where}: version is {new.version}, expected {present.version + 1}, the one after the "
                             f"present; {way_out}")
    if forgotten := sorted(present.reasons().keys() - new.reasons().keys()):
        raise SignatureError(f"{where}: no longer names {', '.join(forgotten)} as revoked; a revoked key never returns")


def read_signers(message: bytes, signatures: bytes, keys: Iterable[Key], where: str = SIGNATURES) -> set[str]:
    """Ids of those of ``keys`` that signed; lines of other keys count for nothing.

    SignatureError for a line that is none, a key that signs twice, or a signature of one of ``keys`` that is wrong.
    """
    if len(signatures) > MAX_SIGNATURES_BYTES:
        raise SignatureError(f"{where}: larger than {MAX_SIGNATURES_BYTES} bytes, the limit for signatures")
    known = {key.id: key.to_public_key() for key in keys}
    lines: dict[str, bytes] = {}
    for number, line in enumerate(signatures.splitlines(keepends=True), 1):
        key_id, _ = parse_signature(line, f"{where}: line {number}")
        if key_id in lines:
            raise SignatureError(f"{where}: line {number} is a second signature of the key {key_id}; remove it")
        lines[key_id] = line
    for key_id in lines.keys() & known.keys():
        check_signature(message, lines[key_id], "require", [known[key_id]], where)
    return lines.keys() & known.keys()


def lacking_signatures(new: Keyring, present: Keyring | None, signed_by: set[str]) -> list[str]:
    """What the signatures of these root keys do not suffice for, as parts of a sentence; none: nothing is lacking."""
    lacking: dict[str, str] = {}  # once, where both versions ask for the same
    for keyring in (new,) if present is None else (present, new):
        ids = {key.id for key in keyring.root_keys}
        if len(ids & signed_by) < keyring.threshold:
            lacking.setdefault(f"({', '.join(sorted(ids))}), expected {keyring.threshold}",
                               f"signed by {len(ids & signed_by)} of the root keys of version {keyring.version}")
    return [f"{found} {expected}" for expected, found in lacking.items()]
