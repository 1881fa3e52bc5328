"""The inventory of a fleet: a YAML file that names each device and what it shall have.

    schema: 1
    defaults: {profile: rpi-zero2w, bundles: [bundles/kws.eab], trust: keys}
    groups:
      kitchen: {bundles: [bundles/kws.eab, bundles/kettle.eab], threshold: 0.7}
    hosts:
      pi@kitchen-1: {group: kitchen}
      pi@hall: {channel: 1}

What a host says wins over its group, a group over the defaults. Paths are relative to the file.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.plan import Order, make_order
from devices.remote import ROOT
from devices.ssh import Ssh
from devices.units import NEVER, url_problem
from toolkit.config import load_config, setting
from toolkit.errors import ConfigError, UsageError
from toolkit.profile import load_profile


@dataclass(frozen=True)
class Settings:
    """What a device shall have, and how it is reached; nothing said: what the level above says."""

    profile: str | None = setting(None, doc="name in devices/profiles, or a .yaml file")
    bundles: tuple[str, ...] | None = setting(None, doc="paths, or names of released bundles")
    wheel: str | None = setting(None, doc="the toolkit's; nothing: the runtime there stays")
    requirements: str | None = setting(None, doc="folder of wheels that it needs; nothing: pip asks its index")
    trust: str | None = setting(None, doc="folder of public keys or keyrings; nothing: as the device did before")
    device: str | None = setting(None, doc="microphone: index or part of its name; nothing: the profile's")
    channel: int | None = setting(None, low=0, high=63, doc="of the microphone; nothing: 0")
    threshold: float | None = setting(None, low=0, high=1, doc="of detections; nothing: the bundle's")
    update_url: str | None = setting(None, doc=f"from where it fetches later releases itself, or {NEVER}; nothing: as "
                                               "before")
    root: str | None = setting(None, doc=f"folder of all releases there; nothing: {ROOT}")
    port: int | None = setting(None, low=1, high=65535, doc="of its sshd; nothing: ssh's own choice")
    identity: str | None = setting(None, doc="private key; nothing: ssh's own choice")
    ssh_options: tuple[str, ...] | None = setting(None, doc="as ssh -o takes them")

    def __post_init__(self) -> None:
        if self.update_url is not None and (problem := url_problem(self.update_url)):
            raise ConfigError(problem)


@dataclass(frozen=True)
class HostSettings(Settings):
    """The same, and where the rest comes from."""

    group: str | None = setting(None, doc="one of the groups")


@dataclass(frozen=True)
class Inventory:
    """The file."""

    schema: int = setting(choices=(1,), doc="version of this format")
    hosts: dict[str, HostSettings] = setting(doc="by USER@HOST, in the order in which they are changed")
    defaults: Settings = setting(Settings(), doc="for all hosts")
    groups: dict[str, Settings] = setting({}, doc="by name, for their hosts")

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ConfigError("hosts: names none, expected USER@HOST with its settings ({} if it has none)")
        for name, host in self.hosts.items():
            if host.group is not None and host.group not in self.groups:
                near = difflib.get_close_matches(host.group, self.groups, 1)
                raise ConfigError(f"hosts.{name}.group: there is no group {host.group!r}; " + (
                    f"did you mean {near[0]}?" if near else f"groups are {', '.join(self.groups) or '(none)'}"))


@dataclass(frozen=True)
class Host:
    """A device of the fleet, with nothing left to look up."""

    name: str
    group: str | None
    settings: Settings

    @property
    def root(self) -> str:
        return self.settings.root or ROOT

    @property
    def trust(self) -> Path | None:
        return Path(self.settings.trust) if self.settings.trust else None

    def connect(self) -> Ssh:
        settings = self.settings
        return Ssh(self.name, settings.port, settings.identity, settings.ssh_options or ())


def read_inventory(path: Path, only: Sequence[str] = ()) -> list[Host]:
    """The hosts of the file, or those that ``only`` names by host or group; ConfigError, UsageError."""
    inventory = load_config(path, Inventory)
    unknown = set(only) - inventory.hosts.keys() - inventory.groups.keys()
    if unknown:
        raise UsageError(f"{path}: {', '.join(sorted(unknown))} is neither a host nor a group of it")
    hosts = []
    for name, own in inventory.hosts.items():
        if only and name not in only and own.group not in only:
            continue
        levels = (own, inventory.groups.get(own.group), inventory.defaults)
        values = {field.name: next((value for level in levels if level is not None
                                    and (value := getattr(level, field.name)) is not None), None)
                  for field in dataclasses.fields(Settings)}
        for key in ("profile", "bundles"):
            if not values[key]:
                raise ConfigError(f"{path}: hosts.{name} has no {key}; name them there, in its group or in defaults")
        hosts.append(Host(name, own.group, Settings(**_resolve(values, path.parent))))
    if not hosts:
        raise UsageError(f"{path}: {', '.join(only)} names no host")
    return hosts


def make_orders(hosts: Sequence[Host]) -> dict[str, Order]:
    """The order of every host, by name, files read once for all that want the same; errors as ``make_order``."""
    made: dict[tuple, Order] = {}
    orders = {}
    for host in hosts:
        wants = host.settings
        wheel, requirements = (Path(path) if path else None for path in (wants.wheel, wants.requirements))
        options = (wants.device, wants.channel or 0, wants.threshold)
        key = (wants.profile, wants.bundles, wheel, requirements, options)
        if key not in made:
            made[key] = make_order(load_profile(wants.profile), wants.bundles, wheel, requirements, *options)
        orders[host.name] = made[key]
    return orders


def _resolve(values: dict, folder: Path) -> dict:
    """Paths made relative to ``folder``; names of profiles and of released bundles stay."""
    paths = {key: str(folder / Path(values[key]).expanduser()) for key in ("wheel", "requirements", "trust", "identity")
             if values[key] is not None}
    bundles = tuple(str(folder / name) if name.endswith(".eab") else name for name in values["bundles"])
    profile = values["profile"]
    profile = str(folder / profile) if profile.endswith((".yaml", ".yml")) else profile
    return {**values, **paths, "bundles": bundles, "profile": profile}
