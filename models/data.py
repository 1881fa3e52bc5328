"""A data set as labelled clips in splits that share no speaker and no background recording.

    train   what the weights learn from; all clips of its speakers, all folders that are not keywords as "unknown"
    tune    one part of the validation speakers: choosing the model, the epoch, the threshold
    report  the other part: the accuracy that is published, looked at once
    test    the official test speakers, where the download holds them; never trained on

tune, report and test hold every label in about equal numbers: the words' clips, a seeded selection of the other words
as "unknown", and cuts from the split's own background recordings as "silence". In training those two are drawn anew in
each epoch (models/augment.py). Split rule and constant: Warden 2018, arXiv:1804.03209, and the README of the Speech
Commands set.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from models.recipe import SILENCE, UNKNOWN, DataSettings
from models.waves import read_wave
from toolkit.errors import DataError

MAX_NUM_WAVS_PER_CLASS = 2**27 - 1  # of the Speech Commands README: which_set hashes into this many slots
BACKGROUND_FOLDER = "_background_noise_"
SPLITS = ("train", "tune", "report", "test")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")

UNKNOWN_PER_WORD = 1.2  # clips of "unknown" in tune, report and test, relative to the mean of the words
SILENCE_GAIN_DB = (-40.0, 0.0)  # cuts of "silence" in tune, report and test, uniform in dB
NEAR_SILENCE_GAIN_DB = (-90.0, -60.0)  # every tenth cut: a muted or very quiet microphone
NEAR_SILENCE_EVERY = 10  # and every twentieth is digital silence


@dataclass(frozen=True)
class Clip:
    """One labelled example: a file, or for "silence" a cut of a background recording."""

    path: Path
    label: str
    speaker: str  # who must not be in two splits; for a cut the name of the recording
    word: str  # the folder, which says what an "unknown" clip holds
    start: int | None = None  # first sample of a cut; None: the whole file, padded or cropped
    gain_db: float = 0.0  # of a cut; -inf is digital silence


@dataclass(frozen=True)
class Dataset:
    """What ``load_dataset`` found. ``notices`` are sentences for a person about anything unusual."""

    root: Path
    settings: DataSettings
    splits: dict[str, tuple[Clip, ...]]
    background: dict[str, tuple[Path, ...]]
    negatives: tuple[Path, ...]  # long recordings without the words, training only
    notices: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The words, "unknown", "silence": a clip's class is the index here."""
        return (*self.settings.words, UNKNOWN, SILENCE)

    def clips(self, split: str) -> tuple[Clip, ...]:
        """The clips of a split, sorted by word and name; "train" holds no silence clips. ``test`` may be empty."""
        return self.splits[split]

    def backgrounds(self, split: str) -> tuple[Path, ...]:
        """The background recordings of a split; for ``train`` with the extra noise folders."""
        return self.background[split]

    def classes(self, clips: tuple[Clip, ...]) -> np.ndarray:
        """Index of each clip's label, int32[n]."""
        index = {label: i for i, label in enumerate(self.labels)}
        return np.array([index[clip.label] for clip in clips], np.int32)

    def counts(self) -> dict[str, dict[str, int]]:
        """Clips per label of every split."""
        return {
            split: {label: sum(clip.label == label for clip in clips) for label in self.labels}
            for split, clips in self.splits.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every clip's name, size, split, label and cut, and over the bytes of what is not trained on.

        Equal fingerprints mean: the same figures can be expected. Reads tune, report and test once.
        """
        digest = hashlib.sha256()
        for split in SPLITS:
            for clip in self.splits[split]:
                cut = (clip.path.stat().st_size, clip.label, clip.start, clip.gain_db)
                digest.update(repr((split, _name(clip.path, self.root), *cut)).encode())
            for path in (*self.background[split], *(self.negatives if split == "train" else ())):
                digest.update(repr((split, _name(path, self.root), path.stat().st_size)).encode())
        for path in sorted({clip.path for split in SPLITS[1:] for clip in self.splits[split]}):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def load_dataset(root: str | Path, settings: DataSettings, sample_rate_hz: int = 16000) -> Dataset:
    """Find and split the clips under ``root``, without reading their audio. Raises DataError.

    The split of a file is that of the list which names it (validation_list.txt, testing_list.txt); where there is no
    such list, that of its speaker by ``which_set``. Validation speakers go to tune or report by another hash.
    """
    root = Path(root)
    folders = _word_folders(root, settings)
    listed = {"validation": _read_list(root, "validation_list.txt"), "testing": _read_list(root, "testing_list.txt")}
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for word, folder in folders.items():
        label = word if word in settings.words else UNKNOWN
        for path in _audio_files(folder):
            speaker = speaker_of(path.name, settings.layout)
            split = _split_of(f"{word}/{path.name}", speaker, listed, settings)
            splits[split].append(Clip(path, label, speaker, word))

    background, notices = _split_background(root)
    background["train"] += tuple(path for folder in settings.noise for path in _extra_files(root, folder, "data.noise"))
    negatives = tuple(path for folder in settings.negatives for path in _extra_files(root, folder, "data.negatives"))
    for number, split in enumerate(SPLITS[1:]):
        if splits[split]:
            rng = np.random.default_rng([settings.seed, number])
            splits[split] = _balanced(splits[split], background[split], settings, sample_rate_hz, rng)
    dataset = Dataset(
        root, settings, {split: tuple(clips) for split, clips in splits.items()}, background, negatives, tuple(notices)
    )
    _check(dataset)
    return dataset


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


def _word_folders(root: Path, settings: DataSettings) -> dict[str, Path]:
    """Word -> folder of every folder of clips under ``root``, in the order of names."""
    if not root.is_dir():
        raise DataError(
            f"the data folder {root} does not exist: fetch it with `python -m models fetch speech_commands`, or "
            "name another with --data"
        )
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] not in "_."}
    if not folders:
        raise DataError(f"{root} holds no folder: expected one folder of clips per word")
    for word in settings.words:
        if word not in folders:
            near = difflib.get_close_matches(word, folders, 1)
            raise DataError(
                f"{root} holds no folder {word!r}, which data.words names; "
                + (f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(folders)}")
            )
        if not _audio_files(folders[word]):
            raise DataError(
                f"{folders[word]} holds no audio file: expected clips of the word {word!r} as "
                f"{', '.join(AUDIO_SUFFIXES)}"
            )
    return folders


def _audio_files(folder: Path) -> list[Path]:
    """The audio files directly in ``folder``, sorted by name."""
    return sorted(path for path in folder.iterdir() if _is_audio(path))


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def _extra_files(root: Path, folder: str, key: str) -> tuple[Path, ...]:
    """The audio files anywhere under ``root / folder``."""
    path = root / folder
    files = sorted(file for file in path.rglob("*") if _is_audio(file)) if path.is_dir() else []
    if not files:
        raise DataError(
            f"{path}, which {key} names, {'holds no audio file' if path.is_dir() else 'is not a folder'}: "
            "expected recordings there, or the entry removed from the recipe"
        )
    return tuple(files)


def _read_list(root: Path, name: str) -> frozenset[str] | None:
    """The ``word/file.wav`` entries of an official list; None where there is none."""
    try:
        return frozenset((root / name).read_text("utf-8").splitlines())
    except FileNotFoundError:
        return None


def _split_of(entry: str, speaker: str, listed: dict, settings: DataSettings) -> str:
    chosen = next((name for name, entries in listed.items() if entries is not None and entry in entries), None)
    if chosen is None:
        chosen = which_set(speaker, settings.validation_fraction, settings.test_fraction)
        if listed.get(chosen) is not None:  # its list is complete and does not name this clip
            chosen = "training"
    if chosen == "validation":
        return "tune" if _hash_fraction("tune/" + speaker) < settings.tune_fraction else "report"
    return {"training": "train", "testing": "test"}[chosen]


def _hash_fraction(text: str) -> float:
    """A stable number in [0, 1) for ``text``."""
    return int(hashlib.sha1(text.encode()).hexdigest()[:13], 16) / 16**13


def _split_background(root: Path) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Split the recordings of ``_background_noise_`` by file: of n sorted ones number n//3 tunes, 2n//3 reports.

    The others train, and test uses those of report. With two files the first trains and the second serves tune and
    report; a single file is not trained on. Fewer than three files are noted, none at all is an error.
    """
    folder = root / BACKGROUND_FOLDER
    files = _audio_files(folder) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"{folder} holds no audio file: expected at least 3 background recordings, which make the silence class"
        )
    tune, report = (len(files) // 3, 2 * len(files) // 3) if len(files) > 2 else (len(files) - 1,) * 2
    notices = []
    if tune == report:
        notices.append(
            f"{folder} holds {len(files)} recordings, so tune and report share one: at least 3 keep them apart"
        )
    train = tuple(path for i, path in enumerate(files) if i not in (tune, report))
    return {"train": train, "tune": (files[tune],), "report": (files[report],), "test": (files[report],)}, notices


def _balanced(
    clips: list[Clip],
    background: tuple[Path, ...],
    settings: DataSettings,
    sample_rate_hz: int,
    rng: np.random.Generator,
) -> list[Clip]:
    """All clips of the words, UNKNOWN_PER_WORD times their mean of the others, and cuts of the background."""
    words = [clip for clip in clips if clip.label != UNKNOWN]
    mean = len(words) / len(settings.words)
    others: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.label == UNKNOWN:
            others.setdefault(clip.word, []).append(clip)
    for queue in others.values():
        rng.shuffle(queue)
    chosen: list[Clip] = []
    while len(chosen) < round(UNKNOWN_PER_WORD * mean) and any(others.values()):  # one of each word in turn
        for queue in others.values():
            if queue and len(chosen) < round(UNKNOWN_PER_WORD * mean):
                chosen.append(queue.pop())
    chosen.sort(key=lambda clip: (clip.word, clip.path.name))
    return words + chosen + _silence_cuts(background, round(mean), settings.clip_s, sample_rate_hz, rng)


def _silence_cuts(
    background: tuple[Path, ...], count: int, clip_s: float, sample_rate_hz: int, rng: np.random.Generator
) -> list[Clip]:
    """``count`` seeded cuts at random places and levels, some nearly and some quite digitally silent."""
    lengths = [len(read_wave(path, sample_rate_hz)) for path in background]
    cuts = []
    for i in range(count):
        which = int(rng.integers(len(background)))
        start = int(rng.integers(max(1, lengths[which] - round(clip_s * sample_rate_hz))))
        gain_db = rng.uniform(*(NEAR_SILENCE_GAIN_DB if i % NEAR_SILENCE_EVERY == 0 else SILENCE_GAIN_DB))
        gain_db = -math.inf if i % (2 * NEAR_SILENCE_EVERY) == 0 else round(float(gain_db), 2)
        path = background[which]
        cuts.append(Clip(path, SILENCE, path.name, SILENCE, start, gain_db))
    return cuts


def _check(dataset: Dataset) -> None:
    """No speaker in two splits, nothing heard in training twice, no label without clips. Raises DataError."""
    where: dict[str, str] = {}
    for split in SPLITS:
        for clip in dataset.splits[split]:
            if clip.label != SILENCE and where.setdefault(clip.speaker, split) != split:
                raise DataError(
                    f"the speaker {clip.speaker!r} is in the splits {where[clip.speaker]} and {split} (file "
                    f"{clip.path}): a list under {dataset.root} puts clips of one speaker apart, move them together"
                )
    heard = {path.resolve() for path in (*dataset.background["train"], *dataset.negatives)}
    for split in SPLITS[1:]:
        for path in (*dataset.background[split], *(clip.path for clip in dataset.splits[split])):
            if path.resolve() in heard:
                raise DataError(
                    f"{path} belongs to the split {split} and is also in data.noise or data.negatives: name folders "
                    f"there that hold nothing of {dataset.root}"
                )
    for split, counts in dataset.counts().items():
        if split == "test" and not dataset.splits[split]:
            continue  # most downloads for training leave the test speakers out
        for label, count in counts.items():
            if not count and (split, label) != ("train", SILENCE):
                speakers = len(
                    {clip.speaker for clips in dataset.splits.values() for clip in clips if clip.label == label}
                )
                kind = f"{label!r} (folders that are not keywords)" if label == UNKNOWN else repr(label)
                raise DataError(
                    f"the split {split} of {dataset.root} holds no clip of {kind}, which has {speakers} speakers in "
                    "all: add speakers (files are named SPEAKER_TAKE.wav) or list clips in validation_list.txt"
                )


def _name(path: Path, root: Path) -> str:
    """The path relative to the root in POSIX form, or its last two parts where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else "/".join(path.parts[-2:])
