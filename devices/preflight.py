"""Is this device one that the release can run on? Asked before anything is changed, in one round trip.

``probe`` runs a POSIX shell script there; ``problems`` judges its answers, and gives a sentence for each, with the way
out.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from devices.ssh import Ssh
from toolkit.errors import DeployError
from toolkit.profile import DeviceProfile

PYTHON_LOW = (3, 11)
GLIBC_LOW = (2, 28)  # of the wheels of numpy, tflite-runtime and ai-edge-litert (manylinux_2_28 and older)
VENV_BYTES = 40_000_000  # an environment with pip and nothing else, measured 30 MB, with Debian's Python 3.11
SPARE_BYTES = 20_000_000  # that a device keeps free for its logs
PROBE = r"""
root=ROOT
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')"; }
say machine "$(uname -m)"
say python "$(python3 -c 'import platform, struct, sys
print(".".join(map(str, sys.version_info[:2])), 8 * struct.calcsize("P"), platform.machine())' 2>&1)"
say venv "$(python3 -c 'import ensurepip, venv; print("ok")' 2>&1 | tail -n 1)"
say glibc "$(getconf GNU_LIBC_VERSION 2>&1)"
there=$root; while [ ! -e "$there" ]; do there=$(dirname "$there"); done
say free_kb "$(df -Pk "$there" | awk 'NR == 2 { print $4 }')"
say uid "$(id -u)"
say user "$(id -un)"
say audio_group "$(getent group audio)"
say sudo "$(sudo -n true 2>&1 && echo ok)"
say capture "$(cat /proc/asound/pcm 2>/dev/null | grep -c capture)"
say arecord "$(LC_ALL=C arecord -l 2>/dev/null | grep -c '^card')"
say systemctl "$(command -v systemctl)"
say flock "$(command -v flock)"
say busy "$([ -e "$root/lock" ] && ! flock -n "$root/lock" true && echo busy)"
"""


@dataclass(frozen=True)
class Facts:
    """What a device said about itself."""

    target: str
    machine: str  # of the kernel
    python: str  # "3.11 64 aarch64": version, bits of a pointer, machine; or what went wrong
    venv: str  # "ok", or what went wrong
    glibc: str  # "glibc 2.36"
    free_bytes: int
    uid: int
    user: str
    has_audio_group: bool
    can_sudo: bool
    n_captures: int
    has_systemd: bool
    has_flock: bool
    is_busy: bool  # somebody changes its releases at this moment

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    @property
    def architecture(self) -> str:
        """In the profile's words: that of the programs, for a 64-bit kernel often carries a 32-bit system."""
        words = self.python.split()
        bits = words[1] if len(words) == 3 else "64"
        names = {("aarch64", "64"): "aarch64", ("aarch64", "32"): "armv7", ("armv7l", "32"): "armv7",
                 ("armv8l", "32"): "armv7", ("x86_64", "64"): "x86-64", ("amd64", "64"): "x86-64"}
        return names.get((self.machine.lower(), bits), names.get((self.machine, "32"), self.machine))


def probe(device: Ssh, root: str) -> Facts:
    """Ask the device; DeployError if it does not answer as a Linux shell does."""
    done = device.run(PROBE.replace("ROOT", shlex.quote(root), 1))
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    try:
        return Facts(
            device.target, said["machine"], said["python"], said["venv"], said["glibc"], int(said["free_kb"]) * 1024,
            int(said["uid"]), said["user"], bool(said["audio_group"]), said["sudo"].endswith("ok"),
            int(said["capture"]) + int(said["arecord"]), bool(said["systemctl"]), bool(said["flock"]),
            bool(said["busy"]))
    except (KeyError, ValueError):
        text = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise DeployError(f"{device.target}: does not answer as a Linux shell (it said {text[-1][:90]!r}); deploy to a "
                          f"user who has one") from None


def problems(facts: Facts, profile: DeviceProfile, needed_bytes: int, root: str) -> list[str]:
    """What stands in the way, a sentence each; none: go on."""
    said = [
        _architecture(facts, profile), _python(facts), _glibc(facts),
        f"{facts.free_bytes >> 20} MiB are free where {root} lies, {needed_bytes + SPARE_BYTES >> 20} MiB are needed; "
        f"make room (sudo apt clean; journalctl --vacuum-size=50M)"
        if facts.free_bytes < needed_bytes + SPARE_BYTES else None,
        None if facts.has_systemd else
        "no systemd (systemctl) is there; this deployment starts its service with systemd: use a system that has it",
        None if facts.has_flock else "flock is missing, which the service's start needs: sudo apt install util-linux",
        None if facts.is_root or facts.can_sudo else
        f"{facts.user} is not root and sudo asks for a password; log in as root, or let sudo do without for this user "
        f"(echo '{facts.user} ALL=(root) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/edge-audio)",
        None if facts.has_audio_group else  # the service has a user of its own (DynamicUser), in this group
        "there is no group `audio`, by which the service may use the microphone: sudo groupadd --system audio",
        None if facts.n_captures else
        "no microphone is there (no capture device in /proc/asound/pcm or arecord -l); plug one in, or switch on its "
        "overlay in /boot/firmware/config.txt",
    ]
    return [sentence for sentence in said if sentence]


def _architecture(facts: Facts, profile: DeviceProfile) -> str | None:
    if facts.architecture == profile.architecture:
        return None
    return (f"its programs are {facts.architecture} (kernel {facts.machine}), the profile {profile.name} is of "
            f"{profile.architecture}; name the profile of this board (devices/profiles/)")


def _python(facts: Facts) -> str | None:
    match = re.match(r"(\d+)\.(\d+) (\d+) ", facts.python + " ")
    wanted = ".".join(map(str, PYTHON_LOW))
    if not match:
        return f"python3 does not run there ({facts.python.strip()[-80:]!r}): sudo apt install python3 python3-venv"
    if (int(match[1]), int(match[2])) < PYTHON_LOW:
        return f"its python3 is {match[1]}.{match[2]}, expected {wanted} or newer; use Debian 12 or newer"
    if facts.venv.strip() != "ok":
        return "python3 there cannot make environments: sudo apt install python3-venv"
    return None


def _glibc(facts: Facts) -> str | None:
    match = re.fullmatch(r"glibc (\d+)\.(\d+)", facts.glibc.strip())
    wanted = ".".join(map(str, GLIBC_LOW))
    if not match:
        return f"its C library is no glibc ({facts.glibc.strip()[-60:]!r}), as the wheels need; use Debian 12 or newer"
    if (int(match[1]), int(match[2])) < GLIBC_LOW:
        return f"its glibc is {match[1]}.{match[2]}, expected {wanted} or newer; use Debian 12 or newer"
    return None
