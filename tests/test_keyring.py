"""Keyrings: what may follow what, and files that are none. Each is refused by a device, on which nothing changes."""

from __future__ import annotations

import json

import pytest
from bundle_factory import make_bytes
from keyrings import A, B, C, X, Y, Z, contents, key_id, keyring, make_device, refused, signed

from toolkit.bundle import read_bundle
from toolkit.errors import EdgeAudioError, SignatureError, UnsupportedError
from toolkit.keyring import parse_keyring
from toolkit.manifest import canonical_json
from toolkit.ota.trust import accept, install_keyring, read_keyring
from toolkit.signature import read_trusted_keys, sign


@pytest.fixture
def device(tmp_path):
    return make_device(tmp_path)


def test_before_the_first(tmp_path):
    assert read_keyring(tmp_path) is None
    refused(tmp_path, *signed(keyring()), "signed by 0 of the root keys of version 1")
    refused(tmp_path, *signed(keyring(), C), "signed by 0 of")
    refused(tmp_path, *signed(keyring(threshold=2), A), "signed by 1 of the root keys .*expected 2")
    assert accept(tmp_path, *signed(keyring(version=7), A))["keyring_version"] == 7  # the first may have any version


@pytest.mark.parametrize("version, words", [
    (1, "version is 1, expected 2, the one after the present; the present one has this version and is another"),
    (3, "version is 3, expected 2, .*send the versions between first")])
def test_only_the_next_version(device, version, words):
    refused(device, *signed(keyring(version, bundle=(Y,)), A, B), words)


def test_never_an_older_version(device):
    accept(device, *signed(keyring(2, bundle=(Y,)), A))
    refused(device, *signed(keyring(), A), "version is 1, expected 3, .*an older keyring is never taken again")
    assert read_keyring(device).version == 2


@pytest.mark.parametrize("signers, words", [
    ((), "signed by 0 of the root keys of version 1"), ((X,), "signed by 0 of the root keys of version 1"),
    ((C,), "signed by 0 of the root keys of version 1"), ((A,), "signed by 0 of the root keys of version 2"),
    ((A, B), "signed by 1 of the root keys of version 2"), ((B, X, Z), "signed by 1 of the root keys of version 2")])
def test_both_thresholds(device, signers, words):
    """Old: 1 of A, B; new: 2 of B, C."""
    new = keyring(2, root=(B, C), threshold=2)
    refused(device, *signed(new, *signers), words)
    assert accept(device, *signed(new, B, C))["threshold"] == 2  # B counts for both


def test_keys_are_counted_once(tmp_path):
    data, _ = signed(keyring(threshold=2))
    twice = sign(data, A) * 2
    refused(tmp_path, data, twice, "keyring.sig: line 2 is a second signature of the key")


def test_a_single_root_key_can_be_replaced(tmp_path):
    """Its signature counts for the old keyring even where the new one revokes it: else nobody could."""
    install_keyring(tmp_path, *signed(keyring(root=(A,)), A))
    new = keyring(2, root=(B,), revoked=(A,))
    refused(tmp_path, *signed(new, B), "signed by 0 of the root keys of version 1")
    refused(tmp_path, *signed(new, A), "signed by 0 of the root keys of version 2")
    install_keyring(tmp_path, *signed(new, A, B))
    refused(tmp_path, *signed(keyring(3, root=(B, C), revoked=(A,)), A), "signed by 0 of the root keys of version 2")


def test_a_revoked_key_never_returns(device):
    install_keyring(device, *signed(keyring(2, bundle=(Y,), revoked=(X,)), A))
    for role in ("root", "bundle"):
        ring = keyring(3, revoked=(X,), **{"bundle": (Y,)} | {role: (A, X)})
        refused(device, *signed(ring, A, X), f"the key {key_id(X)} is listed, but also revoked")
    refused(device, *signed(keyring(3, bundle=(X,)), A, B), f"no longer names {key_id(X)} as revoked")


def test_no_bundle_key_at_all(device):
    """The emergency brake: nothing is staged until the next keyring."""
    install_keyring(device, *signed(keyring(2, bundle=(), revoked=(X,)), A))
    with pytest.raises(SignatureError, match="was revoked"):
        read_bundle(make_bytes(X), "x.eab", "require", read_trusted_keys(device / "trust"))


# --- files that are none ---


def spoiled(**changes) -> bytes:
    """A right keyring but for these keys, in canonical form; None: the key is missing."""
    value = json.loads(keyring().to_bytes()) | changes
    return canonical_json({key: item for key, item in value.items() if item is not None})


KEY = json.loads(keyring().to_bytes())["bundle_keys"][0]
BAD = [
    (b"", "not JSON in ASCII"), (b"\xff\xfe", "not JSON in ASCII"), (b"[" * 10_000, "not JSON in ASCII"),
    (b"9" * 5_000, "not JSON in ASCII"), (b"[]\n", "is .*expected an object"), (b"null\n", "expected an object"),
    (b" " * (1 << 20), "larger than 65536 bytes, the limit for a keyring"),
    (keyring().to_bytes()[:-1], "not in canonical form"), (keyring().to_bytes() + b"\n", "not in canonical form"),
    (keyring().to_bytes().replace(b":", b": "), "not in canonical form"),
    (keyring().to_bytes().replace(b'"version":1', b'"version":1,"version":1'), "not in canonical form"),
    (keyring().to_bytes().replace(b'"version":1', b'"version":9,"version":1'), "not in canonical form"),
    (keyring().to_bytes().replace(b'"A"', b'"\\u0041"'), "not in canonical form"),
    (spoiled(version=0), "version is 0, expected a number from 1 to"),
    (spoiled(version=2**31), "version is 2147483648"),
    (spoiled(version=True), "version is True, expected a whole number"), (spoiled(version="1"), "version is '1'"),
    (spoiled(version=1.0), "version is 1.0"), (spoiled(version=None), "the key version is missing"),
    (spoiled(schema=None), "the key schema is missing"), (spoiled(expires=1), "unknown key 'expires'"),
    (spoiled(treshold=1), "unknown key 'treshold'; did you mean threshold"),
    (spoiled(threshold=0), "threshold is 0, expected a number from 1 to 32"),
    (spoiled(threshold=3), "threshold is 3, expected at most 2, the number of root keys"),
    (spoiled(threshold=1, root_keys=[]), "threshold is 1, expected at most 0"),
    (spoiled(bundle_keys={}), "expected a list"), (spoiled(bundle_keys=[KEY, KEY]), "sorted by id, none twice"),
    (spoiled(root_keys=json.loads(keyring().to_bytes())["root_keys"][::-1]), "sorted by id, none twice"),
    (spoiled(bundle_keys=[KEY | {"id": "0" * 16}]), "the key 0{16} is not the one of its id"),
    (spoiled(bundle_keys=[KEY | {"id": KEY["id"].upper()}]), "expected 16 hex digits"),
    (spoiled(bundle_keys=[KEY | {"public": KEY["public"][:-1]}]), "expected 32 bytes in base64"),
    (spoiled(bundle_keys=[KEY | {"public": "A" * 43 + "="}]), "is not the one of its id"),
    (spoiled(bundle_keys=[KEY | {"public": KEY["public"][:-2] + chr(ord(KEY["public"][-2]) + 1) + "="}]),
     "is not the one of its id"),  # spare bits of base64: the same 32 bytes
    (spoiled(bundle_keys=[KEY | {"comment": "two\nlines"}]), "expected 0 to 200 printable characters"),
    (spoiled(bundle_keys=[KEY | {"comment": "x" * 201}]), "expected 0 to 200 printable characters"),
    (spoiled(revoked=[{"id": "0" * 16, "reason": ""}]), "expected 1 to 200 printable characters"),
    (spoiled(revoked=[{"id": "0" * 16, "reason": "a\nb"}]), "expected 1 to 200 printable characters"),
    (spoiled(revoked=[{"id": "0" * 16}]), "the key reason is missing"),
    (spoiled(revoked=[{"id": f"{i:016x}", "reason": "x"} for i in range(257)]), "expected at most 256 items"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_keyrings(device, number):
    data, words = BAD[number]
    refused(device, data, sign(data, A), words)


def test_a_schema_of_the_future(device):
    data = spoiled(schema=2)
    refused(device, data, sign(data, A), "schema is 2, this version of edge-audio-toolkit reads schema 1; update",
            UnsupportedError)


@pytest.mark.parametrize("spoil, words", [
    (lambda line: line[:-1], "line 1 is not a line ed25519-signature"), (lambda line: b"\n" + line, "line 1 is not"),
    (lambda line: line + b"x", "line 2 is not"), (lambda line: line.replace(b"\n", b"\r\n"), "line 1 is not"),
    (lambda line: line + sign(b"another", B), "altered after it was signed by the key"),
    (lambda line: sign(b"another", A), "altered after it was signed by the key"),
    (lambda line: line * 70, "larger than 8192 bytes"), (lambda line: line + line, "line 2 is a second signature")])
def test_bad_signatures(device, spoil, words):
    data, line = signed(keyring(2, bundle=(Y,)), A)
    refused(device, data, spoil(line), words)


def test_every_flipped_bit(device):
    """Of the keyring: refused. Of its signatures: refused."""
    data, signatures = signed(keyring(2, bundle=(Y,)), A)
    before = contents(device)
    for which, original in enumerate((data, signatures)):
        for at in range(len(original)):
            other = bytearray(original)
            other[at] ^= 1 << at % 8
            files = (bytes(other), signatures) if which == 0 else (data, bytes(other))
            with pytest.raises(EdgeAudioError) as raised:
                install_keyring(device, *files)
            assert "\n" not in str(raised.value)
    assert contents(device) == before


def test_every_cut(device):
    data, signatures = signed(keyring(2, bundle=(Y,)), A)
    before = contents(device)
    for length in range(len(data)):
        with pytest.raises(SignatureError):
            install_keyring(device, data[:length], signatures)
    for length in range(len(signatures)):
        with pytest.raises(SignatureError):
            install_keyring(device, data, signatures[:length])
    assert contents(device) == before


def test_parser_on_anything():
    """Whatever JSON or bytes: a keyring that writes itself back, or one sentence."""
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed in this environment")
    strategies = hypothesis.strategies
    leaves = strategies.one_of(strategies.none(), strategies.booleans(), strategies.integers(),
                               strategies.floats(allow_nan=False, allow_infinity=False), strategies.text(),
                               strategies.sampled_from([KEY, [KEY], KEY["id"], KEY["public"]]))
    anything = strategies.recursive(
        leaves, lambda inner: strategies.lists(inner, max_size=3) |
        strategies.dictionaries(strategies.text(max_size=3), inner, max_size=3), max_leaves=8)
    names = strategies.sampled_from([*json.loads(keyring().to_bytes()), "id", "public", "comment", "reason"])
    items = strategies.dictionaries(names, anything, max_size=4)
    documents = strategies.one_of(
        strategies.binary(max_size=100), anything.map(canonical_json),
        items.map(lambda changes: canonical_json(json.loads(keyring().to_bytes()) | changes)),
        items.map(lambda changes: canonical_json(json.loads(keyring().to_bytes()) | {"bundle_keys": [KEY | changes]})),
        items.map(lambda changes: canonical_json(json.loads(keyring().to_bytes()) | {"revoked": [changes]})))

    @hypothesis.given(documents)
    @hypothesis.settings(max_examples=200)
    def holds(data):
        try:
            assert parse_keyring(data, "k").to_bytes() == data
        except EdgeAudioError as error:
            assert str(error).startswith("k") and "\n" not in str(error) and len(str(error)) < 500

    holds()
