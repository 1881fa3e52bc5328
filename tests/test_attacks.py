"""The named attacks on software updates, one by one, against the installer of a device as an attacker would reach it.

The list is that of The Update Framework (TUF specification 1.0, section 1.5.2, "Goals to protect against specific
attacks"); slow retrieval is from Cappos, Samuel, Baker and Hartman, "A look in the mirror: attacks on package managers"
(CCS 2008); added is the exchange of a file between its check and its use. The attacker may send a device anything, in
any order; he has keys, but never as many of the owner's root keys as must sign a keyring. Whoever may write to the
device's folder, or log in as its owner, is the owner.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_factory import OWNER, STRANGER, make_bytes
from keyrings import contents, keyring, signed
from released import changed, released

from toolkit.bundle import MAX_FILE_BYTES, build_zip, load_bundle, walk
from toolkit.errors import BundleError, DeployError, SignatureError
from toolkit.keyring import MAX_KEYRING_BYTES
from toolkit.live.__main__ import load_bundles, read_release
from toolkit.manifest import canonical_json
from toolkit.ota import receive
from toolkit.ota.layout import Root
from toolkit.ota.release import parse_release
from toolkit.ota.trust import accept, install_keyring, read_keyring, report
from toolkit.signature import PrivateKey

CHECKOUT = Path(__file__).parents[1]
ROOT_KEYS = A, B, C = tuple(PrivateKey(bytes([number]) * 32, f"root {number}") for number in (65, 66, 67))
SUCCESSOR = PrivateKey(bytes(range(2, 34)), "the owner's next key")
RUNTIME = {"wheel": "toolkit-1-py3-none-any.whl", "sha256": hashlib.sha256(b"a wheel").hexdigest(), "requirements": [],
           "system_site_packages": False}
PYTHON = f"""#!{sys.executable}
# The Python of a release, called with -I -m toolkit ...: the checkout in place of an installed wheel
import sys
sys.path.insert(0, {str(CHECKOUT)!r})
sys.argv[1:] = sys.argv[4:]
from toolkit.__main__ import main
sys.exit(main())
"""


def trusting(version: int = 1, **changes):
    """A keyring of which two of three root keys must sign; the owner's bundle key."""
    return keyring(version, **{"root": ROOT_KEYS, "bundle": (OWNER,), "threshold": 2} | changes)


class Device:
    """A folder with a finished runtime and a keyring, and the installer that works on it."""

    def __init__(self, path: Path):
        self.path, self.root = path, Root(path)
        self.status_file = path.with_name("status.json")
        self.root.make()
        install_keyring(path, *signed(trusting(), A, B))
        runtime = path / "runtimes" / parse_release(self.release()).runtime.key
        (runtime / "bin").mkdir(parents=True)
        (runtime / "bin" / "python").write_text(PYTHON)
        (runtime / "bin" / "python").chmod(0o755)
        (runtime / "ready").touch()

    def release(self, data: bytes = b"", name: str = "kws", version: str = "0.1.0") -> bytes:
        """release.json for a bundle."""
        bundle = {"name": name, "version": version, "sha256": hashlib.sha256(data).hexdigest()}
        return canonical_json({"schema": 1, "runtime": RUNTIME, "bundles": [bundle],
                               "listen": {"device": None, "channel": 0, "threshold": None}})

    def ota(self, *argv: str, stdin: bytes | int = b"", status: int = 0) -> dict | str:
        """A command -> its line of JSON, or its one sentence if the exit status is another than 0."""
        source = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin}
        done = subprocess.run([sys.executable, "-m", "toolkit.ota", *argv, "--root", str(self.path)], cwd=CHECKOUT,
                              capture_output=True, timeout=60, **source,
                              env=os.environ | {"EDGE_AUDIO_STATUS": str(self.status_file)})
        err = done.stderr.decode()
        assert done.returncode == status, err
        if status == 0:
            return json.loads(done.stdout)
        assert done.stdout == b"" and err.startswith("edge-audio: ") and err.count("\n") == 1, err
        return err

    def send(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        assert self.ota("receive", digest, "--size", str(len(data)), stdin=data)["is_complete"]
        return digest

    def stage(self, data: bytes, *options: str, status: int = 0, **release) -> dict | str:
        (self.root.blobs / hashlib.sha256(data).hexdigest()).write_bytes(data)
        return self.ota("stage", *options, stdin=self.release(data, **release), status=status)

    def refuses(self, data: bytes, *words: str, **release) -> None:
        """One sentence that holds the words; no release is there that was not before."""
        before = self.root.staged()
        sentence = self.stage(data, status=1, **release)
        assert all(word in sentence for word in words), sentence
        assert self.root.staged() == before and self.root.current is None

    def trust(self, ring, *keys: PrivateKey, status: int = 0) -> dict | str:
        return self.ota("trust", stdin=b"".join(signed(ring, *keys)), status=status)

    def commit(self, version: str) -> None:
        """As if kws of this version had been tried and had passed its health gate."""
        release = parse_release(self.release(version=version))
        (self.root.releases / release.id).mkdir(exist_ok=True)
        (self.root.releases / release.id / "release.json").write_bytes(release.to_bytes())
        for name in ("current", "committed"):
            (self.path / name).symlink_to(f"releases/{release.id}")


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path / "root")


def genuine(path: Path, key: PrivateKey = OWNER, **fields) -> bytes:
    """A bundle that passes its self-test, signed."""
    changed(path, key=key, **fields)
    return path.read_bytes()


def test_without_an_attack(device, tmp_path):
    """What the others differ from in one thing."""
    version = released().manifest.version
    assert device.stage(genuine(tmp_path / "kws.eab"), version=version)["is_new"] is True


# --- arbitrary installation ---


def test_arbitrary_software_unsigned(device):
    device.refuses(make_bytes(), "kws.eab: not signed", "policy require takes only bundles signed by a trusted key")


def test_arbitrary_software_signed_by_a_stranger(device):
    device.refuses(make_bytes(STRANGER), STRANGER.public_key().key_id, "which is not among the 1 trusted ones")


def test_arbitrary_software_signed_by_a_root_key(device):
    """Root keys sign keyrings; they are no bundle keys unless a keyring says so."""
    device.refuses(make_bytes(A), A.public_key().key_id, "which is not among the 1 trusted ones")


def test_arbitrary_software_in_a_signed_manifest(device):
    """One byte of a member, or of the manifest, is another; every hash in the zip is right again."""
    entries = walk(make_bytes(OWNER), "original")
    device.refuses(build_zip(entries | {"model.tflite": b"Model"}), "(model) is not what the manifest says")
    manifest = entries["manifest.json"].replace(b'"threshold":0.6', b'"threshold":0.0')
    assert manifest != entries["manifest.json"]
    device.refuses(build_zip(entries | {"manifest.json": manifest}), "altered after it was signed")


def test_arbitrary_keys(device):
    """A keyring of the attacker's own, and one that adds his key; signed by him in the owner's name as well."""
    for ring in (trusting(2, root=(STRANGER,), bundle=(STRANGER,), threshold=1), trusting(2, bundle=(OWNER, STRANGER))):
        data, line = signed(ring, STRANGER)
        forged = b"".join(line.replace(STRANGER.public_key().key_id.encode(), key.public_key().key_id.encode())
                          for key in (A, B))
        before = contents(device.path)
        with pytest.raises(SignatureError, match="signed by 0 of the root keys of version 1"):
            accept(device.path, data, line)
        with pytest.raises(SignatureError, match="altered after it was signed"):
            accept(device.path, data, forged)
        assert contents(device.path) == before


# --- endless data, slow retrieval, truncation ---


def test_endless_data(device):
    """No answer is read for longer than what was announced, and nothing of it stays."""
    digest = hashlib.sha256(b"announced").hexdigest()
    with open("/dev/zero", "rb") as endless:
        sentence = device.ota("receive", digest, "--size", "9", stdin=endless.fileno(), status=1)
        assert "more than the announced 9 bytes came; what came is removed" in sentence
        sentence = device.ota("stage", stdin=endless.fileno(), status=1)
        assert "larger than 65536 bytes, the limit for a release" in sentence
        assert f"larger than {MAX_KEYRING_BYTES} bytes" in device.ota("trust", stdin=endless.fileno(), status=1)
    assert os.listdir(device.root.incoming) == []
    assert f"--size is {1 << 40}" in device.ota("receive", digest, "--size", str(1 << 40), status=2)
    device.refuses(make_bytes(OWNER) + bytes(MAX_FILE_BYTES), f"larger than {MAX_FILE_BYTES} bytes")


def test_slow_retrieval(device, monkeypatch):
    """Who sends nothing for a minute does not hold the lock any longer; what came is kept for the next attempt."""
    monkeypatch.setattr(receive, "SILENCE_S", 0.05)
    data = make_bytes(OWNER)
    digest = hashlib.sha256(data).hexdigest()
    source, sink = os.pipe()
    try:
        os.write(sink, data[:100])
        with pytest.raises(DeployError, match=f"no byte came for .* 100 of {len(data)} are here"):
            receive.receive(device.root, digest, len(data), 0, source)
    finally:
        os.close(sink)
        os.close(source)
    assert device.ota("missing", stdin=device.release(data))["missing"][-1]["received_bytes"] == 100


def test_truncated(device):
    """A cut upload is no blob; the cut file as an upload of its own is no bundle."""
    data = make_bytes(OWNER)
    digest = hashlib.sha256(data).hexdigest()
    assert device.ota("receive", digest, "--size", str(len(data)), stdin=data[:-1])["is_complete"] is False
    assert "are not on the device; send them first" in device.ota("stage", stdin=device.release(data), status=1)
    for length, words in ((3, "not a bundle"), (len(data) - 1, "cut short")):
        device.refuses(data[:length], words)


# --- extraneous dependencies ---


def test_extraneous_dependencies(device):
    """Whatever a release installs is named by its SHA-256: other bytes never get the name; who changes loses it."""
    digest = RUNTIME["sha256"]
    sentence = device.ota("receive", digest, "--size", "7", stdin=b"A wheel", status=1)
    assert "its 7 bytes have another hash" in sentence and os.listdir(device.root.blobs) == []
    device.send(b"a wheel")
    (device.root.blobs / digest).write_bytes(b"A wheel")
    with pytest.raises(DeployError, match="its bytes were damaged on the device and are removed"):
        receive.checked_blob(device.root, digest, RUNTIME["wheel"])
    assert os.listdir(device.root.blobs) == []


# --- rollback, fast-forward, freeze ---


def test_rollback_of_software(device):
    device.commit("0.3.0")
    sentence = device.stage(make_bytes(OWNER, version="0.2.9"), version="0.2.9", status=1)
    assert "kws 0.2.9 is below 0.3.0, the lowest version that this device takes" in sentence
    (device.root.floor_file).write_bytes(canonical_json({"kws": "0.4.0"}))  # committed went back by `rollback` since
    assert "kws 0.3.1 is below 0.4.0" in device.stage(make_bytes(OWNER, version="0.3.1"), version="0.3.1", status=1)
    assert len(device.root.staged()) == 1


def test_rollback_under_a_false_version(device, tmp_path):
    """An old bundle that release.json calls a new one."""
    released()
    device.commit("0.3.0")
    sentence = device.stage(genuine(tmp_path / "kws.eab", version="0.2.9"), version="0.3.1", status=1)
    assert "the file is kws 0.2.9" in sentence and "release.json says kws 0.3.1" in sentence
    assert len(device.root.staged()) == 1


def test_rollback_on_purpose(device, tmp_path):
    version = released().manifest.version
    device.commit("100.0.0")
    data = genuine(tmp_path / "kws.eab")
    assert f"kws {version} is below 100.0.0" in device.stage(data, version=version, status=1)
    assert device.stage(data, "--allow-older", version=version)["is_new"] is True


def test_rollback_of_keys(device):
    """Keyrings that were right once, with all their signatures, after the owner has revoked his bundle key."""
    second = trusting(2, bundle=(OWNER, SUCCESSOR))
    device.trust(second, A, B)
    assert device.trust(trusting(3, bundle=(SUCCESSOR,), revoked=(OWNER,)), B, C)["keyring_version"] == 3
    for old in (trusting(), second):
        assert "an older keyring is never taken again" in device.trust(old, *ROOT_KEYS, status=1)
    assert read_keyring(device.path).version == 3


def test_fast_forward(device, tmp_path):
    """A version far ahead must not lock the owner's next one out. Keyrings follow one by one, whoever signed them; the
    floor of bundles rises only with what ran and was committed, and the owner may go below it."""
    with pytest.raises(SignatureError, match="version is 2147483647, expected 2, the one after the present"):
        accept(device.path, *signed(trusting(2**31 - 1), *ROOT_KEYS))
    released()
    device.stage(genuine(tmp_path / "kws.eab", version="999999.0.0"), version="999999.0.0")
    assert device.ota("status")["floor"] == {}
    device.stage(genuine(tmp_path / "kws.eab", version="0.0.1"), version="0.0.1")


def test_indefinite_freeze(device):
    """Not prevented: a device that is kept from hearing of a revocation goes on trusting the key, for without a clock
    that can be believed there is no expiry (and no field for it). Promised: whoever asks sees what it trusts and runs,
    and the chain of keyrings brings it from any version to the last."""
    assert report(device.path, []) == {"keyring_version": 1, "doubts": []}
    with pytest.raises(SignatureError, match="unknown key 'expires'"):
        accept(device.path, trusting(2).to_bytes().replace(b'"revoked"', b'"expires":1,"revoked"'), b"")
    for version in (2, 3, 4):
        accept(device.path, *signed(trusting(version, bundle=(SUCCESSOR,), revoked=(OWNER,)), A, C))
    assert report(device.path, [])["keyring_version"] == 4


def test_malicious_mirrors(device):
    """Bytes are named by their hash, so it does not matter where they come from, and a bad source spoils nothing for a
    good one. (That a mirror may keep a release back: test_indefinite_freeze.)"""
    data = make_bytes(OWNER)
    digest = hashlib.sha256(data).hexdigest()
    assert "have another hash; what came is removed" in device.ota(
        "receive", digest, "--size", str(len(data)), stdin=data[:-1] + b"\1", status=1)
    assert device.send(data) == digest and (device.root.blobs / digest).read_bytes() == data


# --- mix-and-match, wrong software ---


def test_mix_and_match_of_members(device):
    """The manifest of one bundle, the model of another; both signed by the owner."""
    one, other = (walk(make_bytes(OWNER, model), "") for model in (b"model", b"newer"))
    device.refuses(build_zip(one | {"model.tflite": other["model.tflite"]}), "is not what the manifest says")
    device.refuses(build_zip(one | {"manifest.sig": other["manifest.sig"]}), "altered after it was signed")
    device.refuses(build_zip(one | {"extra.bin": b"x"}), "unknown to its manifest")


def test_mix_and_match_of_keyrings(device):
    """Signatures that root keys gave to different keyrings do not add up."""
    one, other = trusting(2, bundle=(SUCCESSOR,)), trusting(2)
    lines = signed(one, A)[1] + signed(other, B)[1]
    for ring in (one, other):
        with pytest.raises(SignatureError, match="altered after it was signed"):
            accept(device.path, ring.to_bytes(), lines)


def test_wrong_software_installation(device, tmp_path):
    """A right signature under a bundle of another name or version than the release asks for."""
    version, data = released().manifest.version, genuine(tmp_path / "kws.eab")
    device.refuses(data, "the file is kws", "release.json says sed", name="sed", version=version)
    device.refuses(data, f"the file is kws {version}", "release.json says kws 99.0.0", version="99.0.0")


# --- compromised keys ---


def test_key_compromise_below_the_threshold(device):
    """A stolen root key, also with a stolen bundle key, gives the thief no keyring and no bundle of his own."""
    for ring in (trusting(2, bundle=(STRANGER,)), trusting(2, threshold=1), trusting(2, root=(A, STRANGER), bundle=())):
        for thief in ((A,), (A, OWNER), (A, STRANGER), (A, OWNER, STRANGER)):
            with pytest.raises(SignatureError, match="signed by 1 of the root keys of version 1"):
                accept(device.path, *signed(ring, *thief))
    assert read_keyring(device.path) == trusting()


def test_key_compromise_is_mended(device):
    """The stolen root key and bundle key are revoked by the two root keys left; nothing that they sign counts again."""
    mended = trusting(2, root=(B, C), bundle=(SUCCESSOR,), revoked=(A, OWNER))
    accept(device.path, *signed(mended, B, C))
    device.refuses(make_bytes(OWNER), "signed by the key", OWNER.public_key().key_id, "which was revoked (")
    for ring in (trusting(3), trusting(3, root=(B, C), revoked=(A,)), trusting(3, bundle=(OWNER,), revoked=(A,))):
        with pytest.raises(SignatureError, match="as revoked; a revoked key never returns|listed, but also revoked"):
            accept(device.path, *signed(ring, *ROOT_KEYS))
    with pytest.raises(SignatureError, match="signed by 1 of the root keys of version 2"):  # A counts for nothing now
        accept(device.path, *signed(trusting(3, root=(B, C), bundle=(SUCCESSOR,), revoked=(A, OWNER)), A, B))


def test_revoked_key_of_what_is_running(device, tmp_path):
    """It keeps running, is reported, and cannot be staged once more."""
    version = released().manifest.version
    data = genuine(tmp_path / "kws.eab")
    device.stage(data, version=version)
    staged = parse_release(device.release(data, version=version)).id
    for name in ("current", "committed"):
        (device.path / name).symlink_to(f"releases/{staged}")
    before = contents(device.path / "releases")
    device.trust(trusting(2, bundle=(SUCCESSOR,), revoked=(OWNER,)), A, B)
    told = device.ota("status")
    (doubt,) = told["doubts"]
    assert f"releases/{staged}/bundles/kws.eab: signed by the key" in doubt and "which was revoked" in doubt
    assert (told["current"], told["keyring_version"]) == (staged, 2) and contents(device.path / "releases") == before
    folder = device.root.releases / staged
    assert [bundle.manifest.version for bundle in load_bundles(folder, read_release(folder))] == [version]  # restarted
    assert "which was revoked" in device.stage(data, version=version, status=1)


# --- between check and use ---


def test_changed_between_check_and_use(device, tmp_path):
    """What was checked is what is used: a bundle is read once, into memory; a keyring, too; a blob is hashed as it is
    copied into a release."""
    path = tmp_path / "kws.eab"
    path.write_bytes(make_bytes(OWNER, model=b"checked"))
    bundle = load_bundle(path, "require", [OWNER.public_key()])
    path.write_bytes(make_bytes(STRANGER, model=b"another"))
    assert bundle.members["model"] == b"checked"
    data = make_bytes(OWNER)
    blob = device.root.blobs / device.send(data)
    blob.write_bytes(make_bytes(OWNER, model=b"another"))
    sentence = device.ota("stage", stdin=device.release(data), status=1)
    assert "its bytes were damaged on the device and are removed; send them again" in sentence and not blob.exists()


def test_changed_after_staging(device, tmp_path):
    """A release is looked at again when it is staged again, and the service takes no other bytes than those staged."""
    version = released().manifest.version
    data = genuine(tmp_path / "kws.eab")
    folder = device.root.releases / device.stage(data, version=version)["release"]
    assert [bundle.manifest.version for bundle in load_bundles(folder, read_release(folder))] == [version]
    genuine(folder / "bundles" / "kws.eab", version="99.0.0")
    assert f"release.json says kws {version}" in device.stage(data, version=version, status=1)
    with pytest.raises(BundleError, match="kws.eab is not the file that was"):
        load_bundles(folder, read_release(folder))
