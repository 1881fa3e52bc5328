"""A release on trial: committed, or gone back from, and whatever instant its trial is cut off at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from bundle_factory import OWNER, make_bytes
from ota_device import HEALTH_S, Device

from toolkit.ota import disk, recover, trial

ROUNDS = ("--health-s", HEALTH_S)


@pytest.fixture
def device(tmp_path, monkeypatch, capsys) -> Device:
    return Device(tmp_path, monkeypatch, capsys)


# --- committed ---


def test_a_fresh_install(device):
    first = device.stage(device.kws("0.1.0"))
    answer = device.must("try", first, *ROUNDS)
    assert answer == {"release": first, "committed": True, "is_noop": False, "reason": None}
    assert device.links == (first, first, None) and device.running == first and device.calls == ["restart"]
    status = device.must("status")
    assert (status["current"], status["committed"], status["previous"]) == (first, first, None)
    assert status["is_trial"] is False and status["floor"] == {"kws": "0.1.0"} and status["releases"] == [first]
    assert status["outcome"]["release"] == first and status["outcome"]["committed"] is True
    assert status["service"]["release"] == first and status["doubts"] == [] and status["free_bytes"] > 0


def test_an_upgrade_and_back(device):
    first, second = device.install("0.1.0"), device.install("0.2.0")
    assert device.links == (second, second, first) and device.running == second
    assert not device.root.floor_file.exists()  # `committed` says it
    assert device.must("rollback", *ROUNDS)["release"] == first
    assert device.links == (first, first, second) and device.running == first
    assert device.must("status")["floor"] == {"kws": "0.2.0"}
    assert device.must("rollback", *ROUNDS)["release"] == second  # and forth
    assert device.links == (second, second, first) and device.running == second


def test_the_same_again_is_nothing(device):
    first = device.install("0.1.0")
    assert device.must("stage", stdin=device.kws("0.1.0").to_bytes()) == {"release": first, "is_new": False}
    assert device.must("try", first)["is_noop"] is True
    assert device.calls == ["restart"]
    (device.side / "status.json").unlink()  # but not if it does not run
    assert device.must("try", first, *ROUNDS)["is_noop"] is False
    assert device.running == first and device.links == (first, first, None)


def test_another_model_leaves_the_runtime_alone(device):
    device.install("0.1.0")
    (runtime,) = device.root.runtimes.iterdir()
    before = runtime.stat().st_mtime_ns, (runtime / "ready").stat().st_ino
    release = device.plan(make_bytes(OWNER, version="0.1.0", model=b"another"))
    device.must("try", device.stage(release), *ROUNDS)
    assert [*device.root.runtimes.iterdir()] == [runtime]
    assert before == (runtime.stat().st_mtime_ns, (runtime / "ready").stat().st_ino)


def test_after_a_rollback_only_newer_versions_are_taken(device):
    first, _ = device.install("0.1.0"), device.install("0.3.0")
    device.must("rollback", *ROUNDS)
    assert "kws 0.2.0 is below 0.3.0" in device.refusal("stage", stdin=device.kws("0.2.0").to_bytes())
    assert device.stage(device.kws("0.1.0")) == first  # it is committed: no step back
    device.install("0.3.1")


def test_a_bundle_that_goes_and_comes_back_does_not_come_back_older(device):
    device.install("0.2.0")
    sed = device.plan(make_bytes(OWNER, version="1.0.0", name="sed"))
    device.must("try", device.stage(sed), *ROUNDS)
    assert device.must("status")["floor"] == {"kws": "0.2.0", "sed": "1.0.0"}
    assert "kws 0.1.0 is below 0.2.0" in device.refusal("stage", stdin=device.kws("0.1.0").to_bytes())


def test_an_older_version_on_purpose_does_not_lower_the_floor(device):
    device.install("0.3.0")
    older = device.stage(device.kws("0.2.0"), "--allow-older")
    device.must("try", older, *ROUNDS)
    assert device.must("status")["floor"] == {"kws": "0.3.0"}


def test_no_earlier_release(device):
    assert "no release was committed before" in device.refusal("rollback")
    device.install("0.1.0")
    assert "no release was committed before" in device.refusal("rollback")


# --- gone back from ---


def fail_trial(device: Device, command: tuple[str, ...]) -> str:
    """The reason with which the trial ends."""
    status, answer = device.run(*command, *ROUNDS)
    assert status == 1 and answer["committed"] is False and answer["reason"] in device.error
    outcome = device.must("status")["outcome"]
    assert (outcome["committed"], outcome["reason"]) == (False, answer["reason"])
    return answer["reason"]


@pytest.mark.parametrize(("service", "words"), [
    ({"state": "no microphone", "sentence": "All are gone."}, "'no microphone' (All are gone)"),
    ({"fails": "Job failed. See journalctl."}, "systemctl restart edge-audio.service failed (Job failed. See jour"),
])
def test_an_unhealthy_release_is_gone_back_from(device, service, words):
    first = device.install("0.1.0")
    second = device.stage(device.kws("0.2.0"))
    device.services[second] = service
    assert words in fail_trial(device, ("try", second))
    assert device.links == (first, first, None) and device.running == first
    assert device.must("status")["floor"] == {"kws": "0.1.0"}
    device.services.clear()
    device.must("try", second, *ROUNDS)  # it was not to blame
    assert device.links == (second, second, first)


def test_a_first_release_that_is_unhealthy_leaves_nothing_running(device):
    first = device.stage(device.kws("0.1.0"))
    device.services[first] = {"state": "starting"}
    assert "'starting'" in fail_trial(device, ("try", first))
    assert device.links == (None, None, None) and device.running is None
    assert device.calls == ["restart", "stop"]


def test_a_rollback_to_what_is_unhealthy_now_stays(device):
    first, second = device.install("0.1.0"), device.install("0.2.0")
    device.services[first] = {"state": "starting"}
    assert "'starting'" in fail_trial(device, ("rollback",))
    assert device.links == (second, second, first) and device.running == second


def test_without_systemd(device, monkeypatch):
    first = device.stage(device.kws("0.1.0"))
    monkeypatch.setenv("PATH", str(device.side))
    assert "systemctl is not on PATH" in fail_trial(device, ("try", first))
    assert device.links == (None, None, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_trial_that_is_stopped_goes_back(device, number):
    first = device.install("0.1.0")
    second = device.stage(device.kws("0.2.0"))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    assert device.run("try", second, "--health-s", "30")[1]["reason"] == f"the trial was stopped by {number.name}."
    timer.join()
    assert device.links == (first, first, None) and device.running == first


def test_a_dropped_connection_stops_no_trial(device):
    second = device.stage(device.kws("0.2.0"))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGHUP))
    timer.start()
    assert device.must("try", second, "--health-s", "3")["committed"]
    timer.join()


def test_a_full_disk_at_each_step_of_a_trial(device, monkeypatch):
    """The n-th fsync fails, for all n: the device runs the old release or the new one, and says which."""
    first, second = device.install("0.1.0"), device.stage(device.kws("0.2.0"))
    device.save()
    ends, real = [], os.fsync
    for nth in range(1, 30):
        calls = []

        def fsync(descriptor, calls=calls, nth=nth):
            calls.append(descriptor)
            if len(calls) == nth:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        status, answer = device.run("try", second, *ROUNDS)
        monkeypatch.setattr(os, "fsync", real)
        if len(calls) < nth:
            break
        assert "No space left on device" in device.error
        assert status == (answer is None or answer["reason"] is not None)
        device.must("recover")
        committed = device.root.committed
        assert device.root.current == committed == device.running and device.leftovers() == []
        assert answer is None or answer["committed"] == (committed == second)
        ends.append(committed)
        device.restore()
    assert set(ends) == {first, second} and ends == sorted(ends, key=lambda end: end == second) and status == 0


# --- cut off ---


def by_python(device: Device) -> None:
    device.must("recover")


def by_boot(device: Device) -> None:
    """As systemd does when it starts the service."""
    done = subprocess.run([device.root.boot], capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]})
    assert done.returncode == (device.root.committed is None), done.stderr


@pytest.fixture(params=[by_python, by_boot])
def twin(request):
    """Either of the two that go back."""
    return request.param


class Cut(BaseException):
    """The power fails."""


def cut_before(monkeypatch, nth: int, run) -> bool:
    """Runs, and stops before the nth change that disk.py makes; True if there was one."""
    calls = []

    def cutting(function):
        def changed(*arguments):
            calls.append(arguments)
            if len(calls) >= nth:
                raise Cut
            return function(*arguments)
        return changed

    with monkeypatch.context() as patch:
        for name in ("rename", "symlink", "unlink"):
            patch.setattr(os, name, cutting(getattr(os, name)))
        try:
            run()
        except Cut:
            return True
    return False


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "upgrade"])
def test_a_trial_cut_off_before_each_change(device, twin, monkeypatch, is_first):
    """Old or new, never neither, never one that is not committed; and a rollback goes to the one before."""
    monkeypatch.setattr(trial.service, "systemctl", lambda verb, timeout_s=1: None)
    monkeypatch.setattr(trial.health, "wait_until_healthy", lambda *arguments: None)
    old = None if is_first else device.install("0.1.0")
    new = device.stage(device.kws("0.2.0"))
    device.save()
    ends = []
    for nth in range(1, 30):
        was_cut = cut_before(monkeypatch, nth, lambda: trial.try_release(device.root, new, 1, lambda text: None))
        twin(device)
        ends.append(device.links[:2])
        device.must("recover")
        assert device.links == ((new, new, old) if device.root.committed == new else (old, old, None))
        assert device.leftovers() == []
        if not was_cut:
            break
        device.restore()
    assert set(ends) == {(old, old), (new, new)} and ends == sorted(ends, key=lambda end: end == (new, new))


def test_links_that_disagree(device, twin):
    first, second = device.install("0.1.0"), device.stage(device.kws("0.2.0"))
    current = device.root.link("current")
    for wrong in (f"releases/{second}", "releases/0000000000000000", None):
        current.unlink()
        if wrong:
            current.symlink_to(wrong)
        disk.new_name(current).symlink_to("rubbish")  # of a link that was being made
        twin(device)
        assert device.links == (first, first, None) and not disk.new_name(current).is_symlink()
        before = current.lstat().st_ino
        twin(device)
        assert current.lstat().st_ino == before  # nothing to do, nothing done


def test_nothing_committed(device, twin):
    second = device.stage(device.kws("0.2.0"))
    device.root.link("current").symlink_to(f"releases/{second}")
    twin(device)
    assert device.links == (None, None, None)


def test_a_trial_that_goes_on_is_left_alone(device, twin):
    first, second = device.install("0.1.0"), device.stage(device.kws("0.2.0"))
    with device.root.lock():
        disk.link_to(device.root.link("current"), f"releases/{second}")
        twin(device)
        assert device.links == (second, first, None)
        assert device.must("status")["is_trial"] is True
    twin(device)
    assert device.links == (first, first, None)


def test_a_service_that_still_runs_what_was_not_committed_is_restarted(device):
    """Killed between going back and the restart: the links are right, the service is not."""
    first, second = device.install("0.1.0"), device.stage(device.kws("0.2.0"))
    disk.link_to(device.root.link("current"), f"releases/{second}")
    trial.service.systemctl("restart")
    assert device.running == first  # boot has gone back, for nobody holds the lock
    with device.root.lock():
        disk.link_to(device.root.link("current"), f"releases/{second}")
        trial.service.systemctl("restart")
        assert device.running == second
        recover.go_back(device.root)
    assert device.links == (first, first, None) and device.running == second
    device.must("status")
    assert device.running == first


def test_killed_in_its_trial(device):
    """The real thing: SIGKILL, then the next command."""
    first, second = device.install("0.1.0"), device.stage(device.kws("0.2.0"))
    device.services[second] = {"state": "starting"}
    (device.side / "services.json").write_text(json.dumps(device.services))
    process = subprocess.Popen([sys.executable, "-m", "toolkit.ota", "try", second, "--root", str(device.root.path)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while device.running != second:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    status = device.must("status")
    assert status["is_trial"] is True and status["outcome"] is None
    process.kill()
    process.wait()
    assert device.links == (second, first, None)
    status = device.must("status")
    assert status["is_trial"] is False and status["outcome"] is None and device.running == first


# --- clean ---


def test_clean_keeps_what_is_needed(device):
    device.install("0.1.0")
    second, third = device.install("0.2.0"), device.install("0.3.0")
    other = device.plan(make_bytes(OWNER, version="0.4.0"), wheel=b"another wheel")
    device.stage(other)
    device.run("receive", "ab" * 32, "--size", "10", stdin=b"12345")
    removed = device.must("clean")["removed"]
    assert [len(removed[name]) for name in ("releases", "runtimes", "blobs", "incoming")] == [2, 1, 3, 1]
    assert device.root.staged() == sorted([second, third]) and device.links == (third, third, second)
    device.must("rollback", *ROUNDS)
    assert device.must("clean")["removed"] == {"releases": [], "runtimes": [], "blobs": [], "incoming": []}
