"""The service on this device: started and stopped by systemd, and what it says of itself in its status file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from toolkit.errors import DeployError

UNIT = "edge-audio.service"
STATUS_VARIABLE = "EDGE_AUDIO_STATUS"
DEFAULT_STATUS = "/run/edge-audio/status.json"
MAX_STATUS_BYTES = 64 << 10
PATIENCE_S = 60.0  # with systemd itself, which only takes note of what is to be done


def status_path() -> Path:
    return Path(os.environ.get(STATUS_VARIABLE) or DEFAULT_STATUS)


def read_status() -> dict[str, Any] | None:
    """The service's status file, None if there is none or it holds no object."""
    try:
        with open(status_path(), "rb") as file:
            value = json.loads(file.read(MAX_STATUS_BYTES))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def systemctl(verb: str) -> None:
    """``systemctl restart`` or ``stop`` of the service; DeployError with systemd's last words if it fails.

    Without waiting: a service that finds no microphone is not ready before systemd's patience ends, and the health gate
    says better why.
    """
    program = shutil.which("systemctl")
    if program is None:
        raise DeployError("systemctl is not on PATH; the service needs a Linux with systemd.")
    try:
        done = subprocess.run([program, verb, "--no-block", UNIT], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, errors="replace", timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise DeployError(f"systemctl {verb} {UNIT} took longer than {PATIENCE_S:g} s; see journalctl -u {UNIT}.") \
            from None
    except OSError as error:
        raise DeployError(f"{program}: cannot be run ({error.strerror}); the service needs systemd.") from None
    if done.returncode:
        raise DeployError(f"systemctl {verb} {UNIT} failed ({last_line(done.stderr) or done.returncode}); "
                          f"see journalctl -u {UNIT}.")


def last_line(text: str) -> str:
    """The last line that says anything, without its full stop; "" if there is none."""
    lines = text.split("\n")
    return next((line.strip().rstrip(".") for line in reversed(lines) if line.strip()), "")
