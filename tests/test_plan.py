"""Which examples an epoch has: every word, and the other classes by their fractions, whatever a data set lacks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy, which the augmentation needs, is not installed")

from tone_audio import tone_audio

from models.plan import Source, plan_epoch
from models.waves import TrainingAudio


@pytest.fixture(scope="module")
def audio() -> TrainingAudio:
    return tone_audio()


def test_an_epoch_holds_every_word_once_and_the_other_classes_by_their_fractions(audio):
    plan = plan_epoch(audio, np.random.default_rng(0))
    words = plan.first[plan.source == Source.WORD]
    assert sorted(words) == list(range(16))
    assert (audio.labels[words] == plan.label[plan.source == Source.WORD]).all()
    assert np.bincount(plan.label).tolist() == [12, 8, 16, 8]  # a quarter of 16 words more, all of the extra word a
    assert (plan.label[plan.source == Source.SILENCE] == 3).all()
    extra = plan.source == Source.EXTRA
    assert (audio.extra_labels[plan.first[extra]] == plan.label[extra]).all()
    many = plan_epoch(dataclasses.replace(audio, unknown_fraction=20.0), np.random.default_rng(0))
    counts = np.bincount(many.source[many.label == 2], minlength=8)
    assert counts[[Source.WORD, Source.SILENCE]].sum() == 0
    assert counts.sum() == 160 and np.delete(counts, [Source.WORD, Source.SILENCE]).min() >= 8  # 5 %


def test_rare_words_come_more_often_than_by_their_number(audio):
    audio = dataclasses.replace(audio, unknown_fraction=1.0)
    drawn = np.zeros(30)
    for seed in range(300):
        plan = plan_epoch(audio, np.random.default_rng(seed))
        drawn += np.bincount(plan.first[plan.source == Source.OTHER], minlength=30)
    assert drawn[28:].mean() > 1.5 * drawn[16:28].mean() and drawn[:16].sum() == 0
