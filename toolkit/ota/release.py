"""release.json: what a device is to run, every file by its SHA-256; and the order of versions.

(This file does without ``from __future__ import annotations``: ``decode`` reads the types of the fields as objects.)
"""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from toolkit.digest import sha256
from toolkit.errors import BundleFormatError, DeployError
from toolkit.manifest import Check, Fraction, Name, Sha256, Text, Version, canonical_json, decode, encode

SCHEMA = 1
MAX_BYTES = 64 << 10
Wheel = Annotated[str, Check(lambda name: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}\.whl", name) is not None,
                             "the file name of a wheel, NAME.whl")]


@dataclass(frozen=True)
class Requirement:
    """The wheel of a dependency."""

    name: Wheel
    sha256: Sha256


@dataclass(frozen=True)
class Runtime:
    """The environment: this toolkit's wheel, and those it needs (none: pip asks its index)."""

    wheel: Wheel
    sha256: Sha256
    requirements: tuple[Requirement, ...]
    system_site_packages: bool  # where numpy comes from the system, as on armv7

    @property
    def key(self) -> str:
        """Name of its folder: equal environments are made once."""
        return short_id(encode(self))

    @property
    def wheels(self) -> dict[str, str]:
        """SHA-256 by file name, the toolkit's first."""
        return {self.wheel: self.sha256, **{item.name: item.sha256 for item in self.requirements}}


@dataclass(frozen=True)
class BundleEntry:
    """A bundle of the release, as its manifest calls it."""

    name: Name
    version: Version
    sha256: Sha256  # of the file


@dataclass(frozen=True)
class Listen:
    """Options of the service."""

    device: Text | None
    channel: Annotated[int, Check(lambda channel: 0 <= channel < 64, "a channel from 0 to 63")]
    threshold: Fraction | None


@dataclass(frozen=True)
class Release:
    """``release.json``, schema 1."""

    runtime: Runtime
    bundles: tuple[BundleEntry, ...]  # sorted by name
    listen: Listen
    schema: Literal[1] = SCHEMA

    @property
    def id(self) -> str:
        """Name of its folder: equal releases are one."""
        return short_id(encode(self))

    @property
    def versions(self) -> dict[str, str]:
        """Version by name of the bundle."""
        return {bundle.name: bundle.version for bundle in self.bundles}

    @property
    def blobs(self) -> set[str]:
        """SHA-256 of every file it is made of."""
        return {*self.runtime.wheels.values(), *(bundle.sha256 for bundle in self.bundles)}

    def to_bytes(self) -> bytes:
        """``release.json``, whose SHA-256 begins with the ID."""
        return _canonical(encode(self))


def parse_release(data: bytes, where: str = "release.json") -> Release:
    """The release in ``data``, JSON in any form; DeployError unless every field is as it must be."""
    if len(data) > MAX_BYTES:
        raise DeployError(f"{where}: larger than {MAX_BYTES} bytes, the limit for a release; plan it again.")
    try:
        release = decode(Release, json.loads(data), where)
    except (ValueError, RecursionError) as error:
        raise DeployError(f"{where}: not JSON ({error}); plan the release again.") from None
    except BundleFormatError as error:
        raise DeployError(f"{error}; plan the release again.") from None
    names = [bundle.name for bundle in release.bundles]
    if not names or names != sorted(set(names)):
        raise DeployError(f"{where}: bundles must be one or more, sorted by name, none twice; plan the release again.")
    if len(release.runtime.wheels) != 1 + len(release.runtime.requirements):
        raise DeployError(f"{where}: runtime names a wheel twice; plan the release again.")
    return release


def short_id(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a JSON value: keys sorted, ASCII, no space, no newline at the end."""
    return sha256(_canonical(value)).hexdigest()[:16]


def _canonical(value: Any) -> bytes:
    return canonical_json(value).removesuffix(b"\n")


def version_order(version: str) -> tuple:
    """What to compare versions by (semver.org, 11): numbers as numbers, 0.3.0-rc.2 before 0.3.0-rc.10 before 0.3.0."""
    numbers, _, suffix = version.partition("-")
    parts = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in suffix.split(".")]
    return tuple(map(int, numbers.split("."))), not suffix, parts


def highest(*floors: dict[str, str]) -> dict[str, str]:
    """Of every name the highest version."""
    names = sorted({name for floor in floors for name in floor})
    return {name: max((floor[name] for floor in floors if name in floor), key=version_order) for name in names}


def below(versions: dict[str, str], floor: dict[str, str]) -> list[str]:
    """Sentences' parts, "kws 0.2.0 is below 0.3.0", for versions that the floor refuses."""
    return [f"{name} {version} is below {floor[name]}" for name, version in versions.items()
            if name in floor and version_order(version) < version_order(floor[name])]
