"""Long audio with known times: where the words are, how loud the background is, and what may not be used as a test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed (requirements-host.txt)")
pytest.importorskip("soundfile", reason="soundfile, which reads the sample clips, is not installed")

from released import SAMPLES, released, scene

from models import mlperf
from models.__main__ import main
from models.augment import active_level
from models.data import Dataset, load_dataset
from models.evaluate import choose_threshold, evaluate_stream, score_streams
from models.noise import to_float
from models.recipe import load_recipe
from models.streams import (
    FADE_S,
    FLOOR_DB,
    GAP_S,
    Scorer,
    check_transcripts,
    continuous,
    unheard,
    word_scene,
)
from models.waves import load_waves
from toolkit.audio import list_audio, write_wav
from toolkit.errors import DataError, UsageError
from toolkit.kws import NOT_KEYWORDS

RATE = 16000
SPLIT_OF = {"joe": "tune", "heart": "report", "pico": "train", "rms": "train"}  # the voices of the sample clips


@dataclass(frozen=True)
class Corpus:
    recipe: Path
    data: Path
    speech: Path  # without keywords
    noise: Path

    @property
    def dataset(self) -> Dataset:
        return load_dataset(self.data, load_recipe(self.recipe).data)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """The shipped clips as a data set in which each voice is a speaker, and other words as speech without keywords."""
    root = tmp_path_factory.mktemp("corpus")
    data, rng, listed = root / "data", np.random.default_rng(1), []
    words = [label for label in released().manifest.labels if label not in NOT_KEYWORDS]
    for label in (*words, "unknown"):
        folder = data / label.replace("unknown", "other")
        folder.mkdir(parents=True)
        for path in sorted((SAMPLES / "evaluation" / label).iterdir()):
            voice, take = path.stem.split("_")
            name = f"{voice}_nohash_{take}.flac"
            (folder / name).write_bytes(path.read_bytes())
            listed += [f"{folder.name}/{name}"] if SPLIT_OF[voice] != "train" else []
    (data / "validation_list.txt").write_text("\n".join(listed))
    (data / "testing_list.txt").write_text("")
    for folder, count in ((data / "_background_noise_", 3), (root / "noise", 1), (root / "trained", 1)):
        folder.mkdir()
        for i in range(count):
            write_wav(folder / f"noise{i}.wav", (500 * rng.standard_normal(4 * RATE)).astype(np.int16), RATE)
    (root / "speech").mkdir()
    for path in sorted((SAMPLES / "calibration" / "unknown").iterdir()):
        (root / "speech" / path.name).write_bytes(path.read_bytes())
    (root / "recipe.yaml").write_text(
        "schema: 1\nname: kws\ndata: {words: [" + ", ".join(f'"{word}"' for word in words) + "], noise: [../trained]}\n"
    )
    return Corpus(root / "recipe.yaml", data, root / "speech", root / "noise")


# --- scenes ---


@pytest.mark.parametrize("keywords", [True, False])
def test_every_word_is_where_the_scene_says(corpus, keywords):
    """The clip lies there under a background that is 50 dB below full scale; gaps are 1 to 3 s long."""
    made = word_scene(corpus.dataset, "tune", RATE, keywords)
    clips = [c for c in corpus.dataset.clips("tune") if (c.label not in NOT_KEYWORDS) == keywords and c.start is None]
    assert sorted(event.label for event in made.events) == sorted(clip.word for clip in clips)
    assert len(clips) == (24 if keywords else 3)
    waves = {clip.word: [] for clip in clips}
    for clip, wave in zip(clips, load_waves(clips)):
        waves[clip.word].append(wave.astype(float))
    end = 0.0
    for event in made.events:
        assert GAP_S[0] <= event.onset - end <= GAP_S[1]
        end = event.offset
        assert event.offset - event.onset == pytest.approx(1.0)
        heard = made.samples[round(event.onset * RATE) : round(event.offset * RATE)]
        rest = min(np.sqrt(np.mean((heard - wave) ** 2)) for wave in waves[event.label])
        assert 20 * np.log10(rest / 32768) == pytest.approx(FLOOR_DB, abs=0.6)
    assert len(made.samples) >= (end + 0.7) * RATE


def test_the_background_is_as_far_below_each_word_as_asked_for(corpus):
    made = word_scene(corpus.dataset, "report", RATE, snr_db=10.0, noise=[corpus.noise / "noise0.wav"])
    clips = [clip for clip in corpus.dataset.clips("report") if clip.label not in NOT_KEYWORDS]
    waves = [(clip.word, wave) for clip, wave in zip(clips, load_waves(clips))]
    for event in made.events:
        heard = made.samples[round(event.onset * RATE) : round(event.offset * RATE)].astype(float)
        rest, level = min(
            (np.sqrt(np.mean((heard - wave) ** 2)), active_level(to_float(wave), RATE) * 32768)
            for word, wave in waves
            if word == event.label
        )
        assert 20 * np.log10(level / rest) == pytest.approx(10, abs=0.3)
    gaps = [made.samples[round(e.offset * RATE) :][: round(0.9 * RATE)].astype(float) for e in made.events]
    assert min(np.sqrt(np.mean(gap**2)) for gap in gaps) > 5  # it goes on between the words


def test_a_scene_follows_from_its_seed(corpus):
    one, same, other = (word_scene(corpus.dataset, "tune", RATE, seed=seed) for seed in (1, 1, 2))
    assert one.events == same.events and np.array_equal(one.samples, same.samples)
    assert one.events != other.events


def test_a_split_without_clips_is_refused(corpus):
    with pytest.raises(DataError, match="the split test .* holds no clip for a stream"):
        word_scene(corpus.dataset, "test", RATE)


def test_the_background_never_stops():
    rng = np.random.default_rng(3)
    loud = ((30, 40_000), (8000, 900), (300, 50_000))
    recordings = [(level * rng.standard_normal(n)).astype(np.int16) for level, n in loud]
    recordings.append(np.zeros(1000, np.int16))  # of a broken microphone: left out
    sound = continuous(recordings, 400_000, RATE, rng)
    assert sound.shape == (400_000,) and sound.dtype == np.float32
    power = np.mean(sound.reshape(-1, 1600) ** 2, axis=1)  # in pieces of 0.1 s
    assert power.min() > 0.7 and power.max() < 1.4 and FADE_S == 0.1
    with pytest.raises(DataError, match="1 background recordings hold nothing but zeros"):
        continuous(recordings[-1:], 1000, RATE, rng)


# --- scores ---


def test_each_recording_is_heard_from_the_reset_state(tmp_path):
    write_wav(tmp_path / "a.wav", scene()[:100_000], RATE)
    write_wav(tmp_path / "b.wav", scene()[:70_001], RATE)
    scorer = Scorer(released())
    first, second = scorer.recordings(list_audio(tmp_path))
    assert (first.seconds, second.seconds) == (6.25, 70_001 / RATE)
    heard = len(second.scores) - scorer.stage.flush_frames // scorer.stage.stride  # then the silence after its end
    assert np.array_equal(second.scores[:heard], first.scores[:heard]) and second.scores[:heard].any() and heard > 200
    blocks = np.array_split(scene()[:100_000], 7)
    assert np.array_equal(scorer.scores(blocks)[0], first.scores)


# --- what may not be used ---


def test_what_training_has_heard_is_no_test(corpus):
    assert unheard([corpus.noise, corpus.speech], corpus.dataset) == [
        *list_audio(corpus.noise), *list_audio(corpus.speech)]
    with pytest.raises(DataError, match="noise0.wav is heard in training: it is in data.noise"):
        unheard([corpus.noise.parent / "trained"], corpus.dataset)
    with pytest.raises(DataError, match="is heard in training"):
        score_streams(released(), corpus.dataset, "tune", noise=[corpus.data / "_background_noise_"])


def test_transcripts_without_keywords(tmp_path):
    lines = [{"file": "a.flac", "text": "Rightly so: the upper cases"}, {"file": "b.flac", "text": "nothing"}]
    path = tmp_path / "below" / "transcripts.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, lines)))
    assert check_transcripts([tmp_path], ["right", "up", "no"]) == 2
    path.write_text(json.dumps({"text": "Turn RIGHT, please"}))
    with pytest.raises(DataError, match="transcripts.jsonl, line 1, says 'RIGHT', a keyword"):
        check_transcripts([tmp_path], ["right", "up", "no"])
    for broken in ("{", "[1]", '{"words": 1}', '{"text": 1}'):
        path.write_text(broken)
        with pytest.raises(DataError, match="line 1, is not"):
            check_transcripts([tmp_path], ["right"])


# --- the whole way ---


def test_evaluate_stream(corpus, tmp_path, capsys):
    """Eight seconds without keywords can show 2000 false accepts per hour, and not half a one."""
    common = ["evaluate", str(corpus.recipe), "--data", str(corpus.data), "--stream", "--split", "tune"]
    common += ["--negatives", str(corpus.speech), "--noise", str(corpus.noise), "--snr-db", "15"]
    assert main([*common, "--target-fa-per-hour", "2000", "--png", str(tmp_path / "det.png")]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["operating_point"]["snr_db"] for line in lines if "operating_point" in line] == [None, 15.0]
    (stream,) = [line["stream"] for line in lines if "stream" in line]
    (negatives,) = [line["negatives"] for line in lines if "negatives" in line]
    assert stream["because"] == "chosen on tune" and stream["sha256"] == released().sha256
    assert negatives["recordings"] == 8 and negatives["hours"] == round(8 / 3600, 4)
    assert negatives["false_accepts"] == sum("false_accept" in line for line in lines)
    assert negatives["false_accepts_per_hour_upper"] <= 2000
    for point in (line["point"] for line in lines if "point" in line):
        assert point["keywords"] == 24 and 0 <= point["confused"] <= point["false_rejects"] <= 24
    others = [line["other_words"] for line in lines if "other_words" in line]
    assert [o["words"] for o in others] == [3, 3]
    assert "* chosen on tune" in err and "tune, 15 dB SNR" in err
    assert (tmp_path / "det.png").read_bytes().startswith(b"\x89PNG")

    assert main([*common, "--threshold", "0.5"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    at = [line["operating_point"] for line in lines if "operating_point" in line][0]
    assert at["threshold"] == 0.5 and at["false_accepts_per_hour_upper"] is None and at["hours"] > 0
    assert "0.00 h without keywords cannot show 0.5 false accepts per hour, for which 6.00 h are needed" in err


def test_on_report_a_threshold_is_stated_and_not_chosen(corpus):
    scores = score_streams(released(), corpus.dataset, "report", [corpus.speech])
    _, threshold, why = choose_threshold(scores, 2000)
    assert (threshold, why) == (released().manifest.decision.threshold, "the threshold of the bundle")
    for wrong in ((0, None), (-1, None), (0.5, 1.5)):
        with pytest.raises(UsageError, match="expected more than 0"):
            choose_threshold(scores, *wrong)


def test_the_recipe_must_be_that_of_the_bundle(corpus, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("schema: 1\nname: kws\ndata: {words: [go, stop]}\n")
    dataset = load_dataset(corpus.data, load_recipe(recipe).data)
    with pytest.raises(DataError, match="name the recipe of the bundle"):
        score_streams(released(), dataset, "tune")


def test_the_stream_of_a_split_at_one_threshold(corpus):
    found = evaluate_stream(released(), corpus.dataset, "report")
    assert (found["keywords"], found["other_words"], found["split"]) == (24, 3, "report")
    assert 20 <= found["found_in_stream"] <= 24 and 20 <= found["found_as_clips"] <= 24  # of a good bundle
    assert found["hours"] > 27 / 3600 and found["threshold"] == released().manifest.decision.threshold
    silent = evaluate_stream(released(), corpus.dataset, "report", threshold=1.0)
    assert silent["found_in_stream"] == 0 and silent["false_accepts"] == 0


# --- MLPerf Tiny's stream ---


def test_the_mlperf_stream(corpus):
    """At 1 kHz, because 20 minutes are long; the words lie where they are said to, at their level."""
    rate = 1000
    made = mlperf.benchmark_scene(
        corpus.dataset, "tune", "go", rate, list_audio(corpus.speech), list_audio(corpus.noise), seed=4
    )
    assert len(made.samples) == 1200 * rate and np.abs(made.samples.astype(int)).max() >= 32767
    onsets = [event.onset for event in made.events]
    assert len(onsets) == 3 and onsets[-1] == pytest.approx(570) and {e.label for e in made.events} == {"go"}
    level = [made.samples[a * rate : b * rate].std(dtype=float)
             for a, b in ((310, 590), (610, 740), (760, 890), (910, 1190), (110, 290))]
    assert level[1] / level[0] == pytest.approx(1, rel=0.1)  # one voice is as loud as the noise
    assert level[2] / level[0] == pytest.approx(2**0.5, rel=0.1)  # both
    assert level[3] / level[0] == pytest.approx(0.2 * 7**0.5, rel=0.6)  # seven voices, of few recordings
    assert level[4] / level[0] == pytest.approx(0.1 * 8**0.5, rel=0.6)


def test_the_words_of_the_mlperf_stream(corpus, monkeypatch):
    """Without voices and noise there is digital zero between them, and their levels are between 0.5 and 0.75."""
    monkeypatch.setattr(mlperf, "VOICES", ())
    monkeypatch.setattr(mlperf, "NOISES", ())
    made = mlperf.benchmark_scene(corpus.dataset, "tune", "yes", 1000, list_audio(corpus.speech), [], seed=4)
    between, levels = np.ones(len(made.samples), bool), []
    for event in made.events:
        here = slice(round(event.onset * 1000), round(event.offset * 1000))
        between[here] = False
        levels.append(made.samples[here].std(dtype=float))
        said = np.abs(made.samples[here].astype(int))
        assert min(said[0], said[-1]) > 0.045 * said.max()  # trimmed
    assert not made.samples[between].any() and max(levels) / min(levels) <= 1.5


def test_an_mlperf_run(corpus, monkeypatch):
    """The same stream, twenty times as dense."""
    monkeypatch.setattr(mlperf, "LENGTH_S", 60.0)
    monkeypatch.setattr(mlperf, "LAST_WORD_S", 28.5)
    monkeypatch.setattr(mlperf, "VOICES", tuple((a / 20, b / 20, n, level) for a, b, n, level in mlperf.VOICES))
    monkeypatch.setattr(mlperf, "NOISES", ())
    result = mlperf.evaluate_mlperf(released(), corpus.dataset, "tune", "stop", [corpus.speech], threshold=0.5)
    assert result["words"] == 3 == result["true_positives"] + result["false_negatives"]
    assert result["true_positives"] >= 1 and result["minutes"] == 1.0 and result["passes"]
    for word, speech in (("bed", [corpus.speech]), ("stop", [])):
        with pytest.raises(DataError, match="name a keyword, and --negatives"):
            mlperf.evaluate_mlperf(released(), corpus.dataset, "tune", word, speech)
