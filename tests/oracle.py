"""The front end's definition in real numbers, by tf.signal in float64.

As a program it runs apart from the tests (TensorFlow and tflite-runtime do not always share a process):
`python tests/oracle.py IN.npz OUT.npz` reads `configs` (JSON) and int16 clips `x0, x1, ...`, and writes the features of
clip j under configuration i as `f{i}_{j}`, float64 [frames, width] in nat.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.features import FeatureConfig


def tf_features(config: FeatureConfig, samples: np.ndarray) -> np.ndarray:
    """int16 [n] -> float64 [frames, width] in nat."""
    import tensorflow as tf

    window = {"hann": tf.signal.hann_window, "hamming": tf.signal.hamming_window}[config.window]
    x = samples.astype(np.float64) / 32768
    x = x - config.pre_emphasis * np.concatenate([[0.0], x[:-1]])
    stft = tf.signal.stft(x, config.win_length, config.hop_length, config.n_fft,
                          window_fn=lambda n, dtype: window(n, periodic=True, dtype=dtype))
    spectrum = tf.abs(stft) ** (2 if config.spectrum == "power" else 1)
    weights = tf.signal.linear_to_mel_weight_matrix(config.n_mels, config.n_fft // 2 + 1, config.sample_rate_hz,
                                                    config.fmin_hz, config.fmax_hz, dtype=tf.float64)
    log_mel = tf.math.log(tf.maximum(spectrum @ weights, config.log_floor))
    if not config.n_mfcc:
        return log_mel.numpy()
    return tf.signal.mfccs_from_log_mel_spectrograms(log_mel)[:, : config.n_mfcc].numpy()


def main(source: str, target: str) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    data = np.load(source)
    configs = [FeatureConfig(**config) for config in json.loads(str(data["configs"]))]
    features = {f"f{i}_{j}": tf_features(config, data[f"x{j}"])
                for i, config in enumerate(configs) for j in range(len(data.files) - 1)}
    np.savez(target, **features)


if __name__ == "__main__":
    main(*sys.argv[1:])
