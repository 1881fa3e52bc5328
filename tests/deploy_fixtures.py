"""What the tests of deployment share: the host's desk, one fresh installation, and copies of that device to work on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundle_factory import OWNER, STRANGER
from fake_device import ETC, PROFILE, Desk, command, make_device, make_version, make_wheels

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def desk(tmp_path_factory, core):
    folder = tmp_path_factory.mktemp("desk")
    for version in ("0.4.0", "0.5.0", "0.6.0"):
        make_version(folder / f"{version}.eab", version)
    for name, key in (("trust", OWNER), ("strangers", STRANGER)):
        (folder / name).mkdir()
        (folder / name / "one key.pub").write_text(key.public_key().to_text())
    (folder / "board.yaml").write_text(PROFILE)
    return Desk(folder, *make_wheels(folder))


@pytest.fixture(scope="session")
def first(desk, tmp_path_factory):
    """(a device on which 0.5.0 was installed, the lines of that command)."""
    with make_device(tmp_path_factory.mktemp("first")) as device:
        arguments = [*desk.order("0.5.0", "--trust", str(desk.folder / "trust")), *desk.runtime, *device.arguments]
        program = [sys.executable, "-m", "devices", *arguments, *ETC]
        done = subprocess.run(program, capture_output=True, text=True, cwd=CHECKOUT)
        yield device, done


@pytest.fixture
def device(first, tmp_path):
    with make_device(tmp_path / "device") as device:
        device.copy_from(first[0])
        yield device


@pytest.fixture
def unharmed(device, capsys):
    """The device as before, and well, when the test is over."""
    before = device.linked("current"), device.linked("committed"), device.bundles()
    yield device
    assert (device.linked("current"), device.linked("committed"), device.bundles()) == before
    deadline = time.monotonic() + 15  # it may have been started again a moment ago
    while (problem := command(device, ["status"], capsys)[1]["problem"]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert problem is None
