"""Augmented training epochs as int8 feature codes, made ahead of the trainer in a process of their own and kept.

An epoch is a function of (data set, augmentation, front end, number) alone, so trainings that differ in seed,
architecture or schedule read the same files: DIR/KEY/epoch_NNNN.npz with `codes` int8 [n, T, width], `labels` [n].
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from models.augment import canvas_of, make_banks, make_epoch
from models.data import Dataset, load_dataset
from models.recipe import Recipe
from models.waves import load_training_audio
from toolkit.features import FeatureConfig, FrontEnd, Requantization, make_tables

STALE_S = 300  # a lock this old was left by a training that was killed
VERSION = 6  # raised by a change of models/augment.py or models/waves.py that changes epochs
AFTER_FEATURES = ("specaugment", "mixup_alpha", "distinct_epochs")  # settings that change no epoch
CODE_STEP_NAT = 0.1  # of one int8 code: 255 codes span 25.5 nat
CODE_ZERO_POINT = 10  # so that code -128 is the log floor of 1e-6
MFCC_STEP, MFCC_ZERO_POINT = 0.55, 31  # so that code -128 is its c0, with 40 mel bands, and 127 louder than full scale
MODEL_SCALE = 1 / 32  # real value of one code in the network: inputs lie in -4 .. 4

_worker: dict = {}


def requantization(features: FeatureConfig) -> Requantization:
    """From a front end's int16 output to the codes that the networks see."""
    step, zero_point = (MFCC_STEP, MFCC_ZERO_POINT) if features.n_mfcc else (CODE_STEP_NAT, CODE_ZERO_POINT)
    return Requantization.from_step(step, zero_point, features.output_fraction_bits)


def codes_of(waves: np.ndarray, features: FeatureConfig, flush_samples: int = 0) -> np.ndarray:
    """int8 codes [n, T, width] of equally long clips int16 [n, samples], each from a reset front end and followed by
    `flush_samples` of digital silence."""
    front_end, quantize = FrontEnd(make_tables(features)), requantization(features)
    silence = np.zeros(flush_samples, np.int16)
    frames = []
    for wave in waves:
        front_end.reset()
        frames.append(quantize.apply(front_end.process(np.concatenate([wave, silence]))))
    return np.stack(frames)


class Epochs:
    """The epochs of a training; while one is used the next ones are made. After `augment.distinct_epochs` of them they
    come again."""

    def __init__(self, recipe: Recipe, dataset: Dataset, cache: Path):
        self._recipe, self._root, self._dataset = recipe, dataset.root, dataset
        key = repr((VERSION, dataset.fingerprint, recipe.decision.flush_frames, asdict(recipe.features)))
        key += repr((_changed(recipe.data), _changed(recipe.augment)))
        self.folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pool: ProcessPoolExecutor | None = None
        self._pending: dict[int, Future] = {}

    def _path(self, number: int) -> Path:
        return self.folder / f"epoch_{number:04d}.npz"

    def _request(self, number: int) -> None:
        if self._path(number).exists() or number in self._pending:
            return
        if self._pool is None:
            start = (self._recipe, self._root)
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=start)
        self._pending[number] = self._pool.submit(_make, number, self._path(number))

    def number(self, epoch: int) -> int:
        """Which of the distinct epochs a training's epoch is."""
        return epoch % self._recipe.augment.distinct_epochs

    def get(self, epoch: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """(codes int8 [n, T, width], labels int32 [n]) of an epoch; asks for the next ones, up to `last`."""
        for ahead in range(epoch, min(epoch + 2, last) + 1):
            self._request(self.number(ahead))
        number = self.number(epoch)
        if number in self._pending:
            self._pending.pop(number).result()
        with np.load(self._path(number)) as epoch:
            return epoch["codes"], epoch["labels"]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _changed(settings) -> dict:
    """What differs from the defaults, so that a new setting leaves the epochs of old recipes alone."""
    values = {field.name: (getattr(settings, field.name), field.default) for field in fields(settings)}
    return {
        name: value for name, (value, default) in values.items() if value != default and name not in AFTER_FEATURES
    }


def _start(recipe: Recipe, root: Path) -> None:
    os.nice(5)  # the trainer goes first
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    dataset = load_dataset(root, recipe.data, recipe.features.sample_rate_hz)
    banks = make_banks(canvas_of(recipe), recipe.augment, recipe.features.sample_rate_hz, recipe.data.seed)
    _worker.update(recipe=recipe, audio=load_training_audio(dataset, recipe.features.sample_rate_hz), banks=banks)


def _die_with(parent: int) -> None:
    """A trainer that was killed leaves no worker behind."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _make(number: int, path: Path) -> None:
    """Makes the epoch, or waits for it where another training is making it."""
    lock = path.with_suffix(".lock")
    while not path.exists():
        try:
            lock.touch(exist_ok=False)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > STALE_S:
                    lock.unlink()
            time.sleep(0.5)
            continue
        try:
            _write(number, path)
        finally:
            lock.unlink(missing_ok=True)


def _write(number: int, path: Path) -> None:
    recipe = _worker["recipe"]
    blocks = make_epoch(_worker["audio"], _worker["banks"], recipe.augment, recipe.data.seed, number)
    parts = [(codes_of(waves, recipe.features), labels) for waves, labels in blocks]
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez(file, codes=np.concatenate([c for c, _ in parts]), labels=np.concatenate([y for _, y in parts]))
    part.replace(path)
