"""systemd's units on a device: what deploy installs, the end of a trial that was cut off, and devices that pull."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_device import ETC, Device, command

from devices.__main__ import main
from devices.units import FOLDER, RECOVER, SERVICE, UPDATE, url_problem

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
pytest_plugins = ["deploy_fixtures"]
CHECKOUT = Path(__file__).parents[1]
OLD, NEW = "0123456789abcdef", "fedcba9876543210"
URL = "https://updates.example.org/site"


# --- a trial whose installer was killed -----------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Device:
    """A device without sshd or service: the real `boot` and recover unit, and a systemctl that only takes notes."""
    device = Device(tmp_path, None, {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    for path in (device.units, device.root / "releases" / OLD, device.root / "releases" / NEW, tmp_path / "bin"):
        path.mkdir(parents=True)
    shutil.copy(CHECKOUT / "toolkit" / "ota" / "boot", device.root)
    shutil.copy(FOLDER / RECOVER[0], device.units)
    (device.root / "boot").chmod(0o755)
    (tmp_path / "bin" / "systemctl").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/systemctl.log\n")
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    return device


def link(device: Device, current: str | None, committed: str | None, running: str | None) -> None:
    for name, release in (("current", current), ("committed", committed)):
        if release:
            (device.root / name).symlink_to(f"releases/{release}")
    if running:
        (device.folder / "status.json").write_text(json.dumps({"schema": 1, "pid": 7, "release": running, "blocks": 9}))


@pytest.mark.parametrize("current, committed, running, verb", [
    (OLD, OLD, OLD, None), (OLD, OLD, None, None), (None, None, None, None),  # all is well, or nothing is there
    (NEW, OLD, NEW, "restart"), (NEW, OLD, None, "restart"),  # cut off in the trial
    (OLD, OLD, NEW, "restart"),  # cut off after going back, before the restart
    (NEW, None, NEW, "stop"), (None, None, NEW, "stop"),  # the same in a first installation
])
def test_what_runs_becomes_what_is_committed(folder, current, committed, running, verb):
    link(folder, current, committed, running)
    done = folder.run_unit(RECOVER[0])
    assert done.returncode == 0, done.stderr
    assert folder.systemctl() == ([f"{verb} --no-block {SERVICE}"] if verb else [])
    assert folder.linked("current") == folder.linked("committed") == committed
    assert ("went back" in done.stderr) == (current != committed)


def test_a_service_outside_of_releases_is_left_alone(folder):
    """`edge-audio listen BUNDLE --service`, started by hand, says that its release is null."""
    link(folder, OLD, OLD, None)
    (folder.folder / "status.json").write_text('{"pid": 7, "release": null, "sentence": "0123"}')
    assert folder.run_unit(RECOVER[0]).returncode == 0 and folder.systemctl() == []


def test_a_trial_that_goes_on_is_left_alone(folder):
    link(folder, NEW, OLD, NEW)
    holder = subprocess.Popen(["flock", folder.root / "lock", "sleep", "60"], start_new_session=True)
    deadline = time.monotonic() + 10
    while subprocess.run(["flock", "-n", folder.root / "lock", "true"]).returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        assert folder.run_unit(RECOVER[0]).returncode == 0
        assert folder.systemctl() == [] and folder.linked("current") == NEW
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    assert folder.run_unit(RECOVER[0]).returncode == 0 and folder.linked("current") == OLD


def test_where_the_disk_refuses_the_service_runs_on(folder):
    link(folder, NEW, OLD, NEW)
    (folder.root / "boot").write_text("#!/bin/sh\nexit 1\n")
    assert folder.run_unit(RECOVER[0]).returncode == 1 and folder.systemctl() == []


def test_the_installer_is_killed_in_the_middle_of_a_trial(desk, device):
    """Over the real sshd: the release on trial is well, and would be committed a minute later."""
    committed = device.linked("committed")
    arguments = desk.order("0.6.0")
    arguments[arguments.index("--health-s") + 1] = "600"
    host = subprocess.Popen([sys.executable, "-m", "devices", *arguments, *device.arguments, *ETC], cwd=CHECKOUT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: release_that_runs(device) == device.linked("current") != committed)
        restarts = device.systemctl()
        assert device.run_unit(RECOVER[0]).returncode == 0
        assert device.systemctl() == restarts and device.linked("current") != committed  # the trial decides
        os.kill(installer(device), signal.SIGKILL)
        said = host.communicate(timeout=60)[1]
    finally:
        host.kill()
    assert host.returncode == 1 and said.count("devices: ") == 1
    assert device.linked("current") != committed and release_that_runs(device) == device.linked("current")
    done = device.run_unit(RECOVER[0])
    assert done.returncode == 0 and "went back from" in done.stderr
    assert device.linked("current") == device.linked("committed") == committed
    wait_for(lambda: release_that_runs(device) == committed)
    restarts = device.systemctl()
    assert restarts[-1] == f"restart --no-block {SERVICE}"
    assert device.run_unit(RECOVER[0]).returncode == 0 and device.systemctl() == restarts


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def release_that_runs(device: Device) -> str | None:
    """None: no service listens."""
    try:
        status = json.loads((device.folder / "status.json").read_text())
    except FileNotFoundError:
        return None
    return status["release"] if status["state"] == "listening" else None


def installer(device: Device) -> int:
    """The process on the device that tries the release."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if {"toolkit.ota", "try", str(device.root)} <= {*words}:
            return int(path.parent.name)
    raise AssertionError("no trial is under way")


def test_systemd_takes_the_units_and_finds_little_exposed(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sh").chmod(0o755)
    for name in RECOVER:
        shutil.copy(FOLDER / name, units)
    for name in RECOVER:
        verify = ["systemd-analyze", f"--root={tmp_path}", "--recursive-errors=no", "verify", units / name]
        done = subprocess.run(verify, capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")  # for a misspelt key it prints, and returns 0
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=13", FOLDER / RECOVER[0]],
                          capture_output=True, text=True)  # in tenths: 1.3 of 10
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


# --- what deploy installs -------------------------------------------------------------------------


def test_updates_are_switched_on_stay_and_are_switched_off(desk, device, capsys):
    conf = device.folder / "etc" / "edge-audio" / "update.conf"
    status, result, said = command(device, desk.order("0.5.0", "--update-url", URL, "--dry-run"), capsys)
    assert status == 0 and not conf.exists() and len(list(device.units.iterdir())) == 3
    options = f"--profile board --root {device.root}"
    wanted = f"updates: none -> {URL} {options}"
    assert result["changes"] == [f"unit {UPDATE[0]}: new", f"unit {UPDATE[1]}: new", wanted] and wanted in said
    service = release_process(device)
    status, result, _ = command(device, desk.order("0.5.0", "--update-url", URL), capsys)
    assert status == 0 and result["committed"] and not result["is_noop"] and wanted in result["changes"]
    assert device.systemctl()[-1] == f"enable --quiet --now {RECOVER[1]} {UPDATE[1]}"
    assert release_process(device) == service  # it heard nothing of all this
    for more in ([], ["--update-url", URL]):
        for _ in range(3):  # on a starved machine a service may seem unwell for a moment: it is then tried anew
            before = device.systemctl()
            status, result, _ = command(device, desk.order("0.5.0", *more), capsys)
            assert status == 0 and result["committed"] and result["changes"] == []
            if result["is_noop"]:
                break
        assert result["is_noop"] and device.systemctl() == before
    status, result, _ = command(device, desk.order("0.5.0", "--update-url", "file:///media/stick"), capsys)
    assert result["changes"] == [f"updates: {URL} {options} -> file:///media/stick {options}"]
    done = device.run_unit(UPDATE[0])
    assert done.returncode == 1 and "file:///media/stick/index.sig: there is no such file" in done.stderr
    status, result, _ = command(device, desk.order("0.5.0", "--update-url", "off"), capsys)
    assert status == 0 and len(result["changes"]) == 3 and result["changes"][0].endswith("-> none")
    assert not conf.exists() and {path.name for path in device.units.iterdir()} == {SERVICE, *RECOVER}
    assert {path.name for path in (device.folder / "enabled").iterdir()} == {SERVICE, RECOVER[1]}
    assert command(device, desk.order("0.5.0", "--update-url", "off"), capsys)[1]["is_noop"]


def release_process(device: Device) -> int:
    return json.loads((device.folder / "status.json").read_text())["pid"]


def test_units_that_differ_are_replaced(desk, device, capsys):
    """The service then starts anew, for it is to run as its unit says; units that are not enabled will be."""
    service = release_process(device)
    text = (device.units / SERVICE).read_text()
    (device.units / SERVICE).write_text(text.replace("TasksMax=32", "TasksMax=16"))
    (device.units / RECOVER[0]).unlink()
    (device.folder / "enabled" / RECOVER[1]).unlink()
    status, result, _ = command(device, desk.order(), capsys)
    assert status == 0 and result["changes"] == [f"unit {SERVICE}: replaced", f"unit {RECOVER[0]}: new",
                                                 f"unit {RECOVER[1]}: enabled"]
    assert (device.units / SERVICE).read_text() == text and release_process(device) != service
    assert (device.folder / "enabled" / RECOVER[1]).exists()
    assert command(device, desk.order(), capsys)[1]["is_noop"]


@pytest.mark.parametrize("url", [
    "", "updates.example.org", "ftp://a/b", "https:///site", "https://a/b?c", "https://a b", "https://user:password@a/b",
    "file://a/b", "https://a/b\nX=1", "https://a/\\b", "https://a/'b", "https://ä/b", "none"])
def test_no_update_url(url, capsys):
    assert "expected https://HOST/PATH" in url_problem(url)
    assert main(["deploy", "rpi4", "kws", "--host", "pi@hall", "--update-url", url]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("url", [
    URL, "http://10.0.0.1:8080", "https://[fe80::1]/a%20b/~c", "file:///media/stick", "off"])
def test_an_update_url(url):
    assert url_problem(url) is None
