"""``python -m devices keyring``: from the first key to devices that follow, and the nonsense that it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from keyrings import A, B, C, X, Y, Z, contents, key_id

from devices import keyring as host
from devices.__main__ import main
from toolkit.errors import EdgeAudioError, UsageError
from toolkit.ota.trust import accept, read_keyring

ROOT = Path(__file__).parents[1]


@pytest.fixture
def keys(tmp_path):
    """Folder of A.key, A.pub and so on."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for key in (A, B, C, X, Y, Z):
        (folder / f"{key.comment}.key").write_text(key.to_text())
        (folder / f"{key.comment}.pub").write_text(key.public_key().to_text())
    return folder


@pytest.fixture
def run(tmp_path, keys, capsys):
    """run("add d --bundle X.pub") -> the line of stdout, or the sentence of a refusal after which nothing changed."""

    def run(line: str, status: int = 0):
        before = contents(tmp_path / "d")
        words = [str(keys / word) if word.endswith((".pub", ".key")) else str(tmp_path / word) if word == "d" else word
                 for word in line.split(" ")]
        assert main(["keyring", *words]) == status
        out, err = capsys.readouterr()
        if status == 0:
            assert out.count("\n") == 1
            return json.loads(out)
        assert out == "" and err.startswith("devices: ") and err.count("\n") == 1 and contents(tmp_path / "d") == before
        return err

    return run


def test_from_the_first_key_to_the_devices(run, tmp_path):
    device, folder = tmp_path / "root", tmp_path / "d"
    device.mkdir()
    told = run("new d --root A.pub B.pub --bundle X.pub --threshold 2")
    assert told["keyring_version"] == 1 and told["signed_by"] == [] and "expected 2" in told["lacks"][0]
    assert host.newer_than(folder, None) == []
    run("sign d A.key")
    assert run("sign d B.key")["lacks"] is None
    assert accept(device, *host.newer_than(folder, None)[0])["keyring_version"] == 1
    run("add d --bundle Y.pub")
    told = run("revoke d X.pub --reason stolen")  # a draft is still changed
    assert told["keyring_version"] == 2 and told["bundle_keys"] == [key_id(Y)] and told["revoked"] == [key_id(X)]
    assert host.newer_than(folder, 1) == []
    run("sign d A.key B.key")
    run("add d --root C.pub")
    run(f"revoke d {key_id(A)} --reason left")
    assert "version 2" in run("sign d B.key")["lacks"][0]
    run("sign d A.key")
    assert run("sign d C.key")["lacks"] is None
    told = run("show d")
    assert told["keyring_version"] == 3 and told["root_keys"] == sorted(map(key_id, (B, C)))
    assert told["signed_by"] == sorted(map(key_id, (A, B, C)))
    for number, (data, signatures) in enumerate(host.newer_than(folder, read_keyring(device).version), 2):
        assert accept(device, data, signatures)["keyring_version"] == number
    assert read_keyring(device).version == 3 and host.newer_than(folder, 3) == []
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (last,) = host.newer_than(folder, None)
    assert accept(fresh, *last)["keyring_version"] == 3  # a new device begins with the last


@pytest.mark.parametrize("line, status, words", [
    ("new d --root A.pub", 2, "holds keyrings already"), ("add d", 2, "nothing to add"),
    ("add d --bundle X.pub", 2, f"has the key {key_id(X)} already"), ("add d --threshold 1", 2, "nothing to add"),
    ("add d --bundle Y.pub Y.pub", 2, "is given twice"),
    ("add d --threshold 3", 1, "threshold is 3, expected at most 2"),
    ("add d --bundle Y.key", 2, "holds the private half"), ("add d --bundle Q.pub", 2, "cannot read the key"),
    ("revoke d Z.pub --reason x", 2, f"the key {key_id(Z)} is not among its keys"),
    ("revoke d A.pub B.pub --reason x", 1, "threshold is 1, expected at most 0"),
    ("revoke d X.pub --reason \u2028", 1, "reason is .*, expected 1 to 200 printable characters"),
    ("sign d X.key", 2, "is no root key of this or the last keyring"), ("sign d A.pub", 2, "expected one line"),
    ("sign d A.key", 2, "is signed by the key .* already"), ("sign d B.key B.key", 2, "already"),
    ("show e", 2, "e: holds no keyring; python -m devices keyring new begins one"),
])
def test_nonsense(run, line, status, words):
    run("new d --root A.pub B.pub --bundle X.pub")
    run("sign d A.key")
    assert re.search(words, run(line, status))


def test_a_revoked_key_cannot_be_added_again(run):
    run("new d --root A.pub --bundle X.pub")
    run("sign d A.key")
    run("revoke d X.pub --reason stolen")
    assert "also revoked; a revoked key never returns" in run("add d --bundle X.pub", 1)
    assert "is revoked already" in run("revoke d X.pub --reason stolen", 2)


def test_what_is_signed_is_never_changed(run, tmp_path):
    run("new d --root A.pub B.pub --bundle X.pub --threshold 2")
    run("sign d A.key")
    assert "let it be signed, or delete its keyring.sig" in run("add d --bundle Y.pub", 2)
    run("sign d B.key")
    before = contents(tmp_path / "d" / "1")
    assert run("add d --bundle Y.pub")["keyring_version"] == 2
    assert contents(tmp_path / "d" / "1") == before


def test_development_key(run, keys, capsys):
    public = ROOT / "toolkit" / "trust" / "development.pub"
    (keys / "development.pub").write_bytes(public.read_bytes())
    assert "is the development key, with which anybody can sign" in run("new d --root development.pub", 2)
    assert main(["keyring", "new", str(keys / "e"), "--root", str(keys / "A.pub"), "--bundle", str(public)]) == 0
    assert "is the development key, with which anybody can sign; revoke it" in capsys.readouterr().err


@pytest.mark.parametrize("spoil, words", [
    (lambda d: (d / "1" / "keyring.sig").unlink(), "1/keyring.json: signed by 0 of"),
    (lambda d: (d / "1" / "keyring.json").unlink(), "holds the versions 2, 3, expected all from 1 on"),
    (lambda d: (d / "2").rename(d / "4"), "holds the versions 1, 3, 4, expected all from 1 on"),
    (lambda d: (d / "2" / "keyring.json").write_bytes((d / "1" / "keyring.json").read_bytes()), "2/keyring.json: vers"),
    (lambda d: (d / "3" / "keyring.json").write_bytes(b"{}"), "3/keyring.json: the key version is missing"),
    (lambda d: (d / "2" / "keyring.sig").write_bytes((d / "1" / "keyring.sig").read_bytes()), "2/keyring.sig: alter")])
def test_a_folder_that_was_tampered_with(run, tmp_path, spoil, words):
    """Nobody signs on top of it."""
    run("new d --root A.pub --bundle X.pub")
    run("sign d A.key")
    run("add d --bundle Y.pub")
    run("sign d A.key")
    run("add d --bundle Z.pub")
    spoil(tmp_path / "d")
    for line in ("show d", "sign d A.key", "revoke d Z.pub --reason x"):
        assert words in run(line, 2 if "holds" in words else 1)


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "d").write_text("a file")
    with pytest.raises(EdgeAudioError, match="d: cannot be read .*check the folder"):
        host.new(tmp_path / "d", [tmp_path / "keys" / "A.pub"], [])


def test_a_keyring_needs_a_root_key(keys):
    with pytest.raises(UsageError, match="at least one root key"):
        host.new(keys / "d", [], [keys / "X.pub"])
    assert not (keys / "d").exists()
