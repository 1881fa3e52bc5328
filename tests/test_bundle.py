"""The bundle file: round trip, one right form, and everything that must not load."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import struct
import zipfile

import pytest
from bundle_factory import OWNER, make_bundle, make_bytes, make_manifest, make_members

from toolkit import bundle as bundle_module
from toolkit.bundle import MAX_FILE_BYTES, build_zip, find_bundle, load_bundle, pack_bundle, read_bundle, write_bundle
from toolkit.errors import BundleError, BundleFormatError, EdgeAudioError, SignatureError
from toolkit.manifest import parse_manifest

TRUSTED = [OWNER.public_key()]
POLICIES = {"off": None, "require": OWNER}  # policy -> key of the bundle that loads under it


def refusal(data: bytes, policy: str = "off") -> str:
    """The message with which ``data`` is refused as a bundle."""
    with pytest.raises(BundleError) as error:
        read_bundle(data, "x.eab", policy, TRUSTED)
    assert str(error.value).startswith("x.eab: ") and "\n" not in str(error.value)
    return str(error.value)


# --- what is right ---


@pytest.mark.parametrize("key", [None, OWNER], ids=["unsigned", "signed"])
def test_round_trip(tmp_path, key):
    path = tmp_path / "kws.eab"
    written = make_bundle(path, key, model=b"\0\1\2" * 1000)
    loaded = load_bundle(path, "warn", TRUSTED)
    assert loaded.manifest == written.manifest
    assert dict(loaded.members) == {role: data for role, (_, data) in make_members(b"\0\1\2" * 1000).items()}
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.path == path
    assert loaded.signed_by == (key.public_key().key_id if key else None)
    assert [path.name] == os.listdir(tmp_path)
    with pytest.raises(TypeError):
        loaded.members["model"] = b"other"


@pytest.mark.parametrize("key", [None, OWNER], ids=["unsigned", "signed"])
def test_same_contents_same_bytes_in_any_order(key):
    manifest, members = make_manifest(), make_members()
    turned = dict(reversed(members.items()))
    assert pack_bundle(manifest, members, key) == pack_bundle(manifest, turned, key)


def test_bytes_are_the_same_on_every_machine():
    data = build_zip({"card.md": b"# kws\n", "manifest.json": b"{}\n"})
    assert hashlib.sha256(data).hexdigest() == "8e6c6465e27aa1d3f608736f417540ccc2b981bd7f977a130918a8ff7a2d770b"


def test_any_zip_tool_reads_it(tmp_path):
    """zipfile, which shares no code with the walker, sees the same entries, dates and modes."""
    path = tmp_path / "kws.eab"
    make_bundle(path, OWNER)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == bundle_module.walk(path.read_bytes(), "x.eab")
        assert file.namelist()[:2] == ["manifest.json", "manifest.sig"]
        assert file.namelist()[2:] == sorted(file.namelist()[2:])
        for info in file.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0) and info.compress_type == zipfile.ZIP_STORED
            assert info.external_attr >> 16 == stat.S_IFREG | 0o644


def test_writing_replaces_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "kws.eab"
    make_bundle(path, version="0.1.0")
    before = path.read_bytes()

    def power_cut(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(BundleError, match="cannot be written"):
        make_bundle(path, version="0.2.0")
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["kws.eab"]
    make_bundle(path, version="0.2.0")
    assert load_bundle(path).manifest.version == "0.2.0"


def test_what_would_not_load_is_not_written(tmp_path):
    path = tmp_path / "kws.eab"
    lacking = make_members()
    del lacking["card"]
    too_long = make_members(tables=bytes(bundle_module.MAX_MEMBER_BYTES + 1))
    twice = make_members() | {"card": ("model.tflite", b"model")}
    reserved = make_members() | {"card": ("manifest.sig", b"x")}
    for members, words in ((lacking, "card"), (too_long, "limit"), (twice, "twice"), (reserved, "manifest.sig")):
        with pytest.raises(BundleFormatError, match=words):
            write_bundle(path, make_manifest(), members)
    assert not path.exists()


# --- one flipped bit, and worse ---


def mutations(data: bytes, rng: random.Random):
    """Nine ways to spoil a bundle, 30 times each: (kind, bytes)."""
    entries = bundle_module.walk(data, "original")
    members = [name for name in entries if name not in ("manifest.json", "manifest.sig")]
    for _ in range(30):
        at, length = rng.randrange(len(data)), rng.randrange(1, 40)
        name, other = rng.sample(members, 2)
        noise = rng.randbytes(length)
        yield "flip", data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
        yield "truncate", data[:at]
        yield "insert", data[:at] + noise + data[at:]
        yield "delete", data[:at] + data[at + length:]
        yield "append", data + noise
        zeroed = data[:at] + bytes(len(data[at:at + length])) + data[at + length:]
        yield "zero", zeroed if zeroed != data else data[:-1] + b"\1"
        yield "overwrite", data[:at] + noise[:len(data) - at] + data[at + length:]
        yield "swap members", build_zip(entries | {name: entries[other], other: entries[name]})
        yield "duplicate entry", duplicated(data, entries, name)


def duplicated(data: bytes, entries: dict[str, bytes], name: str) -> bytes:
    """``data`` with the entry ``name`` in it twice, in the entries as well as in the directory."""
    local = bundle_module._local_header(name, entries[name]) + entries[name]
    start, directory = data.index(local), data.index(b"PK\1\2")
    end = len(data) - bundle_module.END_RECORD.size
    records, offset, body = [], 0, data[:start] + local + data[start:directory]
    for entry in sorted([*entries, name], key=list(entries).index):
        one = bundle_module._directory({entry: entries[entry]})[:-bundle_module.END_RECORD.size]
        records.append(one[:42] + struct.pack("<I", offset) + one[46:])
        offset += 30 + len(entry) + len(entries[entry])
    count = len(entries) + 1
    table = b"".join(records)
    return body + table + bundle_module.END_RECORD.pack(data[end:end + 4], 0, 0, count, count, len(table), offset, 0)


@pytest.mark.parametrize(("policy", "key"), POLICIES.items())
def test_270_mutations_are_refused(policy, key):
    data = make_bytes(key, model=random.Random(7).randbytes(900))
    read_bundle(data, "x.eab", policy, TRUSTED)
    survivors, kinds = [], set()
    spoiled = list(mutations(data, random.Random(1)))
    for kind, mutant in spoiled:
        assert mutant != data, kind
        kinds.add(kind)
        try:
            read_bundle(mutant, "x.eab", policy, TRUSTED)
            survivors.append(kind)
        except (BundleFormatError, SignatureError):
            pass
    assert len(spoiled) == 270 and len(kinds) == 9
    assert survivors == []


@pytest.mark.parametrize(("policy", "key"), POLICIES.items())
def test_every_byte_counts(policy, key):
    """One flipped bit in each byte of the file, none left out: headers, names, contents, directory, end record."""
    data = bytearray(make_bytes(key))
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        refusal(bytes(data), policy)
        data[at] ^= 1 << at % 8
    read_bundle(bytes(data), "x.eab", policy, TRUSTED)


def test_a_duplicate_that_zip_tools_accept_is_refused():
    data = make_bytes()
    entries = bundle_module.walk(data, "original")
    twice = duplicated(data, entries, "model.tflite")
    with zipfile.ZipFile(io.BytesIO(twice)) as file:
        assert file.namelist().count("model.tflite") == 2 and file.testzip() is None
    assert "model.tflite twice" in refusal(twice)


# --- other zips ---


def repack(data: bytes, compression: int = zipfile.ZIP_STORED, **change) -> bytes:
    """The same entries packed by zipfile, each ZipInfo with attributes of ``change``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in bundle_module.walk(data, "original").items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.create_version, info.extract_version = 3, 10, 10
            info.compress_type, info.external_attr = compression, bundle_module.ATTRIBUTES
            for key, value in change.items():
                setattr(info, key, value)
            file.writestr(info, content)
    return out.getvalue()


@pytest.mark.parametrize(("change", "words"), [
    ({"compression": zipfile.ZIP_DEFLATED}, "compression 8, expected 0"),
    ({"date_time": (2024, 2, 3, 4, 5, 6)}, "date 22595, expected 33"),
    ({"extra": b"\x99\x99\2\0ab"}, "extra length 6, expected 0"),
    ({"comment": b"hello"}, "directory"),
    ({"external_attr": 0o100777 << 16}, "directory"),
    ({"create_system": 0}, "directory"),
    ({"extract_version": 20}, "version 20, expected 10"),
])
def test_any_other_zip_of_the_same_entries(change, words):
    assert repack(make_bytes()) == make_bytes()  # zipfile can be brought to the right form; then one thing is changed
    assert words in refusal(repack(make_bytes(), **change))


def test_streamed_zip_with_data_descriptors():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def tell(self):
            raise OSError

        def seek(self, *_):
            raise OSError

    out = Pipe()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(zipfile.ZipInfo("manifest.json"), b"{}")
    assert "flags 8, expected 0" in refusal(out.getvalue())


def test_zip64_sizes():
    data = bytearray(make_bytes())
    data[18:26] = b"\xff" * 8  # stored and real size of the first entry
    assert "4294967295 bytes, the limit is 262144" in refusal(bytes(data))


def test_zip_bomb():
    """100 MB that deflate to 100 kB: refused by the header, unpacked never."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", bytes(100_000_000))
    assert len(out.getvalue()) < 200_000
    assert "compression 8, expected 0" in refusal(out.getvalue())


@pytest.mark.parametrize("name", [
    "../card.md", "a/card.md", "/card.md", "card..md", "CARD.md", ".card", "c\x1b[2J", "", "c" * 65,
])
def test_names_that_are_not_plain(name):
    entries = bundle_module.walk(make_bytes(), "original")
    message = refusal(build_zip({"manifest.json": entries["manifest.json"], name: b"x"}))
    assert "expected a plain file name" in message and "\x1b" not in message


def test_leading_and_trailing_bytes():
    data = make_bytes()
    assert "not a bundle" in refusal(b"#!/bin/sh\n" + data)
    assert "longer than its directory" in refusal(data + b"\0")
    assert "cut short in its directory" in refusal(data[:-1])


def test_manifest_must_come_first():
    entries = bundle_module.walk(make_bytes(), "original")
    manifest = entries.pop("manifest.json")
    assert "manifest.json is missing" in refusal(build_zip(entries))
    last = entries | {"manifest.json": manifest}
    backwards = b"".join(bundle_module._local_header(name, data) + data for name, data in last.items())
    assert "out of order" in refusal(backwards)


# --- sizes ---


def test_oversized_file(tmp_path):
    path = tmp_path / "huge.eab"
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(1 << 40)  # sparse: read to the limit and no further
    with pytest.raises(BundleFormatError, match=f"larger than {MAX_FILE_BYTES} bytes"):
        load_bundle(path)


def test_oversized_entries():
    entries = bundle_module.walk(make_bytes(), "original")
    assert "limit is 262144" in refusal(build_zip(entries | {"manifest.json": b" " * 300_000}))
    assert "limit is 256" in refusal(build_zip(entries | {"manifest.sig": b" " * 257}))
    assert "limit is 8388608" in refusal(build_zip(entries | {"model.tflite": bytes((8 << 20) + 1)}))
    assert "more than 64 entries" in refusal(build_zip(entries | {f"x{i}": b"" for i in range(64)}))


# --- members against the manifest ---


def test_missing_extra_and_other_members():
    entries = bundle_module.walk(make_bytes(), "original")
    lacking = {name: data for name, data in entries.items() if name != "tables.bin"}
    assert "tables.bin (tables) is missing" in refusal(build_zip(lacking))
    assert "holds notes.txt, unknown to its manifest" in refusal(build_zip(entries | {"notes.txt": b"x"}))
    for other in (b"MODEL", b"model2", b""):
        other_model = build_zip(entries | {"model.tflite": other})
        assert "model.tflite (model) is not what the manifest says" in refusal(other_model)
    wrong_size = entries["manifest.json"].replace(b'"size":64', b'"size":65')  # its hash is right
    assert "tables.bin (tables) is not what" in refusal(build_zip(entries | {"manifest.json": wrong_size}))


def test_order_walk_signature_parse_hashes():
    """Each fault alone, then together: the earlier stage speaks."""
    entries = bundle_module.walk(make_bytes(OWNER), "original")
    hashes = entries | {"model.tflite": b"MODEL"}
    parse = hashes | {"manifest.json": b"{}"}
    assert "is not what the manifest says" in refusal(build_zip(hashes), "require")
    assert "altered after it was signed" in refusal(build_zip(parse), "require")
    assert "the key task is missing" in refusal(build_zip(parse), "off")
    walked = build_zip(parse) + b"\0"
    assert "longer than its directory" in refusal(walked, "require")


# --- finding it ---


def test_not_a_bundle(tmp_path):
    (tmp_path / "empty.eab").write_bytes(b"")
    (tmp_path / "page.eab").write_bytes(b"<!DOCTYPE html>\x1b[2J")
    os.mkfifo(tmp_path / "pipe.eab")
    for name, words in (("empty.eab", "the file is empty"), ("page.eab", "begins with b'<!DOCTYP'"),
                        ("pipe.eab", "a device"), (".", "a folder")):
        with pytest.raises(BundleError, match=words) as error:
            load_bundle(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path))


def test_missing_file_suggests_the_nearest(tmp_path):
    make_bundle(tmp_path / "kitchen.eab")
    with pytest.raises(BundleError, match=r"no such file; did you mean .*kitchen\.eab\?"):
        load_bundle(tmp_path / "kitchn.eab")
    with pytest.raises(BundleError, match="no such file"):
        load_bundle(tmp_path / "nowhere" / "kitchen.eab")


def test_paths_that_cannot_be_looked_up(tmp_path):
    (tmp_path / "loop.eab").symlink_to(tmp_path / "loop.eab")
    for name in ("x" * 5000 + ".eab", "loop.eab"):
        with pytest.raises(BundleError, match="cannot be read"):
            load_bundle(tmp_path / name)
    make_bundle(tmp_path / "kws.eab")
    with pytest.raises(BundleError, match="no such file"):
        load_bundle(tmp_path / "kws.eab" / "kws.eab")


def test_released_names(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "RELEASED", tmp_path / "released")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="kws: no released bundle has this name; give the path"):
        load_bundle("kws")
    (tmp_path / "released").mkdir()
    for name in ("kws", "denoise"):
        make_bundle(tmp_path / "released" / f"{name}.eab")
    assert load_bundle("kws").path == tmp_path / "released" / "kws.eab"
    with pytest.raises(BundleError, match=r"did you mean kws\?"):
        load_bundle("kwss")
    with pytest.raises(BundleError, match="there are denoise, kws"):
        load_bundle("zebra")
    with pytest.raises(BundleError, match=r"kws\.eab: no such file; did you mean kws\?"):
        load_bundle("kws.eab")


def test_a_file_does_not_shadow_a_released_name(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "RELEASED", tmp_path / "released")
    monkeypatch.chdir(tmp_path)
    make_bundle(tmp_path / "mine")
    with pytest.raises(BundleError, match=r"write \./mine"):
        find_bundle("mine")
    assert load_bundle("./mine").manifest.name == "kws"


def test_file_is_read_once(tmp_path, monkeypatch):
    """What was checked is what is used: a file exchanged after the read changes nothing."""
    path = tmp_path / "kws.eab"
    make_bundle(path, OWNER)

    def exchange_then_parse(data, where):
        path.write_bytes(b"exchanged")
        return parse_manifest(data, where)

    monkeypatch.setattr(bundle_module, "parse_manifest", exchange_then_parse)
    assert load_bundle(path, "require", TRUSTED).members["model"] == b"model"
    assert path.read_bytes() == b"exchanged"


def test_errors_are_the_project_s_own():
    """Random bytes after a right beginning raise nothing but EdgeAudioError."""
    rng = random.Random(3)
    for _ in range(300):
        content = rng.randbytes(rng.randrange(80))
        entry = bundle_module._local_header("manifest.json", content) + content
        with pytest.raises(EdgeAudioError):
            read_bundle(entry + rng.randbytes(50), "x.eab", "off")
        with pytest.raises(EdgeAudioError):
            read_bundle(build_zip({"manifest.json": content}), "x.eab", "off")
