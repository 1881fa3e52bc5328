"""Clips are made as loud and as noisy as asked, noise that was trained on is refused, and a model is measured there."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("scipy") is None:
    pytest.skip("scipy is not installed (requirements-host.txt)", allow_module_level=True)

from spoken_words import make_spoken_words

from models import conditions
from models.augment import active_level
from models.data import load_dataset
from models.noise import to_float
from models.recipe import DataSettings
from models.waves import load_waves
from tests.released import released
from toolkit.audio import write_wav
from toolkit.errors import DataError

RATE = 16000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = make_spoken_words(tmp_path_factory.mktemp("spoken") / "words")
    return load_dataset(root, DataSettings(words=released().manifest.labels[:-2]), RATE)


@pytest.fixture
def clip() -> np.ndarray:
    """A second of which half is speech-like, 20 dB above a hum."""
    rng = np.random.default_rng(2)
    wave = 40.0 * rng.standard_normal(RATE)
    wave[4000:12000] += 1500 * rng.standard_normal(8000) * np.hanning(8000) ** 0.2
    return wave.astype(np.int16)


@pytest.mark.parametrize("level_db", [-10, -20, -30, -40])
def test_a_clip_is_as_loud_as_asked(clip, level_db):
    changed = conditions.at_level(clip, level_db, RATE)
    assert changed.dtype == np.int16
    assert abs(20 * np.log10(active_level(to_float(changed), RATE)) - level_db) < 0.5


def test_what_does_not_fit_is_cut_off_and_silence_stays(clip):
    loud = conditions.at_level(clip, 0.0, RATE)
    assert 0.05 < np.mean(np.abs(loud.astype(int)) >= 32767) < 0.5
    assert np.array_equal(np.sign(loud), np.sign(clip) * (loud != 0))  # nothing wrapped round
    silence = np.zeros(RATE, np.int16)
    assert np.array_equal(conditions.at_level(silence, -10.0, RATE), silence)


@pytest.mark.parametrize("snr_db", [20.0, 5.0, 0.0])
def test_noise_is_as_far_below_speech_as_asked(clip, snr_db):
    recording = (3000 * np.random.default_rng(3).standard_normal(3 * RATE)).astype(np.int16)
    mixed = conditions.in_noise(clip, [recording], snr_db, RATE, np.random.default_rng(1))
    added = to_float(mixed) - to_float(clip)
    ratio = active_level(to_float(clip), RATE) / np.sqrt(np.mean(added**2))
    assert abs(20 * np.log10(ratio) - snr_db) < 0.2


def test_a_mixture_that_does_not_fit_is_made_softer_as_a_whole(clip):
    loud = conditions.at_level(clip, -12.0, RATE)
    tone = (8000 * np.sin(np.arange(RATE) / 5)).astype(np.int16)
    mixed = conditions.in_noise(loud, [tone], -10.0, RATE, np.random.default_rng(1))
    assert np.abs(mixed.astype(int)).max() in (32766, 32767)
    assert np.mean(np.abs(mixed.astype(int)) > 32700) < 0.01  # made softer, not cut off


def test_silent_stretches_are_no_noise(clip):
    half = np.concatenate([np.zeros(5 * RATE, np.int16), np.full(RATE, 900, np.int16)])
    for seed in range(5):
        mixed = conditions.in_noise(clip, [half], 0.0, RATE, np.random.default_rng(seed))
        assert not np.array_equal(mixed, clip)
    with pytest.raises(DataError, match="silent"):
        conditions.in_noise(clip, [np.zeros(RATE, np.int16)], 0.0, RATE, np.random.default_rng(1))


def test_noise_of_the_training_is_refused(dataset):
    with pytest.raises(DataError, match=r"0\.wav is heard in training"):
        conditions.measure_conditions(released(), dataset, noise=[dataset.root / "_background_noise_"])


def test_a_model_is_measured_in_every_condition(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(conditions, "LEVELS_DB", (-20.0,))
    monkeypatch.setattr(conditions, "SNRS_DB", (40.0, -15.0))
    hum = 4000 * np.sin(2 * np.pi * 120 * np.arange(2 * RATE) / RATE)
    write_wav(tmp_path / "hum.wav", hum.astype(np.int16), RATE)
    measured = conditions.measure_conditions(released(), dataset, noise=[tmp_path])
    n_clips = sum(clip.label != "silence" for clip in dataset.clips("report"))
    assert measured["noise"] == ["2.wav", "hum.wav"]
    assert measured["clips"] == measured["unchanged"]["clips"] == n_clips > 20
    assert measured["unchanged"]["accuracy"] > 0.8 and measured["by_level"][0]["accuracy"] > 0.8
    clean, drowned = measured["by_snr"]
    assert clean["accuracy"] > 0.8 > drowned["accuracy"]
    assert measured == conditions.measure_conditions(released(), dataset, noise=[tmp_path])  # the same noise again

    head, rows = conditions.condition_table(measured)
    assert len(rows) == 4 and {len(row) for row in rows} == {len(head)}
    assert head[2:] == [label for label in dataset.labels if label != "silence"]
    assert rows[0][1].startswith(f"{measured['unchanged']['accuracy']:.1%}")


def test_silence_is_left_out(dataset):
    """Digital silence has no level; the clips of the labels that remain are those of the split."""
    speech = [clip for clip in dataset.clips("report") if clip.label != "silence"]
    assert all(active_level(to_float(wave), RATE) > 1e-3 for wave in load_waves(speech))
