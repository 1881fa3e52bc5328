"""The integers against tf.signal in float64: speech and noise at four levels, four kinds of front end.

Bars: at 0, -20 and -40 dBFS the error of every coefficient has a root mean square of at most 0.02 nat, at -60 dBFS 0.1;
of the int8 codes that a model sees at least 99.5 % are equal, and none is off by more than one.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import signals

from toolkit.audio import list_audio, read_audio
from toolkit.features import FeatureConfig, FrontEnd, Requantization, make_tables

SAMPLES = Path(__file__).parents[1] / "models" / "samples"
MAX_RMS_NAT = {0: 0.02, -20: 0.02, -40: 0.02, -60: 0.1}  # by level in dBFS of the largest sample
FRONT_ENDS = {  # configuration, real step of an int8 code, zero point
    "log-mel": (FeatureConfig(), 0.1, 10),
    "mfcc": (FeatureConfig(n_mfcc=13, output_fraction_bits=8), 1.0, 20),
    "magnitude": (FeatureConfig(spectrum="magnitude", log_floor=1e-3), 0.06, 0),
    "pre-emphasis": (FeatureConfig(pre_emphasis=0.97, window="hamming"), 0.1, 10),
}


def synthesized() -> list[np.ndarray]:
    """Two voices, a voice in noise, white noise, one-second each; int16."""
    voice, other = signals.speech(16000, seed=3), signals.speech(16000, seed=4)
    noisy = (voice.astype(int) + signals.noise(16000, 3000, seed=5)).astype(np.int16)
    return [voice, other, noisy, signals.noise(16000, 20000, seed=6)]


def spoken() -> list[np.ndarray]:
    """Every eighth clip of the embedded evaluation set, and five seconds of the scene."""
    if not (SAMPLES / "evaluation").is_dir():
        pytest.skip("models/samples/evaluation is not there")
    pytest.importorskip("soundfile", reason="soundfile is not installed (it reads FLAC)")
    clips = [read_audio(path)[0] for path in list_audio(SAMPLES / "evaluation")[::8]]
    return [*clips, read_audio(SAMPLES / "scene.wav")[0][:80000]]


@pytest.fixture(scope="module", params=[synthesized, spoken], ids=lambda function: function.__name__)
def clips(request, tmp_path_factory):
    """Function (front end, level) -> list of (samples, features by tf.signal); the oracle runs once, in a child."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed (the oracle is tf.signal)")
    levels = [signals.at_level(x, db) for db in MAX_RMS_NAT for x in request.param()]
    folder = tmp_path_factory.mktemp("oracle")
    configs = json.dumps([asdict(config) for config, _, _ in FRONT_ENDS.values()])
    np.savez(folder / "in.npz", configs=configs, **{f"x{j}": x for j, x in enumerate(levels)})
    program = Path(__file__).with_name("oracle.py")
    done = subprocess.run([sys.executable, program, folder / "in.npz", folder / "out.npz"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    out, n = np.load(folder / "out.npz"), len(levels) // len(MAX_RMS_NAT)

    def of(name: str, db: int) -> list[tuple[np.ndarray, np.ndarray]]:
        i, first = list(FRONT_ENDS).index(name), list(MAX_RMS_NAT).index(db) * n
        return [(levels[j], out[f"f{i}_{j}"]) for j in range(first, first + n)]

    return of


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("db", MAX_RMS_NAT)
def test_features_and_codes_are_those_of_tf_signal(clips, name, db):
    config, step, zero_point = FRONT_ENDS[name]
    tables = make_tables(config)
    requantization = Requantization.from_step(step, zero_point, config.output_fraction_bits)
    errors, differences = [], []
    for samples, expected in clips(name, db):
        features = FrontEnd(tables).process(samples)
        assert features.shape == expected.shape
        errors.append(features / 2.0**config.output_fraction_bits - expected)
        codes = np.clip(np.floor(expected / step + 0.5) + zero_point, -128, 127)
        differences.append(requantization.apply(features) - codes)
    rms = np.sqrt(np.mean(np.concatenate(errors) ** 2, axis=0))  # [width]
    difference = np.abs(np.concatenate(differences))
    report = f"rms {rms.max():.4f} nat, {100 * np.mean(difference == 0):.2f} % equal, largest {difference.max():.0f}"
    print(f"{name} at {db} dBFS: {report}")
    assert rms.max() <= MAX_RMS_NAT[db], report
    assert np.mean(difference == 0) >= 0.995 and difference.max() <= 1, report


def test_the_oracle_tells_front_ends_apart(clips):
    """The bars are tight: another upper edge, another window, frames that lie half a hop later are outside."""
    x, expected = clips("log-mel", -20)[0]
    other = FeatureConfig(fmax_hz=7500.0)
    for config, samples in ((other, x), (FeatureConfig(), x[80:]), (FeatureConfig(window="hamming"), x)):
        got = FrontEnd(make_tables(config)).process(samples) / 2**11
        n = min(len(got), len(expected))
        assert np.sqrt(np.mean((got[:n] - expected[:n]) ** 2, axis=0)).max() > 0.02
