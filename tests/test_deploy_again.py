"""Deployment that goes on after a lost connection, and to a device whose trust changes (as tests/test_deploy.py)."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from bundle_factory import OWNER, STRANGER
from fake_device import HEALTH_S, Device, command, make_version

from devices import keyring, remote
from toolkit.errors import DeployError

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
pytest_plugins = ["deploy_fixtures"]


def test_a_command_that_is_killed_there():
    """sudo says so by status 128 + signal."""
    killed = subprocess.CompletedProcess("", 128 + signal.SIGKILL, "", "Killed\n")
    device = remote.Remote(SimpleNamespace(target="pi@hall", run=lambda *_: killed), sudo=True)
    with pytest.raises(DeployError, match=r"^pi@hall: the command was killed there \(SIGKILL\)"):
        device.ask("try", "0123456789abcdef")


# --- connections that are lost --------------------------------------------------------------------


def test_lost_in_the_middle_of_an_upload(desk, unharmed, capsys, monkeypatch):
    """Half is there, nothing runs otherwise, and the same command sends the other half."""
    progress = remote._progress

    def lose(say, name, n_bytes):
        def on_sent(sent):
            if sent >= n_bytes // 2:
                deadline = time.monotonic() + 5
                while not _received(unharmed) and time.monotonic() < deadline:
                    time.sleep(0.05)
                unharmed.server.drop_connections()
        return on_sent

    monkeypatch.setattr(remote, "_progress", lose)
    status, result, said = command(unharmed, desk.order("0.6.0"), capsys)
    assert status == 1 and result is None
    assert said.splitlines()[-1].startswith("devices: ") and "the connection was lost" in said
    size, received = (desk.folder / "0.6.0.eab").stat().st_size, _received(unharmed)
    assert 0 < received < size
    assert command(unharmed, ["status"], capsys)[1]["problem"] is None
    monkeypatch.setattr(remote, "_progress", progress)
    status, result, _ = command(unharmed, desk.order("0.6.0"), capsys)
    assert status == 0 and result["sent_bytes"] == size - received and unharmed.bundles() == {"kws": "0.6.0"}
    assert command(unharmed, ["rollback", "--health-s", HEALTH_S], capsys)[0] == 0


def _received(device: Device) -> int:
    return sum(path.stat().st_size for path in (device.root / "incoming").glob("*.part"))


@pytest.mark.parametrize("mood, ends", [("well", "0.6.0"), ("silent 0.6.0", "0.5.0")])
def test_lost_in_the_middle_of_a_trial(desk, device, capsys, mood, ends):
    """The device ends the trial alone, and the same command tells how."""
    device.set_mood(mood)
    arguments = desk.order("0.6.0")
    if ends == "0.5.0":
        arguments[arguments.index("--health-s") + 1] = "6"

    def drop():
        while device.linked("current") == device.linked("committed"):
            time.sleep(0.02)
        device.server.drop_connections()

    threading.Thread(target=drop, daemon=True).start()
    status, _, said = command(device, arguments, capsys)
    assert status == 1 and "while the release was being tried; the device ends that by itself" in said
    status, result, said = command(device, arguments, capsys)
    assert "another change is under way there" in said and device.bundles() == {"kws": ends}
    if ends == "0.6.0":
        assert status == 0 and result["is_noop"]
    else:
        assert status == 1 and "was tried without this connection, and the device went back: " in said
    assert device.linked("current") == device.linked("committed")


# --- trust ----------------------------------------------------------------------------------------


def test_other_keys(desk, device, capsys):
    """A folder of keys replaces what was trusted, before anything is staged."""
    make_version(desk.folder / "0.8.0.eab", "0.8.0", STRANGER)
    order = desk.order("0.8.0", "--trust", str(desk.folder / "strangers"))
    status, result, _ = command(device, order, capsys)
    assert status == 0 and [line.rpartition(" ")[0] for line in result["changes"][1:]] == [
        "trust: with the key", "trust: without the key"]
    status, _, said = command(device, desk.order("0.6.0", "--trust", str(desk.folder / "strangers")), capsys)
    assert status == 1 and "not among the 1 trusted ones" in said


def test_keyring(desk, device, tmp_path, capsys):
    """From keys to a keyring, to its next version; and never back."""
    root_key = tmp_path / "root.key"
    root_key.write_text(STRANGER.to_text())
    (tmp_path / "root.pub").write_text(STRANGER.public_key().to_text())
    rings = tmp_path / "rings"
    keyring.new(rings, [tmp_path / "root.pub"], [desk.folder / "trust" / "one key.pub"])
    keyring.sign_draft(rings, [root_key])
    status, result, said = command(device, desk.order("0.5.0", "--trust", str(rings)), capsys)
    assert status == 0 and result["changes"] == ["trust: version 1 of the keyring, present is none"], said
    assert command(device, ["status"], capsys)[1]["keyring_version"] == 1
    status, _, said = command(device, desk.order("0.5.0", "--trust", str(desk.folder / "strangers")), capsys)
    assert status == 1
    keyring.revoke(rings, [OWNER.public_key().key_id], "lost")
    keyring.sign_draft(rings, [root_key])
    status, _, said = command(device, desk.order("0.6.0", "--trust", str(rings)), capsys)
    assert status == 1 and "revoked (lost)" in said and device.bundles() == {"kws": "0.5.0"}
