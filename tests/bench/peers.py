"""The front ends that the benchmark compares: 16 kHz, 30 ms windows every 10 ms, 512-point FFT, 40 mel filters, log.

Each peer is fed as its users feed it. Those that keep no history get the end of the last block before the new one, so
that every 10 ms of input completes one frame in all of them.

    python tests/bench/peers.py NAME MODE SECONDS     # stream that much audio once: what callgrind counts
"""

from __future__ import annotations

import os
import sys
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
               "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
os.environ.update(ENVIRONMENT)  # before any library starts threads, whose spinning would count as CPU time

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "models" / "samples" / "scene.wav"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

HOP = 160  # samples
STREAMED, BATCHES = "streamed", "1 s batches"  # in blocks of 20 ms, if the peer has no other natural size
Process = Callable[[object], int]  # a block of samples -> the number of frames it completed


class Stateless:
    """A function of a whole signal, made to stream: it sees the last `context` samples again with every block."""

    def __init__(self, compute: Callable[[np.ndarray], Sequence], context: int):
        self._compute, self._context = compute, context
        self._kept = np.zeros(context, np.int16)

    def __call__(self, samples: np.ndarray) -> int:
        signal = np.concatenate([self._kept, samples])
        self._kept = signal[-self._context :]
        return len(self._compute(signal))


def toolkit_front_end(backend: str) -> Process:
    from toolkit.features import FeatureConfig, FrontEnd, make_tables

    front_end = FrontEnd(make_tables(FeatureConfig()), backend)
    return lambda samples: len(front_end.process(samples))


def pymicro_features() -> Process:
    """TFLM's microfrontend. A call takes the samples of one frame, so a batch is a loop of calls."""
    from pymicro_features import MicroFrontend

    front_end = MicroFrontend()

    def process(data: bytes) -> int:
        frames = 0
        for i in range(0, len(data), 2 * HOP):
            frames += len(front_end.process_samples(data[i : i + 2 * HOP]).features) > 0
        return frames

    return process


def python_speech_features() -> Process:
    from python_speech_features import fbank

    def compute(x: np.ndarray) -> np.ndarray:
        mel, _ = fbank(x, 16000, 0.03, 0.01, 40, 512, 60, 7600, 0, np.hanning)
        return np.log(mel)

    return Stateless(compute, 480 - HOP)


def librosa() -> Process:
    from librosa.feature import melspectrogram

    options = {"sr": 16000, "n_fft": 512, "win_length": 480, "hop_length": HOP, "n_mels": 40, "fmin": 60, "fmax": 7600,
               "htk": True, "center": False, "power": 2.0}

    def compute(x: np.ndarray) -> np.ndarray:
        mel = melspectrogram(y=x.astype(np.float32) / 32768, **options)
        return np.log(np.maximum(mel, 1e-6)).T

    return Stateless(compute, 512 - HOP)


def tf_signal() -> Process:
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    weights = tf.signal.linear_to_mel_weight_matrix(40, 257, 16000, 60.0, 7600.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int16)])
    def compute(x: tf.Tensor) -> tf.Tensor:
        spectrum = tf.abs(tf.signal.stft(tf.cast(x, tf.float32) / 32768, 480, HOP, 512)) ** 2
        return tf.math.log(tf.maximum(spectrum @ weights, 1e-6))

    return Stateless(lambda x: compute(x).numpy(), 480 - HOP)


@dataclass(frozen=True)
class Peer:
    start: Callable[[], Process]
    package: str = ""  # to install from PyPI
    streaming_block: int = 320  # samples
    as_bytes: bool = False
    too_slow_to_count: bool = False  # under callgrind

    def block(self, mode: str) -> int:
        """Samples of one call."""
        return self.streaming_block if mode == STREAMED else 16000

    def blocks(self, samples: np.ndarray, mode: str) -> list:
        """The samples cut as this peer takes them, whole blocks only."""
        size = self.block(mode)
        cut = [samples[i : i + size] for i in range(0, len(samples) - size + 1, size)]
        return [block.tobytes() for block in cut] if self.as_bytes else cut


OURS, OURS_NUMPY, REFERENCE = "toolkit, C core", "toolkit, numpy", "pymicro-features"
PEERS = {
    OURS: Peer(lambda: toolkit_front_end("native")),
    OURS_NUMPY: Peer(lambda: toolkit_front_end("numpy")),
    REFERENCE: Peer(pymicro_features, "pymicro-features", streaming_block=HOP, as_bytes=True),
    "python_speech_features": Peer(python_speech_features, "python_speech_features"),
    "librosa": Peer(librosa, "librosa", too_slow_to_count=True),
    "tf.signal": Peer(tf_signal, "tensorflow", too_slow_to_count=True),
}


def speech(seconds: float) -> np.ndarray:
    """int16 [n] of the shipped sample scene, repeated as needed."""
    with wave.open(str(SCENE)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return np.resize(samples, round(16000 * seconds))


def main(name: str, mode: str, seconds: float) -> None:
    process = PEERS[name].start()
    for block in PEERS[name].blocks(speech(seconds), mode):
        process(block)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
