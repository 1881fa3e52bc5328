"""Which training is released, and at which operating point; and each limit that keeps it from being released.

The embedded clips are the data set, the released bundle is the training.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from released import SAMPLES, changed, released
from spoken_words import make_spoken_words

from models.data import load_dataset
from models.det import THRESHOLDS, FalseAccepts, Point, Words, count_words, poisson_upper
from models.evaluate import StreamScores
from models.recipe import BudgetSettings, load_recipe
from models.replay import rule_of
from models.streams import word_scene
from quantize.facts import facts_of_release
from quantize.figures import HOLDS, OF_A_RELEASE, SNRS_DB, TUNE_SHARE, check_release, choose_on_streams, measure_streams
from quantize.gate import METRICS, MOST, RECIPE_LIMITS, shown
from toolkit.audio import read_audio, write_wav
from toolkit.errors import BudgetError
from toolkit.kws import NOT_KEYWORDS
from toolkit.stream import BundleStage, Pipeline

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "models" / "zoo"
RATE = 16000
NEGATIVE_S = 60
LEAST = 3 * 3600 / NEGATIVE_S  # false accepts per hour, the fewest that so little audio can show


def recipe_of_embedded():
    """The recipe of `kws` for the embedded clips alone, and limits that they can show."""
    recipe = load_recipe(ROOT / "models" / "recipes" / "kws.yaml")
    alone = replace(recipe.data, negatives=(), hard_negatives=(), noise=(), extra=())
    return within(replace(recipe, data=alone, budget=BudgetSettings()), LEAST)


def within(recipe, on_tune: float):
    """The recipe with a budget of which this many false accepts per hour may be used up on tune."""
    return replace(recipe, budget=replace(recipe.budget, false_accepts_per_hour=on_tune / TUNE_SHARE))


def recording(folder: Path, clips: list[Path]) -> Path:
    """A new folder with one recording of NEGATIVE_S seconds: the clips, one after the other, again and again."""
    waves = [np.resize(read_audio(path)[0], RATE) for path in clips]
    folder.mkdir()
    write_wav(folder / "long.wav", np.concatenate([waves[i % len(waves)] for i in range(NEGATIVE_S)]), RATE)
    return folder


def other_words() -> list[Path]:
    return sorted((SAMPLES / "calibration" / "unknown").iterdir())


@pytest.fixture(scope="module")
def recipe():
    return recipe_of_embedded()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, recipe):
    return load_dataset(make_spoken_words(tmp_path_factory.mktemp("spoken") / "words"), recipe.data)


@pytest.fixture(scope="module")
def negatives(tmp_path_factory) -> Path:
    return recording(tmp_path_factory.mktemp("negatives") / "other", other_words())


@pytest.fixture(scope="module")
def tempting(tmp_path_factory) -> Path:
    """What no model can tell from keywords, because it is keywords, three seconds apart: 20 false accepts."""
    folder = tmp_path_factory.mktemp("negatives")
    quiet = next((SAMPLES / "evaluation" / "silence").iterdir())
    words = [path for label in ("yes", "left", "go") for path in sorted((SAMPLES / "evaluation" / label).iterdir())]
    return recording(folder / "words", [path for word in words[:20] for path in (word, quiet, quiet)])


@pytest.fixture(scope="module")
def deaf(tmp_path_factory):
    """The released bundle, but after each report it says nothing for 20 s: it misses most words, surely."""
    decision = replace(released().manifest.decision, refractory_frames=1000)
    return changed(tmp_path_factory.mktemp("deaf") / "deaf.eab", decision=decision)


def with_decision(folder: Path, decision) -> Pipeline:
    return Pipeline([changed(folder / "chosen.eab", decision=decision)])


# --- which training, at which operating point ---


def test_the_training_that_misses_fewest_words_on_tune_is_chosen(recipe, dataset, negatives, deaf, capsys):
    """Of wholly equal ones the first."""
    number, decision, points = choose_on_streams(recipe, [deaf, released(), released()], dataset, [negatives])
    assert number == 1 and decision.refractory_frames == released().manifest.decision.refractory_frames
    assert decision.hold_frames in HOLDS and decision.threshold in THRESHOLDS
    assert [point["background"] for point in points] == ["clean", "10 dB SNR"]
    keywords = sum(clip.label not in NOT_KEYWORDS for clip in dataset.clips("tune"))
    assert [point["keywords"] for point in points] == [keywords] * 2
    said = [line.split("training ")[1] for line in capsys.readouterr().err.splitlines() if "missed, " in line]
    missed = sum(point["false_rejects"] for point in points)
    assert said[1:] == [
        f"{n}: {missed} missed, {points[0]['false_accepts']} false accepts, at threshold {decision.threshold}, "
        f"window {decision.stream_window_frames}, hold {decision.hold_frames}"
        for n in (2, 3)
    ]
    assert missed < int(said[0].split()[1]) <= 2 * keywords


def test_of_trainings_that_miss_as_many_words_that_with_fewer_false_accepts_is_chosen(recipe, dataset, monkeypatch):
    """As of decisions: a tune that all trainings master must not leave the choice to their order."""
    hours, found = 20.0, [(9, 1, 0), (3, 4, 0), (3, 2, 5), (3, 2, 1), (3, 2, 1)]  # missed, false accepts, confused

    def points(missed, events, confused):
        words = Words(100, 100 - missed, confused, 0), Words(100, 100, 0, 0)
        return [Point(0.5, of, FalseAccepts(events, hours)) for of in words]

    answers = iter([(released().manifest.decision, points(*one)) for one in found])
    heard = StreamScores(rule_of(BundleStage(released())), "tune", SNRS_DB, (), (), {})
    monkeypatch.setattr("quantize.figures.score_streams", lambda *_, **__: heard)
    monkeypatch.setattr("quantize.figures.choose_decision", lambda *_: next(answers))
    number, _, chosen = choose_on_streams(recipe, [released()] * len(found), dataset, [])
    assert number == 3 and [point["confused"] for point in chosen] == [1, 0]


def test_the_choice_keeps_the_false_accepts_that_the_target_allows(recipe, dataset, tempting, tmp_path):
    """Counted again by the device's own pipeline: no more events than the target's upper bound allows."""
    missed = []
    audio, hours = read_audio(tempting / "long.wav")[0], NEGATIVE_S / 3600
    for allowed in (0, 3, 12):
        target = max(LEAST, poisson_upper(allowed) / hours)
        _, decision, points = choose_on_streams(within(recipe, target), [released()], dataset, [tempting])
        pipeline = with_decision(tmp_path, decision)
        heard = pipeline.process(audio) + pipeline.finish()
        assert [point["false_accepts"] for point in points] == [len(heard)] * 2 and len(heard) <= allowed
        assert points[0]["false_accepts_per_hour_upper"] <= round(target, 4)
        missed.append(sum(point["false_rejects"] for point in points))
    assert missed == sorted(missed, reverse=True) and missed[-1] < missed[0]


def test_too_few_hours_for_the_target_are_one_sentence(recipe, dataset, negatives, capsys):
    """A minute cannot show 0.5 false accepts per hour, whatever is heard in it."""
    with pytest.raises(BudgetError) as caught:
        choose_on_streams(within(recipe, 0.5), [released()], dataset, [negatives])
    assert str(caught.value) == (
        "no threshold of any training keeps the false accepts on tune within 0.5 per hour (upper 95 % bound); train "
        "with more keyword-free audio, or give more hours of it."
    )
    assert "training 1: no threshold keeps the false accepts on tune within 0.5 per hour" in capsys.readouterr().err


def test_the_streams_of_report_are_measured_at_the_decision_that_was_chosen(recipe, dataset, tempting, tmp_path):
    """The same counts as of the device's own pipeline."""
    decision = replace(released().manifest.decision, hold_frames=5, threshold=THRESHOLDS[30])
    measured = measure_streams(recipe, released(), dataset, [tempting], decision, tmp_path / "det.png")
    pipeline = with_decision(tmp_path, decision)
    accepts = len(pipeline.process(read_audio(tempting / "long.wav")[0]) + pipeline.finish())
    for snr, point in zip(SNRS_DB, measured["report"], strict=True):
        made = word_scene(dataset, "report", RATE, snr_db=snr)
        words = count_words(pipeline.process(made.samples) + pipeline.finish(), made.events)
        assert {key: point[key] for key in words.to_dict()} == words.to_dict()
        assert point["threshold"] == decision.threshold and point["false_accepts"] == accepts > 0
    made = word_scene(dataset, "report", RATE, keywords=False)
    words = count_words(pipeline.process(made.samples) + pipeline.finish(), made.events)
    others = measured["other_words"]
    assert (others["words"], others["mistaken"]) == (len(made.events), words.confused)
    assert (tmp_path / "det.png").read_bytes().startswith(b"\x89PNG")


# --- what is refused ---

PLACES = {  # of each metric in accuracy.json; CHOSEN: the training that was released
    "accuracy": "figures/0/value",
    "accuracy_loss": "details/seeds/CHOSEN/report_float",  # over the same training's int8
    "mean_accuracy": "figures/1/value",
    "mean_accuracy_loss_upper": "details/loss_by_int8/high",
    "embedded_accuracy": "details/embedded/accuracy",
    "false_accepts_per_hour": "details/streams/report/0/false_accepts_per_hour_upper",
    "false_reject_rate": "details/streams/report/0/false_reject_rate",
    "model_bytes": "details/model_bytes",
    "macs_per_second": "details/macs_per_second",
    "arena_bytes": "details/arena/arena_bytes",
}


@pytest.fixture
def strict():
    """The recipe of `kws` with a limit for all that a release measures."""
    recipe = load_recipe(ROOT / "models" / "recipes" / "kws.yaml")
    return replace(recipe, budget=replace(recipe.budget, arena_bytes=100_000))


def of_zoo(name: str = "kws") -> dict:
    return json.loads((ZOO / name / "accuracy.json").read_text())


def tamper(known: dict, name: str, value) -> None:
    """Writes another value of the metric into what an accuracy.json holds."""
    chosen = [one["seed"] for one in known["details"]["seeds"]].index(known["figures"][0]["seeds"][0])
    *way, last = PLACES[name].replace("CHOSEN", str(chosen)).split("/")
    for key in way:
        known = known[int(key) if key.isdigit() else key]
    known[last] = value + known["report_int8"] if name == "accuracy_loss" else value


def beyond(recipe, name: str) -> float:
    """A value that breaks the limit of the metric: by a point, or by a byte or operation."""
    (limit,) = (getattr(recipe.budget, setting) for setting, metric in RECIPE_LIMITS.items() if metric == name)
    return limit + (1 if isinstance(limit, int) else 0.01) * (1 if METRICS[name].sense == MOST else -1)


def test_each_limit_of_a_release_has_its_place(strict):
    limited = {metric for setting, metric in RECIPE_LIMITS.items() if getattr(strict.budget, setting) is not None}
    assert limited == set(PLACES) == set(facts_of_release(of_zoo())) and set(OF_A_RELEASE) < set(PLACES)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ZOO.glob("*/accuracy.json")))
def test_the_zoo_keeps_its_limits(name):
    check_release(load_recipe(ROOT / "models" / "recipes" / f"{name}.yaml"), of_zoo(name))


@pytest.mark.parametrize("name", PLACES)
def test_a_release_beyond_one_limit_is_refused(name, strict, capsys):
    check_release(strict, of_zoo())
    known, value = of_zoo(), beyond(strict, name)
    tamper(known, name, value)
    with pytest.raises(BudgetError) as caught:
        check_release(strict, known)
    metric, sentence = METRICS[name], str(caught.value).removeprefix("nothing was released: ")
    over = shown(name, 1 if isinstance(value, int) else 0.01, is_margin=True)
    side = "over" if metric.sense == MOST else "under"
    said = f"the {metric.title} is {shown(name, value)}, {over} {side} the limit of the recipe kws"
    assert sentence.startswith(said) and sentence.endswith(".") and "more limit" not in sentence
    assert capsys.readouterr().err.count("quantize: FAIL ") == 1


@pytest.mark.parametrize("name", OF_A_RELEASE)
def test_what_a_release_is_to_measure_and_did_not_is_refused(name, strict):
    """`python -m quantize` passes without it, having no data; a false accept rate is None where hours were too few."""
    known = of_zoo()
    tamper(known, name, None)
    with pytest.raises(BudgetError, match=f"^nothing was released: the {METRICS[name].title} was not measured"):
        check_release(strict, known)


def test_every_broken_limit_of_a_release_is_said(strict, capsys):
    known = of_zoo()
    for name in ("model_bytes", "macs_per_second", "mean_accuracy"):
        tamper(known, name, beyond(strict, name))
    with pytest.raises(BudgetError, match="2 more limits are broken"):
        check_release(strict, known)
    said = capsys.readouterr().err
    limit = strict.budget.model_bytes
    assert f"FAIL size of the model: {limit + 1:,} bytes (at most {limit:,} bytes)" in said
    assert said.count("quantize: FAIL ") == 3
