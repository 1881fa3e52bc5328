"""A picture of what a bundle heard: waveform, features, posteriors and detections over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .bundle import Bundle
from .errors import AudioFileError, MissingPartError, UsageError
from .kws import NOT_KEYWORDS, keyword_posteriors, mean_logits, posteriors
from .stream import BundleStage, Detection, make_front_end


def plot(bundle: Bundle, samples: np.ndarray, output: Path) -> list[Detection]:
    """Writes a PNG of int16 samples [n], and of the silence that follows a recording, as the bundle sees them, and
    returns the detections drawn in it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPartError("matplotlib, which draws, is not installed; `pip install matplotlib`.") from None

    front_end, stage = make_front_end(bundle), BundleStage(bundle)
    rate, hop = front_end.tables.sample_rate_hz, front_end.tables.hop_length
    features = front_end.process(samples)
    silence = front_end.process(np.zeros(stage.flush_frames * hop, np.int16))  # as Pipeline.finish
    if len(features) < stage.model.frames_per_step:
        raise AudioFileError(f"the recording has {len(samples)} samples, too few for a decision; give 0.1 s at least.")
    scores = stage.scores(np.concatenate([features, silence]), last=True)
    decision, labels = bundle.manifest.decision, bundle.manifest.labels
    logits = mean_logits(scores, stage.model.output.scale, decision.stream_window)
    p = posteriors(logits)
    is_keyword = np.array([label not in NOT_KEYWORDS for label in labels])
    of_any = keyword_posteriors(logits, is_keyword)
    detections = stage.detect(scores)

    figure = Figure(figsize=(11, 7), layout="constrained")
    wave, image, curve = figure.subplots(3, 1, sharex=True)
    wave.plot(np.arange(len(samples)) / rate, samples / 32768, linewidth=0.4, color="0.3")
    wave.set(ylabel="amplitude", title=f"{bundle.manifest.name} {bundle.manifest.version}")
    nat = features.T / 2.0**front_end.tables.output_fraction_bits
    extent = (0, len(features) * hop / rate, 0, features.shape[1])
    image.imshow(nat, origin="lower", aspect="auto", extent=extent, cmap="magma")
    image.set(ylabel="mel band" if front_end.tables.n_mfcc == 0 else "coefficient")
    time = (np.arange(len(p)) * stage.stride * hop + front_end.tables.win_length) / rate
    for i, label in enumerate(labels):
        if label not in NOT_KEYWORDS:
            curve.plot(time, p[:, i], label=label, linewidth=1)
    curve.plot(time, of_any, label="any", linewidth=0.6, color="0.3")
    curve.axhline(decision.threshold, color="0.6", linestyle=":", linewidth=1)
    curve.set(ylabel="posterior", xlabel="time / s", ylim=(0, 1.05), xlim=(0, time[-1]))
    figure.legend(loc="outside lower center", ncols=8, fontsize=8)
    for detection in detections:
        for axes in (wave, curve):
            axes.axvline(detection.time, color="tab:red", linewidth=0.8)
        wave.text(detection.time, 0.95, detection.label, transform=wave.get_xaxis_transform(), color="tab:red",
                  ha="right", va="top", rotation=90, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    try:
        figure.savefig(output, dpi=100)
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error.strerror}).") from None
    except ValueError as error:  # a suffix that matplotlib does not draw
        raise UsageError(f"{output} cannot be written ({error}).") from None
    return detections
