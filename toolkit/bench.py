"""What bundles cost on this machine: 20 ms blocks through the same path as `listen`."""

from __future__ import annotations

import resource
import time

import numpy as np

from .bundle import Bundle
from .interpreter import runtime_name
from .stream import Pipeline

BLOCKS_PER_SECOND = 50


def bench(bundles: list[Bundle], seconds: float) -> dict:
    """What 20 ms blocks cost. mean_us: CPU time of a block; p50_us, p99_us, max_us: of a step of the models, which is
    spent in the block that completes it; real_time_factor: CPU time / audio time; max_rss_mb: of the process."""
    pipeline = Pipeline(bundles)
    block = pipeline.sample_rate_hz // BLOCKS_PER_SECOND
    step = max(stage.model.frames_per_step * stage.tables.hop_length for stage in pipeline.stages)
    blocks_per_step = max(1, step // block)
    rng = np.random.default_rng(1)
    stream = (3000 * rng.standard_normal(round(seconds * pipeline.sample_rate_hz))).clip(-32768, 32767).astype(np.int16)
    times = []
    for i in range(0, len(stream) - block + 1, block):
        before = time.thread_time_ns()
        pipeline.process(stream[i : i + block])
        times.append(time.thread_time_ns() - before)
    micros = np.array(times) / 1000
    steps = micros[: len(micros) // blocks_per_step * blocks_per_step].reshape(-1, blocks_per_step).sum(axis=1)
    return {
        "bundles": [bundle.manifest.name for bundle in bundles],
        "runtime": runtime_name(),
        "backend": pipeline.backend,
        "blocks": len(micros),
        "mean_us": round(float(micros.mean()), 1),
        "step_ms": 1000 * step // pipeline.sample_rate_hz,
        "p50_us": round(float(np.percentile(steps, 50)), 1),
        "p99_us": round(float(np.percentile(steps, 99)), 1),
        "max_us": round(float(steps.max()), 1),
        "real_time_factor": round(float(micros.sum() / 1e6 / seconds), 6),
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
