"""Who speaks in a clip, and the split that a speaker belongs to.

The rule and its constant: Warden 2018, arXiv:1804.03209, and the README of the Speech Commands set.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from models.recipe import DataSettings

MAX_NUM_WAVS_PER_CLASS = 2**27 - 1  # of the Speech Commands README: which_set hashes into this many slots
OFFICIAL_LISTS = {"validation": "validation_list.txt", "testing": "testing_list.txt"}


def speaker_of(name: str, layout: str = "speech_commands") -> str:
    """Who speaks in the file ``name``.

    Speech Commands: what stands before ``_nohash_`` (the whole name where it does not occur, as in the official rule).
    Folders: what stands before the first ``_`` or ``-``, as in anna_03.wav and 84-121123-0000.flac.
    """
    if layout == "speech_commands" or "_nohash_" in name:
        return re.sub(r"_nohash_.*$", "", name)
    return re.split(r"[_-]", name.rpartition(".")[0], maxsplit=1)[0]


def which_set(speaker: str, validation_fraction: float = 0.1, test_fraction: float = 0.1) -> str:
    """The official split of a speaker: validation, testing or training. It never changes when clips are added.

    ``speaker`` is the name of the file without ``_nohash_`` and what follows.
    """
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (MAX_NUM_WAVS_PER_CLASS + 1)
    percent *= 100.0 / MAX_NUM_WAVS_PER_CLASS
    if percent < 100 * validation_fraction:
        return "validation"
    return "testing" if percent < 100 * (validation_fraction + test_fraction) else "training"


class OfficialLists:
    """validation_list.txt and testing_list.txt of a data set, as far as it has them."""

    def __init__(self, root: Path):
        self._listed = {name: _read_list(root / file) for name, file in OFFICIAL_LISTS.items()}

    def split_of(self, entry: str, speaker: str, settings: DataSettings) -> str:
        """train, tune, report or test: by the list that names ``entry`` (word/file.wav); where there is no such list,
        by ``which_set`` of the speaker. Validation speakers go to tune or report by another hash."""
        listed = self._listed
        chosen = next((name for name, entries in listed.items() if entries is not None and entry in entries), None)
        if chosen is None:
            chosen = which_set(speaker, settings.validation_fraction, settings.test_fraction)
            if listed.get(chosen) is not None:  # its list is complete and does not name this clip
                chosen = "training"
        if chosen == "validation":
            return "tune" if _hash_fraction("tune/" + speaker) < settings.tune_fraction else "report"
        return {"training": "train", "testing": "test"}[chosen]


def _read_list(path: Path) -> frozenset[str] | None:
    """The ``word/file.wav`` entries of an official list; None where there is none."""
    try:
        return frozenset(path.read_text("utf-8").splitlines())
    except FileNotFoundError:
        return None


def _hash_fraction(text: str) -> float:
    """A stable number in [0, 1) for ``text``."""
    return int(hashlib.sha1(text.encode()).hexdigest()[:13], 16) / 16**13
