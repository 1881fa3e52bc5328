"""What a device shall have: profile, bundles, wheel and options, checked on the host, as one release.json.

A release is a JSON object that toolkit/ota/ reads, and names by its hash: the same order is the same release, whoever
gives it. All files are read once; what was checked is what is sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.bundle import Bundle, find_bundle, read_bundle
from toolkit.errors import BudgetError, DeployError, UsageError
from toolkit.profile import DeviceProfile
from toolkit.signature import TrustedKeys

SCHEMA = 1
MAX_WHEEL_BYTES = 256 << 20
WHEEL_NAME = re.compile(r"[A-Za-z0-9_.]+-[A-Za-z0-9_.!+]+(?:-\d[A-Za-z0-9_.]*)?-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-"
                        r"(?P<platform>[A-Za-z0-9_.]+)\.whl")
PLATFORM_SUFFIX = {"x86-64": "_x86_64", "aarch64": "_aarch64", "armv7": "_armv7l"}  # of a wheel's tag


@dataclass(frozen=True)
class File:
    """A file as it was when it was read."""

    name: str
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Order:
    """What the user wants on the device. Without a wheel, the runtime that is there stays."""

    profile: DeviceProfile
    bundles: tuple[Bundle, ...]
    files: Mapping[str, File]  # by sha256: bundles, wheel, requirements
    runtime: Mapping | None  # of release.json; None: the one that the device has
    listen: Mapping

    def release(self, present: Mapping | None) -> dict:
        """release.json for a device whose release.json is ``present``; DeployError if there is no runtime for it."""
        runtime = self.runtime or (present or {}).get("runtime")
        if runtime is None:
            raise DeployError("the device has no runtime yet: name the toolkit's wheel with --wheel (make wheels)")
        bundles = [{"name": bundle.manifest.name, "version": bundle.manifest.version, "sha256": bundle.sha256}
                   for bundle in self.bundles]
        return {"schema": SCHEMA, "runtime": dict(runtime), "bundles": bundles, "listen": dict(self.listen)}

    def check_signatures(self, keys: TrustedKeys) -> None:
        """SignatureError unless one of ``keys`` signed each bundle."""
        for bundle in self.bundles:
            read_bundle(self.files[bundle.sha256].data, bundle.path, "require", keys)


def make_order(profile: DeviceProfile, bundles: Sequence[str | Path], wheel: Path | None = None,
               requirements: Path | None = None, device: str | None = None, channel: int = 0,
               threshold: float | None = None) -> Order:
    """Read all files, and hold them against each other and the profile. ``device`` is the profile's by default.

    BundleError and its kin for a bundle that cannot be used, BudgetError for bundles that are too much for the board,
    DeployError for a wheel of another machine, UsageError for what makes no sense.
    """
    if profile.transport != "ssh":
        raise UsageError(f"profile {profile.name}: transport is {profile.transport}, expected ssh; its bundles come "
                         f"another way")
    if channel < 0 or (threshold is not None and not 0 < threshold < 1):
        raise UsageError(f"channel is {channel} and threshold {threshold}, expected a channel from 0 and a threshold "
                         f"between 0 and 1")
    files = [_read(find_bundle(source)) for source in bundles]
    read = [read_bundle(file.data, file.name, "off") for file in files]
    read.sort(key=lambda bundle: bundle.manifest.name)
    _check_limits(read, sum(len(file.data) for file in files), profile)
    runtime = None
    if wheel is not None:
        wheel_file = _read_wheel(wheel, profile)
        needed = [_read_wheel(path, profile) for path in sorted(requirements.glob("*.whl"))] if requirements else []
        if requirements and not needed:
            raise UsageError(f"{requirements}: holds no wheels (*.whl); pip download fills it")
        files += [wheel_file, *needed]
        runtime = {"wheel": wheel_file.name, "sha256": wheel_file.sha256,
                   "requirements": [{"name": file.name, "sha256": file.sha256} for file in needed],
                   "system_site_packages": profile.architecture == "armv7"}  # PyPI has no numpy for it, Debian has
    elif requirements is not None:
        raise UsageError("--requirements belong to a wheel; name it with --wheel")
    if device is None and profile.audio_device != "default":
        device = profile.audio_device
    listen = {"device": device, "channel": channel, "threshold": threshold}
    return Order(profile, tuple(read), {file.sha256: file for file in files}, runtime, listen)


def changes(old: Mapping | None, new: Mapping) -> list[str]:
    """What a person should know before ``new`` replaces ``old`` (None: the first), one line each; none: nothing."""
    old = old or {}
    lines = []
    before = {bundle["name"]: bundle for bundle in old.get("bundles", ())}
    after = {bundle["name"]: bundle for bundle in new["bundles"]}
    for name in sorted(before.keys() | after.keys()):
        was, is_ = before.get(name), after.get(name)
        if was is None:
            lines.append(f"bundle {name}: new, {is_['version']}")
        elif is_ is None:
            lines.append(f"bundle {name}: {was['version']} goes away")
        elif was["version"] != is_["version"]:
            lines.append(f"bundle {name}: {was['version']} -> {is_['version']}")
        elif was["sha256"] != is_["sha256"]:
            lines.append(f"bundle {name}: {is_['version']}, the same version with other contents "
                         f"({was['sha256'][:8]} -> {is_['sha256'][:8]})")
    lines += _runtime_changes(old.get("runtime"), new["runtime"])
    was_listening = old.get("listen", {"device": None, "channel": 0, "threshold": None})
    for key, value in new["listen"].items():
        if value != was_listening.get(key):
            lines.append(f"{key}: {_option(was_listening.get(key))} -> {_option(value)}")
    return lines


def _runtime_changes(old: Mapping | None, new: Mapping) -> list[str]:
    if old is None:
        return [f"runtime: new, {new['wheel']}, wheels that it needs: {len(new['requirements'])}"]
    lines = []
    if old["sha256"] != new["sha256"]:
        same = ", the same name with other contents" if old["wheel"] == new["wheel"] else ""
        lines.append(f"runtime: {old['wheel']} -> {new['wheel']}{same}")
    before, after = ({(each["name"], each["sha256"]) for each in runtime["requirements"]} for runtime in (old, new))
    lines += [f"runtime: without {name}" for name, _ in sorted(before - after)]
    lines += [f"runtime: with {name}" for name, _ in sorted(after - before)]
    if old["system_site_packages"] != new["system_site_packages"]:
        lines.append(f"runtime: {'with' if new['system_site_packages'] else 'without'} the packages of the system")
    return lines


def _option(value: object) -> str:
    return "default" if value is None else str(value)


def _check_limits(bundles: Sequence[Bundle], n_bytes: int, profile: DeviceProfile) -> None:
    """The profile's limits are for all models of the board together."""
    names = [bundle.manifest.name for bundle in bundles]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"the bundles are named {', '.join(names) or '(none)'}; name each once, and at least one")
    models = [bundle.manifest.model for bundle in bundles]
    sums = (("flash_bytes", n_bytes, profile.flash_bytes, "bytes of storage"),
            ("macs_per_second", sum(model.macs_per_second for model in models), profile.macs_per_second, "MAC/s"))
    for limit, needed, allowed, unit in sums:
        if needed > allowed:
            raise BudgetError(f"profile {profile.name}: {', '.join(names)} need {needed} {unit}, {limit} allows "
                              f"{allowed}; deploy fewer or smaller bundles")
    unknown = {op for model in models for op in model.ops} - set(profile.ops or ()) if profile.ops else set()
    if unknown:
        raise BudgetError(f"profile {profile.name}: no runtime there has {', '.join(sorted(unknown))}; deploy a bundle "
                          f"without")


def _read_wheel(path: Path, profile: DeviceProfile) -> File:
    """A wheel, if its name says that it is one for this board."""
    match = WHEEL_NAME.fullmatch(path.name)
    if not match:
        raise UsageError(f"{path}: not named as a wheel is (NAME-VERSION-PYTHON-ABI-PLATFORM.whl)")
    suffix = PLATFORM_SUFFIX.get(profile.architecture)
    if not any(tag == "any" or tag.endswith(suffix or "?") for tag in match["platform"].split(".")):
        raise DeployError(f"{path.name}: for {match['platform']}, but the profile {profile.name} is of "
                          f"{profile.architecture}; make wheels makes one for it")
    return _read(path)


def _read(path: Path) -> File:
    try:
        if path.stat().st_size > MAX_WHEEL_BYTES:
            raise UsageError(f"{path}: larger than {MAX_WHEEL_BYTES} bytes; this is no file for a device")
        return File(path.name, path.read_bytes())
    except OSError as error:
        raise DeployError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
