"""Augmentation: each step does to the signal what it says, and an epoch is determined by its seed and number alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy, which the augmentation needs, is not installed")

from tone_audio import RATE, tone_audio

from models import augment
from models.augment import canvas_of, make_banks, make_epoch, make_example
from models.noise import NoiseSource, background, swell
from models.plan import Plan, Source, plan_epoch
from models.recipe import AugmentSettings, Recipe, SpecAugmentSettings
from models.waves import TrainingAudio
from toolkit.config import parse_config

RECIPE = parse_config(
    {"schema": 1, "name": "t", "data": {"words": ["a", "b"]}, "decision": {"flush_frames": 20}}, Recipe, "t"
)
PLAIN = AugmentSettings(  # nothing happens
    context_s=0.5, context_speech_probability=0, time_shift_ms=0, speed=(1, 1), gain_db=(0, 0), noise_probability=0,
    reverb_probability=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def audio() -> TrainingAudio:
    return tone_audio()


@pytest.fixture(scope="module")
def banks() -> augment.Banks:
    return make_banks(canvas_of(RECIPE), RECIPE.augment, RATE, 1)


def level_db(sound: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(sound, dtype=float)))


def example(audio, banks, settings, source=Source.WORD, first=0, seed=0, second=0) -> np.ndarray:
    """One example, float32[canvas] with full scale 1."""
    label = {Source.WORD: 0, Source.SILENCE: 3}.get(source, 2)
    plan = Plan(np.array([source]), np.array([first]), np.array([second]), np.array([label]))
    return make_example(audio, banks, settings, plan, 0, np.random.default_rng(seed)).astype(np.float32) / 32768


def test_the_canvas_is_context_clip_and_flush_in_whole_frames():
    canvas = canvas_of(RECIPE)
    assert (canvas.context, canvas.clip, canvas.flush, canvas.total) == (8000, 16000, 3200, 27200)
    assert canvas_of(dataclasses.replace(RECIPE, augment=AugmentSettings(context_s=0.333))).context % 160 == 0


def test_without_augmentation_the_clip_stands_unchanged_in_its_place(audio, banks):
    got = example(audio, banks, PLAIN) * 32768
    assert not got[:8000].any() and not got[24000:].any()
    assert (got[8000:24000] == audio.waves[0]).all()


def test_another_timbre_keeps_level_and_place_and_changes_the_spectrum(audio, banks):
    plain, settings = example(audio, banks, PLAIN), dataclasses.replace(PLAIN, timbre_db=6.0)
    others = [example(audio, banks, settings, seed=seed) for seed in range(20)]
    assert all(abs(level_db(other) - level_db(plain)) < 0.1 for other in others)
    assert all(np.abs(other[:7000]).max() < 0.01 * np.abs(plain).max() for other in others)  # nothing before the word
    noise, changed = np.random.default_rng(0).standard_normal(27200).astype(np.float32), []
    for seed in range(200):
        power = np.abs(np.fft.rfft(augment.with_timbre(noise, 6.0, np.random.default_rng(seed)))) ** 2
        changed.append(10 * np.log10(power[6000:6400].sum() / power[800:1200].sum()))
    assert 5 < np.std(changed) < 8 and abs(np.mean(changed)) < 2  # a slope of 6 dB, over 2.6 of 3 octaves, and the rest


def test_an_epoch_depends_on_seed_and_number_alone(audio, banks):
    def whole(seed, epoch, block):
        parts = list(make_epoch(audio, banks, RECIPE.augment, seed, epoch, block))
        assert all(len(waves) <= block for waves, _ in parts)
        return np.concatenate([waves for waves, _ in parts]), np.concatenate([labels for _, labels in parts])

    waves, labels = whole(1, 0, 512)
    assert waves.dtype == np.int16 and labels.dtype == np.int32 and waves.shape == (len(labels), 27200)
    again, labels_again = whole(1, 0, 7)
    assert (waves == again).all() and (labels == labels_again).all()
    assert (waves != whole(1, 1, 512)[0]).any() and (waves != whole(2, 0, 512)[0]).any()


def test_banks_are_determined_by_the_seed(banks):
    again = make_banks(canvas_of(RECIPE), RECIPE.augment, RATE, 1)
    assert (again.rooms == banks.rooms).all() and all(
        (a == b).all() for a, b in zip(again.noises, banks.noises, strict=True)
    )


@pytest.mark.parametrize(
    "leave_out",
    ["negatives", "hard", "others", "extra", "negatives hard", "hard others", "negatives hard others extra"],
)
def test_the_unknown_class_is_complete_without_some_of_its_sources(audio, banks, leave_out):
    if "negatives" in leave_out:
        audio = dataclasses.replace(audio, negatives=())
    if "hard" in leave_out:
        audio = dataclasses.replace(audio, hard_negatives=())
    if "extra" in leave_out:
        audio = dataclasses.replace(audio, extra_waves=audio.extra_waves[:1], extra_labels=audio.extra_labels[:1])
    if "others" in leave_out:
        keep = audio.labels < 2
        audio = dataclasses.replace(audio, waves=audio.waves[keep], labels=audio.labels[keep], words=audio.words[keep])
    plan = plan_epoch(audio, np.random.default_rng(0))
    assert np.bincount(plan.label).tolist() == [12, 8, 16, 8]
    assert sum(len(waves) for waves, _ in make_epoch(audio, banks, RECIPE.augment, 1, 0)) == 44


@pytest.mark.parametrize("varied", [0.0, 1.0])
def test_noise_has_mean_square_one_with_and_without_recordings(banks, varied):
    recording = (3000 * np.sin(np.arange(9000) / 5)).astype(np.int16)  # shorter than the stretch
    for recordings in ((), (recording,)):
        source = NoiseSource(recordings, banks.noises, RATE)
        stretches = [background(source, 27200, np.random.default_rng(seed), varied) for seed in range(8)]
        for noise in stretches:
            assert noise.shape == (27200,) and noise.dtype == np.float32
            assert np.mean(noise.astype(float) ** 2) == pytest.approx(1, rel=1e-3)
        assert len({noise.tobytes() for noise in stretches}) >= 3


def test_digital_silence_stays_silent(banks):
    source = NoiseSource((np.zeros(30000, np.int16),), banks.noises, RATE)
    stretches = [background(source, 27200, np.random.default_rng(seed), 0.0) for seed in range(20)]
    assert any(not noise.any() for noise in stretches) and all(np.isfinite(noise).all() for noise in stretches)


def test_a_swell_comes_and_goes():
    wave = swell(RATE * 4, RATE, np.random.default_rng(3))
    assert 0 <= wave.min() < 0.5 < 0.95 < wave.max() <= 1.0001 and wave.dtype == np.float32


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.0, 1.1, 1.25])
def test_speed_moves_the_pitch_and_the_length_without_aliases(speed):
    time = np.arange(RATE) / RATE
    clip = (0.5 * np.hanning(RATE) * np.sin(2 * np.pi * 6000 * time)).astype(np.float32)
    fast = augment.change_speed(clip, speed)
    assert fast.dtype == np.float32 and 0 <= len(fast) * speed / len(clip) - 1 < 0.014
    spectrum = np.abs(np.fft.rfft(fast * np.hanning(len(fast))))
    frequency = np.fft.rfftfreq(len(fast), 1 / RATE)
    peak = frequency[np.argmax(spectrum)]
    assert abs(peak / (6000 * len(clip) / len(fast)) - 1) < 0.001
    away = np.abs(frequency - peak) > 50
    assert 20 * np.log10(spectrum[away].max() / spectrum.max()) < -90
    assert abs(level_db(fast) - level_db(clip)) < 0.1


def test_the_shift_stays_in_its_bounds_and_reaches_them(audio, banks):
    settings = dataclasses.replace(PLAIN, time_shift_ms=100)
    peaks = []
    for seed in range(80):
        energy = np.square(example(audio, banks, settings, seed=seed))
        peaks.append(np.sum(energy * np.arange(len(energy))) / energy.sum() - 16000)
    assert -1620 < min(peaks) < -1400 and 1400 < max(peaks) < 1620


def test_place_cuts_what_does_not_fit():
    sound = np.zeros(4, np.float32)
    augment.place(sound, np.array([1, 2, 3], np.float32), -1)
    augment.place(sound, np.array([1, 2, 3], np.float32), 3)
    augment.place(sound, np.ones(3, np.float32), 9)
    augment.place(sound, np.ones(3, np.float32), -9)
    assert sound.tolist() == [2, 3, 0, 1]


def test_noise_has_the_ratio_that_is_asked_for(audio, banks):
    clean = example(audio, banks, PLAIN)
    active = 20 * np.log10(augment.active_level(clean[8000:24000], RATE))
    for snr_db in (0.0, 20.0):
        settings = dataclasses.replace(PLAIN, noise_probability=1, noise_snr_db=(snr_db, snr_db))
        for seed in range(6):
            noise = (example(audio, banks, settings, seed=seed) - clean)[8000:24000]
            assert abs(active - level_db(noise) - snr_db) < 4  # the whole canvas has the level, a part of it nearly


def test_noise_stands_before_and_after_the_clip_in_some_examples_only(audio, banks):
    settings = dataclasses.replace(PLAIN, noise_probability=1, noise_snr_db=(10, 10))
    sounds = [example(audio, banks, settings, seed=seed) for seed in range(40)]
    before, after = ([bool(sound[part].any()) for sound in sounds] for part in (slice(0, 8000), slice(24000, None)))
    assert 8 < sum(before) < 32 and 8 < sum(after) < 32
    assert all(sound[8000:24000].any() for sound in sounds)


def test_active_level_leaves_out_the_pauses():
    tone = np.sin(np.arange(8000)).astype(np.float32)
    padded = np.concatenate([np.zeros(8000, np.float32), tone])
    assert abs(augment.active_level(padded, RATE) - np.sqrt(0.5)) < 0.01
    assert augment.active_level(np.zeros(RATE, np.float32), RATE) == 0


def test_gain_and_saturation(audio, banks):
    clean = example(audio, banks, PLAIN)
    quiet = example(audio, banks, dataclasses.replace(PLAIN, gain_db=(-20, -20)))
    assert np.abs(quiet - clean / 10).max() <= 1.01 / 32768
    loud = example(audio, banks, dataclasses.replace(PLAIN, gain_db=(30, 30))) * 32768
    assert loud.max() == 32767 and loud.min() == -32768


def test_int16_rounds_to_nearest_and_saturates():
    sound = np.array([0.5, 1.49, -1.51, 40000, -40000], np.float32) / 32768
    assert augment.to_int16(sound).tolist() == [0, 1, -2, 32767, -32768]


@pytest.mark.parametrize("rt60_s", [0.1, 0.3, 0.6])
def test_a_room_has_its_direct_sound_first_and_its_decay(rt60_s):
    slopes = []
    for seed in range(8):
        response = augment.room_response(np.random.default_rng(seed), rt60_s, RATE)
        assert response[0] == 1 and not response[1:30].any()
        tail = response[500:]  # behind the early reflections
        half = len(tail) // 2
        slopes.append(level_db(tail[:half]) - level_db(tail[half:]))
        assert -0.1 < -level_db(response[1:]) - 10 * np.log10(len(response) - 1) < 15.1
    expected = 60 * half / RATE / rt60_s  # dB that the sound decays from one half to the other
    assert abs(np.mean(slopes) - expected) < 1.5


def test_a_room_keeps_the_place_of_the_word_and_adds_a_tail(audio, banks):
    impulse = np.zeros(27200, np.float32)
    impulse[10000] = 1
    for room in range(0, augment.ROOMS, 40):
        heard = augment.in_room(impulse, banks, room)
        assert len(heard) == 27200 and np.abs(heard[:10000]).max() < 1e-4  # no wrap of the tail
        assert abs(heard[10000] - 1) < 1e-3 and np.abs(heard[10040:]).max() > 1e-3


def test_a_splice_has_the_first_word_before_the_second(audio):
    first, second = (augment.to_float(audio.waves[i]) for i in (0, 16))
    joined = augment.splice(first, second)
    assert joined.shape == first.shape
    assert (joined[:7800] == first[:7800]).all()
    assert any((joined[8200:15000] == second[8200 + lag : 15000 + lag]).all() for lag in range(-200, 201))
    peaks = [np.argmax(np.abs(np.fft.rfft(part))) / (len(part) / RATE) for part in (joined[:8000], joined[8000:])]
    assert 290 < peaks[0] < 370 and 680 < peaks[1] < 770
    assert np.abs(np.diff(joined)).max() < 0.15  # no click: one period of 700 Hz at 8000 moves by 0.07 a sample


def test_a_splice_of_silence_is_silence():
    assert not augment.splice(np.zeros(RATE, np.float32), np.zeros(RATE, np.float32)).any()


def test_splices_are_of_two_words(audio, banks):
    for seed in range(20):
        clip = augment.source_clip(
            audio,
            Plan(np.array([Source.SPLICE]), np.array([0]), np.array([1]), np.array([2])),
            RECIPE.augment,
            0,
            np.random.default_rng(seed),
            RATE,
        )
        peak = np.argmax(np.abs(np.fft.rfft(clip[8000:])[:1000])) * 2
        assert peak > 450  # clips 0 and 1 are both word a, around 325 Hz; b, c and d lie above


def test_a_reversed_word_is_reversed(audio, banks):
    got = example(audio, banks, PLAIN, Source.REVERSED, first=3) * 32768
    assert (got[8000:24000] == audio.waves[3][::-1]).all()


def test_pieces_of_recordings_avoid_pauses_and_take_short_ones_whole():
    rng = np.random.default_rng(0)
    recording = np.zeros(4 * RATE, np.int16)
    recording[:RATE] = recording[2 * RATE : 3 * RATE] = 5000
    loud = [augment.random_piece(recording, RATE, rng).any() for _ in range(50)]
    assert sum(loud) >= 48
    short = augment.random_piece(np.full(100, 5000, np.int16), RATE, rng)
    assert (short[:100] > 0).all() and not short[100:].any()


def test_earlier_speech_ends_where_the_clip_begins(audio, banks):
    settings = dataclasses.replace(PLAIN, context_speech_probability=1)
    with_speech, clean = example(audio, banks, settings), example(audio, banks, PLAIN)
    assert with_speech[:8000].any() and (with_speech[8000:] == clean[8000:]).all()


def test_no_moment_without_a_keyword_holds_one(audio, banks):
    """The context of an unknown or silent example ends with other words only: 700 and 900 Hz here, not 300 and 500."""
    settings = dataclasses.replace(PLAIN, context_speech_probability=1, silence_level_db=(-100, -100))
    tones = {}
    for source, number in ((Source.WORD, 0), (Source.OTHER, 16), (Source.SILENCE, 0)):
        for seed in range(40):
            context = example(audio, banks, settings, source, number, seed=seed)[:8000].astype(float)
            tone = np.abs(np.fft.rfft(context)).argmax() * RATE / 8000
            tones.setdefault(source, set()).add(int(tone) // 200)
    assert tones[Source.WORD] == {1, 2, 3, 4} and tones[Source.OTHER] == tones[Source.SILENCE] == {3, 4}


def test_hard_negatives_are_heard(audio, banks):
    plan = plan_epoch(audio, np.random.default_rng(0))
    assert (plan.label[plan.source == Source.HARD] == 2).all() and (plan.source == Source.HARD).sum() == 2
    assert set(plan.first[plan.source == Source.HARD]) <= {0, 1}
    assert example(audio, banks, PLAIN, Source.HARD)[8000:24000].any()


def test_silence_covers_its_levels_and_digital_silence(audio, banks):
    settings = dataclasses.replace(PLAIN, silence_level_db=(-70, -20))
    sounds = [example(audio, banks, settings, Source.SILENCE, seed=seed) for seed in range(300)]
    levels = np.array([level_db(sound) if sound.any() else -200.0 for sound in sounds])
    assert 3 < (levels == -200).sum() < 40  # zeros
    ordinary = levels[(levels > -88)]
    assert ordinary.min() < -64 and ordinary.max() > -26 and ordinary.max() < -12
    assert abs(np.median(ordinary) + 45) < 6


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_by_its_exponent(exponent):
    noise = augment.coloured_noise(np.random.default_rng(0), 1 << 17, exponent)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[1 << k : 2 << k].mean() for k in range(9, 16)]
    assert abs(level_db(noise)) < 0.01
    assert np.allclose(np.diff(10 * np.log10(octaves)), -3.01 * exponent, atol=0.6)


def test_mains_hum_lies_at_its_harmonics():
    hum = augment.mains_hum(np.random.default_rng(0), RATE, RATE, 50)
    power = np.abs(np.fft.rfft(hum)) ** 2
    assert abs(level_db(hum)) < 0.01 and power[50:751:50].sum() > 0.99 * power.sum()


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_specaugment_masks_whole_frames_and_bands(dtype):
    codes = np.random.default_rng(0).integers(1, 100, (200, 50, 40)).astype(dtype)
    settings = AugmentSettings(specaugment=SpecAugmentSettings(time_masks=1, time_width=10, mel_masks=1, mel_width=5))
    masked = augment.specaugment(codes, settings, np.random.default_rng(1), fill=-7)
    assert masked.dtype == dtype and not (codes == -7).any()
    hit = masked == -7
    assert (masked[~hit] == codes[~hit]).all()
    frames, bands = hit.all(axis=2), hit.all(axis=1)  # [200, 50], [200, 40]
    assert (hit == (frames[:, :, None] | bands[:, None, :])).all()
    assert frames.sum(axis=1).max() == 10 and bands.sum(axis=1).max() == 5
    assert frames.sum(axis=1).min() == 0 and frames[:, 0].any() and frames[:, -1].any() and bands[:, -1].any()
    assert all(np.diff(np.flatnonzero(row)).max(initial=1) == 1 for row in frames)


def test_specaugment_of_nothing_changes_nothing():
    codes = np.ones((2, 5, 4), np.int8)
    none = AugmentSettings(specaugment=SpecAugmentSettings(0, 0, 0, 0))
    assert (augment.specaugment(codes, none, np.random.default_rng(0), fill=0) == codes).all()
    wide = AugmentSettings(specaugment=SpecAugmentSettings(2, 200, 2, 64))  # wider than the features
    assert augment.specaugment(codes, wide, np.random.default_rng(0), fill=0).shape == codes.shape


def test_mixup_mixes_features_and_targets_alike():
    rng = np.random.default_rng(0)
    targets = np.eye(64, dtype=np.float32)
    features = np.broadcast_to(targets[:, None, :], (64, 3, 64)).copy()
    mixed, mixed_targets = augment.mixup(features, targets, 0.4, rng)
    assert mixed.dtype == np.float32 and np.allclose(mixed, mixed_targets[:, None, :])
    assert np.allclose(mixed_targets.sum(axis=1), 1) and (np.diag(mixed_targets) >= 0.5).all()
    assert (np.diag(mixed_targets) < 0.99).any()
    same, _ = augment.mixup(features, targets, 0, rng)
    assert same is features


def test_a_cut_out_begins_and_ends_where_speech_is_quiet():
    """Bursts of 100 ms with gaps of 60 ms: what is cut out is whole bursts, and most is silence around them."""
    time = np.arange(RATE)
    bursts = (np.sin(time / 4) * ((time + 1600) % 2560 < 1600)).astype(np.float32)
    for seed in range(20):
        word = augment.cut_out(bursts, RATE, np.random.default_rng(seed))
        assert word.shape == bursts.shape and word.dtype == np.float32
        heard = np.flatnonzero(np.abs(word) > 1e-3)
        assert 0 < np.ptp(heard) < 0.97 * RATE
        inside = slice(heard[0] + 160, heard[-1] - 160)
        assert (word[inside] == bursts[inside]).all()
        for edge in (heard[0], heard[-1]):  # within 12 ms of where a burst begins or ends
            assert min(edge % 2560, -edge % 2560, abs(edge % 2560 - 960)) <= 200


def test_running_speech_fills_the_context_and_the_flush_most_of_the_time(audio, banks):
    full = [bool(example(audio, banks, PLAIN, Source.PIECE, seed=seed)[:8000].any()) for seed in range(60)]
    assert 0.6 < np.mean(full) < 0.9


def test_an_extra_clip_is_used_as_it_is(audio, banks):
    got = example(audio, banks, PLAIN, Source.EXTRA, first=2) * 32768
    assert (got[8000:24000] == audio.extra_waves[2]).all()
