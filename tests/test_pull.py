"""`edge-audio update URL`: a device fetches its release and tries it; what it does not try again; keyrings; the units.

What servers and thieves may do: test_pull_attacks.py. The publishing side: test_publish.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest
from bundle_factory import OWNER, STRANGER
from keyrings import A, B, contents, keyring, signed
from ota_device import CHECKOUT, HEALTH_S, RUNTIME, STRICT_RUNTIME, Device
from pull_device import OTHER, SUCCESSOR, WHEEL, rotation

from devices.plan import make_order
from devices.publish import make_publisher, publish
from toolkit.__main__ import main as edge_audio
from toolkit.ota import trial
from toolkit.ota.trust import read_keyring
from toolkit.profile import load_profile

pytest_plugins = ["pull_fixtures", "deploy_fixtures"]


# --- all is well ---


def test_from_nothing_to_the_newest(publisher, puller, web):
    told = publisher.publish("0.1.0")
    assert (told["version"], told["is_new"], told["blobs"]) == (1, True, 2)
    answer = puller.update()
    assert answer == {"channel": "stable", "index_version": 1, "profile": "board", "release": told["release"],
                      "committed": True, "is_noop": False, "received_bytes": told["bytes"], "missing_bytes": 0,
                      "skipped": None, "reason": None}
    assert puller.links == (told["release"], told["release"], None) and puller.running == told["release"]
    (runtime,) = puller.root.runtimes.iterdir()
    assert (runtime / "installed").read_bytes() == (publisher.folder / WHEEL).read_bytes()
    second = publisher.publish("0.2.0")
    web.asked.clear()
    answer = puller.update()
    assert answer["committed"] and answer["received_bytes"] == len((publisher.folder / "0.2.0.eab").read_bytes())
    assert puller.links == (second["release"], second["release"], told["release"]) and puller.leftovers() == []
    assert len([path for path, _ in web.asked if "blobs" in path]) == 1  # a new model alone; the wheel is there
    assert puller.must("status")["index"]["channels"]["stable"]["version"] == 2
    third = publisher.publish("0.3.0")
    assert puller.update()["committed"] is True
    assert puller.root.staged() == sorted((second["release"], third["release"]))  # what is older is removed
    assert len([*puller.root.blobs.iterdir()]) == 3


def test_nothing_to_do(publisher, puller, web):
    publisher.publish("0.1.0")
    release = puller.update()["release"]
    before, calls = contents(puller.root.path), puller.calls
    written = puller.root.index_file.stat().st_ino
    web.asked.clear()
    answer = puller.update()
    assert answer["is_noop"] is True and answer["release"] == release and answer["received_bytes"] == 0
    assert puller.error == "" and puller.calls == calls and contents(puller.root.path) == before
    assert puller.root.index_file.stat().st_ino == written  # every hour: a card has only so many writes
    assert [path for path, _ in web.asked] == ["/index.sig", "/index.json"]


def test_a_dry_run_changes_nothing(publisher, puller):
    told = publisher.publish("0.1.0")
    before = contents(puller.root.path)
    answer = puller.update("--dry-run")
    assert answer["is_noop"] is False and answer["missing_bytes"] == told["bytes"] and answer["committed"] is False
    assert f"would fetch {told['bytes']} bytes, and try kws 0.1.0" in puller.error
    assert contents(puller.root.path) == before and puller.calls == []


def test_a_stick(publisher, puller, tmp_path):
    """file:// of a copy with a space in its name; and the command by its short name."""
    told = publisher.publish("0.1.0")
    stick = tmp_path / "a stick"
    shutil.copytree(publisher.published, stick)
    assert puller.update(url=stick.as_uri())["release"] == told["release"]
    assert edge_audio(["update", stick.as_uri(), "--root", str(puller.root.path)]) == 0
    assert json.loads(puller.capsys.readouterr().out)["is_noop"] is True
    shutil.rmtree(stick / "blobs")
    publisher.publish("0.2.0")
    for name in ("index.json", "index.sig"):
        shutil.copy(publisher.published / name, stick)
    puller.refuses("there is no such file", url=stick.as_uri())


def test_each_profile_gets_its_own(publisher, puller):
    mine = publisher.publish("0.1.0")
    other = publisher.publish("0.2.0", profile="other", architecture=OTHER)
    assert (other["version"], other["blobs"]) == (2, 3)  # one wheel serves both
    assert puller.update()["release"] == mine["release"]  # the only one for this processor
    publisher.publish("0.3.0", profile="second")
    assert puller.update()["is_noop"] is True  # now there are two, but it knows which it had
    puller.refuses("no profile 'other' for this machine", f"other ({OTHER})", options=("--profile", "other"))
    puller.refuses("no profile 'another' for this machine", "board (", options=("--profile", "another"))
    puller.root.index_file.unlink()
    puller.refuses("2 profiles for this machine", "--profile")
    assert puller.update("--profile", "second")["profile"] == "second"
    assert puller.update()["profile"] == "second"


def test_a_release_that_a_host_brought(publisher, puller, web):
    """It is not fetched again; and when its owner goes back from it, that counts until something else is offered."""
    first = puller.install("0.1.0")
    told = publisher.publish("0.2.0")
    release = json.dumps(json.loads((publisher.published / "index.json").read_bytes())["profiles"]["board"]["release"])
    for data in publisher.blobs.values():
        puller.send(data)
    puller.must("runtime", stdin=release.encode())
    puller.must("stage", stdin=release.encode())
    assert puller.must("try", told["release"], "--health-s", HEALTH_S)["committed"] is True
    assert puller.update()["is_noop"] is True
    assert puller.must("rollback", "--health-s", HEALTH_S)["release"] == first
    answer = puller.update()
    assert answer["is_noop"] is True and "brought back from it since" in answer["skipped"]
    assert puller.root.committed == first and not [path for path, _ in web.asked if "blobs" in path]
    assert puller.update("--retry")["committed"] is True and puller.root.committed == told["release"]


# --- trials ---


def test_what_fails_its_trial_is_not_tried_again(publisher, puller):
    publisher.publish("0.1.0")
    good = puller.update()["release"]
    bad = publisher.publish("0.2.0")["release"]
    puller.services[bad] = {"deaf_s": 9.0}
    status, answer = puller.run("update", puller.url, "--health-s", HEALTH_S)
    assert status == 1 and answer["committed"] is False and "a constant signal for 9.0 s" in answer["reason"]
    assert puller.links[:2] == (good, good) and puller.running == good
    calls = puller.calls
    answer = puller.update()
    assert answer["is_noop"] is True and "a constant signal for 9.0 s" in answer["skipped"]
    assert puller.calls == calls and "--retry tries it again" in puller.error
    publisher.publish("0.2.0", profile="other", architecture=OTHER)  # a new index, but the same offer
    assert puller.update()["index_version"] == 3 and puller.calls == calls
    assert puller.run("update", puller.url, "--health-s", HEALTH_S, "--retry")[0] == 1 and puller.calls != calls
    puller.services = {}
    assert puller.update()["skipped"]
    assert publisher.publish("0.2.0", again=True)["is_new"] is True
    answer = puller.update()
    assert answer["committed"] is True and answer["received_bytes"] == 0 and puller.root.committed == bad


def test_a_release_that_crashes_the_device_is_given_up(publisher, puller, monkeypatch):
    """Each trial ends as at a power cut; the record that it began is on the disk by then."""
    publisher.publish("0.1.0")
    good = puller.update()["release"]
    publisher.publish("0.2.0")

    class PowerCut(BaseException):
        pass

    def crash(*arguments):
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr("toolkit.ota.pull.try_release", crash)
        for attempt in (1, 2, 3):
            with pytest.raises(PowerCut):
                puller.update()
            assert puller.memory()["trial"]["attempts"] == attempt
        assert "3 times, and each trial was cut off" in puller.update()["skipped"]
    assert puller.root.committed == good
    assert puller.update("--retry")["committed"] is True


def test_a_trial_that_was_stopped_may_be_repeated(publisher, puller, monkeypatch):
    """As by a shutdown: it says nothing of the release. The sentence is that of trial.py."""
    publisher.publish("0.1.0")

    def stopped(root, before, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return arguments[-1]()

    with monkeypatch.context() as patch:
        patch.setattr(trial.health, "wait_until_healthy", stopped)
        assert puller.run("update", puller.url)[1]["reason"] == "the trial was stopped by SIGTERM."
    assert puller.memory()["trial"] | {"attempts": 1, "is_over": False} == puller.memory()["trial"]
    assert puller.update()["committed"] is True and puller.memory()["trial"]["is_over"] is True


def test_what_fails_its_self_test_is_not_even_tried(publisher, puller):
    publisher.publish("0.1.0")
    puller.use(RUNTIME, changes={"passed": False, "reason": "scores differ"})
    puller.refuses("fails its self-test on this device: scores differ")
    assert puller.calls == [] and puller.root.staged() == []


def test_the_floor_holds_for_what_is_fetched(publisher, puller, web):
    puller.install("0.5.0")
    publisher.publish("0.4.0")
    web.asked.clear()
    puller.refuses("kws 0.4.0 is below 0.5.0")
    assert not [path for path, _ in web.asked if "blobs" in path]


# --- keyrings ---


def test_keyrings_are_followed_first(publisher, puller, web):
    """A device three keyrings behind takes an index, and a bundle, that only the last one trusts."""
    rings = rotation((OWNER,), (OWNER, STRANGER), (SUCCESSOR, STRANGER), (SUCCESSOR,))
    puller.follow(rings[0])
    puller.use(STRICT_RUNTIME)
    told = publisher.publish("0.1.0", key=SUCCESSOR, trust=publisher.keyrings(*rings))
    assert puller.update("--dry-run")["is_noop"] is False and read_keyring(puller.root.path).version == 1
    assert puller.update()["release"] == told["release"]
    assert read_keyring(puller.root.path).version == 4
    assert [path for path, _ in web.asked if path.startswith("/keyrings")][-1] == "/keyrings/5.json"
    assert puller.must("status")["keyring_version"] == 4


def test_keyrings_that_revoke_count_even_if_the_index_is_bad(publisher, puller):
    """A thief who still serves his index does not undo the revocation that came with it."""
    rings = rotation((OWNER, STRANGER), (OWNER,))
    puller.follow(rings[0])
    publisher.publish("0.1.0", trust=publisher.keyrings(*rings))
    publisher.forge(key=STRANGER)
    puller.refuses("which was revoked")
    assert read_keyring(puller.root.path).version == 2


def test_keyrings_that_are_withheld_or_forged(publisher, puller, web):
    rings = rotation((OWNER,), (OWNER, SUCCESSOR))
    puller.follow(rings[0])
    publisher.publish("0.1.0", trust=publisher.keyrings(*rings))
    folder = publisher.published / "keyrings"
    (folder / "2.json").rename(folder / "2")
    puller.refuses("was published with version 2 of the keyring, but", "has none after 1")
    forged = signed(keyring(2, root=(A, B), bundle=(STRANGER,), threshold=2), A, STRANGER)
    (folder / "2.json").write_bytes(forged[0])
    (folder / "2.sig").write_bytes(forged[1])
    puller.refuses("keyrings/2.json: signed by 1 of the root keys")
    web.moods = {"keyrings/2.json": "endless"}
    puller.refuses("keyrings/2.json: larger than 65536 bytes")
    assert read_keyring(puller.root.path).version == 1


def test_no_first_keyring_comes_this_way(publisher, puller):
    """Nothing vouches for it. A device that trusts plain keys goes on to do so."""
    publisher.publish("0.1.0", trust=publisher.keyrings(*rotation((OWNER,))))
    assert puller.update()["committed"] is True and read_keyring(puller.root.path) is None


# --- the units ---


def test_systemd_takes_the_units(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    folder = tmp_path / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    units = [CHECKOUT / "devices" / "rpi" / f"edge-audio-update.{kind}" for kind in ("service", "timer")]
    for unit in units:
        shutil.copy(unit, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sh").chmod(0o755)
    for unit in units:
        done = subprocess.run(["systemd-analyze", f"--root={tmp_path}", "--recursive-errors=no", "verify",
                               str(folder / unit.name)], capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = subprocess.run(["systemd-analyze", "calendar", "hourly"], capture_output=True, text=True)
    assert done.returncode == 0


def unit_script(root) -> str:
    """What the unit gives to sh, for another root."""
    text = (CHECKOUT / "devices" / "rpi" / "edge-audio-update.service").read_text("utf-8").replace("\\\n", "")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    return line.split("'")[1].replace("$$", "$").replace("/opt/edge-audio", str(root))


def test_the_unit_runs_the_committed_release(tmp_path):
    """The real path of its runtime, options as words, the URL as one."""
    python = tmp_path / "runtimes" / "key" / "bin" / "python"
    Device.write_program(python, "#!/bin/sh\nprintf '%s\\n' \"$0\" \"$@\"\n")
    (tmp_path / "releases" / "id").mkdir(parents=True)
    (tmp_path / "releases" / "id" / "runtime").symlink_to("../../runtimes/key")
    (tmp_path / "committed").symlink_to("releases/id")
    done = subprocess.run(["/bin/sh", "-c", unit_script(tmp_path)], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "EDGE_AUDIO_UPDATE_URL": "https://example.org/a b",
                               "EDGE_AUDIO_UPDATE_OPTIONS": "--profile rpi4"})
    assert done.stdout.splitlines() == [str(python), "-I", "-m", "toolkit", "update", "--profile", "rpi4",
                                        "https://example.org/a b"]


def test_a_deployed_device_updates_itself(device, desk, publisher, web):
    """All of it real: what deploy has installed runs the unit's line, takes the next version, and listens."""
    pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
    order = make_order(load_profile(desk.folder / "board.yaml"), [desk.folder / "0.6.0.eab"], desk.wheel, desk.needed)
    told = publish(make_publisher(publisher.published, OWNER, desk.folder / "trust"), order)
    environment = device.environment | {"EDGE_AUDIO_UPDATE_URL": web.url,
                                        "EDGE_AUDIO_UPDATE_OPTIONS": f"--root {device.root} --health-s 15"}
    command = ["/bin/sh", "-c", unit_script(device.root)]
    assert device.bundles() == {"kws": "0.5.0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["committed"] is True and answer["release"] == told["release"] == device.linked("current")
    assert device.bundles() == {"kws": "0.6.0"}
    assert json.loads((device.folder / "status.json").read_text())["release"] == told["release"]
    assert answer["received_bytes"] == (desk.folder / "0.6.0.eab").stat().st_size  # the wheels are there
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, json.loads(done.stdout)["is_noop"], done.stderr) == (0, True, "")
