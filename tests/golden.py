"""The golden vectors of the front end: `python tests/golden.py` writes tests/golden/ anew (`make golden`).

One signal and, per case, the tables, the int16 features and the int8 codes as raw little-endian arrays, so that C
programs can compile them in; front_end.json names them all with their sha256. They change only with
toolkit.tables.ALGORITHM, or with a case below.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import signals

from toolkit.features import FeatureConfig, FrontEnd, Requantization, front_end_id, make_tables
from toolkit.tables import ALGORITHM

FOLDER = Path(__file__).resolve().parent / "golden"
CASES = {  # name: (front end, real step of one int8 code, zero point)
    "default": (FeatureConfig(), 0.1, -3),
    "mfcc": (FeatureConfig(window="hamming", pre_emphasis=0.97, n_mfcc=13, output_fraction_bits=8), 0.75, 20),
    "magnitude": (FeatureConfig(sample_rate_hz=8000, win_length=201, hop_length=81, n_fft=256, n_mels=24, fmin_hz=0.0,
                                fmax_hz=4000.0, spectrum="magnitude", log_floor=1e-4), 0.05, 60),
    "wide": (FeatureConfig(win_length=1024, hop_length=512, n_fft=1024, n_mels=64, fmin_hz=20.0, fmax_hz=8000.0,
                           log_floor=1e-12, output_fraction_bits=10), 0.13, 0),
}


def make_signal() -> np.ndarray:
    """Every kind of sound, 0.8 s: speech, near silence, silence, full scale, the most negative sample, clicks."""
    parts = [signals.speech(4000), signals.noise(800, 1), np.zeros(700, np.int16), signals.noise(1600),
             np.full(900, -32768, np.int16), signals.square(1000, 2), signals.tone(1300, 3217.3),
             signals.impulses(1100, 331), signals.speech(1400, 40, seed=2)]
    return np.concatenate(parts)


def vectors(signal: np.ndarray) -> tuple[dict[str, bytes], dict]:
    """(file name -> bytes, the index of them) computed by the numpy front end."""
    files = {"signal.s16": signal.astype("<i2").tobytes()}
    cases = {}
    for name, (config, step, zero_point) in CASES.items():
        tables = make_tables(config)
        features = FrontEnd(tables, "numpy").process(signal)
        requantization = Requantization.from_step(step, zero_point, config.output_fraction_bits)
        files[f"{name}.tables"] = tables.blob
        files[f"{name}.s16"] = features.astype("<i2").tobytes()
        files[f"{name}.s8"] = requantization.apply_numpy(features).tobytes()
        cases[name] = {"config": asdict(config), "front_end_id": front_end_id(config, tables),
                       "frames": len(features), "width": config.width, "requantization": asdict(requantization)}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    return files, {"algorithm": ALGORITHM, "samples": len(signal), "cases": cases, "sha256": sha256}


def read_index() -> dict:
    return json.loads((FOLDER / "front_end.json").read_text(encoding="ascii"))


def read_array(name: str, dtype: str) -> np.ndarray:
    return np.frombuffer((FOLDER / name).read_bytes(), dtype)


def index_text(index: dict) -> str:
    return json.dumps(index, indent=1, sort_keys=True) + "\n"


def main() -> None:
    files, index = vectors(make_signal())
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.*"):
        if old.suffix in (".tables", ".s16", ".s8"):  # of cases that are no more
            old.unlink()
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
    (FOLDER / "front_end.json").write_text(index_text(index), encoding="ascii")
    print(json.dumps({"folder": FOLDER.name, "files": len(files) + 1, "bytes": sum(map(len, files.values()))}))


if __name__ == "__main__":
    main()
