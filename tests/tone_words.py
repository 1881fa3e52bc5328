"""A tiny data set whose "words" are chirps: learnt in seconds, in the layout of Speech Commands."""

from pathlib import Path

import numpy as np

from toolkit.audio import write_wav

RATE = 16000
WORDS = {"rise": (400, 2400), "drop": (4400, 2700), "high": (3200, 3200), "low": (300, 300)}  # start and end in Hz


def make_tone_words(root: Path, speakers: int = 60, seed: int = 0) -> Path:
    """root/{rise,drop,high,low}/SPEAKER_nohash_0.wav and root/_background_noise_; "high" and "low" are other words."""
    rng = np.random.default_rng(seed)
    for word, (start, end) in WORDS.items():
        (root / word).mkdir(parents=True)
        for speaker in range(speakers):
            factor, length = rng.uniform(0.85, 1.2), int(rng.uniform(0.35, 0.6) * RATE)
            phase = 2 * np.pi * np.cumsum(np.linspace(start, end, length) * factor) / RATE
            clip = np.zeros(RATE)
            begin = int(rng.uniform(0.1, 0.35) * RATE)
            clip[begin : begin + length] = rng.uniform(0.05, 0.5) * np.sin(phase) * np.hanning(length)
            clip += 1e-3 * rng.standard_normal(RATE)
            write_wav(root / word / f"{speaker:04x}{word}_nohash_0.wav", (clip * 32767).astype(np.int16), RATE)
    folder = root / "_background_noise_"
    folder.mkdir()
    for i in range(3):
        noise = np.cumsum(rng.standard_normal(5 * RATE)) if i else rng.standard_normal(5 * RATE)
        noise -= np.convolve(noise, np.ones(800) / 800, "same")
        write_wav(folder / f"noise{i}.wav", (3000 * noise / np.abs(noise).max()).astype(np.int16), RATE)
    names = [f"{word}/{s:04x}{word}_nohash_0.wav" for word in WORDS for s in range(2 * speakers // 3, speakers)]
    (root / "validation_list.txt").write_text("\n".join(names))
    (root / "testing_list.txt").write_text("")
    return root


RECIPE = """
schema: 1
name: tones
data: {words: [rise, drop], unknown_fraction: 1.0, silence_fraction: 0.5}
augment: {context_s: 0.2, noise_probability: 0.3, reverb_probability: 0.0, gain_db: [-6, 0]}
model: {architecture: ds_tc_resnet, parameters: {width: 16, blocks: 2}}
train: {epochs: 15, batch_size: 8, learning_rate: 1e-2, warmup_epochs: 1, ema_decay: 0.8, checkpoint_every: 1}
quantize: {representative_clips: 16}
decision: {window_frames: 100, flush_frames: 20}
budget: {max_accuracy_loss: 0.2, embedded_accuracy_floor: 0.5, model_bytes: 40000}
"""
