"""Hard negatives: pieces of training speech that a model takes for a keyword, for the next training to learn from.

    recordings without keywords, of training -> scores (models/streams.py) -> reports at a low threshold -> pieces

A piece is what the stream heard until the report, and a little after. Pieces go to `data.hard_negatives` of a recipe.
Sung and Poggio 1998 call it bootstrapping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import soundfile

from models.det import false_accepts
from models.replay import rule_of
from models.streams import Scorer, check_transcripts
from models.waves import read_wave
from toolkit.audio import list_audio
from toolkit.bundle import Bundle
from toolkit.errors import DataError, UsageError
from toolkit.kws import NOT_KEYWORDS

BEFORE_S, AFTER_S = 1.9, 0.3  # of a report; what the piece holds


def mine(
    bundle: Bundle, folders: Sequence[Path], out: Path, threshold: float, say: Callable[[str], None]
) -> dict[str, int]:
    """Writes each place where a keyword reaches the threshold for one score as OUT/NUMBER_LABEL.flac, 2.2 s, at the
    bundle's rate, but for those in which the window is not full yet: the mean of a few scores is no judgement. Returns
    the pieces per label. Raises DataError, AudioFileError."""
    if not 0 < threshold < 1:
        raise UsageError(f"the threshold {threshold} is no posterior: expected one between 0 and 1")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} holds files; name a new folder")
    check_transcripts(folders, [label for label in bundle.manifest.labels if label not in NOT_KEYWORDS])
    scorer = Scorer(bundle)
    rate, rule = scorer.sample_rate_hz, rule_of(scorer.stage)
    rule = replace(rule, decision=replace(rule.decision, hold_frames=1))
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, int] = {}
    number, paths = 0, [path for folder in folders for path in list_audio(folder)]
    for recording in scorer.recordings(paths, say):
        reports = [report for _, report in false_accepts(rule, [recording], threshold)]
        reports = [report for report in reports if report.frame + 1 >= rule.decision.stream_window]
        wave = read_wave(Path(recording.name), rate) if reports else None
        for report in reports:
            begin, end = (round((report.time + seconds) * rate) for seconds in (-BEFORE_S, AFTER_S))
            piece = wave[max(0, begin) : end]
            soundfile.write(out / f"{number:05d}_{report.label}.flac", piece, rate, "PCM_16")
            found[report.label] = found.get(report.label, 0) + 1
            number += 1
    return found
