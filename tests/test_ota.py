"""Releases on a device until they are staged: uploads, trust, versions, self-tests, and the disk beneath."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest
from bundle_factory import OWNER, STRANGER, make_bytes
from ota_device import CHECKOUT, STRICT_RUNTIME, Device
from released import released

from toolkit.bundle import released_bundles
from toolkit.errors import DeployError
from toolkit.ota import disk
from toolkit.ota import receive as receive_module
from toolkit.ota.layout import Root
from toolkit.ota.receive import receive
from toolkit.ota.release import below, highest, parse_release, short_id, version_order

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
SIZE = ("--size", str(len(DATA)))


@pytest.fixture
def device(tmp_path, monkeypatch, capsys) -> Device:
    return Device(tmp_path, monkeypatch, capsys)


def release_dict(**changes) -> dict:
    return {"schema": 1, "runtime": {"wheel": "a-1-py3-none-any.whl", "sha256": "ab" * 32, "requirements": [],
                                     "system_site_packages": False},
            "bundles": [{"name": "kws", "version": "0.1.0", "sha256": "cd" * 32}],
            "listen": {"device": None, "channel": 0, "threshold": None}, **changes}


# --- release.json ---


def test_the_id_is_the_hash_of_the_file():
    release = parse_release(json.dumps(release_dict(), indent=3).encode())
    assert release.id == hashlib.sha256(release.to_bytes()).hexdigest()[:16]
    assert release.to_bytes() == json.dumps(release_dict(), sort_keys=True, separators=(",", ":")).encode()
    assert parse_release(release.to_bytes()) == release
    assert release.runtime.key == short_id(release_dict()["runtime"])


@pytest.mark.parametrize(("changes", "words"), [
    ({"schema": 2}, "schema is 2"), ({"bundle": []}, "unknown key 'bundle'"), ({"bundles": []}, "one or more"),
    ({"bundles": release_dict()["bundles"] * 2}, "none twice"),
    ({"bundles": [{"name": "../kws", "version": "0.1.0", "sha256": "cd" * 32}]}, "name is '../kws'"),
    ({"bundles": [{"name": "kws", "version": "1", "sha256": "cd" * 32}]}, "version is '1'"),
    ({"runtime": {**release_dict()["runtime"], "wheel": "../a.whl"}}, "wheel is '../a.whl'"),
    ({"runtime": {**release_dict()["runtime"], "sha256": "AB" * 32}}, "64 lower-case hex digits"),
    ({"runtime": {**release_dict()["runtime"],
                  "requirements": [{"name": "a-1-py3-none-any.whl", "sha256": "ab" * 32}]}}, "a wheel twice"),
    ({"listen": {"device": None, "channel": -1, "threshold": None}}, "channel is -1"),
])
def test_a_plan_that_is_wrong_is_refused(device, changes, words):
    for command in ("missing", "runtime", "stage"):
        assert words in device.refusal(command, stdin=json.dumps(release_dict(**changes)).encode())


def test_what_is_no_plan_is_refused(device):
    assert "not JSON" in device.refusal("stage", stdin=b"{")
    assert "larger than" in device.refusal("stage", stdin=b" " * 100_000)


def test_versions_are_compared_as_numbers():
    ordered = ["0.2.9", "0.3.0-1", "0.3.0-rc.2", "0.3.0-rc.10", "0.3.0-rc.x", "0.3.0", "0.10.0", "1.0.0"]
    assert sorted(ordered, key=version_order) == ordered == sorted(reversed(ordered), key=version_order)
    assert highest({"a": "0.9.0", "b": "1.0.0"}, {"a": "0.10.0"}, {}) == {"a": "0.10.0", "b": "1.0.0"}
    assert below({"a": "0.9.0", "b": "1.0.0", "c": "0.0.1"}, {"a": "0.10.0", "b": "1.0.0"}) == [
        "a 0.9.0 is below 0.10.0"]


# --- uploads ---


def test_an_upload_goes_on_where_it_was_cut_off(device):
    assert device.must("receive", DIGEST, *SIZE, stdin=DATA[:1000]) == {
        "sha256": DIGEST, "received_bytes": 1000, "is_complete": False}
    plan = json.dumps(release_dict(bundles=[{"name": "kws", "version": "0.1.0", "sha256": DIGEST}])).encode()
    assert {"sha256": DIGEST, "received_bytes": 1000} in device.must("missing", stdin=plan)["missing"]
    assert "go on from 1000" in device.refusal("receive", DIGEST, *SIZE, "--offset", "999", stdin=DATA[999:])
    assert device.must("receive", DIGEST, *SIZE, "--offset", "1000", stdin=DATA[1000:])["is_complete"]
    assert (device.root.blobs / DIGEST).read_bytes() == DATA
    assert list(device.root.incoming.iterdir()) == []
    assert [item["sha256"] for item in device.must("missing", stdin=plan)["missing"]] == ["ab" * 32]
    assert device.must("receive", DIGEST, *SIZE, stdin=b"")["is_complete"]  # once more does no harm


@pytest.mark.parametrize(("data", "words"), [
    (DATA + b"x", "more than the announced 10240 bytes"),
    (DATA[:-1] + b"x", "have another hash"),
])
def test_bytes_that_are_not_the_blob_are_removed(device, data, words):
    assert words in device.refusal("receive", DIGEST, *SIZE, stdin=data)
    assert list(device.root.incoming.iterdir()) == [] == list(device.root.blobs.iterdir())
    assert device.must("receive", DIGEST, *SIZE, stdin=DATA)["is_complete"]


def test_a_host_that_says_nothing_more_does_not_hold_the_lock(device, monkeypatch):
    monkeypatch.setattr(receive_module, "SILENCE_S", 0.05)
    device.root.make()
    reader, writer = os.pipe()
    os.write(writer, DATA[:10])
    with pytest.raises(DeployError, match=r"no byte came for 0\.05 s, 10 of 10240 are here"):
        receive(device.root, DIGEST, len(DATA), 0, reader)
    os.close(reader), os.close(writer)
    assert device.must("receive", DIGEST, *SIZE, "--offset", "10", stdin=DATA[10:])["is_complete"]


def test_sizes_and_names_that_make_no_sense(device):
    for arguments in (("receive", "../x", *SIZE), ("receive", DIGEST, "--size", "0"), ("try", "x"),
                      ("receive", DIGEST, "--size", str(1 << 40)), ("receive", DIGEST, *SIZE, "--offset", "-1"),
                      ("try", "0" * 16, "--health-s", "0"), ("nothing",), ()):
        assert device.run(*arguments)[0] == 2
    assert "there is no release 0000" in device.refusal("try", "0" * 16)


def test_no_room_for_an_upload(device, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 100)
    assert "10240 bytes are to come, 100 are free" in device.refusal("receive", DIGEST, *SIZE, stdin=DATA)


# --- staging ---


def test_a_staged_release(device):
    kws, sed = make_bytes(OWNER, version="0.3.0"), make_bytes(OWNER, version="1.0.0", name="sed")
    release = device.plan(kws, sed)
    assert device.must("stage", stdin=release.to_bytes()) == {"release": release.id, "is_new": True}
    folder = device.root.releases / release.id
    assert (folder / "release.json").read_bytes() == release.to_bytes()
    assert (folder / "bundles" / "kws.eab").read_bytes() == kws
    assert (folder / "bundles" / "sed.eab").read_bytes() == sed
    assert (folder / "runtime" / "bin" / "python").exists()
    assert oct((folder / "release.json").stat().st_mode) == "0o100644"
    assert os.access(device.root.boot, os.X_OK)
    assert device.links == (None, None, None) and device.calls == [] and device.leftovers() == []
    assert device.must("stage", stdin=release.to_bytes()) == {"release": release.id, "is_new": False}


def test_a_blob_that_changes_after_the_check_changes_nothing(device):
    release = device.kws("0.1.0")
    device.stage(release)
    blob = device.root.blobs / release.bundles[0].sha256
    blob.write_bytes(b"something else")
    staged = device.root.releases / release.id / "bundles" / "kws.eab"
    assert hashlib.sha256(staged.read_bytes()).hexdigest() == release.bundles[0].sha256


def test_a_blob_that_changes_before_the_check_is_refused_and_sent_again(device):
    release = device.kws("0.1.0")
    blob = device.root.blobs / release.bundles[0].sha256
    blob.write_bytes(b"something else")
    assert "were damaged on the device and are removed" in device.refusal("stage", stdin=release.to_bytes())
    assert device.must("missing", stdin=release.to_bytes())["missing"] == [
        {"sha256": release.bundles[0].sha256, "received_bytes": 0}]


def test_a_staged_bundle_that_was_exchanged_is_refused(device):
    release = device.kws("0.1.0")
    device.stage(release)
    staged = device.root.releases / release.id / "bundles" / "kws.eab"
    staged.write_bytes(make_bytes(OWNER, version="0.1.0", model=b"x"))
    assert "release.json says kws 0.1.0" in device.refusal("stage", stdin=release.to_bytes())


def test_truncated_and_missing_blobs(device):
    data = make_bytes(OWNER)
    release = device.plan(data)
    (device.root.blobs / release.bundles[0].sha256).unlink()
    assert "are not on the device" in device.refusal("stage", stdin=release.to_bytes())
    cut = device.plan(data[:-1])
    device.make_runtime(cut, STRICT_RUNTIME)
    assert "cut short" in device.refusal("stage", stdin=cut.to_bytes())


@pytest.mark.parametrize(("key", "words"), [(None, "kws.eab: not signed"), (STRANGER, "not among the 1 trusted")])
def test_unsigned_and_strangers_bundles_are_refused(device, key, words):
    release = device.kws("0.1.0", key=key)
    device.make_runtime(release, STRICT_RUNTIME)
    assert words in device.refusal("stage", stdin=release.to_bytes())
    assert device.root.staged() == []


def test_a_revoked_key_is_refused(device):
    release = device.kws("0.1.0")
    device.make_runtime(release, STRICT_RUNTIME)
    device.trust(OWNER, STRANGER, revoked=f"{OWNER.public_key().key_id} stolen on a train\n")
    assert "which was revoked (stolen on a train)" in device.refusal("stage", stdin=release.to_bytes())
    device.trust(OWNER, STRANGER)
    device.stage(release)


@pytest.mark.parametrize("entry", [{"name": "sed"}, {"version": "0.9.0"}])
def test_mixed_members_are_refused(device, entry):
    """A bundle that is right in itself, but not the one that the release says it is."""
    release = device.plan(make_bytes(OWNER, version="0.1.0"), **entry)
    assert "the file is kws 0.1.0" in device.refusal("stage", stdin=release.to_bytes())
    assert device.root.staged() == []


@pytest.mark.parametrize(("changes", "words"), [
    ({"passed": False, "reason": "scores differ by 3 LSB"}, "fails its self-test on this device: scores differ by 3"),
    ({"backend": "numpy"}, "has no C core for this device"), ({"sha256": "0" * 64}, "the file is kws 0.1.0 (0000"),
])
def test_a_bundle_that_the_runtime_complains_of_is_refused(device, changes, words):
    release = device.kws("0.1.0")
    device.make_runtime(release, **changes)
    assert words in device.refusal("stage", stdin=release.to_bytes())
    assert device.root.staged() == []


@pytest.mark.parametrize(("program", "words"), [
    ("exit 3", "exit status 3"), ("kill -ILL $$", "exit status -4"), ("echo {}", "0 of 1 bundles"),
    ("echo what >&2; exit 1", "refused: what"), ("true", "0 of 1 bundles"), ("echo nonsense", "0 of 1 bundles")])
def test_a_runtime_that_does_not_answer_is_refused(device, program, words):
    release = device.kws("0.1.0")
    python = device.root.runtimes / release.runtime.key / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    assert words in device.refusal("stage", stdin=release.to_bytes())


def test_a_runtime_must_be_made_first(device):
    release = device.kws("0.1.0")
    (device.root.runtimes / release.runtime.key / "ready").unlink()
    assert "make it first" in device.refusal("stage", stdin=release.to_bytes())
    assert list(device.root.runtimes.iterdir()) == []  # half made: removed


def test_the_floor_rises_with_the_commit_only(device):
    device.install("0.10.0")
    device.stage(device.kws("0.11.0"))
    assert device.must("status")["floor"] == {"kws": "0.10.0"}
    older = device.kws("0.9.0")
    assert "kws 0.9.0 is below 0.10.0" in device.refusal("stage", stdin=older.to_bytes())
    assert device.root.staged() == sorted({device.links[0], device.kws("0.11.0").id})
    assert device.stage(older, "--allow-older") == older.id
    assert "taken all the same (--allow-older)" in device.error


# --- real parts ---


def test_the_released_bundle_in_a_real_runtime(device, core, tmp_path):
    """The self-test itself, of the bundle that is released, by the interpreter that runs this test."""
    from toolkit.signature import PACKAGE_TRUST

    data = released_bundles()[released().manifest.name].read_bytes()
    release = device.plan(data)
    python = device.root.runtimes / release.runtime.key / "bin" / "python"
    python.write_text(f"#!/bin/sh\nshift\nPYTHONPATH={CHECKOUT} exec {sys.executable} -s \"$@\"\n")
    assert "not among the 1 trusted" in device.refusal("stage", stdin=release.to_bytes())
    for path in PACKAGE_TRUST.glob("*.pub"):
        (device.root.trust / path.name).write_bytes(path.read_bytes())
    assert device.stage(release) == release.id


def test_it_runs_from_a_wheel_with_the_standard_library_alone(tmp_path):
    """As a first installation does: a zip on the path, and no site-packages. `boot` comes out of the zip."""
    wheel = tmp_path / "edge_audio_toolkit.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in sorted((CHECKOUT / "toolkit").rglob("*")):
            if path.suffix == ".py" or path.name == "boot":
                file.write(path, path.relative_to(CHECKOUT))
    program = (f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
               "from toolkit.ota.__main__ import main; from toolkit.ota.layout import Root\n"
               "from toolkit.ota.stage import write_boot\n"
               f"root = Root({str(tmp_path / 'root')!r}); root.make(); write_boot(root)\n"
               "assert main(['status', '--root', str(root.path)]) == 0\n"
               "print(*sorted({'numpy', 'nacl', 'cryptography', 'yaml', 'hashlib'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    status, loaded = done.stdout.splitlines()
    assert json.loads(status)["committed"] is None and loaded == ""
    assert (tmp_path / "root" / "boot").read_bytes() == (CHECKOUT / "toolkit" / "ota" / "boot").read_bytes()


def test_a_runtime_is_made_by_pip(device, monkeypatch):
    """A stand-in for python3 records what it is asked, and makes what a virtual environment has."""
    log = device.side / "log"
    device.write_program(device.side / "bin" / "python3", """#!/bin/sh
echo "$@" >> {log}
if [ "$3" = venv ]; then
    for folder; do true; done
    mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"
elif [ -e {log}.fail ]; then
    echo "Collecting numpy" ; echo "ERROR: No matching distribution found for numpy" >&2; echo >&2; exit 1
else
    for wheel; do true; done
    ls "$(dirname "$wheel")" >> {log}
fi
""", log=log)
    plan = release_dict()
    plan["runtime"] |= {"sha256": device.send(b"wheel"), "system_site_packages": True,
                        "requirements": [{"name": "numpy-1.whl", "sha256": device.send(b"numpy")}]}
    data = json.dumps(plan).encode()
    (device.side / "log.fail").touch()
    assert "(ERROR: No matching distribution found for numpy)" in device.refusal("runtime", stdin=data)
    (device.side / "log.fail").unlink()
    log.unlink()
    answer = device.must("runtime", stdin=data)
    key = short_id(plan["runtime"])
    assert answer == {"runtime": key, "python": str(device.root.runtimes / key / "bin" / "python")}
    venv, pip, *names = log.read_text().splitlines()
    assert venv == f"-I -m venv --system-site-packages {device.root.runtimes / key}"
    assert pip.startswith("-I -m pip ") and "--no-index --find-links" in pip
    assert pip.endswith("/a-1-py3-none-any.whl[listen]")
    assert names == ["a-1-py3-none-any.whl", "numpy-1.whl"]
    assert device.root.is_ready(key) and device.leftovers() == []
    log.unlink()
    assert device.must("runtime", stdin=data) == answer and not log.exists()  # it is there
    assert device.must("missing", stdin=data)["missing"] == [{"sha256": "cd" * 32, "received_bytes": 0}]


# --- the disk ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDOM])
def test_an_error_of_the_disk_is_one_sentence(device, monkeypatch, number):
    release = device.kws("0.1.0")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    sentence = device.refusal("stage", stdin=release.to_bytes())
    assert os.strerror(number) in sentence and str(device.root.path) in sentence
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    assert device.root.staged() == []
    device.must("clean")
    assert device.leftovers() == []


def test_a_folder_is_never_there_in_part(tmp_path, monkeypatch):
    folder = tmp_path / "x"
    (folder / "y").mkdir(parents=True)
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(DeployError, match="the disk may be failing"):
        disk.remove(folder)
    assert not folder.exists() and [path.name for path in disk.leftovers(tmp_path)] == [".x.old"]
    monkeypatch.undo()
    folder.mkdir()
    disk.remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_one_change_at_a_time(device, monkeypatch):
    monkeypatch.setattr("toolkit.ota.layout.Root.lock.__wrapped__.__defaults__", (0.1,), raising=True)
    device.root.make()
    with device.root.lock() as is_held:
        assert is_held
        assert "another change is under way" in device.refusal("clean")
        assert device.must("status")["is_trial"] is False
        assert device.must("recover")["is_recovered"] is False
    device.must("clean")


def test_paths_of_a_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Root("device")
    assert root.path == tmp_path / "device" and root.current is None and root.previous is None
    with pytest.raises(DeployError, match="stage it first"):
        root.release("0" * 16)
