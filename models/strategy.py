"""One training on several GPUs or machines: the setting train.strategy, through tf.distribute.

A replica is a GPU (or the CPU, where there is none) with its own copy of the weights. Each takes its share of every
batch; the gradients are summed over all replicas, so that the copies stay equal and the result is that of one replica
with the whole batch. Two things differ: batch normalization sees the share, not the batch (its moving statistics are
the mean over the replicas), and each replica draws its own dropout.

    single         the first GPU, or the CPU
    mirrored       all GPUs of this machine; CUDA_VISIBLE_DEVICES chooses some
    multi_worker   all GPUs of all machines, or their CPUs; the same command is started on each, with its own index in
                   TF_CONFIG='{"cluster": {"worker": ["one:4040", "two:4040"]}, "task": {"type": "worker", "index": 0}}'

Worker 0 is the chief, which alone writes into the run folder. All must read it, for that is where they resume; the
data and the epochs may lie on each machine or be shared. Where a worker is lost the others end, within seconds, and the
same command on all of them resumes. A run may be resumed with another strategy.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from models.layers import tf
from models.recipe import TrainSettings
from toolkit.errors import ConfigError


@dataclass(frozen=True)
class Crew:
    """The replicas of a training, and which of its workers (processes) this one is."""

    strategy: tf.distribute.Strategy
    worker: int = 0
    workers: int = 1

    @property
    def is_chief(self) -> bool:
        return self.worker == 0

    def named(self, log: Callable[[str], None]) -> Callable[[str], None]:
        """`log`, with the worker's number before each line if there are several."""
        return (lambda text: log(f"worker {self.worker}: {text}")) if self.workers > 1 else log

    def own_folder(self, run: Path) -> Path:
        """The run folder for the chief, a temporary one for the others: all must save what holds a value of each
        replica, so none may leave it out."""
        if self.is_chief:
            run.mkdir(parents=True, exist_ok=True)
            return run
        folder = tempfile.mkdtemp(prefix=f"{run.name}-worker{self.worker}-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def agree(self, **what: object) -> None:
        """Raises ConfigError, on every worker, unless all of them hold what this one holds."""
        if self.workers == 1:
            return
        mine = [int.from_bytes(sha256(repr(value).encode()).digest()[:7]) for value in what.values()]

        @tf.function
        def gather():
            return self.strategy.gather(self.strategy.run(lambda: tf.constant([mine], tf.int64)), axis=0)

        rows = gather().numpy()  # [replicas, len(what)]
        for name, column in zip(what, rows.T):
            if (column != column[0]).any():
                raise ConfigError(
                    f"the {self.workers} workers of TF_CONFIG have not the same {name.replace('_', ' ')}; "
                    f"start all of them with one recipe, one data set and one run folder that they share."
                )

    def shares(self, *batch: np.ndarray) -> tuple:
        """A batch, arrays [B, ...], as the arguments of strategy.run: to each replica its B/replicas examples."""

        def share(context: tf.distribute.experimental.ValueContext) -> tuple[tf.Tensor, ...]:
            size = len(batch[0]) // context.num_replicas_in_sync
            begin = context.replica_id_in_sync_group * size
            return tuple(tf.constant(values[begin : begin + size]) for values in batch)

        return self.strategy.experimental_distribute_values_from_function(share)


def make_crew(settings: TrainSettings) -> Crew:
    """The crew of settings.strategy; must come before TensorFlow's first operation. With multi_worker it waits, up to
    an hour, until all workers are there. Raises ConfigError."""
    if settings.strategy == "single":
        return Crew(tf.distribute.get_strategy())
    crew = _mirrored() if settings.strategy == "mirrored" else _joined(os.environ.get("TF_CONFIG", ""))
    replicas = crew.strategy.num_replicas_in_sync
    if settings.batch_size % replicas:
        raise ConfigError(
            f"train.batch_size is {settings.batch_size}, which {replicas} replicas of the {settings.strategy} strategy "
            f"cannot share; expected a multiple of {replicas}."
        )
    return crew


@contextmanager
def telling_lost_workers() -> Iterator[None]:
    """Makes one sentence, a ConfigError, of TensorFlow's error where a worker was lost."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
        raise ConfigError("a worker of TF_CONFIG was lost; the same command on all of them resumes.") from None


# One strategy for all trainings of a process: two would number their collective operations alike, and mix them up.
@cache
def _mirrored() -> Crew:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return Crew(tf.distribute.MirroredStrategy([device.name for device in devices]))


@cache
def _joined(tf_config: str) -> Crew:
    """The crew of the cluster that TF_CONFIG names."""
    try:
        config = json.loads(tf_config or "{}")
        cluster, task = config["cluster"], config["task"]
        tasks = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, ())))]
        worker = tasks.index((task["type"], int(task["index"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"train.strategy is multi_worker, but the environment variable TF_CONFIG is {tf_config!r}; expected "
            '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}.'
        ) from None
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would wait with TensorFlow
    try:
        return Crew(tf.distribute.MultiWorkerMirroredStrategy(), worker, len(tasks))
    except tf.errors.OpError as error:
        raise ConfigError(
            f"the {len(tasks)} workers of TF_CONFIG did not come together; start all of them, each at its own address "
            f"({error.message.splitlines()[0]})."
        ) from None
    finally:
        signal.signal(signal.SIGINT, interrupt)
