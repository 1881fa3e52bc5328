"""A fleet of three real sshds, each a device of its own (tests/fake_device.py): canary, wave, halt, and on."""

from __future__ import annotations

import getpass
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from fake_device import ETC, make_device

from devices.__main__ import main

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
pytest_plugins = ["deploy_fixtures"]
NAMES = ("hall", "kitchen", "attic")
PACE = ("--wave-size", "1", "--soak-s", "1", "--health-s", "10", *ETC)


@pytest.fixture
def three(first, tmp_path):
    """Devices with 0.5.0, by the names that the inventory has for them."""
    with ExitStack() as stack:
        devices = {name: stack.enter_context(make_device(tmp_path / name)) for name in NAMES}
        with ThreadPoolExecutor() as threads:
            [*threads.map(lambda device: device.copy_from(first[0]), devices.values())]
        yield {f"{getpass.getuser()}@{name}": device for name, device in devices.items()}


def write_inventory(folder, desk, devices) -> str:
    """All of them are at 127.0.0.1, each with a port and a key of its own."""
    hosts = {name: {"port": device.server.port, "identity": device.server.identity, "root": str(device.root),
                    "ssh_options": [*device.server.options, "HostName=127.0.0.1"]} for name, device in devices.items()}
    defaults = {"profile": str(desk.folder / "board.yaml"), "bundles": [str(desk.folder / "0.6.0.eab")],
                "update_url": "https://updates.example.org/site"}
    (folder / "fleet.yaml").write_text(json.dumps({"schema": 1, "defaults": defaults, "hosts": hosts}))  # JSON is YAML
    return str(folder / "fleet.yaml")


def test_it_halts_at_the_first_that_is_not_well_and_goes_on_when_it_is_repaired(desk, three, tmp_path, capsys):
    inventory = write_inventory(tmp_path, desk, three)
    hall, kitchen, attic = three.values()
    kitchen.set_mood("deaf 0.6.0")
    untouched = attic.snapshot(), attic.systemctl()

    assert main(["fleet", inventory, "deploy", *PACE]) == 1
    out, said = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["host"] for row in rows] == [*three]
    assert [row["state"] for row in rows] == ["updated", "went back", "untouched"]
    assert [row["bundles"]["kws"] for row in rows] == ["0.6.0", "0.5.0", "0.5.0"]  # that they say they run now
    assert "constant signal" in rows[1]["reason"] and rows[0]["reason"] is rows[2]["reason"] is None
    assert said.index(f"canary: {rows[0]['host']}") < said.index("watching") < said.index(f"wave 1: {rows[1]['host']}")
    assert "wave 2" not in said and "halted: of 3 devices 1 failed and 1 were not touched" in said.splitlines()[-1]
    assert (attic.snapshot(), attic.systemctl()) == untouched
    assert [device.linked("current") == device.linked("committed") for device in three.values()] == [True] * 3
    assert (hall.folder / "etc" / "edge-audio" / "update.conf").exists()

    kitchen.set_mood("well")
    assert main(["fleet", inventory, "deploy", *PACE]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["state"] for row in rows] == ["unchanged", "updated", "updated"]
    assert [device.bundles() for device in three.values()] == [{"kws": "0.6.0"}] * 3
    assert main(["fleet", inventory, "status"]) == 0
    assert [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()] == ["healthy"] * 3
