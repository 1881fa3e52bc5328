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
    """Times in microseconds of CPU per 20 ms block; real_time_factor = CPU time / audio time; memory of the process."""
    pipeline = Pipeline(bundles)
    block = pipeline.sample_rate_hz // BLOCKS_PER_SECOND
    rng = np.random.default_rng(1)
    stream = (3000 * rng.standard_normal(round(seconds * pipeline.sample_rate_hz))).clip(-32768, 32767).astype(np.int16)
    times = []
    for i in range(0, len(stream) - block + 1, block):
        before = time.thread_time_ns()
        pipeline.process(stream[i : i + block])
        times.append(time.thread_time_ns() - before)
    micros = np.array(times) / 1000
    return {
        "bundles": [bundle.manifest.name for bundle in bundles],
        "runtime": runtime_name(),
        "backend": pipeline.backend,
        "blocks": len(micros),
        "p50_us": round(float(np.percentile(micros, 50)), 1),
        "p99_us": round(float(np.percentile(micros, 99)), 1),
        "max_us": round(float(micros.max()), 1),
        "real_time_factor": round(float(micros.sum() / 1e6 / seconds), 6),
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
