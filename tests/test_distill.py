"""Teachers and the losses of the trainer: what a student learns from, and what it may not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")
pytest.importorskip("scipy", reason="scipy is not installed (requirements-host.txt)")

from tone_words import RECIPE, make_tone_words

from models.distill import Teachers
from models.layers import tf
from models.recipe import load_recipe
from models.train import at_peak, make_model, mean_scores, save_weights, train
from toolkit.errors import ConfigError

CANDIDATES = 6


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(folder, recipe of a student with two teachers of random weights)."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "teacher.yaml").write_text(RECIPE)
    teacher = load_recipe(folder / "teacher.yaml")
    for number in (1, 2):
        model, _, _ = make_model(teacher)
        save_weights(folder / f"{number}.npz", model)
    distill = dataclasses.replace(
        teacher.distill, recipe=str(folder / "teacher.yaml"), weights=tuple(str(folder / f"{n}.npz") for n in (1, 2))
    )
    return folder, dataclasses.replace(teacher, distill=distill)


def test_posteriors_are_the_mean_of_the_teachers_and_say_no_keyword_where_there_is_none(taught, tmp_path):
    _, recipe = taught
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (4, 170, recipe.features.width)).astype(np.int8)
    keywords = len(recipe.data.words)
    labels = np.array([0, 1, keywords, keywords + 1])
    teachers = Teachers(recipe, 2, CANDIDATES, tmp_path)
    got = teachers.posteriors(0, codes, labels).astype(np.float32)
    assert got.shape == (4, CANDIDATES, keywords + 2) and np.allclose(got.sum(axis=2), 1, atol=2e-3)
    assert (got[:2, :, :keywords] > 0).all() and not got[2:, :, :keywords].any()
    of_each = []
    for path in recipe.distill.weights:
        one = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, weights=(path,)))
        alone = Teachers(one, 2, CANDIDATES, tmp_path)
        of_each.append(alone.posteriors(0, codes, labels).astype(np.float32))
    assert np.allclose(got[:2], np.mean(of_each, axis=0)[:2], atol=1e-3)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 3 and (teachers.posteriors(0, codes * 0, labels) == got.astype(np.float16)).all()  # kept


def test_a_teacher_of_other_labels_is_refused(taught, tmp_path):
    _, recipe = taught
    data = dataclasses.replace(recipe.data, words=tuple(reversed(recipe.data.words)))
    with pytest.raises(ConfigError, match="the labels of distill.recipe .* are not those of this recipe"):
        Teachers(dataclasses.replace(recipe, data=data), 2, CANDIDATES, tmp_path)


def test_a_slower_student_hears_the_teachers_at_its_own_times(taught, tmp_path):
    """Of 85 scores of the teachers a student of half their rate has the 2nd, 4th, ... 84th."""
    _, recipe = taught
    codes = np.random.default_rng(1).integers(-128, 128, (2, 170, recipe.features.width)).astype(np.int8)
    at_each = Teachers(recipe, 2, 12, tmp_path).posteriors(0, codes, np.array([0, 1]))
    at_every_second = Teachers(recipe, 4, 6, tmp_path).posteriors(0, codes, np.array([0, 1]))
    assert (at_every_second == at_each[:, :-1][:, ::-2][:, ::-1][:, -6:]).all()
    with pytest.raises(ConfigError, match="every 2 frames, the student every 3"):
        Teachers(recipe, 3, 6, tmp_path)


def test_a_student_trains(taught, tmp_path):
    _, recipe = taught
    settings = dataclasses.replace(recipe.train, epochs=2)
    lines = []
    data = make_tone_words(tmp_path / "data")
    last = train(dataclasses.replace(recipe, train=settings), data, tmp_path / "run", tmp_path / "epochs", lines.append)
    assert last["epoch"] == 2 and np.isfinite(last["loss"]) and len(list(tmp_path.glob("epochs/*/teachers_*.npy"))) == 2


def test_the_peak_of_a_keyword_is_its_own_and_of_the_others_any_keywords():
    is_keyword = tf.constant([True, True, False])
    windows = tf.constant([[[9.0, 0, 0], [0, 0, 9], [0, 3, 0]]] * 2)
    targets = tf.constant([[0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    assert at_peak(windows, targets, is_keyword).numpy().tolist() == [[0, 3, 0], [9, 0, 0]]


def test_mean_scores_are_of_whole_windows():
    scores = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    assert mean_scores(tf.constant(scores), 3).numpy()[0, :, 0].tolist() == [2, 4, 6, 8]
