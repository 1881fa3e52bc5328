"""The last release as a baseline: what it measured, in a file that is committed, and how much worse is still as good.

Every run writes OUT/baseline.json. The one of an accepted release is committed as models/zoo/NAME/baseline.json, or
anywhere in a user's own repository, and `--baseline FILE` names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError

SCHEMA = 1
RELATIVE = {  # metric: share by which it may grow
    "model_bytes": 0.01,  # another version of the converter writes other metadata
    "arena_bytes": 0.01,  # another version of TFLite Micro
    "macs_per_second": 0.0,  # exact: more of them is another net, which is a new baseline
}
ABSOLUTE = {  # metric: by how much it may change for the worse
    "embedded_accuracy": -0.02,  # 2 of 120 clips: what another version of a library flips
    "accuracy": -0.005,  # half a point: 3 of 678 clips
    "accuracy_loss": 0.005,
    "runtime_lsb": 2,  # depthwise rounding differs by 1, and a layer later by 2
}
MOVING = (*RELATIVE, *ABSOLUTE)


@dataclass(frozen=True)
class Baseline:
    """What a release measured: {metric: value}, of those that have a tolerance."""

    name: str
    version: str
    model_sha256: str
    measured: dict[str, float]

    def limits(self) -> Iterator[tuple[str, float, float]]:
        """(metric, what it was, how far it may go) of each that is held."""
        for name, was in self.measured.items():
            if name in RELATIVE:
                yield name, was, math.floor(was * (1 + RELATIVE[name]))
            else:
                yield name, was, round(was + ABSOLUTE[name], 6)


def read_baseline(path: Path, name: str) -> Baseline:
    """The baseline in a file, which must be of the model of that name. Raises ConfigError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a baseline: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is not a baseline of schema {SCHEMA}; take the baseline.json that quantize writes")
    keys = {"schema", "name", "version", "model_sha256", "measured"}
    if set(found) != keys or not isinstance(found["measured"], dict):
        raise ConfigError(f"{path} holds {', '.join(found)}: expected {', '.join(sorted(keys))}")
    if found["name"] != name:
        raise ConfigError(f"{path} is the baseline of {found['name']!r}: expected one of {name!r}, which is quantized")
    for metric, value in found["measured"].items():
        is_number = type(value) in (int, float) and math.isfinite(value)
        if metric not in MOVING or not is_number:
            raise ConfigError(f"{path}: measured.{metric} is {value!r}: expected numbers of {', '.join(MOVING)}")
    return Baseline(name, found["version"], found["model_sha256"], found["measured"])


def write_baseline(path: Path, name: str, version: str, model_sha256: str, facts: dict) -> None:
    """facts: {metric: Fact}; what was not measured is left out."""
    measured = {key: facts[key].value for key in MOVING if key in facts and facts[key].value is not None}
    document = {"schema": SCHEMA, "name": name, "version": version, "model_sha256": model_sha256, "measured": measured}
    path.write_text(json.dumps(document, indent=1) + "\n")
