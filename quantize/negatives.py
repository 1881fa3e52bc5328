"""Keyword-free audio of a release: a threshold must not be chosen on what it is then judged by."""

from __future__ import annotations

import filecmp
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from toolkit.audio import list_audio
from toolkit.errors import AudioFileError, DataError, UsageError

HEAD_BYTES = 1 << 16  # 2 s of 16 kHz: files of one size that begin alike are compared whole


def check_apart(tune: Sequence[Path], report: Sequence[Path]) -> None:
    """Raises UsageError if a folder of `tune` and one of `report` are the same or one lies within the other, through
    links too; DataError if a recording of each holds the same bytes; AudioFileError for one that cannot be read.

    Days of audio take no time: of files that no file of the other split is as long as, only the length is looked at.
    """
    for ours, theirs in product(tune, report):
        a, b = ours.resolve(), theirs.resolve()
        if a == b or a in b.parents or b in a.parents:
            where = "are the same" if a == b else "lie one within the other"
            raise UsageError(
                f"{ours} of --negatives-tune and {theirs} of --negatives-report {where}: a threshold must not be "
                "chosen on what it is judged by; give each split recordings of its own."
            )
    chosen_on, judged_by = _by_size(tune), _by_size(report)
    for size in sorted(chosen_on.keys() & judged_by.keys()):
        beginnings = defaultdict(list)
        for path in chosen_on[size]:
            beginnings[_beginning(path)].append(path)
        for path in judged_by[size]:
            twins = (twin for twin in beginnings.get(_beginning(path), ()) if filecmp.cmp(twin, path, shallow=False))
            twin = next(twins, None)
            if twin:
                raise DataError(
                    f"{path} of --negatives-report is the recording {twin} of --negatives-tune, byte for byte: a "
                    "threshold must not be chosen on what it is judged by; remove it from one of them."
                )


def _by_size(folders: Sequence[Path]) -> dict[int, list[Path]]:
    found = defaultdict(list)
    for folder in folders:
        for path in list_audio(folder):
            found[path.stat().st_size].append(path)
    return found


def _beginning(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(HEAD_BYTES)).digest()
    except OSError as error:
        raise AudioFileError(f"{path} cannot be read ({error.strerror}); change its permissions") from None
