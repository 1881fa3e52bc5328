"""Train one recipe: a linear script from data to the best float weights.

    data -> augmented epochs (int8 codes) -> whole model -> mean logits over the decision window -> loss -> weights
                                 (with teachers: their posteriors of the same windows -> loss)

On one device or on many, by train.strategy (models/strategy.py). Fine-tuning is the same with train.start.

Written to the run folder: recipe.yaml (resolved), checkpoints (resume with the same command), weights.npz (running
average, the last that is about as good on tune as the best), history.jsonl, TensorBoard events, curves.png.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from models.augment import canvas_of, mixup, specaugment
from models.data import load_dataset
from models.decide import predictions
from models.distill import Teachers
from models.epochs import MODEL_SCALE, Epochs, codes_of
from models.layers import build_whole, keras, tf
from models.recipe import UNKNOWN, Recipe
from models.strategy import make_crew, telling_lost_workers
from models.waves import load_waves
from toolkit.config import dump_config
from toolkit.errors import ConfigError
from toolkit.kws import NOT_KEYWORDS

RESET_SHARE = 0.5  # of the batches: the state is reset at the clip, as in classify; the others have heard the context


class Adaptation(Protocol):
    """What changes the weights of a training beside its optimizer, as pruning does (quantize/prune.py)."""

    def prepare(self, averaged: keras.Model) -> None:
        """The model that is measured, before it gets its first weights."""

    def after_step(self, step: int) -> None:
        """After each step, of which there have been `step` since the training began: on every worker."""

    def of_average(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """The running average of all weights, in the order of model.weights, as it is to be measured and saved."""

    def is_done(self, step: int) -> bool:
        """Whether the weights are after so many steps what they are to become: before that none are kept as best."""


def load_architecture(name: str):
    """The module of an architecture: one of models/architectures by name, or a .py file by path. Raises ConfigError."""
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(f"models.architectures.{name}")
    except (ImportError, FileNotFoundError):
        known = sorted(p.stem for p in (Path(__file__).parent / "architectures").glob("[a-z]*.py"))
        raise ConfigError(
            f"model.architecture is {name!r}; expected one of {', '.join(known)} or a .py file."
        ) from None
    if not callable(getattr(module, "build", None)) or not isinstance(getattr(module, "STRIDE", None), int):
        raise ConfigError(f"the architecture {name} defines no build(net, x, n_labels, ...) and STRIDE.")
    return module


def make_model(recipe: Recipe):
    """(whole model, its Net, the architecture's module) of a recipe, with fresh weights. Raises ConfigError."""
    module = load_architecture(recipe.model.architecture)
    width = recipe.features.width
    try:
        model, net = build_whole(
            module.build, width, len(recipe.labels), recipe.model.parameters, recipe.model.channels
        )
    except TypeError as error:
        raise ConfigError(f"model.parameters does not fit {recipe.model.architecture}: {error}.") from None
    return model, net, module


def save_weights(path: Path, model: keras.Model, values: list[np.ndarray] | None = None) -> None:
    """All variables by name, float32, as an .npz without pickles."""
    values = model.get_weights() if values is None else values
    names = [v.name.removesuffix(":0") for v in model.weights]
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez(file, **dict(zip(names, values)))
    part.replace(path)


def load_weights(path: Path, model: keras.Model) -> None:
    """Raises ConfigError if the file is not one of this architecture's."""
    try:
        with np.load(path, allow_pickle=False) as data:
            values = {name: data[name] for name in data.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} holds no weights that can be read ({error}).") from None
    names = [v.name.removesuffix(":0") for v in model.weights]
    wrong = [n for n, v in zip(names, model.weights) if n not in values or values[n].shape != tuple(v.shape)]
    if wrong or len(values) != len(names):
        raise ConfigError(
            f"{path} does not fit the architecture of the recipe: {(wrong or sorted(set(values) - set(names)))[0]}."
        )
    if not all(np.isfinite(v).all() for v in values.values()):
        raise ConfigError(f"{path} holds weights that are not finite; it is damaged.")
    model.set_weights([values[n] for n in names])


def scores_of(model: keras.Model, codes: np.ndarray, batch: int = 256) -> np.ndarray:
    """Float logits [n, T/stride, labels] of int8 codes [n, T, width], from the reset state."""
    run = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    parts = [run(codes[i : i + batch].astype(np.float32) * MODEL_SCALE).numpy() for i in range(0, len(codes), batch)]
    return np.concatenate(parts)


@telling_lost_workers()
def train(
    recipe: Recipe,
    data: Path,
    run: Path,
    cache: Path | None = None,
    log=print,
    adapt: Callable[[keras.Model, int], Adaptation] | None = None,
) -> dict:
    """Trains to the end (or resumes) and returns the last line of the history. adapt(model, steps_per_epoch) is asked
    for an Adaptation before the first step. Raises ConfigError, DataError."""
    settings, features = recipe.train, recipe.features
    if recipe.prune.sparsity and not adapt:
        raise ConfigError(
            f"prune.sparsity is {recipe.prune.sparsity}: this recipe is trained by python -m quantize.prune train."
        )
    if recipe.quantize.method == "aware" and not adapt:
        raise ConfigError("quantize.method is aware: this recipe is trained by python -m quantize.qat.")
    if settings.strategy == "multi_worker":
        log("waiting for all workers of TF_CONFIG")
    crew = make_crew(settings)
    log = crew.named(log)
    dataset = load_dataset(data, recipe.data, features.sample_rate_hz)
    for notice in dataset.notices:
        log(notice)
    cache, latest = cache or run / "epochs", tf.train.latest_checkpoint(run / "checkpoints")
    crew.agree(recipe=recipe, data_set=dataset.fingerprint, checkpoint=latest and Path(latest).name)
    run = crew.own_folder(run)
    (run / "recipe.yaml").write_text(dump_config(recipe))
    keras.utils.set_random_seed(settings.seed)

    tune = dataset.clips("tune")
    flush = recipe.decision.flush_frames * features.hop_length
    tune_codes = codes_of(load_waves(tune, recipe.data.clip_s, features.sample_rate_hz), features, flush)
    tune_labels = dataset.classes(tune)
    epochs = Epochs(recipe, dataset, cache)
    steps_per_epoch = len(epochs.get(0, settings.epochs - 1)[1]) // settings.batch_size

    with crew.strategy.scope():
        model, _, module = make_model(recipe)
        if settings.start and not latest:
            load_weights(Path(settings.start), model)
            crew.agree(weights_to_start_with=Path(settings.start).read_bytes())
            log(f"starting from {settings.start}")
        optimizer = make_optimizer(recipe, model, steps_per_epoch)
        on_read = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.MEAN}
        average = [tf.Variable(v, trainable=False, **on_read) for v in model.weights]  # each replica keeps its own
    averaged, _, _ = make_model(recipe)  # has the mean of these averages
    window = recipe.decision.window_frames // module.STRIDE
    candidates = tune_codes.shape[1] // module.STRIDE - window + 1  # window ends among which a clip is decided
    unknown = recipe.labels.index(UNKNOWN)
    teachers = Teachers(recipe, module.STRIDE, candidates, epochs.folder) if recipe.distill.recipe else None
    share, temperature = (recipe.distill.share, recipe.distill.temperature) if teachers else (0.0, 1.0)
    prior = settings.unknown_prior * tf.one_hot(unknown, len(recipe.labels))
    is_keyword = tf.constant([label not in NOT_KEYWORDS for label in recipe.labels])
    context = canvas_of(recipe).context // features.hop_length // module.STRIDE * module.STRIDE
    done = tf.Variable(0, trainable=False, dtype=tf.int64)
    best = tf.Variable(0.0, trainable=False)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, average=average, done=done, best=best)
    manager = tf.train.CheckpointManager(checkpoint, run / "checkpoints", max_to_keep=1)
    if checkpoint.restore(latest) and latest:
        log(f"resuming after epoch {int(done)} from {latest}")
    adaptation = adapt(model, steps_per_epoch) if adapt else None
    if adaptation:
        adaptation.prepare(averaged)
    tf.random.set_seed(settings.seed + crew.worker)  # dropout
    events = tf.summary.create_file_writer(str(run / "events"))

    def replica_step(codes, targets, weights, taught):
        """Of one replica: codes float [B, T, width], targets float [B, labels], weights float [B] that sum to one over
        all replicas, taught float [B, K, labels]."""
        with tf.GradientTape() as tape:
            windows = mean_scores(model(codes, training=True), window)[:, -candidates:]
            expected = windows + prior
            last = tf.nn.softmax_cross_entropy_with_logits(targets, expected[:, -1])
            peak = tf.nn.softmax_cross_entropy_with_logits(targets, at_peak(expected, targets, is_keyword))
            loss = (1 - share) * (last + peak) / 2
            if share:
                like = tf.nn.softmax_cross_entropy_with_logits(taught, windows / temperature)
                loss += share * temperature**2 * tf.reduce_mean(like, axis=1)
            loss = tf.reduce_sum(weights * loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        decay = tf.minimum(
            settings.ema_decay,
            (1.0 + tf.cast(optimizer.iterations, tf.float32)) / (10.0 + tf.cast(optimizer.iterations, tf.float32)),
        )
        for mean, value in zip(average, model.weights):
            mean.assign(decay * mean + (1 - decay) * value)
        return loss

    @tf.function(reduce_retracing=True)
    def step(*shares):
        return crew.strategy.reduce(tf.distribute.ReduceOp.SUM, crew.strategy.run(replica_step, shares), axis=None)

    started, line = time.monotonic(), {}
    first = int(done)
    for epoch in range(first, settings.epochs):
        codes, labels = epochs.get(epoch, settings.epochs - 1)
        taught = np.zeros((len(codes), 0, 0), np.float32)
        if teachers:
            taught = teachers.posteriors(epochs.number(epoch), codes, labels)
        rng = np.random.default_rng([settings.seed, epoch])
        order, losses = rng.permutation(len(labels)), []
        for i in range(steps_per_epoch):
            batch = order[i * settings.batch_size : (i + 1) * settings.batch_size]
            x = specaugment(codes[batch], recipe.augment, rng, fill=0).astype(np.float32) * MODEL_SCALE
            y = np.eye(len(recipe.labels), dtype=np.float32)[labels[batch]]
            y = y * (1 - settings.label_smoothing) + settings.label_smoothing / len(recipe.labels)
            x, y = mixup(x, y, recipe.augment.mixup_alpha, rng)
            weights = np.where(labels[batch] == unknown, settings.unknown_weight, 1.0).astype(np.float32)
            if context and rng.random() < RESET_SHARE:
                x = x[:, context:]
            shares = crew.shares(x, y, weights / weights.sum(), taught[batch].astype(np.float32))
            losses.append(step(*shares))
            if adaptation:
                adaptation.after_step(epoch * steps_per_epoch + i + 1)
        done.assign(epoch + 1)

        mean = [v.numpy() for v in average]
        averaged.set_weights(adaptation.of_average(mean) if adaptation else mean)
        predicted = predictions(scores_of(averaged, tune_codes), recipe, module.STRIDE)
        accuracy = float(np.mean(predicted == tune_labels))
        is_done = not adaptation or adaptation.is_done((epoch + 1) * steps_per_epoch)
        if is_done:
            best.assign(max(float(best), accuracy))
            if accuracy >= float(best) - standard_error(float(best), len(tune_labels)):
                save_weights(run / "weights.npz", model, averaged.get_weights())

        left = (time.monotonic() - started) / (epoch + 1 - first) * (settings.epochs - epoch - 1)
        line = {
            "epoch": epoch + 1,
            "loss": round(float(np.mean([float(v) for v in losses])), 4),
            "tune_accuracy": round(accuracy, 4),
            "best": round(float(best), 4),
        }
        log(
            f"epoch {epoch + 1}/{settings.epochs}  loss {line['loss']:.4f}  tune {accuracy:.4f}  "
            f"best {line['best']:.4f}  {left / 60:.1f} min left"
        )
        with open(run / "history.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        with events.as_default(epoch + 1):
            tf.summary.scalar("loss", line["loss"])
            tf.summary.scalar("tune_accuracy", accuracy)
        if (epoch + 1) % settings.checkpoint_every == 0 or epoch + 1 == settings.epochs:
            manager.save()
    epochs.close()
    crew.agree(end=settings.epochs)  # none leaves while another still saves
    return line


def standard_error(accuracy: float, n: int) -> float:
    """Of an accuracy over n clips. The latest epoch within one of the best is kept (the rule of Breiman et al. 1984):
    a single best one is mostly luck, and an early one of an unfinished schedule."""
    return (accuracy * (1 - accuracy) / n) ** 0.5


def mean_scores(scores, window: int):
    """Scores [B, T, n] -> their means over each window of ``window`` scores, [B, T - window + 1, n]."""
    return tf.nn.avg_pool1d(scores, window, 1, "VALID")


def at_peak(windows, targets, is_keyword):
    """Mean logits [B, n] of the window that decides: where the target stands out most, if it is a keyword, else where
    any keyword does (max-pooling loss, Sun et al. 2016, arXiv:1705.02411). windows [B, K, n], targets [B, n]."""
    p = tf.stop_gradient(tf.nn.softmax(windows))
    target = tf.one_hot(tf.argmax(targets, axis=1), tf.shape(targets)[1])
    of_target = tf.reduce_sum(p * target[:, None], axis=2)
    of_keywords = tf.reduce_max(tf.where(is_keyword, p, 0.0), axis=2)
    targets_keyword = tf.reduce_any((target > 0) & is_keyword, axis=1)
    best = tf.argmax(tf.where(targets_keyword[:, None], of_target, of_keywords), axis=1)
    return tf.gather(windows, best, axis=1, batch_dims=1)


def make_optimizer(recipe: Recipe, model: keras.Model, steps_per_epoch: int):
    """AdamW with linear warm-up and a cosine to zero; only kernels decay."""
    settings = recipe.train
    warmup, total = settings.warmup_epochs * steps_per_epoch, settings.epochs * steps_per_epoch

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            step = tf.cast(step, tf.float32)
            cosine = 0.5 * (1 + tf.cos(np.pi * tf.clip_by_value((step - warmup) / max(1.0, total - warmup), 0, 1)))
            return settings.learning_rate * tf.minimum(step / max(1.0, warmup), cosine)

    optimizer = keras.optimizers.AdamW(Schedule(), weight_decay=settings.weight_decay)
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if "kernel" not in v.name])
    return optimizer
