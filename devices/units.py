"""systemd's units of a device, brought to what this checkout has in devices/rpi/.

    edge-audio.service                  the daemon, started at boot
    edge-audio-recover.service, .timer  every minute: a trial that was cut off is gone back from
    edge-audio-update.service, .timer   every hour, where an update URL was given: the published release is fetched
    ETC/edge-audio/update.conf          that URL, and options of `edge-audio update`
"""

from __future__ import annotations

import base64
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devices.remote import ROOT, Remote, Say
from toolkit.manifest import Name, decode

FOLDER = Path(__file__).parent / "rpi"
ETC = "/etc"
UNITS, UPDATE_CONF = "systemd/system", "edge-audio/update.conf"  # below it
SERVICE = "edge-audio.service"
RECOVER = ("edge-audio-recover.service", "edge-audio-recover.timer")
UPDATE = ("edge-audio-update.service", "edge-audio-update.timer")
STARTED = (SERVICE, RECOVER[1], UPDATE[1])  # at boot; the others are what the timers start
NEVER = "off"  # instead of a URL
URL = re.compile(r"(?:https?://[\w.:\[\]-]+(?:/|$)|file:///)[\w.~/@:!$&()*+,;=%-]*", re.ASCII)
LOOK = """for file in {files}; do [ -f {etc}/$file ] && echo "$file $(base64 -w 0 {etc}/$file)"; done
for unit in {units}; do systemctl is-enabled --quiet $unit 2>/dev/null && echo "enabled $unit"; done; true"""


@dataclass(frozen=True)
class UnitPlan:
    """What is not as it should be on a device."""

    etc: str
    files: dict[str, bytes | None]  # to be written, by their path below ``etc``; None: to be removed
    enable: tuple[str, ...]  # units that start at boot
    changes: tuple[str, ...]  # a line each; none: nothing is to be done
    is_service_replaced: bool


def url_problem(url: str) -> str | None:
    """What is wrong with an update URL, as a sentence; None: nothing."""
    if url == NEVER or URL.fullmatch(url):
        return None
    return (f"the update URL is {url!a}, expected https://HOST/PATH, http://HOST/PATH or file:///PATH of a folder that "
            f"`python -m devices publish` made, or {NEVER}")


def plan_units(remote: Remote, etc: str, update_url: str | None, profile: str) -> UnitPlan:
    """Look at what is there. ``update_url`` None: updates stay as they are; ``etc`` may be relative to the root."""
    etc = str(PurePosixPath(remote.root) / etc)
    present, enabled = _look(remote, etc)
    has_updates = UPDATE_CONF in present if update_url is None else update_url != NEVER
    units = (SERVICE, *RECOVER, *(UPDATE if has_updates else ()))
    wanted: dict[str, bytes | None] = {
        f"{UNITS}/{unit}": (FOLDER / unit).read_text("utf-8").replace(ROOT, remote.root).encode() for unit in units}
    if update_url is not None:
        wanted[UPDATE_CONF] = _update_conf(update_url, profile, remote.root) if has_updates else None
    if update_url == NEVER:
        wanted |= {f"{UNITS}/{unit}": None for unit in UPDATE}
    files = {path: data for path, data in wanted.items() if data != present.get(path)}
    enable = tuple(unit for unit in units if unit in STARTED)
    changes = [_change(path, present.get(path), data) for path, data in files.items()]
    changes += [f"unit {unit}: enabled" for unit in enable if unit not in enabled and f"{UNITS}/{unit}" not in files]
    return UnitPlan(etc, files, enable, tuple(changes), f"{UNITS}/{SERVICE}" in files.keys() & present.keys())


def install_units(remote: Remote, plan: UnitPlan, restart: bool, say: Say) -> None:
    """Do what the plan says, and start the service anew if its unit is another one and ``restart``.

    Every file is there before the one command that makes them count, which ends even if the connection is lost.
    """
    if not plan.changes:
        return
    say(f"installing systemd's units in {plan.etc}/{UNITS}")
    cd = f"cd {shlex.quote(plan.etc)}"
    steps = [cd]
    if plan.files.get(f"{UNITS}/{UPDATE[1]}", b"") is None:
        steps.append(f"systemctl disable --quiet --now {UPDATE[1]}")
    for path, data in plan.files.items():
        if data is None:
            steps.append(f"rm -f {path}")
        else:
            remote.must(f"{cd} && mkdir -p {PurePosixPath(path).parent} && cat > {path}.new && sync {path}.new",
                        f"writing {plan.etc}/{path}", data)
            steps.append(f"mv {path}.new {path}")
    timers = shlex.join(unit for unit in plan.enable if unit != SERVICE)
    steps += ["systemctl daemon-reload", f"systemctl enable --quiet {SERVICE}",
              f"systemctl enable --quiet --now {timers}", "sync"]
    if plan.is_service_replaced and restart:
        steps.append(f"systemctl restart {SERVICE}")
    remote.must(" && ".join(steps), "installing the units")


def _look(remote: Remote, etc: str) -> tuple[dict[str, bytes], set[str]]:
    """(files below ``etc`` that are there, units that are enabled), in one round trip."""
    files = [UPDATE_CONF, *(f"{UNITS}/{unit}" for unit in (SERVICE, *RECOVER, *UPDATE))]
    script = LOOK.format(etc=shlex.quote(etc), files=shlex.join(files), units=shlex.join(STARTED))
    said = [line.split(" ", 1) for line in remote.must(script, "reading its units").splitlines()]
    return ({file: base64.b64decode(data) for file, data in said if file != "enabled"},
            {unit for word, unit in said if word == "enabled"})


def _update_conf(url: str, profile: str, root: str) -> bytes:
    """For EnvironmentFile; the update unit splits the options at spaces."""
    options = f"--profile {decode(Name, profile, 'profile')}" + (f" --root {root}" if root != ROOT else "")
    return (f"# Written by `python -m devices deploy --update-url`.\n"
            f"EDGE_AUDIO_UPDATE_URL={url}\nEDGE_AUDIO_UPDATE_OPTIONS={options}\n").encode()


def _change(path: str, old: bytes | None, new: bytes | None) -> str:
    """A line for a person."""
    if path == UPDATE_CONF:
        return f"updates: {_settings(old)} -> {_settings(new)}"
    return f"unit {PurePosixPath(path).name}: {'new' if old is None else 'goes away' if new is None else 'replaced'}"


def _settings(conf: bytes | None) -> str:
    values = re.findall(r"^\w+=(.*)$", (conf or b"").decode("utf-8", "replace"), re.M)
    return " ".join(values) or "none"
