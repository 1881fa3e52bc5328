"""What it costs a network to lose a channel, by two measures.

    scale    |gamma| of the batch normalizations that a channel passes, relative to their mean; of a convolution or an
             LSTM without one behind it the norm of its weights (Liu et al. 2017, arXiv:1708.06519). Needs no data.
    taylor   how far the loss would move, to first order: |sum of weight * gradient| over gamma and beta (or those
             weights), the mean over batches of training examples (Molchanov et al. 2019, arXiv:1906.10771)

This file holds TensorFlow in the process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.epochs import MODEL_SCALE, codes_of
from models.layers import keras, tf
from models.recipe import Recipe
from models.train import mean_scores
from models.waves import load_waves

from .channels import ChannelGraph

BATCHES, BATCH = 16, 32  # of examples, for taylor


def scale(graph: ChannelGraph, model: keras.Model) -> np.ndarray:
    """float [channels]; 1 is the mean of a layer."""
    values = {weight.name: weight.numpy() for weight in model.trainable_weights}
    total, layers = np.zeros(len(graph.everything)), np.zeros(len(graph.everything))
    for names in graph.gates:
        names = [name for name in names if not name.endswith("beta:0")]
        norm = np.sqrt(sum(_per_channel(graph, name, values[name] ** 2) for name in names))
        own = np.unique(_channels(graph, names[0]))
        total[own] += norm[own] / norm[own].mean()
        layers[own] += 1
    return total / np.maximum(layers, 1)


def taylor(graph: ChannelGraph, model: keras.Model, recipe: Recipe, stride: int, data: Path) -> np.ndarray:
    """float [channels], in nat: of the cross entropy of training clips drawn evenly over the labels, without
    augmentation. stride: frames per score. Raises DataError."""
    codes, labels = _examples(recipe, data)
    window = recipe.decision.window_frames // stride
    weights = model.trainable_weights
    names = {name for several in graph.gates for name in several}

    @tf.function(reduce_retracing=True)
    def gradients(x, y):
        with tf.GradientTape() as tape:
            scores = mean_scores(model(x, training=False), window)[:, -1]
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores))
        return tape.gradient(loss, weights)

    total = np.zeros(len(graph.everything))
    for i in range(0, len(codes), BATCH):
        found = gradients(codes[i : i + BATCH].astype(np.float32) * MODEL_SCALE, labels[i : i + BATCH])
        change = {w.name: (w * g).numpy() for w, g in zip(weights, found) if w.name in names}
        total += np.abs(sum(_per_channel(graph, name, values) for name, values in change.items()))
    return total / -(-len(codes) // BATCH)


def _channels(graph: ChannelGraph, weight: str) -> np.ndarray:
    """Of the last axis of a weight, which is that of what its layer makes."""
    return graph.rows[weight][-1][1]


def _per_channel(graph: ChannelGraph, weight: str, values: np.ndarray) -> np.ndarray:
    """Sums of values of the form of a weight, float [channels]."""
    channels = _channels(graph, weight)
    return np.bincount(channels, values.reshape(-1, len(channels)).sum(axis=0), len(graph.everything))


def _examples(recipe: Recipe, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """(codes int8 [n, T, width], labels [n]) of `train`, in an order that mixes the labels."""
    rate, rng = recipe.features.sample_rate_hz, np.random.default_rng(recipe.train.seed)
    dataset = load_dataset(data, recipe.data, rate)
    by_label: dict[str, list] = {}
    for clip in dataset.clips("train"):
        by_label.setdefault(clip.label, []).append(clip)
    each = -(-BATCHES * BATCH // len(by_label))
    chosen = [clips[i] for clips in by_label.values() for i in rng.permutation(len(clips))[:each]]
    chosen = tuple(chosen[i] for i in rng.permutation(len(chosen)))
    flush = recipe.decision.flush_frames * recipe.features.hop_length
    waves = load_waves(chosen, recipe.data.clip_s, rate)
    return codes_of(waves, recipe.features, flush), dataset.classes(chosen)
