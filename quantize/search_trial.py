"""One trial of a search: a recipe trained, converted and measured, once and for all, in a folder of its own.

Of one training there may be three, by bits (quantize/search_space.py), in three folders: HASH, HASH-4 and HASH-16.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.recipe import Recipe
from toolkit.config import dump_config
from toolkit.errors import VerificationError
from toolkit.profile import DeviceProfile

from .convert import in_child
from .gate import FAIL, Fact, Line, gate
from .search_measure import MEASURED, MEASURES
from .search_space import SHIPPED

AT_LEAST_WEIGHTS = ("model_bytes", "firmware_bytes", "bundle_bytes", "memory_bytes", "compressed_bytes")


def name_of(recipe: Recipe, data_set: str, bits: int = SHIPPED) -> str:
    """Of a trial: the hash of all that decides its result."""
    digest = hashlib.sha256(f"{data_set}\n{dump_config(recipe)}".encode())
    for path in filter(None, (recipe.train.start, recipe.distill.recipe, *recipe.distill.weights)):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16] + (f"-{bits}" if bits != SHIPPED else "")


def limits(recipe: Recipe, profile: DeviceProfile, facts: dict) -> list[Line]:
    """The lines of the gate for the profile; facts: {metric: value}, those of result.json."""
    known = {name: Fact(tuple(v) if isinstance(v, list) else v) for name, v in facts.items()}
    return [line for line in gate(recipe, [profile], None, known) if line.source == f"profile {profile.name}"]


def run_trial(recipe: Recipe, data: Path, out: Path, profile: DeviceProfile, name: str, bits: int = SHIPPED) -> dict:
    """result.json of a trial, from its folder or made now: facts, and accuracy, low, high, clips on tune (None where
    it was refused by the profile or, with the reason in `failed`, cannot be converted). For other bits than 8 the trial
    with 8 is run first: they have its training."""
    folder = out / "trials" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    with locked(folder / "lock"):
        if path.exists():
            result = json.loads(path.read_text())
            if result["is_trained"] or breaks(limits(recipe, profile, result["facts"])):
                say(f"{name}: known")
                return result
        if bits == SHIPPED:
            (folder / "recipe.yaml").write_text(dump_config(recipe))
            result = in_child(_train, recipe, data, folder, out / "epochs", profile, doing="the training", limit_s=None)
            trained = folder
        else:
            trained = folder.with_name(name.removesuffix(f"-{bits}"))
            result = run_trial(recipe, data, out, profile, trained.name) | dict.fromkeys((*MEASURED, "failed"))
        if result["is_trained"]:
            try:
                result |= MEASURES[bits](recipe, data, folder, trained / "weights.npz")
            except VerificationError as error:
                result["failed"] = str(error)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(path)
    return result


def breaks(lines: list[Line]) -> list[Line]:
    """The lines that something measured is over."""
    return [line for line in lines if line.verdict == FAIL]


def _train(recipe: Recipe, data: Path, folder: Path, cache: Path, profile: DeviceProfile) -> dict:
    """In a process of its own, with TensorFlow: what the architecture costs, and weights.npz if the profile lets it."""
    from models.train import make_model, train

    from .channels import ChannelGraph
    from .prune import masks

    model, _, _ = make_model(recipe)
    graph = ChannelGraph(model, recipe.features.sample_rate_hz / recipe.features.hop_length)
    kernels = sum(int(np.prod(v.shape)) for v in model.weights if v.name.endswith("kernel:0"))
    facts = {"macs_per_second": graph.macs_per_second(graph.everything)} | dict.fromkeys(AT_LEAST_WEIGHTS, kernels)
    result = dict.fromkeys((*MEASURED, "failed"))
    result |= {"facts": facts, "is_trained": not breaks(limits(recipe, profile, facts))}
    if result["is_trained"]:
        with locked(folder / "train.lock"):  # its parent may be gone, and this still be at work when another begins
            train(recipe, data, folder, cache, say, masks(recipe) if recipe.prune.sparsity else None)
    return result


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a file, among processes and machines that share its folder; False: another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file frees it, and so does the death of the process


def say(text: str) -> None:
    """Progress, for people."""
    print(f"search: {text}", file=sys.stderr, flush=True)
