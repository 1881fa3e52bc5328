"""The device profile: what one board lets its models have, and how they get there.

``load_profile("rpi-zero2w")`` reads devices/profiles/rpi-zero2w.yaml of the checkout, ``load_profile("my/board.yaml")``
a file anywhere. Quantization holds a bundle against it (quantize/gate.py), deployment asks it for the way (devices/).
The limits are for all models of the board together; a gate sees one bundle, so share them out before they are full.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .config import load_config, setting
from .errors import ConfigError

FOLDER = Path(__file__).parents[1] / "devices" / "profiles"  # of a checkout; an installed wheel has none


@dataclass(frozen=True)
class DeviceProfile:
    """One board. Every limit in a file has its reason beside it."""

    schema: int = setting(choices=(1,), doc="version of this format")
    name: str = setting(doc="of the profile: that of its file, without .yaml")
    board: str = setting(doc="what it is, for people")
    architecture: Literal["x86-64", "aarch64", "armv7", "cortex-m", "xtensa"] = setting(doc="of the processor")
    runtime: Literal["native", "tflite-runtime", "ai-edge-litert", "tflite-micro"] = setting(
        doc="what executes the model there; tflite-micro: the model is a part of the firmware"
    )
    flash_bytes: int = setting(unit="bytes", low=1, doc="storage for models: of bundles, or of what firmware holds")
    ram_bytes: int = setting(unit="bytes", low=1, doc="memory for models: of the arena, or of the file and its tensors")
    macs_per_second: int = setting(unit="MAC/s", low=1, doc="multiply-accumulates that models may take of a second")
    hop_deadline_ms: float = setting(
        unit="ms", low=0.1, high=1000, doc="in which a 20 ms block must be done; measured on the board, not here"
    )
    transport: Literal["ssh", "usb", "image"] = setting(doc="how a bundle gets there")
    audio_device: str = setting(doc="the microphone, as the board names it")
    ops: tuple[str, ...] | None = setting(
        None, doc="operators that its runtime was built with; nothing: all that this toolkit allows"
    )

    @property
    def is_firmware(self) -> bool:
        """The model is linked into the firmware and executed from flash; else a bundle lies in a file system."""
        return self.runtime == "tflite-micro"


def load_profile(name: str | Path) -> DeviceProfile:
    """The profile in a YAML file, or the one of that name in devices/profiles/. Raises ConfigError."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name}.yaml"
        if not path.exists():
            known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}, or name a .yaml file"
            raise ConfigError(f"there is no device profile {str(name)!r}; {hint}")
    profile = load_config(path, DeviceProfile)
    if profile.name != path.stem:
        raise ConfigError(f"{path}: name is {profile.name!r}: expected {path.stem!r}, that of the file")
    return profile
