"""Deployment over a real sshd, to a real root with the real runtime and service (what is fake: tests/fake_device.py).

One fresh installation is made, and tried on; every other test works on a copy of that device, its service running.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from bundle_factory import STRANGER
from fake_device import HEALTH_S, command, make_device, make_version

from devices import deploy
from devices.__main__ import main
from devices.plan import Order
from devices.units import RECOVER, SERVICE

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
pytest_plugins = ["deploy_fixtures"]


# --- what works -----------------------------------------------------------------------------------


def test_fresh_installation(first):
    device, done = first
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["committed"] and not result["is_noop"] and result["reason"] is None
    assert device.linked("current") == device.linked("committed") == result["release"]
    assert device.bundles() == {"kws": "0.5.0"} and device.linked("previous") is None
    assert [line.split()[0] for line in device.systemctl()] == ["daemon-reload", "enable", "enable", "restart"]
    assert {path.name for path in device.units.iterdir()} == {SERVICE, *RECOVER}
    assert all(str(device.root / "boot") in (device.units / name).read_text() for name in (SERVICE, RECOVER[0]))
    assert {path.name for path in (device.folder / "enabled").iterdir()} == {SERVICE, RECOVER[1]}
    assert [path.name for path in (device.root / "trust").iterdir()] == ["one key.pub"]
    assert not list((device.root / "incoming").iterdir())
    for said in ("bundle kws: new, 0.5.0", "runtime: new, edge_audio_toolkit", "sending 0.5.0.eab", "runs the release"):
        assert said in done.stderr


def test_the_same_again_is_a_no_op(desk, device, capsys):
    before, restarts = device.snapshot(), device.systemctl()
    order = [*desk.order(), *desk.runtime, "--trust", str(desk.folder / "trust")]
    status, result, said = command(device, order, capsys)
    assert status == 0 and result["is_noop"] and result["committed"] and result["sent_bytes"] == 0
    assert device.snapshot() == before and device.systemctl() == restarts
    assert "nothing changes" in said and "nothing was changed" in said


def test_a_service_that_does_not_run_is_no_no_op(desk, device, capsys):
    subprocess.run([device.folder / "bin" / "systemctl", "stop"], check=True, env=device.environment)
    assert command(device, ["status"], capsys)[1]["problem"].startswith("the service is not running")
    status, result, _ = command(device, desk.order(), capsys)
    assert status == 0 and not result["is_noop"] and device.systemctl()[-1].startswith("restart")
    assert command(device, ["status"], capsys)[1]["problem"] is None


def test_model_only_update_and_rollback(desk, device, capsys):
    """Without --wheel: the runtime stays; then back, and forth again, for a rollback can be rolled back."""
    first_release, runtime = device.linked("committed"), os.readlink(device.root / "current" / "runtime")
    status, result, said = command(device, desk.order("0.6.0"), capsys)
    assert status == 0 and result["changes"] == ["bundle kws: 0.5.0 -> 0.6.0"]
    assert result["sent_bytes"] == (desk.folder / "0.6.0.eab").stat().st_size and "runtime" not in said
    assert device.bundles() == {"kws": "0.6.0"} and device.linked("previous") == first_release
    assert os.readlink(device.root / "current" / "runtime") == runtime
    status, result, _ = command(device, ["rollback", "--health-s", HEALTH_S], capsys)
    assert status == 0 and result["release"] == first_release == device.linked("committed")
    status, answer, said = command(device, ["status"], capsys)
    assert status == 0 and answer["problem"] is None and answer["service"]["bundles"][0]["version"] == "0.5.0"
    assert answer["floor"] == {"kws": "0.6.0"}  # a rollback is the device's own; nobody may bring the old one again
    status, _, said = command(device, ["rollback", "--health-s", HEALTH_S], capsys)
    assert status == 0 and device.bundles() == {"kws": "0.6.0"}


def test_upgrade_of_the_runtime(desk, device, tmp_path, capsys):
    """Another set of wheels is another environment, beside the old one."""
    needed = tmp_path / "needed"
    needed.mkdir()
    for path in desk.needed.iterdir():  # the same wheel with other bytes: zip readers allow a prefix
        (needed / path.name).write_bytes(b"\n" + path.read_bytes())
    before = os.readlink(device.root / "current" / "runtime")
    order = [*desk.order("0.6.0"), "--wheel", str(desk.wheel), "--requirements", str(needed), "--threshold", "0.75"]
    status, result, said = command(device, order, capsys)
    assert status == 0, said
    assert result["changes"][0] == "bundle kws: 0.5.0 -> 0.6.0"
    assert result["changes"][-1] == "threshold: default -> 0.75"
    assert os.readlink(device.root / "current" / "runtime") != before and len(result["changes"]) == 4
    assert len(list((device.root / "runtimes").iterdir())) == 2  # the previous release keeps its own


def test_dry_run_changes_nothing(desk, device, capsys):
    before = device.snapshot()
    status, result, said = command(device, [*desk.order("0.6.0", "--dry-run"), "--channel", "1"], capsys)
    assert status == 0 and result["is_dry_run"] and device.snapshot() == before
    assert result["changes"] == ["bundle kws: 0.5.0 -> 0.6.0", "channel: 0 -> 1"]
    assert "bundle kws: 0.5.0 -> 0.6.0\nchannel: 0 -> 1\n" in said


def test_dry_run_of_a_first_installation(desk, tmp_path, capsys):
    with make_device(tmp_path / "bare") as device:
        order = [*desk.order(), *desk.runtime, "--trust", str(desk.folder / "trust"), "--dry-run"]
        status, result, _ = command(device, order, capsys)
        assert status == 0 and len(result["changes"]) == 6 and not device.root.exists()
        status, _, said = command(device, desk.order(), capsys)
        assert status == 1 and "has no runtime yet: name the toolkit's wheel with --wheel" in said
        status, _, said = command(device, [*desk.order(), *desk.runtime], capsys)
        assert status == 1 and "trusts nobody yet" in said and not device.root.exists()
        assert command(device, ["rollback"], capsys)[0] == 1
        assert command(device, ["status"], capsys)[1]["problem"] == "no release was committed; deploy one"


def test_as_a_user_with_sudo(desk, device, capsys):
    """Fake are `id`, and a `sudo` that writes down that it was asked."""
    programs = device.folder / "bin"
    for name, text in (("id", "case $1 in -u) echo 1000;; *) echo pi;; esac"),
                       ("sudo", f'shift; echo "$1" >> {device.folder}/sudo.log; exec "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    status, result, _ = command(device, desk.order("0.6.0"), capsys)
    assert status == 0 and result["committed"] and "sh" in (device.folder / "sudo.log").read_text().split()
    (programs / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n")
    status, _, said = command(device, desk.order("0.5.0", "--allow-older"), capsys)
    assert status == 1 and "pi is not root and sudo asks for a password" in said and "sudoers.d" in said


def test_logs(device, capfd):
    (device.folder / "bin" / "journalctl").write_text('#!/bin/sh\necho "{\\"label\\": \\"yes\\"}"; echo "$*" >&2\n')
    (device.folder / "bin" / "journalctl").chmod(0o755)
    assert main(["logs", "-f", "-n", "7", *device.arguments]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"label": "yes"} and err.endswith("-u edge-audio-update -o cat -n 7 -f\n")


# --- what is refused, and leaves the device as it was ---------------------------------------------


def test_old_version(desk, unharmed, capsys):
    status, result, said = command(unharmed, desk.order("0.4.0"), capsys)
    assert status == 1 and result is None and "kws 0.4.0 is below 0.5.0" in said and "--allow-older" in said


def test_old_version_on_purpose(desk, device, capsys):
    status, result, _ = command(device, desk.order("0.4.0", "--allow-older"), capsys)
    assert status == 0 and device.bundles() == {"kws": "0.4.0"}


def test_wrong_key(desk, unharmed, capsys, monkeypatch):
    make_version(desk.folder / "9.0.0.eab", "9.0.0", STRANGER)
    status, _, said = command(unharmed, desk.order("9.0.0"), capsys)
    assert status == 1 and "signed by the key" in said and "sending" not in said
    monkeypatch.setattr(Order, "check_signatures", lambda self, keys: None)  # a host that does not look; devices do
    status, _, said = command(unharmed, desk.order("9.0.0"), capsys)
    assert status == 1 and "sending 9.0.0.eab" in said and "not among the 1 trusted ones" in said


def test_failing_self_test(desk, unharmed, capsys):
    make_version(desk.folder / "0.7.0.eab", "0.7.0", breaks="selftest_features")
    status, _, said = command(unharmed, desk.order("0.7.0"), capsys)
    assert status == 1 and "kws 0.7.0 fails its self-test on this device" in said


@pytest.mark.parametrize("mood, reason", [("deaf 0.6.0", "constant signal"), ("silent 0.6.0", "delivers no samples")])
def test_failing_health_gate(desk, unharmed, capsys, mood, reason):
    unharmed.set_mood(mood)
    arguments = desk.order("0.6.0")
    arguments[arguments.index("--health-s") + 1] = "4"
    status, result, said = command(unharmed, arguments, capsys)
    assert status == 1 and result["committed"] is False and reason in result["reason"]
    assert "went back from the release" in said and result["reason"] in said


def test_full_disk(desk, first, tmp_path, capsys, monkeypatch):
    """A root on a file system of 3 MB that is nearly full: pre-flight says so; and if that erred, the device itself."""
    with make_device(tmp_path / "device") as device:
        device.root.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(device.root)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("only root, where it may mount, can make a small file system")
        try:
            device.copy_from(first[0])
            (device.root / "filler").write_bytes(bytes(os.statvfs(device.root).f_bavail * 4096 - 200_000))
            before = device.linked("committed")
            status, _, said = command(device, desk.order("0.6.0"), capsys)
            assert status == 1 and "MiB are free where" in said and "make room" in said
            monkeypatch.setattr(deploy, "problems", lambda *_: [])
            status, _, said = command(device, desk.order("0.6.0"), capsys)
            assert status == 1 and "free some space" in said
            assert device.linked("committed") == device.linked("current") == before
            (device.root / "filler").unlink()
            assert command(device, desk.order("0.6.0"), capsys)[0] == 0
        finally:
            subprocess.run([device.folder / "bin" / "systemctl", "stop"], check=True, env=device.environment)
            subprocess.run(["umount", device.root], check=True)


def test_ssh_that_lets_nobody_in(desk, device, tmp_path, capsys):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    for option, value, said in (("--identity", str(tmp_path / "other"), "Permission denied"),
                                ("--port", "1", "refused"),
                                ("--ssh-option", "UserKnownHostsFile=/dev/null", "compare the fingerprint")):
        arguments = device.arguments
        arguments[arguments.index(option) + 1] = value
        status = main(["status", *arguments])
        err = capsys.readouterr().err
        assert status == 1 and said in err and len(err.splitlines()) == 1
    assert main(["status", "--host=-oProxyCommand=true"]) == 2
