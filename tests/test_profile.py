"""Device profiles: those of the checkout are read, name themselves, and give a reason for every limit."""

import json
import re

import pytest

from devices.__main__ import main
from toolkit.errors import ConfigError
from toolkit.profile import FOLDER, DeviceProfile, load_profile

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
FILES = sorted(FOLDER.glob("*.yaml"))
LIMITS = ("flash_bytes", "ram_bytes", "macs_per_second", "hop_deadline_ms")


def test_there_are_boards_microcontrollers_and_hubs():
    profiles = [load_profile(path.stem) for path in FILES]
    assert {"aarch64", "armv7", "xtensa"} <= {profile.architecture for profile in profiles}
    assert {profile.is_firmware for profile in profiles} == {True, False}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_limit_has_its_reason_and_every_board_its_source(path):
    text = path.read_text("utf-8")
    assert "Board facts: " in text or "The class: " in text
    for name in LIMITS:
        assert re.search(rf"^{name}: \d+ +# our choice: .{{20,}}", text, re.M), f"{path.name}: {name} has no reason"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_by_name_and_by_file_are_the_same(path):
    assert load_profile(path.stem) == load_profile(path) == load_profile(str(path))


def test_a_profile_may_lie_anywhere(tmp_path):
    path = tmp_path / "kitchen-hub.yaml"
    path.write_text((FOLDER / "linux-hub.yaml").read_text().replace("name: linux-hub", "name: kitchen-hub"))
    profile = load_profile(path)
    assert isinstance(profile, DeviceProfile) and profile.name == "kitchen-hub" and not profile.is_firmware


def test_an_unknown_name_gets_the_nearest_or_all():
    with pytest.raises(ConfigError, match="no device profile 'rpi-zero2'; did you mean rpi-zero2w?"):
        load_profile("rpi-zero2")
    with pytest.raises(ConfigError, match=r"known are esp32-s3, .*rpi4.*, or name a \.yaml file"):
        load_profile("commodore")


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("ram_bytes: ", "ram_bites: ", "did you mean ram_bytes?"),
        ("ram_bytes: ", "ram_bytes: -", "ram_bytes is -6000000: expected an integer of at least 1"),
        ("transport: image", "transport: pigeon", "transport is 'pigeon'"),
        ("name: linux-hub", "name: another", "name is 'another': expected 'hub', that of the file"),
        ("board: ", "# ", "board is missing"),
    ],
)
def test_a_mistake_is_one_sentence_with_file_and_place(tmp_path, old, new, said):
    path = tmp_path / "hub.yaml"
    text = (FOLDER / "linux-hub.yaml").read_text()
    assert old in text
    path.write_text(text.replace(old, new).replace("name: linux-hub", "name: hub"))
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml cannot be read"):
        load_profile(tmp_path / "nowhere.yaml")


def test_the_list_of_profiles(capsys):
    assert main(["list"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["name"] for one in found] == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert {"rpi4", "esp32-s3"} <= {one["name"] for one in found}
