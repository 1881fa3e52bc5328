"""The bundle ``NAME.eab``: a model in one file, with all that its numbers depend on and the test that proves them.

A bundle is a zip that any zip tool can list and unpack, of which only one form is right: entries stored,
``manifest.json`` first, ``manifest.sig`` second if signed, members in the order of their names, 1980-01-01, mode 0644,
nothing before, between or after. Same contents, same bytes. The reader rebuilds every header from what the entries hold
and demands equality: no field is left that two zip readers could understand in two ways, and no room to hide.

    read once -> walk and bounds -> signature -> parse -> hashes      (then features, interpreter, self-test: elsewhere)
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from toolkit.digest import sha256
from toolkit.errors import BundleError, BundleFormatError
from toolkit.manifest import RESERVED_FILES, Manifest, Member, parse_manifest

if TYPE_CHECKING:
    from toolkit.signature import PrivateKey, PublicKey

SUFFIX = ".eab"
RELEASED = Path(__file__).parent / "bundles"
MANIFEST, SIGNATURE = RESERVED_FILES

MAX_FILE_BYTES = 16 << 20
MAX_ENTRY_BYTES = {MANIFEST: 256 << 10, SIGNATURE: 256}
MAX_MEMBER_BYTES = 8 << 20
MAX_ENTRIES = 64

# Zip records (PKWARE APPNOTE 4.3.7, 4.3.12, 4.3.16). Fields that do not depend on the contents have one value.
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
LOCAL_FIELDS = ("signature", "version", "flags", "compression", "time", "date", "CRC-32", "stored size", "size",
                "name length", "extra length")
CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
END_RECORD = struct.Struct("<4s4H2IH")
VERSION_NEEDED = 10  # 1.0: stored files
MADE_BY = 3 << 8 | VERSION_NEEDED  # Unix: so that unpacking gives mode 0644
DOS_DATE = 1 << 5 | 1  # 1980-01-01
ATTRIBUTES = (stat.S_IFREG | 0o644) << 16


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read, checked and is held in memory: what was checked is what is used."""

    path: Path
    sha256: str  # of the file
    manifest: Manifest
    members: Mapping[str, bytes] = field(repr=False)  # by role
    signed_by: str | None = None  # id of the trusted key, None if the policy let it pass without
    notices: tuple[str, ...] = ()  # sentences for a person, to be shown on stderr


def load_bundle(source: str | os.PathLike, policy: str = "warn",
                trusted_keys: Iterable[PublicKey] | None = None) -> Bundle:
    """The bundle at a path, or the released one of that name (a bare word: ``"kws"``; a file called so is ``"./kws"``).

    ``policy`` on signatures is ``require``, ``warn`` or ``off``, ``trusted_keys`` as in ``signature.check_signature``.
    BundleFormatError, SignatureError or UnsupportedError for a bundle that must not be used, MissingPartError for a
    signature that cannot be checked, BundleError where there is no file.
    """
    path = find_bundle(source)
    return read_bundle(_read_file(path), path, policy, trusted_keys)


def read_bundle(data: bytes, path: str | os.PathLike, policy: str = "warn",
                trusted_keys: Iterable[PublicKey] | None = None) -> Bundle:
    """``load_bundle`` for bytes that are in memory already; ``path`` is what messages call them."""
    where = os.fspath(path)
    entries = walk(data, where)
    signed_by, notices = None, ()
    if policy != "off":  # who asks for no signature does not load what checks one
        from toolkit.signature import check_signature

        signed_by, notices = check_signature(entries[MANIFEST], entries.get(SIGNATURE), policy, trusted_keys, where)
    manifest = parse_manifest(entries[MANIFEST], f"{where}: {MANIFEST}")
    members = _match_members(entries, manifest, where)
    return Bundle(Path(path), _sha256(data), manifest, members, signed_by, notices)


def write_bundle(path: str | os.PathLike, manifest: Manifest, members: Mapping[str, tuple[str, bytes]],
                 private_key: PrivateKey | None = None) -> Bundle:
    """Write the bundle of ``members`` (role -> file name, bytes), signed if there is a key, and return it as loaded.

    ``manifest.members`` is filled in here. The file appears whole or not at all, and what ``load_bundle`` would refuse
    is not written: its errors are raised instead. BundleError if the file cannot be written.
    """
    data = pack_bundle(manifest, members, private_key)
    signers = None if private_key is None else [private_key.public_key()]
    bundle = read_bundle(data, path, "off" if private_key is None else "require", signers)
    write_whole(path, data)
    return bundle


def pack_bundle(manifest: Manifest, members: Mapping[str, tuple[str, bytes]],
                private_key: PrivateKey | None = None) -> bytes:
    """The bytes of a bundle; arguments as in ``write_bundle``."""
    listed = {role: Member(name, _sha256(data), len(data)) for role, (name, data) in members.items()}
    manifest = Manifest.from_dict(replace(manifest, members=listed).to_dict())
    entries = {MANIFEST: manifest.to_bytes(), **{name: bytes(data) for name, data in members.values()}}
    if private_key is not None:
        from toolkit.signature import sign

        entries[SIGNATURE] = sign(entries[MANIFEST], private_key)
    return build_zip(entries)


# --- the container --------------------------------------------------------------------------------


def build_zip(entries: Mapping[str, bytes]) -> bytes:
    """The one right zip of these entries (name -> bytes)."""
    ordered = {name: entries[name] for name in _in_order(entries)}
    return b"".join(_local_header(name, data) + data for name, data in ordered.items()) + _directory(ordered)


def walk(data: bytes, where: str) -> dict[str, bytes]:
    """The entries (name -> bytes) of a zip that is exactly ``build_zip`` of them; BundleFormatError if it is not."""
    if len(data) > MAX_FILE_BYTES:
        raise BundleFormatError(f"{where}: larger than {MAX_FILE_BYTES} bytes, the limit for a bundle")
    if not data:
        raise BundleFormatError(f"{where}: the file is empty; fetch the bundle again")
    if not data.startswith(b"PK\3\4"):
        raise BundleFormatError(f"{where}: not a bundle, for it begins with {data[:8]!r}; fetch the bundle again")
    entries: dict[str, bytes] = {}
    offset = 0
    while data.startswith(b"PK\3\4", offset):
        name, content, offset = _walk_entry(data, offset, where)
        if name in entries:
            raise BundleFormatError(f"{where}: holds {name} twice; pack the bundle again")
        if len(entries) == MAX_ENTRIES:
            raise BundleFormatError(f"{where}: holds more than {MAX_ENTRIES} entries, the limit for a bundle")
        entries[name] = content
    if list(entries) != _in_order(entries) or MANIFEST not in entries:
        raise BundleFormatError(f"{where}: {MANIFEST} is missing or entries are out of order; pack the bundle again")
    directory, rest = _directory(entries), data[offset:]
    if rest != directory:
        state = ("cut short in" if directory.startswith(rest) else
                 "longer than" if rest.startswith(directory) else "damaged in")
        raise BundleFormatError(f"{where}: {state} its directory at byte {offset}; fetch the bundle again")
    return entries


def _walk_entry(data: bytes, offset: int, where: str) -> tuple[str, bytes, int]:
    """(name, content, offset of what follows) of the entry at ``offset``."""
    if len(data) < offset + LOCAL_HEADER.size:
        raise BundleFormatError(f"{where}: cut short at byte {len(data)}, inside a header; fetch the bundle again")
    found = LOCAL_HEADER.unpack_from(data, offset)
    stored_bytes, name_length = found[7], found[9]
    start = offset + LOCAL_HEADER.size + name_length
    raw_name = data[start - name_length:start]
    if not re.fullmatch(rb"[a-z0-9][a-z0-9._-]{0,63}", raw_name) or b".." in raw_name:
        raise BundleFormatError(f"{where}: the entry at byte {offset} is named {raw_name[:64]!r}, expected a plain "
                                f"file name of a-z, 0-9, dot, _ and -; pack the bundle again")
    name = raw_name.decode("ascii")
    limit = MAX_ENTRY_BYTES.get(name, MAX_MEMBER_BYTES)
    if stored_bytes > limit:
        raise BundleFormatError(f"{where}: {name} has {stored_bytes} bytes, the limit is {limit}")
    content = data[start:start + stored_bytes]
    if len(content) < stored_bytes:
        raise BundleFormatError(f"{where}: cut short at byte {len(data)}, inside {name}; fetch the bundle again")
    expected = LOCAL_HEADER.unpack_from(_local_header(name, content))
    if found != expected:
        wrong = [f"{label} {is_}, expected {must}"
                 for label, is_, must in zip(LOCAL_FIELDS, found, expected) if is_ != must]
        raise BundleFormatError(f"{where}: {name} is damaged or was packed by another program ({'; '.join(wrong)}); "
                                f"fetch the bundle again")
    return name, content, start + stored_bytes


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name != MANIFEST, name != SIGNATURE, name))


def _local_header(name: str, data: bytes) -> bytes:
    return LOCAL_HEADER.pack(b"PK\3\4", VERSION_NEEDED, 0, 0, 0, DOS_DATE, zlib.crc32(data), len(data), len(data),
                             len(name), 0) + name.encode()


def _directory(entries: Mapping[str, bytes]) -> bytes:
    """Central directory and end record of entries that lie in this order from byte 0."""
    records, offset = [], 0
    for name, data in entries.items():
        records.append(CENTRAL_HEADER.pack(b"PK\1\2", MADE_BY, VERSION_NEEDED, 0, 0, 0, DOS_DATE, zlib.crc32(data),
                                           len(data), len(data), len(name), 0, 0, 0, 0, ATTRIBUTES, offset)
                       + name.encode())
        offset += LOCAL_HEADER.size + len(name) + len(data)
    directory = b"".join(records)
    return directory + END_RECORD.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), offset, 0)


def _match_members(entries: Mapping[str, bytes], manifest: Manifest, where: str) -> Mapping[str, bytes]:
    """The members by role; BundleFormatError unless they are exactly those of the manifest, byte for byte."""
    extra = sorted(set(entries) - {member.file for member in manifest.members.values()} - set(RESERVED_FILES))
    if extra:
        raise BundleFormatError(f"{where}: holds {', '.join(extra)}, unknown to its manifest; pack the bundle again")
    for role, member in manifest.members.items():
        if member.file not in entries:
            raise BundleFormatError(f"{where}: {member.file} ({role}) is missing; pack the bundle again")
        data = entries[member.file]
        if len(data) != member.size or _sha256(data) != member.sha256:
            raise BundleFormatError(f"{where}: {member.file} ({role}) is not what the manifest says; "
                                    f"fetch the bundle again")
    return MappingProxyType({role: entries[member.file] for role, member in manifest.members.items()})


def _sha256(data: bytes) -> str:
    return sha256(data).hexdigest()


# --- files ----------------------------------------------------------------------------------------


def released_bundles() -> dict[str, Path]:
    """The bundles that came with the package, by name."""
    return {path.stem: path for path in sorted(RELEASED.glob(f"*{SUFFIX}"))}


def find_bundle(source: str | os.PathLike) -> Path:
    """The path of a bundle given by path or released name; BundleError, with the nearest name, if there is none."""
    released = released_bundles()
    if isinstance(source, str) and re.fullmatch(r"[A-Za-z0-9_-]+", source):
        if source in released:
            return released[source]
        way_out = f"write ./{source} for the file here" if Path(source).is_file() else _nearest(source, released)
        raise BundleError(f"{source}: no released bundle has this name; {way_out}")
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        neighbours = [str(other) for other in path.parent.glob(f"*{SUFFIX}")] if path.parent.is_dir() else []
        raise BundleError(f"{path}: no such file; {_nearest(str(path), [*neighbours, *released], path.stem)}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device"
        raise BundleError(f"{path}: not a file but a {kind}; give the path of a bundle (*{SUFFIX})")
    return path


def _nearest(name: str, known: Iterable[str], second_name: str = "") -> str:
    import difflib  # 1 ms and 0.3 MB for the way out alone

    known = sorted(known)
    for wanted in filter(None, (name, second_name)):
        if nearest := difflib.get_close_matches(wanted, known, n=1):
            return f"did you mean {nearest[0]}?"
    return f"there are {', '.join(known)}" if known else f"give the path of a bundle (*{SUFFIX})"


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)  # one more than walk allows
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions")


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that is there whole or not at all, also after a power cut; BundleError if it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, is on the disk
        finally:
            os.close(folder)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}); check folder and free space") from None
