"""Teachers: trained models whose posteriors a smaller one learns beside the labels.

Hinton et al. 2015, arXiv:1503.02531; the teachers are asked once per augmented epoch, and their answers are kept beside
it for every student that trains on it.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import numpy as np

from models.recipe import Recipe, load_recipe
from toolkit.errors import ConfigError
from toolkit.kws import NOT_KEYWORDS

BATCH = 256


class Teachers:
    """Mean posterior of the teachers that a recipe names, over the windows that its training looks at.

    stride: frames per score of the student, a multiple of the teachers'; candidates: windows per example, the last
    ones, each a score of the student later; folder: of the epochs.
    Raises ConfigError if a teacher does not see, say or keep time as the student does.
    """

    def __init__(self, recipe: Recipe, stride: int, candidates: int, folder: Path):
        from models.train import load_weights, make_model

        settings, teacher = recipe.distill, load_recipe(recipe.distill.recipe)
        for what in ("features", "labels"):
            if getattr(teacher, what) != getattr(recipe, what):
                raise ConfigError(f"the {what} of distill.recipe {settings.recipe} are not those of this recipe.")
        self._is_keyword = np.array([label not in NOT_KEYWORDS for label in recipe.labels])
        self._stride, self._candidates, self._temperature = stride, candidates, settings.temperature
        self._models = []
        key = repr((recipe.decision.window_frames, stride, candidates, settings.temperature)).encode()
        for path in map(Path, settings.weights):
            model, _, module = make_model(teacher)
            self._teacher_stride = module.STRIDE
            if stride % module.STRIDE:
                raise ConfigError(
                    f"distill.recipe {settings.recipe} scores every {module.STRIDE} frames, the student every "
                    f"{stride}, which must be a multiple of that."
                )
            load_weights(path, model)
            self._models.append(model)
            key += path.read_bytes()
        self._window = recipe.decision.window_frames // self._teacher_stride
        self._name = f"teachers_{hashlib.sha256(key).hexdigest()[:16]}"
        self._folder = folder

    def posteriors(self, number: int, codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """float16 [n, candidates, labels] of the codes int8 [n, T, width] of distinct epoch ``number``, labels [n].

        Of an example without a keyword, what the teachers give to keywords is left out: that they err there too is not
        to be learnt from them.
        """
        path = self._folder / f"{self._name}_{number:04d}.npy"
        if not path.exists():
            part = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}.part")  # workers share the folder
            with open(part, "wb") as file:
                np.save(file, self._ask(codes))
            part.replace(path)
        taught = np.load(path)
        of_others = taught[~self._is_keyword[labels]].astype(np.float32)
        of_others[..., self._is_keyword] = 0
        taught[~self._is_keyword[labels]] = of_others / np.maximum(of_others.sum(axis=2, keepdims=True), 1e-4)
        return taught

    def _ask(self, codes: np.ndarray) -> np.ndarray:
        from models.epochs import MODEL_SCALE
        from models.layers import tf
        from models.train import mean_scores

        ratio, last = self._stride // self._teacher_stride, codes.shape[1] // self._stride
        ends = np.arange(last - self._candidates + 1, last + 1) * ratio  # scores of a teacher until the window's end

        @tf.function(reduce_retracing=True)
        def ask(x):
            means = [mean_scores(model(x, training=False), self._window) for model in self._models]
            windows = [tf.gather(mean, ends - self._window, axis=1) for mean in means]
            return tf.add_n([tf.nn.softmax(w / self._temperature) for w in windows]) / len(windows)

        parts = [codes[i : i + BATCH].astype(np.float32) * MODEL_SCALE for i in range(0, len(codes), BATCH)]
        return np.concatenate([ask(part).numpy().astype(np.float16) for part in parts])
