"""The embedded evaluation clips as a data set in the layout of Speech Commands: small, and spoken."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from toolkit.audio import list_audio, write_wav

EVALUATION = Path(__file__).resolve().parents[1] / "models" / "samples" / "evaluation"
RATE, TRAINED = 16000, 2  # clips per word that count as trained on


def make_spoken_words(root: Path) -> Path:
    """root/WORD/SPEAKER_nohash_0.flac, every clip by another speaker, and three noises: only the last third of the
    frequencies, only the first, all."""
    listed = []
    for word in sorted(folder.name for folder in EVALUATION.iterdir() if folder.name != "silence"):
        folder = root / ("house" if word == "unknown" else word)
        folder.mkdir(parents=True)
        for i, path in enumerate(list_audio(EVALUATION / word)):
            name = f"{word}{i}_nohash_0{path.suffix}"
            shutil.copyfile(path, folder / name)
            if i >= TRAINED:
                listed.append(f"{folder.name}/{name}")
    (root / "validation_list.txt").write_text("\n".join(listed))
    (root / "testing_list.txt").write_text("")
    (root / "_background_noise_").mkdir()
    rng = np.random.default_rng(1)
    for i, (low, high) in enumerate([(2 / 3, 1), (0, 1 / 3), (0, 1)]):
        spectrum = np.fft.rfft(rng.standard_normal(4 * RATE))
        place = np.linspace(0, 1, len(spectrum))
        noise = np.fft.irfft(np.where((place >= low) & (place <= high), spectrum, 0))
        write_wav(root / "_background_noise_" / f"{i}.wav", np.round(3000 * noise).clip(-32768, 32767).astype(np.int16),
                  RATE)
    return root
