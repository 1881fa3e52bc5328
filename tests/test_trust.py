"""What a device makes of keyrings: its folder, damage, cut-off changes, and what status says."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_factory import make_bytes
from keyrings import A, B, C, X, Y, Z, contents, key_id, keyring, make_device, refused, signed

from toolkit import signature
from toolkit.bundle import read_bundle
from toolkit.errors import ConfigError, DeployError, MissingPartError, SignatureError
from toolkit.ota.trust import accept, install_keyring, read_keyring, read_pair, report
from toolkit.signature import TrustedKeys, read_trusted_keys

ROOT = Path(__file__).parents[1]


@pytest.fixture
def device(tmp_path):
    return make_device(tmp_path)


def test_a_folder_that_signature_reads(device):
    assert os.readlink(device / "trust") == "trusts/1"  # relative: ROOT can be looked at from elsewhere
    assert sorted(os.listdir(device / "trust")) == [f"{key_id(X)}.pub", "keyring.json", "keyring.sig", "revoked"]
    assert read_trusted_keys(device / "trust") == (X.public_key(),)
    assert read_keyring(device) == keyring()
    assert read_bundle(make_bytes(X), "x.eab", "require", read_trusted_keys(device / "trust")).signed_by == key_id(X)


def test_rotation_and_revocation(device):
    said = accept(device, *signed(keyring(2, root=(B, C), bundle=(Y,), revoked=(A, X), threshold=2), A, B, C))
    assert said == {"keyring_version": 2, "threshold": 2, "root_keys": sorted(map(key_id, (B, C))),
                    "bundle_keys": [key_id(Y)], "revoked": sorted(map(key_id, (A, X))), "is_new": True}
    json.dumps(said)
    trusted = read_trusted_keys(device / "trust")
    assert trusted == (Y.public_key(),) and trusted.revoked == {key_id(A): "A was lost", key_id(X): "X was lost"}
    with pytest.raises(SignatureError, match=rf"signed by the key {key_id(X)}, which was revoked \(X was lost\)"):
        read_bundle(make_bytes(X), "x.eab", "require", trusted)
    with pytest.raises(SignatureError, match="not among the 1 trusted"):
        read_bundle(make_bytes(Z), "x.eab", "require", trusted)
    bundle = read_bundle(make_bytes(X), "x.eab", "warn", trusted)
    assert bundle.signed_by is None and "which was revoked (X was lost); loaded all the same" in bundle.notices[0]


def test_the_same_again_is_no_change(device):
    before = contents(device)
    assert accept(device, *signed(keyring(), A))["is_new"] is False
    assert accept(device, *signed(keyring(), A, B))["is_new"] is False
    assert contents(device) == before


def test_what_runs_keeps_running_and_is_reported(device, tmp_path, monkeypatch):
    paths = [tmp_path / f"{key.comment}.eab" for key in (X, Y, Z)]
    for path, key in zip(paths, (X, Y, Z)):
        path.write_bytes(make_bytes(key))
    (tmp_path / "cut.eab").write_bytes(make_bytes(Y)[:-9])
    (tmp_path / "unsigned.eab").write_bytes(make_bytes())
    assert len(report(device, paths)["doubts"]) == 2
    install_keyring(device, *signed(keyring(2, bundle=(Y,), revoked=(X,)), A))
    ids = key_id(X), key_id(Z)
    monkeypatch.setattr(signature, "_library", lambda: pytest.fail("status must not need a library"))
    told = report(device, paths)
    revoked, unknown = told.pop("doubts")
    assert told == {"keyring_version": 2}
    assert revoked == (f"{paths[0]}: signed by the key {ids[0]}, which was revoked (X was lost); it keeps running "
                       f"until another is deployed that a trusted key signed")
    assert unknown.startswith(f"{paths[2]}: signed by the key {ids[1]}, which is not trusted any more")
    for name, words in (("cut", "cut short"), ("unsigned", "manifest.sig is not"), ("none", "cannot be read")):
        (doubt,) = report(device, [tmp_path / f"{name}.eab"])["doubts"]
        assert doubt.startswith(str(tmp_path / f"{name}.eab")) and words in doubt


def test_report_raises_nothing(tmp_path, device):
    assert report(tmp_path, [])["keyring_version"] is None and "not a folder" in report(tmp_path, [])["doubts"][0]
    (device / "trust" / "keyring.json").write_bytes(b"{}")
    (doubt,) = report(device, [])["doubts"]
    assert "trust/keyring.json: the key version is missing" in doubt


@pytest.mark.parametrize("make", [
    lambda root: (root / "trust").mkdir(),
    lambda root: ((root / "trust").mkdir(), (root / "trust" / "z.pub").write_text(Z.public_key().to_text())),
    lambda root: ((root / "trusts" / "keys-0f").mkdir(parents=True), (root / "trust").symlink_to("trusts/keys-0f"))])
def test_plain_keys_give_way_to_the_first_keyring(tmp_path, make):
    make(tmp_path)
    assert read_keyring(tmp_path) is None
    refused(tmp_path, *signed(keyring()), "signed by 0 of")
    install_keyring(tmp_path, *signed(keyring(), A))
    assert read_trusted_keys(tmp_path / "trust") == (X.public_key(),) and read_keyring(tmp_path).version == 1


def test_both_files_in_one_stream():
    data, signatures = signed(keyring(), A, B)
    assert read_pair(io.BytesIO(data + signatures)) == (data, signatures)
    assert read_pair(io.BytesIO(data[:-1])) == (data[:-1], b"")
    assert sum(map(len, read_pair(io.BytesIO(bytes(1 << 20))))) == (72 << 10) + 1


@pytest.mark.parametrize("spoil", [
    lambda trust: (trust / "keyring.json").unlink(), lambda trust: (trust / "keyring.json").write_bytes(b""),
    lambda trust: (trust / "keyring.json").write_bytes(b"{" * 70_000),
    lambda trust: (trust.unlink(), trust.symlink_to("trusts/9"))])
def test_damage_is_not_absence(device, spoil):
    """Where the present keyring cannot be read, no other is taken as the first."""
    spoil(device / "trust")
    with pytest.raises(SignatureError, match="trust/keyring.json"):
        read_keyring(device)
    refused(device, *signed(keyring(root=(Z,)), Z), "trust/keyring.json")
    refused(device, *signed(keyring(2, bundle=(Y,)), A), "trust/keyring.json")


def test_what_an_interrupted_installation_left(device):
    """Version 2 lies there whole, or in part, but the link was never renamed: another version 2 replaces it."""
    for name in ("2", ".2.new", ".trust.new"):
        (device / "trusts" / name).mkdir()
        (device / "trusts" / name / f"{key_id(Z)}.pub").write_text(Z.public_key().to_text())
    assert read_keyring(device).version == 1
    install_keyring(device, *signed(keyring(2, bundle=(Y,)), A))
    assert read_trusted_keys(device / "trust") == (Y.public_key(),)
    assert sorted(os.listdir(device / "trusts")) == [".trust.new", "1", "2"]


class Cut(BaseException):
    """The power fails."""


@pytest.mark.parametrize("cause", [Cut(), OSError(errno.EIO, "Input/output error")])
def test_cut_off_at_any_step(device, monkeypatch, cause):
    """At whichever system call it ends: the old keyring or the new one is in force, whole; the next try succeeds."""
    new = keyring(2, bundle=(Y,), revoked=(X,))
    calls, real = 0, {name: getattr(os, name) for name in ("mkdir", "fsync", "rename", "symlink", "unlink", "rmdir")}

    def counted(name):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == last:
                raise cause
            return real[name](*arguments, **options)
        return call

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    found = []
    for step in itertools.count(1):
        calls, last = 0, step
        try:
            install_keyring(device, *signed(new, A))
        except (Cut, DeployError):
            found.append(read_keyring(device))
        else:
            break
        assert (found[-1], read_trusted_keys(device / "trust")) in (
            (keyring(), (X.public_key(),)), (new, (Y.public_key(),)))
    assert calls < step and found.count(new) >= 1 and found.count(keyring()) >= 10
    assert read_keyring(device) == new and sorted(os.listdir(device / "trusts")) == ["1", "2"]


def test_without_a_library(device, monkeypatch):
    data, signatures = signed(keyring(2), A)
    for name in ("nacl", "cryptography"):
        for loaded in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
            monkeypatch.setitem(sys.modules, loaded, None)
    assert read_keyring(device).version == 1
    with pytest.raises(MissingPartError):
        accept(device, data, signatures)
    assert os.readlink(device / "trust") == "trusts/1"


def test_it_needs_the_standard_library_alone():
    """The first installation runs it from the wheel with the system's Python."""
    code = "import sys, toolkit.ota.trust; print(sorted({'numpy', 'nacl', 'cryptography', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_revoked_beside_keys_of_one_s_own(tmp_path):
    """Without keyrings, too: a line in the file outweighs a .pub beside it, and a file cut short is refused."""
    for key in (X, Y):
        (tmp_path / f"{key.comment}.pub").write_text(key.public_key().to_text())
    (tmp_path / "revoked").write_text(f"{key_id(X)} stolen\n")
    assert read_trusted_keys(tmp_path) == (Y.public_key(),)
    for text in (f"{key_id(X)} stolen", f"{key_id(X)}\n", "stolen\n", "\n", f"{key_id(X)} a\n" * 20_000):
        (tmp_path / "revoked").write_text(text)
        with pytest.raises(ConfigError, match="revoked: expected whole lines KEY_ID reason"):
            read_trusted_keys(tmp_path)
    assert TrustedKeys([X.public_key()]).revoked == {} == TrustedKeys().revoked
