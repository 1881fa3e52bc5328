"""Every bundle that is shipped: proves itself here, hears its own words in the sample clips, and in no other clip."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
from released import SAMPLES

from toolkit.audio import read_audio
from toolkit.bundle import load_bundle, released_bundles
from toolkit.kws import NOT_KEYWORDS
from toolkit.selftest import selftest
from toolkit.stream import Pipeline

HEARD = 0.7  # of a bundle's words: clips of one second, cut close, in voices that no training has heard


@functools.cache
def clips() -> dict[str, list]:
    """int16 samples of the evaluation clips by what is said."""
    folders = sorted((SAMPLES / "evaluation").iterdir())
    return {folder.name: [read_audio(path)[0] for path in sorted(folder.iterdir())] for folder in folders}


@functools.cache
def bundle_of(name: str):
    return load_bundle(name, "off")


@pytest.mark.parametrize("name", sorted(released_bundles()))
def test_it_proves_itself(name):
    result = selftest(bundle_of(name))
    assert result["passed"], result["reason"]


@pytest.mark.parametrize("name", sorted(released_bundles()))
def test_it_hears_its_words_and_nothing_in_other_clips(name):
    pipeline = Pipeline([bundle_of(name)])
    words = set(bundle_of(name).manifest.labels) - set(NOT_KEYWORDS)
    told: dict[str, Counter] = {said: Counter() for said in clips()}
    for said, waves in clips().items():
        for samples in waves:
            told[said].update([d.label for d in [*pipeline.process(samples), *pipeline.finish()]] or ["nothing"])
    assert words <= set(told) and not [said for said in set(told) - words if set(told[said]) != {"nothing"}]
    assert not [said for said in words if set(told[said]) - {said, "nothing"}]
    right = sum(told[said][said] for said in words)
    assert right >= HEARD * sum(len(clips()[said]) for said in words)


def test_a_wake_word_beside_commands_changes_neither():
    """One front end, two models: what each reports is what it reports alone."""
    said = [samples for word in ("computer", "go", "stop") for samples in clips()[word]]
    alone = {name: Pipeline([bundle_of(name)]) for name in ("kws", "wake-computer")}
    both = Pipeline([bundle_of(name) for name in alone])
    found = {
        name: [d for samples in said for d in [*pipeline.process(samples), *pipeline.finish()]]
        for name, pipeline in (*alone.items(), ("both", both))
    }
    assert found["kws"] and found["wake-computer"]
    for name in alone:
        assert [d for d in found["both"] if d.bundle == name] == found[name]
