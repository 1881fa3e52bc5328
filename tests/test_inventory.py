"""The inventory of a fleet: who wins over whom, and what a mistake in it is called."""

from __future__ import annotations

import pytest
from bundle_factory import OWNER, make_bundle

from devices.__main__ import main
from devices.inventory import make_orders, read_inventory
from toolkit.errors import ConfigError, UsageError

pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
INVENTORY = """schema: 1
defaults: {profile: rpi4, bundles: [kws], threshold: 0.5, update_url: https://updates.example.org/site}
groups:
  kitchen: {bundles: [kws, more/kettle.eab], trust: keys, wheel: a.whl}
hosts:
  pi@hall: {channel: 1, threshold: 0.7}
  pi@kitchen: {group: kitchen, port: 2222, update_url: off, ssh_options: [ProxyJump=door]}
"""


def test_what_a_host_says_wins_over_its_group_and_that_over_the_defaults(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(INVENTORY)
    hall, kitchen = read_inventory(path)
    assert (hall.name, hall.group, hall.settings.threshold, hall.settings.channel) == ("pi@hall", None, 0.7, 1)
    assert (hall.settings.update_url, kitchen.settings.update_url) == ("https://updates.example.org/site", "off")
    assert hall.settings.bundles == ("kws",) and hall.root == "/opt/edge-audio" and hall.trust is None
    assert kitchen.settings.threshold == 0.5 and kitchen.settings.port == 2222
    assert kitchen.settings.bundles == ("kws", str(tmp_path / "more/kettle.eab"))  # a path of the file's folder
    assert kitchen.trust == tmp_path / "keys" and kitchen.settings.wheel == str(tmp_path / "a.whl")
    assert [host.name for host in read_inventory(path, ["kitchen"])] == ["pi@kitchen"]


@pytest.mark.parametrize("old, new, said", [
    ("threshold: 0.7", "treshold: 0.7", "hosts.pi@hall.treshold (value 0.7) is not a known setting; did you mean"),
    ("group: kitchen", "group: kitchn", "hosts.pi@kitchen.group: there is no group 'kitchn'; did you mean kitchen?"),
    ("port: 2222", "port: 70000", "port is 70000: expected"),
    ("channel: 1", "channel: one", "hosts.pi@hall.channel is 'one'"),
    ("channel: 1", "update_url: ftp://a", "hosts.pi@hall: the update URL is 'ftp://a', expected https://HOST/PATH"),
    ("profile: rpi4, ", "", "hosts.pi@hall has no profile; name them there, in its group or in defaults"),
    ("schema: 1", "schema: 2", "schema is 2"),
    ("  pi@hall:", "  pi@kitchen:", "the key 'pi@kitchen' stands twice"),
])
def test_a_mistake_is_one_sentence_with_its_place(tmp_path, old, new, said):
    path = tmp_path / "fleet.yaml"
    assert old in INVENTORY
    path.write_text(INVENTORY.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_inventory(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_only_knows_its_names(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(INVENTORY)
    with pytest.raises(UsageError, match="pi@attic is neither a host nor a group"):
        read_inventory(path, ["pi@attic"])


def test_equal_orders_are_read_once(tmp_path):
    make_bundle(tmp_path / "kws.eab", OWNER)
    path = tmp_path / "fleet.yaml"
    hosts = "hosts: {a: {}, b: {}, c: {channel: 2}}"
    path.write_text(f"schema: 1\ndefaults: {{profile: rpi4, bundles: [kws.eab]}}\n{hosts}\n")
    orders = make_orders(read_inventory(path))
    assert orders["a"] is orders["b"] and orders["c"] is not orders["a"]


def test_the_command_line_says_what_makes_no_sense(tmp_path, capsys):
    path = tmp_path / "fleet.yaml"
    path.write_text(INVENTORY)
    assert main(["fleet", str(path), "deploy", "--wave-size", "0"]) == 2
    assert "--wave-size at least 1" in capsys.readouterr().err
    assert main(["fleet", str(tmp_path / "none.yaml"), "status"]) == 2
