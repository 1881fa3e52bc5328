"""A fleet of 50 simulated devices: canary, soak, waves, the first that is not well; and what the inventory may say."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bundle_factory import OWNER, make_bundle

from devices import fleet
from devices.ssh import ConnectionLost
from devices.units import FOLDER, RECOVER, SERVICE, UNITS
from toolkit.errors import DeployError, EdgeAudioError

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
RUNTIME = {"wheel": "edge_audio_toolkit-0.1.0-py3-none-linux_aarch64.whl", "sha256": "ab" * 32, "requirements": [],
           "system_site_packages": False}
FIRST = {"schema": 1, "runtime": RUNTIME, "bundles": [{"name": "kws", "version": "0.1.0", "sha256": "00" * 32}],
         "listen": {"device": None, "channel": 0, "threshold": None}}
FACTS = """machine=aarch64
python=3.11 64 aarch64
venv=ok
glibc=glibc 2.36
free_kb=4000000
uid=0
user=root
audio_group=audio:x:29:
sudo=
capture=1
arecord=1
systemctl=/usr/bin/systemctl
flock=/usr/bin/flock
busy=
"""


@dataclass
class Simulated:
    """A device with a committed release, behind the interface of devices/ssh.py. What it does in a trial is its nature:

    well, goes back, drops (the connection, in the trial), unreachable, sickens (is committed, and then falls deaf)
    """

    target: str
    nature: str = "well"
    committed: str = "release-1"
    release: dict = field(default_factory=lambda: FIRST)
    staged: dict | None = None
    trials: int = 0

    @property
    def version(self) -> str:
        return self.release["bundles"][0]["version"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, command, stdin=b"", on_sent=None):
        if self.nature == "unreachable":
            raise ConnectionLost(f"{self.target}: no connection (Connection timed out); is it switched on?")
        for pattern, answer in self.ANSWERS:
            if found := re.search(pattern, command):
                status, out = 0, answer(self, found, stdin)
                if isinstance(out, tuple):
                    status, out = out
                return subprocess.CompletedProcess(command, status, out, "")
        raise AssertionError(f"the simulated device does not know {command!r}")

    def read(self, found, stdin):
        assert found[1].endswith("release.json")
        return base64.b64encode(json.dumps(self.release).encode()).decode()

    def units(self, found, stdin):
        files = [f"{UNITS}/{name} {base64.b64encode((FOLDER / name).read_bytes()).decode()}" for name in
                 (SERVICE, *RECOVER)]
        return "\n".join([*files, f"enabled {SERVICE}", f"enabled {RECOVER[1]}"])

    def status(self, found, stdin):
        deaf_s = 60.0 if self.nature == "sickens" and self.trials else 0.1
        return "1000\n" + json.dumps({
            "current": self.committed, "committed": self.committed, "is_trial": False, "outcome": None,
            "service": {"release": self.committed, "time": 1000, "state": "listening", "last_audio_age_s": 0.0,
                        "deaf_s": deaf_s, "sentence": None, "bundles": [{"name": "kws", "version": self.version}]}})

    def stage(self, found, stdin):
        self.staged = json.loads(stdin)
        return json.dumps({"release": "release-2", "is_new": True})

    def attempt(self, found, stdin):
        self.trials += 1
        if self.nature == "drops":
            raise ConnectionLost(f"{self.target}: the connection was lost")
        if self.nature == "goes back":
            return 1, json.dumps({"release": "release-2", "committed": False, "is_noop": False, "reason": "it is deaf"})
        is_noop = self.committed == "release-2"
        self.committed, self.release = "release-2", self.staged
        return json.dumps({"release": "release-2", "committed": True, "is_noop": is_noop, "reason": None})

    def go_back(self, found, stdin):
        self.committed, self.release = "release-1", FIRST
        return json.dumps({"release": "release-1", "committed": True, "is_noop": False, "reason": None})

    ANSWERS = (
        ("uname -m", lambda self, found, stdin: FACTS),
        (r"base64 (\S+);", read), ("is-enabled", units),
        (r"/trust", lambda self, found, stdin:
            f"owner.pub {base64.b64encode(OWNER.public_key().to_text().encode()).decode()}"),
        (r"toolkit.ota status", status), (r"toolkit.ota stage", stage), (r"toolkit.ota try (\S+)", attempt),
        (r"toolkit.ota rollback", go_back),
        (r"toolkit.ota missing", lambda self, found, stdin: json.dumps(
            {"missing": [{"sha256": json.loads(stdin)["bundles"][0]["sha256"], "received_bytes": 100}]})),
        (r"toolkit.ota receive", lambda self, found, stdin: "{}"),
        (r"toolkit.ota runtime", lambda self, found, stdin: json.dumps({"python": "/opt/x/bin/python"})),
        (r"toolkit.ota clean", lambda self, found, stdin: "{}"),
    )


@dataclass
class Fleet:
    """50 devices and the command on them."""

    folder: Path
    devices: dict[str, Simulated]
    capsys: pytest.CaptureFixture
    slept_s: list[float] = field(default_factory=list)
    at_sleep: dict[int, Callable[[], None]] = field(default_factory=dict)  # what happens in the n-th

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.at_sleep.get(len(self.slept_s), lambda: None)()

    def run(self, *words: str) -> tuple[EdgeAudioError | None, list[dict], str]:
        """(the error it ended with, its JSON lines, what people read)."""
        import argparse
        parser = argparse.ArgumentParser()
        fleet.add_command(parser.add_subparsers())
        error = None
        try:
            fleet.run(parser.parse_args(["fleet", str(self.folder / "fleet.yaml"), *words]),
                      lambda host: self.devices[host.name], self.sleep)
        except EdgeAudioError as caught:
            error = caught
        out, err = self.capsys.readouterr()
        return error, [json.loads(line) for line in out.splitlines()], err

    def versions(self) -> list[str]:
        return [device.version for device in self.devices.values()]


@pytest.fixture
def fifty(tmp_path, capsys):
    make_bundle(tmp_path / "kws.eab", OWNER, version="0.2.0")
    names = [f"pi@room-{number}" for number in range(50)]
    hosts = [f"  {name}: {{group: {'odd' if number % 2 else 'even'}}}" for number, name in enumerate(names)]
    (tmp_path / "fleet.yaml").write_text("\n".join([
        "schema: 1", "defaults: {profile: rpi4, bundles: [kws.eab]}", "groups: {even: {}, odd: {channel: 1}}", "hosts:",
        *hosts]))
    return Fleet(tmp_path, {name: Simulated(name) for name in names}, capsys)


def test_all_well(fifty):
    error, rows, said = fifty.run("deploy")
    assert error is None
    assert [row["host"] for row in rows] == list(fifty.devices)
    assert {row["state"] for row in rows} == {"updated"} and fifty.versions() == ["0.2.0"] * 50
    assert {(row["release"], row["bundles"]["kws"]) for row in rows} == {("release-2", "0.2.0")}
    assert sum(fifty.slept_s) == 60  # the canary soaks, the waves do not
    waves = re.findall(r"^(?:canary|wave \d+): (.*)$", said, re.M)
    assert waves[:2] == ["pi@room-0", "pi@room-1, pi@room-2, pi@room-3, pi@room-4, pi@room-5"]
    assert "wave 10: " in said and "wave 11" not in said and len(waves) == 11
    assert {device.staged["listen"]["channel"] for device in fifty.devices.values()} == {0, 1}


@pytest.mark.parametrize("nature, state, reason", [
    ("goes back", "went back", "it is deaf"), ("drops", "unreachable", "lost while the release was being tried"),
    ("unreachable", "unreachable", "Connection timed out"), ("sickens", "unhealthy", "hears nothing live for 60 s")])
def test_a_bad_canary_stops_everything(fifty, nature, state, reason):
    fifty.devices["pi@room-0"].nature = nature
    error, rows, said = fifty.run("deploy")
    assert isinstance(error, DeployError) and error.exit_code == 1
    assert re.match(r"halted: of 50 devices 1 failed and 49 were not touched; the first is pi@room-0: .+", str(error))
    assert rows[0]["state"] == state and reason in rows[0]["reason"]
    assert [row["state"] for row in rows[1:]] == ["untouched"] * 49
    assert {row["bundles"]["kws"] for row in rows[1:]} == {"0.1.0"}  # what they have now was asked
    assert all(device.trials == 0 for name, device in fifty.devices.items() if name != "pi@room-0")
    assert "wave" not in said.split("host")[0] and "untouched" in said


def test_a_canary_that_falls_ill_while_it_soaks_stops_everything(fifty):
    fifty.at_sleep[7] = lambda: setattr(fifty.devices["pi@room-0"], "nature", "sickens")
    error, rows, _ = fifty.run("deploy")
    assert rows[0]["state"] == "unhealthy" and len(fifty.slept_s) == 7 and "49 were not touched" in str(error)


def test_a_bad_device_in_a_wave_stops_what_has_not_begun(fifty):
    """Canary 1, waves of 5: room-13 is in wave 3 (11 to 15), whose others still end; room-16 on are never touched."""
    fifty.devices["pi@room-13"].nature = "goes back"
    error, rows, _ = fifty.run("deploy")
    states = [row["state"] for row in rows]
    assert states == ["updated"] * 13 + ["went back"] + ["updated"] * 2 + ["untouched"] * 34
    assert fifty.versions() == ["0.2.0"] * 13 + ["0.1.0"] + ["0.2.0"] * 2 + ["0.1.0"] * 34
    assert rows[13]["bundles"] == {"kws": "0.1.0"} and rows[13]["release"] == "release-1"
    assert "of 50 devices 1 failed and 34 were not touched" in str(error)
    fifty.devices["pi@room-13"].nature = "well"  # repaired: the same command goes on
    error, rows, _ = fifty.run("deploy")
    assert error is None and fifty.versions() == ["0.2.0"] * 50


def test_a_mixed_fleet_with_patience(fifty):
    natures = {"pi@room-3": "unreachable", "pi@room-9": "drops", "pi@room-20": "goes back"}
    for name, nature in natures.items():
        fifty.devices[name].nature = nature
    pace = ("--continue-after", "3", "--wave-size", "10", "--canary", "2", "--soak-s", "0")
    error, rows, said = fifty.run("deploy", *pace)
    assert error is None and fifty.slept_s == []
    bad = {row["host"]: row["state"] for row in rows if row["state"] != "updated"}
    assert bad == {"pi@room-3": "unreachable", "pi@room-9": "unreachable", "pi@room-20": "went back"}
    assert rows[3]["release"] is None and "Connection timed out" in rows[3]["reason"]
    assert "wave 5: " in said and "wave 6" not in said
    error, rows, _ = fifty.run("status")
    assert str(error) == "1 of 50 devices are not well: pi@room-3"
    assert [row["state"] for row in rows].count("healthy") == 49


def test_the_same_again_changes_nothing(fifty):
    fifty.run("deploy", "--soak-s", "0")
    error, rows, said = fifty.run("deploy", "--soak-s", "0", "--only", "pi@room-0", "odd")
    assert error is None and len(rows) == 26 and {row["state"] for row in rows} == {"unchanged"}
    assert "sending" not in said


def test_rollback_of_a_group(fifty):
    fifty.run("deploy", "--soak-s", "0")
    error, rows, _ = fifty.run("rollback", "--only", "even", "--canary", "0")
    assert error is None and {row["state"] for row in rows} == {"updated"}
    assert fifty.versions() == ["0.1.0", "0.2.0"] * 25


def test_a_bundle_that_is_bad_stops_it_before_the_first_connection(fifty):
    path = fifty.folder / "kws.eab"
    path.write_bytes(path.read_bytes()[:-1])
    for device in fifty.devices.values():
        device.nature = "unreachable"
    error, rows, _ = fifty.run("deploy")
    assert "cut short" in str(error) and rows == []


def test_an_error_of_ours_in_one_thread_is_that_device_s_alone(fifty):
    fifty.devices["pi@room-1"].stage = None
    fifty.devices["pi@room-1"].ANSWERS = Simulated.ANSWERS[:3]
    error, rows, _ = fifty.run("deploy", "--canary", "0", "--continue-after", "1", "--soak-s", "0")
    assert error is None and rows[1]["state"] == "failed" and "AssertionError: the simulated" in rows[1]["reason"]
    assert [row["state"] for row in rows].count("updated") == 49
