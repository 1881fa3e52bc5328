"""A data set as labelled clips in splits that share no speaker and no background recording.

    train   what the weights learn from; all clips of its speakers, all folders that are not keywords as "unknown"
    tune    one part of the validation speakers: choosing the model, the epoch, the threshold
    report  the other part: the accuracy that is published, looked at once
    test    the official test speakers, where the download holds them; never trained on

tune, report and test hold every label in about equal numbers: the words' clips, a seeded selection of the other words
as "unknown", and cuts from the split's own background recordings as "silence". In training those two are drawn anew in
each epoch (models/augment.py). A folder of one word is enough where `data.others` names sets with other words and a
background. Who speaks, and in which split: models/split.py.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from models.recipe import SILENCE, UNKNOWN, DataSettings
from models.sound_groups import sound_groups
from models.split import OfficialLists, speaker_of
from models.waves import read_wave
from toolkit.errors import DataError

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
    hard_negatives: tuple[Path, ...]  # pieces of such that an earlier model took for a word, training only
    extra: tuple[Clip, ...]  # more labelled clips, training only
    notices: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The words, "unknown", "silence": a clip's class is the index here."""
        return (*self.settings.words, UNKNOWN, SILENCE)

    def clips(self, split: str) -> tuple[Clip, ...]:
        """The clips of a split, sorted by word and name; "train" holds no silence clips. ``test`` may be empty."""
        return self.splits[split]

    @cached_property
    def trained(self) -> frozenset[Path]:
        """Every file that training hears, as ``real_paths`` names it."""
        clips = (*self.splits["train"], *self.extra)
        files = (*self.background["train"], *self.negatives, *self.hard_negatives)
        return frozenset(real_paths((*(clip.path for clip in clips), *files)))

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
            more = (*self.negatives, *self.hard_negatives, *(clip.path for clip in self.extra))
            more = more if split == "train" else ()
            for path in (*self.background[split], *more):
                digest.update(repr((split, _name(path, self.root), path.stat().st_size)).encode())
        for path in sorted({clip.path for split in SPLITS[1:] for clip in self.splits[split]}):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def load_dataset(root: str | Path, settings: DataSettings, sample_rate_hz: int = 16000) -> Dataset:
    """Find and split the clips under ``root`` and in the sets of ``settings.others``. Raises DataError.

    Reads no audio but background recordings, and every clip under ``root`` where ``settings.speakers`` is "sound",
    which raises AudioFileError.
    """
    root, notices = Path(root), []
    roots = (root, *(root / folder for folder in settings.others))
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    clips = _own_clips(root, settings, notices)
    for other in roots[1:]:
        clips += _other_clips(other, settings, notices)
    lists = {path: OfficialLists(path) for path in roots}
    for clip in clips:
        split = lists[clip.path.parent.parent].split_of(f"{clip.word}/{clip.path.name}", clip.speaker, settings)
        splits[split].append(clip)

    background = _split_background(roots, notices)
    background["train"] += tuple(path for folder in settings.noise for path in _extra_files(root, folder, "data.noise"))
    negatives, hard = (
        tuple(path for folder in getattr(settings, name) for path in _extra_files(root, folder, f"data.{name}"))
        for name in ("negatives", "hard_negatives")
    )
    extra = tuple(clip for folder in settings.extra for clip in _extra_clips(root, folder, settings))
    if settings.train_words == "extra":
        splits["train"], extra = _words_of_extra(splits["train"], extra, settings)
    for number, split in enumerate(SPLITS[1:]):
        if splits[split]:
            rng = np.random.default_rng([settings.seed, number])
            splits[split] = _balanced(splits[split], background[split], settings, sample_rate_hz, rng)
    found = {split: tuple(clips) for split, clips in splits.items()}
    dataset = Dataset(root, settings, found, background, negatives, hard, extra, tuple(notices))
    _check(dataset)
    return dataset


def _own_clips(root: Path, settings: DataSettings, notices: list[str]) -> list[Clip]:
    """The clips under the data root, sorted by word and name."""
    if not root.is_dir():
        raise DataError(
            f"the data folder {root} does not exist: fetch it with `python -m models fetch speech_commands`, or "
            "name another with --data"
        )
    folders = _word_folders(root)
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
    clips = _clips_of(folders, settings)
    if settings.speakers == "sound":
        groups = sound_groups([clip.path for clip in clips], [clip.word for clip in clips])
        names = [f"{clip.word}/{clip.path.name}" for clip in clips]
        clips = [replace(clip, speaker=names[group]) for clip, group in zip(clips, groups, strict=True)]
        sizes = np.unique(groups, return_counts=True)[1]
        notices.append(
            f"the {len(clips)} clips of {root} fall into {len(sizes)} groups of similar sound, of {sizes.min()} to "
            f"{sizes.max()} clips; the clips of a group stay in one split"
        )
    return clips


def _other_clips(root: Path, settings: DataSettings, notices: list[str]) -> list[Clip]:
    """The clips of a set of ``settings.others``; a folder with the name of a keyword is left out."""
    if not root.is_dir():
        raise DataError(f"{root}, which data.others names, is not a folder: name a set with a folder of clips per word")
    folders = _word_folders(root)
    skipped = sorted(folders.keys() & set(settings.words))
    if skipped:
        notices.append(f"{root} holds {', '.join(skipped)} as well, which data.others leaves out")
    return _clips_of({word: folder for word, folder in folders.items() if word not in skipped}, settings)


def _word_folders(root: Path) -> dict[str, Path]:
    """Word -> folder of every folder of clips under ``root``, in the order of names."""
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] not in "_."}
    if not folders:
        raise DataError(f"{root} holds no folder: expected one folder of clips per word")
    return folders


def _clips_of(folders: dict[str, Path], settings: DataSettings) -> list[Clip]:
    """The clips in the folders, by the speakers that their names tell."""
    return [
        Clip(path, word if word in settings.words else UNKNOWN, speaker_of(path.name, settings.layout), word)
        for word, folder in folders.items()
        for path in _audio_files(folder)
    ]


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


def _extra_clips(root: Path, folder: str, settings: DataSettings) -> tuple[Clip, ...]:
    """The clips in the word folders of ``root / folder``."""
    return tuple(
        Clip(path, path.parent.name if path.parent.name in settings.words else UNKNOWN, path.name, path.parent.name)
        for path in _extra_files(root, folder, "data.extra")
    )


def _words_of_extra(
    train: list[Clip], extra: tuple[Clip, ...], settings: DataSettings
) -> tuple[list[Clip], tuple[Clip, ...]]:
    """(training clips with the words of ``extra`` instead of the recorded ones, what is left of ``extra``)."""
    words = [clip for clip in extra if clip.label != UNKNOWN]
    missing = [word for word in settings.words if word not in {clip.word for clip in words}]
    if missing:
        raise DataError(
            f"no folder of data.extra ({', '.join(settings.extra)}) holds clips of {missing[0]!r}, which are all that "
            "train where data.train_words is extra: make them with `python -m models speak words`"
        )
    others = [clip for clip in train if clip.label == UNKNOWN]
    return words + others, tuple(clip for clip in extra if clip.label == UNKNOWN)


def _split_background(roots: Sequence[Path], notices: list[str]) -> dict[str, tuple[Path, ...]]:
    """Split the recordings of ``_background_noise_`` by file: of n sorted ones number n//3 tunes, 2n//3 reports. They
    are those of the first of ``roots`` that has some.

    The others train, and test uses those of report. With two files the first trains and the second serves tune and
    report; a single file is not trained on. Fewer than three files are noted, none at all is an error.
    """
    folders = [root / BACKGROUND_FOLDER for root in roots]
    found = [(folder, _audio_files(folder)) for folder in folders if folder.is_dir()]
    folder, files = next((pair for pair in found if pair[1]), (folders[0], []))
    if not files:
        raise DataError(
            f"{folder} holds no audio file: expected at least 3 background recordings, which make the silence class"
        )
    tune, report = (len(files) // 3, 2 * len(files) // 3) if len(files) > 2 else (len(files) - 1,) * 2
    if tune == report:
        notices.append(
            f"{folder} holds {len(files)} recordings, so tune and report share one: at least 3 keep them apart"
        )
    train = tuple(path for i, path in enumerate(files) if i not in (tune, report))
    return {"train": train, "tune": (files[tune],), "report": (files[report],), "test": (files[report],)}


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
    where: dict[tuple[Path, str], str] = {}
    for split in SPLITS:
        for clip in dataset.splits[split]:
            root = clip.path.parent.parent  # each set names its own speakers
            if clip.label != SILENCE and where.setdefault((root, clip.speaker), split) != split:
                raise DataError(
                    f"the speaker {clip.speaker!r} is in the splits {where[root, clip.speaker]} and {split} (file "
                    f"{clip.path}): a list under {root} puts clips of one speaker apart, move them together"
                )
    trained = dataset.trained
    for split in SPLITS[1:]:
        paths = (*dataset.background[split], *(clip.path for clip in dataset.splits[split]))
        for path, real in zip(paths, real_paths(paths), strict=True):
            if real in trained:
                raise DataError(
                    f"{path} belongs to the split {split} and is also in data.noise, data.negatives or data.extra: "
                    f"name folders there that hold nothing of {dataset.root}"
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


def real_paths(paths: Sequence[Path]) -> list[Path]:
    """The paths with their folders resolved; each folder once, since sets are few folders of many files."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return [folders[path.parent] / path.name for path in paths]


def _name(path: Path, root: Path) -> str:
    """The path relative to the root in POSIX form, or its last two parts where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else "/".join(path.parts[-2:])
