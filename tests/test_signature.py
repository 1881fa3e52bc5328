"""Signatures: two libraries that agree, three policies, key files, and the development key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_factory import OWNER, STRANGER, make_bundle, make_bytes

from devices.__main__ import main
from devices.keygen import keygen
from toolkit import signature
from toolkit.bundle import build_zip, load_bundle, read_bundle, walk
from toolkit.errors import BundleFormatError, ConfigError, MissingPartError, SignatureError, UsageError
from toolkit.signature import (
    check_signature,
    generate_key,
    read_private_key,
    read_public_key,
    read_trusted_keys,
    sign,
)

ROOT = Path(__file__).parents[1]
LIBRARIES = {"nacl": signature._Nacl, "cryptography": signature._Cryptography}
MESSAGE = b'{"name":"kws"}\n'

# RFC 8032, 7.1: TEST 1, 2 and 3: seed, public key, message, signature
RFC_8032 = [
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
     "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
     "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
     "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
     "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
]


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """The signature module with only this library installed."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed in this environment")
    without(monkeypatch, *(LIBRARIES.keys() - {request.param}))
    return LIBRARIES[request.param]()


def without(monkeypatch, *names):
    """Make ``import name`` and imports below it fail, as where it is not installed."""
    for name in names:
        for loaded in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
            monkeypatch.setitem(sys.modules, loaded, None)


# --- the arithmetic ---


@pytest.mark.parametrize(("seed", "public", "message", "expected"), RFC_8032)
def test_rfc_8032(library, seed, public, message, expected):
    seed, public, message, expected = map(bytes.fromhex, (seed, public, message, expected))
    assert library.public_key(seed) == public
    assert library.sign(seed, message) == expected
    assert library.verify(public, message, expected) is True
    assert library.verify(public, message + b"x", expected) is False
    for at in range(64):
        spoiled = bytearray(expected)
        spoiled[at] ^= 1 << at % 8
        assert library.verify(public, message, bytes(spoiled)) is False


def test_signature_with_the_group_order_added_is_refused(library):
    """S + L satisfies the curve equation too (RFC 8032, 5.1.7 demands S < L): one signature has one form."""
    order = 2**252 + 27742317777372353535851937790883648493
    good = library.sign(OWNER.seed, MESSAGE)
    other = good[:32] + (int.from_bytes(good[32:], "little") + order).to_bytes(32, "little")
    assert library.verify(OWNER.public_key().raw, MESSAGE, other) is False


def test_one_library_is_enough(library):
    line = sign(MESSAGE, OWNER)
    assert type(signature._library()) is type(library)
    assert check_signature(MESSAGE, line, "require", [OWNER.public_key()]) == (OWNER.public_key().key_id, ())
    with pytest.raises(SignatureError, match="altered"):
        check_signature(MESSAGE + b" ", line, "require", [OWNER.public_key()])


def test_the_lighter_library_is_asked_first():
    pytest.importorskip("nacl", reason="nacl is not installed in this environment")
    assert type(signature._library()) is signature._Nacl


def test_line_can_be_checked_by_hand():
    """Key id and signature as documented, without this module."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    import base64
    import hashlib
    word, key_id, text = sign(MESSAGE, OWNER).decode("ascii").split()
    raw = OWNER.public_key().raw
    assert word == "ed25519-signature" and key_id == hashlib.sha256(raw).hexdigest()[:16]
    ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(text), MESSAGE)


# --- policies ---


def load(data: bytes, policy: str):
    return read_bundle(data, "x.eab", policy, [OWNER.public_key()])


def altered(data: bytes) -> bytes:
    """The manifest says another version, its signature stays, and the zip is right again."""
    entries = walk(data, "original")
    manifest = entries["manifest.json"].replace(b'"version":"0.1.0"', b'"version":"0.1.1"')
    assert manifest != entries["manifest.json"]
    return build_zip(entries | {"manifest.json": manifest})


def test_signed_by_a_trusted_key():
    for policy in ("require", "warn"):
        bundle = load(make_bytes(OWNER), policy)
        assert bundle.signed_by == OWNER.public_key().key_id and bundle.notices == ()
    bundle = load(make_bytes(OWNER), "off")
    assert bundle.signed_by is None and bundle.notices == ()


@pytest.mark.parametrize(("key", "words"), [(None, "not signed"), (STRANGER, "not among the 1 trusted")])
def test_unsigned_or_by_a_stranger(key, words):
    with pytest.raises(SignatureError, match=words):
        load(make_bytes(key), "require")
    bundle = load(make_bytes(key), "warn")
    assert bundle.signed_by is None and len(bundle.notices) == 1
    assert bundle.notices[0].startswith("x.eab: ") and words in bundle.notices[0]
    bundle = load(make_bytes(key), "off")
    assert bundle.signed_by is None and bundle.notices == ()


@pytest.mark.parametrize("policy", ["require", "warn"])
def test_altered_manifest(policy):
    with pytest.raises(SignatureError, match="altered after it was signed"):
        load(altered(make_bytes(OWNER)), policy)


def test_altered_manifest_unlooked_at():
    assert load(altered(make_bytes(OWNER)), "off").manifest.version == "0.1.1"
    bundle = load(altered(make_bytes(STRANGER)), "warn")  # nothing known of this signer's key: no disproof
    assert bundle.signed_by is None and "not among" in bundle.notices[0]


def test_signature_of_a_stranger_under_the_owner_s_name():
    stranger, owner = STRANGER.public_key().key_id.encode(), OWNER.public_key().key_id.encode()
    entries = walk(make_bytes(STRANGER), "original")
    data = build_zip(entries | {"manifest.sig": entries["manifest.sig"].replace(stranger, owner)})
    for policy in ("require", "warn"):
        with pytest.raises(SignatureError, match="altered"):
            load(data, policy)


@pytest.mark.parametrize("spoil", [
    lambda line: b"",
    lambda line: line[:-1],
    lambda line: line + b"\n",
    lambda line: b" " + line,
    lambda line: line.upper(),
    lambda line: line.replace(b"ed25519", b"ed448"),
    lambda line: line.replace(b" ", b"  "),
    lambda line: line.replace(b"==", b"="),
    lambda line: line[:-4] + bytes([line[-4] + 1]) + line[-3:],  # spare bits of base64: the same 64 bytes
])
def test_one_right_form_of_the_line(spoil):
    line = sign(MESSAGE, OWNER)
    assert spoil(line) != line
    for policy in ("require", "warn"):
        with pytest.raises(SignatureError, match="manifest.sig is not a line"):
            check_signature(MESSAGE, spoil(line), policy, [OWNER.public_key()])
    assert check_signature(MESSAGE, spoil(line), "off") == (None, ())


def test_nobody_is_trusted():
    with pytest.raises(SignatureError, match="not among the 0 trusted"):
        read_bundle(make_bytes(OWNER), "x.eab", "require", [])


def test_without_a_library(monkeypatch, tmp_path):
    data = make_bytes(OWNER)
    trusted = [OWNER.public_key()]
    without(monkeypatch, *LIBRARIES)
    with pytest.raises(MissingPartError, match="x.eab: signature not checked: neither PyNaCl nor cryptography is inst"):
        read_bundle(data, "x.eab", "require", trusted)
    bundle = read_bundle(data, "x.eab", "warn", trusted)
    assert bundle.signed_by is None and "neither PyNaCl nor cryptography" in bundle.notices[0]
    assert read_bundle(data, "x.eab", "off").notices == ()
    with pytest.raises(MissingPartError):
        make_bundle(tmp_path / "kws.eab", OWNER)
    with pytest.raises(MissingPartError):
        keygen(tmp_path)
    assert os.listdir(tmp_path) == []


def test_unknown_policy():
    with pytest.raises(UsageError, match="'strict', expected one of require, warn, off"):
        load(make_bytes(), "strict")


@pytest.mark.parametrize(("policy", "imported"), [("off", False), ("warn", True), ("require", True)])
def test_library_is_imported_only_where_needed(tmp_path, policy, imported):
    make_bundle(tmp_path / "kws.eab", OWNER)
    (tmp_path / "owner.pub").write_text(OWNER.public_key().to_text())
    code = ("import sys; from toolkit.bundle import load_bundle; load_bundle(sys.argv[1], sys.argv[2]);"
            "print(sorted({'nacl', 'cryptography', '_cffi_backend'} & set(sys.modules)))")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "kws.eab"), policy], cwd=ROOT, text=True,
                         capture_output=True, env=os.environ | {"EDGE_AUDIO_TRUST": str(tmp_path)}, check=True)
    assert (run.stdout.strip() != "[]") is imported


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_price_of_a_signature(tmp_path):
    """At most 15 MB of RSS and 60 ms of CPU over a process that holds numpy."""
    make_bundle(tmp_path / "kws.eab", OWNER)
    (tmp_path / "owner.pub").write_text(OWNER.public_key().to_text())
    code = """if True:
        import json, sys, time, numpy
        from toolkit.bundle import load_bundle
        def rss(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
        load_bundle(sys.argv[1], "off")
        before, start = rss(), time.process_time()
        assert load_bundle(sys.argv[1], "require").signed_by
        print(json.dumps([(rss() - before) / 1024, (time.process_time() - start) * 1000]))"""
    command, environment = [sys.executable, "-c", code, str(tmp_path / "kws.eab")], {"EDGE_AUDIO_TRUST": str(tmp_path)}
    runs = [json.loads(subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True,
                                      stdout=subprocess.PIPE).stdout) for _ in range(3)]
    megabytes, milliseconds = map(min, zip(*runs))  # the least: what another process took is not our price
    assert 0 < megabytes <= 15 and 0 < milliseconds <= 60


# --- keys ---


def test_key_files_round_trip(tmp_path):
    private, public, key_id = keygen(tmp_path / "keys", "kitchen", "the k\u00fcche hub")
    assert private.stat().st_mode & 0o777 == 0o600
    key = read_private_key(private)
    assert key.comment == "the k\u00fcche hub" and len(key.seed) == 32
    assert key.public_key() == read_public_key(public) and key.public_key().key_id == key_id
    assert private.read_text().startswith("ed25519-private ") and public.read_text().count("\n") == 1
    assert generate_key() != generate_key()
    assert "seed" not in repr(key)


def test_keygen_never_overwrites(tmp_path):
    private, public, _ = keygen(tmp_path)
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(UsageError, match="bundle.key: exists, and no key is ever overwritten"):
        keygen(tmp_path)
    private.unlink()
    with pytest.raises(UsageError, match="bundle.pub: exists"):
        keygen(tmp_path)
    assert not private.exists() and public.read_bytes() == before[1]


def test_keygen_command(tmp_path, capsys):
    assert main(["keygen", str(tmp_path), "--name", "hub"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert read_public_key(told["public"]).key_id == told["key_id"] and "EDGE_AUDIO_TRUST" in err
    assert main(["keygen", str(tmp_path), "--name", "hub"]) == 2
    assert "no key is ever overwritten" in capsys.readouterr().err
    assert main(["keygen", str(tmp_path), "--name", "../hub"]) == 2
    assert main(["keygen", str(tmp_path / "hub.key")]) == 1
    assert main(["keygen", str(tmp_path), "--name", "x", "--comment", "two\nlines"]) == 2
    assert sorted(os.listdir(tmp_path)) == ["hub.key", "hub.pub"]
    assert main([]) == 2


@pytest.mark.parametrize("text", ["", "hello", "ed25519-public AAAA", "ed25519-public " + "A" * 43 + "=\nsecond line",
                                  "ed25519-public " + "A" * 43 + "=x", OWNER.to_text()])
def test_public_key_files_that_are_none(tmp_path, text):
    path = tmp_path / "x.pub"
    path.write_text(text)
    with pytest.raises(ConfigError, match="x.pub: holds .* expected one line: ed25519-public BASE64 comment") as error:
        read_public_key(path)
    assert ("private half" in str(error.value)) is (text == OWNER.to_text())
    assert "A" * 9 not in str(error.value) and OWNER.to_text()[16:30] not in str(error.value)  # no key in a message
    with pytest.raises(ConfigError):
        read_trusted_keys(tmp_path)  # a key that cannot be read is not passed over


def test_key_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the key"):
        read_private_key(tmp_path / "nobody.key")


def test_who_is_trusted(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGE_AUDIO_TRUST", raising=False)
    package = read_trusted_keys()
    assert [key.comment.split(":")[0] for key in package] == ["development key"]
    (tmp_path / "owner.pub").write_text(OWNER.public_key().to_text())
    (tmp_path / "stranger.key").write_text(STRANGER.to_text())  # not a .pub: not trusted
    assert read_trusted_keys(tmp_path) == (OWNER.public_key(),)
    monkeypatch.setenv("EDGE_AUDIO_TRUST", str(tmp_path))
    assert read_trusted_keys() == (OWNER.public_key(),)
    monkeypatch.setenv("EDGE_AUDIO_TRUST", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere: not a folder of trusted keys"):
        read_trusted_keys()


def test_a_folder_of_one_s_own_shuts_the_development_key_out(tmp_path, monkeypatch):
    """Anybody can sign with the development key; an owner who names a folder must be safe from that."""
    monkeypatch.delenv("EDGE_AUDIO_TRUST", raising=False)
    development = read_private_key(ROOT / "devices" / "keys" / "development.key")
    path = tmp_path / "kws.eab"
    make_bundle(path, development)
    assert load_bundle(path, "require").signed_by == development.public_key().key_id
    (tmp_path / "owner.pub").write_text(OWNER.public_key().to_text())
    monkeypatch.setenv("EDGE_AUDIO_TRUST", str(tmp_path))
    with pytest.raises(SignatureError, match="not among the 1 trusted"):
        load_bundle(path, "require")


def test_unreadable_trust_does_not_stop_policy_off(tmp_path, monkeypatch):
    path = tmp_path / "kws.eab"
    make_bundle(path, OWNER)
    monkeypatch.setenv("EDGE_AUDIO_TRUST", str(tmp_path / "nowhere"))
    assert load_bundle(path, "off").signed_by is None
    with pytest.raises(ConfigError):
        load_bundle(path, "warn")


def test_signature_speaks_before_the_manifest_is_parsed():
    entries = walk(make_bytes(), "original")
    data = build_zip(entries | {"manifest.json": b"not json"})
    with pytest.raises(SignatureError):
        load(data, "require")
    with pytest.raises(BundleFormatError):
        load(data, "off")
