"""Ed25519 signatures of bundles: keys, who is trusted, and what a policy makes of a signature.

A signature says who made a manifest; the manifest's hashes extend that to the whole bundle. Files are one line of text:

    NAME.pub        ed25519-public BASE64 comment        32 bytes
    NAME.key        ed25519-private BASE64 comment       32 bytes, the seed of RFC 8032; mode 0600
    manifest.sig    ed25519-signature KEY_ID BASE64      64 bytes, over the bytes of manifest.json as they are
    revoked         KEY_ID reason                        beside the .pub files, one line per key that is trusted no more

A key id is the first 16 hex digits of the SHA-256 of the public key's 32 bytes.

Of the two libraries that do the arithmetic, PyNaCl is asked first. Loading it and checking one signature costs a
process that already holds numpy 1.3 MB of RSS and 9 ms of CPU time; cryptography costs 7.7 MB and 10 to 37 ms (PyNaCl
1.6.2, cryptography 50.0.2, x86-64). Neither is imported before a signature is looked at.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.digest import sha256
from toolkit.errors import ConfigError, MissingPartError, SignatureError, UsageError

POLICIES = ("require", "warn", "off")
TRUST_VARIABLE = "EDGE_AUDIO_TRUST"
PACKAGE_TRUST = Path(__file__).parent / "trust"
MAX_KEY_FILE_BYTES = 1024
REVOKED = "revoked"
MAX_REVOKED_BYTES = 256 << 10


@dataclass(frozen=True)
class PublicKey:
    """Whose signatures can be checked."""

    raw: bytes  # 32 bytes
    comment: str = ""

    @property
    def key_id(self) -> str:
        return sha256(self.raw).hexdigest()[:16]

    def to_text(self) -> str:
        return _key_line("public", self.raw, self.comment)


@dataclass(frozen=True)
class PrivateKey:
    """Who can sign."""

    seed: bytes = field(repr=False)  # 32 bytes
    comment: str = ""

    def public_key(self) -> PublicKey:
        """The other half; MissingPartError without a library."""
        return PublicKey(_library().public_key(self.seed), self.comment)

    def to_text(self) -> str:
        return _key_line("private", self.seed, self.comment)


def generate_key(comment: str = "") -> PrivateKey:
    """A new private key from the system's random numbers."""
    import secrets  # it loads hashlib

    return PrivateKey(secrets.token_bytes(32), comment)


def read_public_key(path: str | os.PathLike) -> PublicKey:
    """The key in a ``.pub`` file; ConfigError if there is none."""
    return PublicKey(*_read_key_line(path, "public"))


def read_private_key(path: str | os.PathLike) -> PrivateKey:
    """The key in a ``.key`` file; ConfigError if there is none."""
    return PrivateKey(*_read_key_line(path, "private"))


class TrustedKeys(tuple[PublicKey, ...]):
    """The keys of one folder that are trusted, and why others no longer are."""

    revoked: Mapping[str, str]  # key id -> reason; none of them is among the keys

    def __new__(cls, keys: Iterable[PublicKey] = (), revoked: Mapping[str, str] | None = None) -> TrustedKeys:
        revoked = dict(revoked or {})
        self = super().__new__(cls, (key for key in keys if key.key_id not in revoked))
        self.revoked = revoked
        return self


def read_trusted_keys(folder: str | os.PathLike | None = None) -> TrustedKeys:
    """The keys of all ``*.pub`` in one folder: ``folder``, else the one EDGE_AUDIO_TRUST names, else the package's.

    A folder of yours replaces the package's and does not add to it, because anybody can sign with the development key
    that comes with the package: who names a folder trusts its keys and no other. A key that the folder's file
    ``revoked`` names is not trusted, even if it is there. ConfigError for what cannot be read.
    """
    folder = Path(folder or os.environ.get(TRUST_VARIABLE) or PACKAGE_TRUST)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder of trusted keys (*.pub); correct or unset {TRUST_VARIABLE}")
    return TrustedKeys((read_public_key(path) for path in sorted(folder.glob("*.pub"))), _read_revoked(folder))


def sign(message: bytes, key: PrivateKey) -> bytes:
    """``manifest.sig`` for the bytes of a manifest: one ASCII line. Ed25519 is deterministic, and so is the bundle."""
    signature = _library().sign(key.seed, message)
    return f"ed25519-signature {key.public_key().key_id} {base64.b64encode(signature).decode()}\n".encode()


def check_signature(message: bytes, signature_line: bytes | None, policy: str = "warn",
                    trusted_keys: Iterable[PublicKey] | None = None,
                    where: str = "bundle") -> tuple[str | None, tuple[str, ...]]:
    """Who signed ``message``, as far as ``policy`` wants to know: (key id or None, sentences for a person).

    ============  ==============  ========================  ========================  ==============
    policy        trusted signer  unsigned, or a stranger   no library to check with  bad signature
    ============  ==============  ========================  ========================  ==============
    ``require``   key id          SignatureError            MissingPartError          SignatureError
    ``warn``      key id          None and a sentence       None and a sentence       SignatureError
    ``off``       None            None                      None                      None
    ============  ==============  ========================  ========================  ==============

    ``trusted_keys`` is ``read_trusted_keys()`` by default; ``where`` begins messages. UsageError for another policy.
    """
    if policy not in POLICIES:
        raise UsageError(f"signature policy is {policy!r}, expected one of {', '.join(POLICIES)}")
    if policy == "off":
        return None, ()
    if signature_line is None:
        return _unproven(SignatureError(f"{where}: not signed"), policy)
    key_id, signature = parse_signature(signature_line, f"{where}: manifest.sig")
    trusted_keys = read_trusted_keys() if trusted_keys is None else trusted_keys
    revoked = getattr(trusted_keys, "revoked", {})  # a plain tuple or list of keys knows of none
    if key_id in revoked:
        return _unproven(SignatureError(f"{where}: signed by the key {key_id}, which was revoked "
                                        f"({revoked[key_id]})"), policy)
    trusted = {key.key_id: key for key in trusted_keys}
    if key_id not in trusted:
        return _unproven(SignatureError(f"{where}: signed by the key {key_id}, which is not among the "
                                        f"{len(trusted)} trusted ones (see {TRUST_VARIABLE})"), policy)
    try:
        library = _library()
    except MissingPartError as error:
        return _unproven(MissingPartError(f"{where}: signature not checked: {error}"), policy)
    if not library.verify(trusted[key_id].raw, message, signature):
        raise SignatureError(f"{where}: altered after it was signed by the key {key_id}; fetch it again")
    return key_id, ()


def _unproven(error: SignatureError | MissingPartError, policy: str) -> tuple[None, tuple[str, ...]]:
    """No proof, but no disproof either: an error under ``require``, a sentence under ``warn``."""
    if policy == "require":
        if isinstance(error, MissingPartError):
            raise error
        raise SignatureError(f"{error}; policy require takes only bundles signed by a trusted key")
    return None, (f"{error}; loaded all the same, for the policy is {policy}",)


def parse_signature(line: bytes, where: str) -> tuple[str, bytes]:
    """(key id, 64 bytes) of a line that ``sign`` wrote; SignatureError, which begins with ``where``, for any other."""
    match = re.fullmatch(rb"ed25519-signature ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)\n", line)
    signature = base64.b64decode(match[2]) if match else b""
    if not match or base64.b64encode(signature) != match[2]:  # base64 has spare bits; they must be zero
        raise SignatureError(f"{where} is not a line ed25519-signature KEY_ID BASE64; fetch it again")
    return match[1].decode(), signature


def _key_line(kind: str, raw: bytes, comment: str) -> str:
    if not comment.isprintable():
        raise UsageError(f"key comment is {comment!a}, expected one line of printable characters")
    return f"ed25519-{kind} {base64.b64encode(raw).decode()} {comment}".rstrip() + "\n"


def _read_key_line(path: str | os.PathLike, kind: str) -> tuple[bytes, str]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_KEY_FILE_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: cannot read the key ({error.strerror}); "
                          f"python -m devices keygen makes one") from None
    match = re.fullmatch(rf"ed25519-{kind} ([A-Za-z0-9+/]{{43}}=)(?: ([^\r\n]*))?", text)
    if not match:
        found = "the private half" if text.startswith("ed25519-private ") else "something else"
        raise ConfigError(f"{os.fspath(path)}: holds {found}, expected one line: ed25519-{kind} BASE64 comment")
    return base64.b64decode(match[1]), match[2] or ""


def _read_revoked(folder: Path) -> dict[str, str]:
    """Key id -> reason, of the folder's file ``revoked``; {} if there is none. Half a list must not pass for one."""
    path = folder / REVOKED
    try:
        with path.open("rb") as file:
            text = file.read(MAX_REVOKED_BYTES + 1).decode("utf-8", "replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    matches = [re.fullmatch(r"([0-9a-f]{16}) (.+)", line) for line in text.splitlines()]
    if len(text) > MAX_REVOKED_BYTES or (text and not text.endswith("\n")) or not all(matches):
        raise ConfigError(f"{path}: expected whole lines KEY_ID reason, {MAX_REVOKED_BYTES} bytes at most")
    return {match[1]: match[2] for match in matches}


# --- the arithmetic: two libraries behind three functions -----------------------------------------


class _Nacl:
    """PyNaCl (libsodium)."""

    def __init__(self):
        import nacl.exceptions
        import nacl.signing
        self._signing, self._bad = nacl.signing, nacl.exceptions.BadSignatureError

    def public_key(self, seed: bytes) -> bytes:
        return bytes(self._signing.SigningKey(seed).verify_key)

    def sign(self, seed: bytes, message: bytes) -> bytes:
        return self._signing.SigningKey(seed).sign(message).signature

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        try:
            self._signing.VerifyKey(public_key).verify(message, signature)
        except self._bad:
            return False
        return True


class _Cryptography:
    """cryptography (OpenSSL); calls that version 38 of Raspberry Pi OS 12 has."""

    def __init__(self):
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
        self._ed25519, self._raw, self._bad = ed25519, serialization, InvalidSignature

    def public_key(self, seed: bytes) -> bytes:
        key = self._ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key()
        return key.public_bytes(self._raw.Encoding.Raw, self._raw.PublicFormat.Raw)

    def sign(self, seed: bytes, message: bytes) -> bytes:
        return self._ed25519.Ed25519PrivateKey.from_private_bytes(seed).sign(message)

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        try:
            self._ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
        except self._bad:
            return False
        return True


def _library() -> _Nacl | _Cryptography:
    for kind in (_Nacl, _Cryptography):
        try:
            return kind()
        except ImportError:
            continue
    raise MissingPartError("neither PyNaCl nor cryptography is installed; install PyNaCl")


def library_name() -> str:
    """What checks signatures here; MissingPartError without a library."""
    return {_Nacl: "PyNaCl", _Cryptography: "cryptography"}[type(_library())]
