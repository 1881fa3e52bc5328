"""The released keyword bundle and the sample audio, and bundles that differ from it in one thing.

No figure of the bundle is written down in a test: it is replaced when a better one has been trained.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.audio import read_audio
from toolkit.bundle import Bundle, load_bundle, released_bundles, write_bundle
from toolkit.interpreter import runtime_name
from toolkit.kws import NOT_KEYWORDS
from toolkit.manifest import SCORES_ROLE
from toolkit.signature import PrivateKey

SAMPLES = Path(__file__).resolve().parents[1] / "models" / "samples"
SCENE = SAMPLES / "scene.wav"


@functools.cache
def _released() -> Bundle:
    return load_bundle("kws", "off")


def released() -> Bundle:
    """The bundle `kws`; the test is skipped where there is none, or nothing to run it with."""
    if "kws" not in released_bundles():
        pytest.skip("no bundle kws is released; `make quantize` makes one")
    runtime_name()
    return _released()


@functools.cache
def scene() -> np.ndarray:
    """The sample scene, int16 [n], not writable."""
    samples = read_audio(SCENE)[0]
    samples.flags.writeable = False
    return samples


FIRST_WORDS = 134_400  # samples of the scene, in which three keywords can be detected
LATEST_S = 0.8  # after the end of a word its detection may come


def spoken_keywords(seconds: float = 1e9) -> list[dict[str, Any]]:
    """The keywords said in the first seconds of the scene, in order: label, onset, offset in seconds."""
    said = json.loads((SAMPLES / "scene.json").read_text("utf-8"))["utterances"]
    return [word for word in said if word["label"] not in NOT_KEYWORDS and word["offset"] + LATEST_S <= seconds]


def match_keywords(detections: list[tuple[str, float]], seconds: float = 1e9) -> tuple[list, list]:
    """(the words of the scene that no detection (label, time) fits, the detections that fit no word)."""
    left, missed = list(detections), []
    for word in spoken_keywords(seconds):
        fitting = [d for d in left if d[0] == word["label"] and word["onset"] <= d[1] <= word["offset"] + LATEST_S]
        if fitting:
            left.remove(fitting[0])
        else:
            missed.append(f"{word['label']} at {word['onset']}")
    return missed, left


def scores_role() -> str:
    """The member that holds the expected scores of the runtime that is used here."""
    bundle = released()
    return SCORES_ROLE + (runtime_name() if runtime_name() in bundle.manifest.selftest.exact
                          else bundle.manifest.selftest.exact[0])


def changed(path: Path, members: dict[str, bytes] | None = None, key: PrivateKey | None = None, **fields) -> Bundle:
    """The released bundle with other members (by role) or manifest fields, right in every hash, written to path."""
    original = released()
    contents = {role: (member.file, original.members[role]) for role, member in original.manifest.members.items()}
    contents |= {role: (contents[role][0], data) for role, data in (members or {}).items()}
    model = replace(fields.pop("model", original.manifest.model), size_bytes=len(contents["model"][1]))
    return write_bundle(path, replace(original.manifest, model=model, members={}, **fields), contents, key)


def cuts(draw_lengths: list[int], n: int) -> list[slice]:
    """Slices that cover 0 .. n in steps of these lengths, repeated; a length of 0 gives an empty slice."""
    slices, start, i = [], 0, 0
    while start < n:
        length = draw_lengths[i % len(draw_lengths)] if i < 4 * n else n
        slices.append(slice(start, min(n, start + length)))
        start, i = start + length, i + 1
    return slices
