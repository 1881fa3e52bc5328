"""The trainer learns, resumes, and keeps what it learnt; the whole way to a bundle on a small set of chirps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")
pytest.importorskip("scipy", reason="scipy is not installed (requirements-host.txt)")

from tone_words import RECIPE, make_tone_words

from models.charts import draw_training
from models.data import load_dataset
from models.recipe import load_recipe
from models.train import load_weights, make_model, train
from models.waves import load_waves
from toolkit.audio import write_wav
from toolkit.bundle import load_bundle
from toolkit.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    (folder / "recipe.yaml").write_text(RECIPE)
    data = make_tone_words(folder / "data")
    recipe = load_recipe(folder / "recipe.yaml")
    lines = []

    def log(text):
        lines.append(text)
        if len(lines) == 4:
            raise KeyboardInterrupt  # as a person does

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, folder / "run", folder / "epochs", log)
    last = train(recipe, data, folder / "run", folder / "epochs", lines.append)
    return folder, data, recipe, last, lines


def test_it_learns_and_resumes(trained):
    folder, _, recipe, last, lines = trained
    assert last["epoch"] == recipe.train.epochs
    assert last["best"] >= 0.9  # chance is about 0.25
    assert any("resuming after epoch 3" in line for line in lines)
    history = [json.loads(line)["epoch"] for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
    assert history == list(range(1, recipe.train.epochs + 1))


def test_pictures_and_resolved_recipe(trained):
    folder, data, recipe, _, _ = trained
    draw_training(recipe, data, folder / "run")
    for name in ("curves.png", "confusion.png"):
        assert (folder / "run" / name).read_bytes().startswith(b"\x89PNG")
    assert load_recipe(folder / "run" / "recipe.yaml") == recipe


@pytest.mark.parametrize("damage", ["truncated", "other shape", "missing", "not finite", "not an archive"])
def test_damaged_weights_are_one_sentence(trained, tmp_path, damage):
    folder, _, recipe, _, _ = trained
    good = folder / "run" / "weights.npz"
    bad = tmp_path / "weights.npz"
    with np.load(good) as data:
        values = dict(data)
    first = sorted(values)[0]
    if damage == "truncated":
        bad.write_bytes(good.read_bytes()[:500])
    elif damage == "not an archive":
        bad.write_bytes(b"weights")
    else:
        if damage == "other shape":
            values[first] = values[first][..., :1]
        elif damage == "missing":
            del values[first]
        else:
            values[first] = values[first] * np.nan
        np.savez(bad, **values)
    model, _, _ = make_model(recipe)
    with pytest.raises(ConfigError, match="weights.npz"):
        load_weights(bad, model)


def test_the_way_to_a_bundle(trained):
    """Own data, own recipe, own budgets: quantize, and run what comes out."""
    folder, data, recipe, _, _ = trained
    evaluation, dataset = folder / "evaluation", load_dataset(data, recipe.data)
    for i, clip in enumerate(dataset.clips("report")):
        (evaluation / clip.label).mkdir(parents=True, exist_ok=True)
        write_wav(evaluation / clip.label / f"{i}.wav", load_waves([clip])[0], 16000)

    def quantize(recipe_file, out, *more):
        command = [
            sys.executable,
            "-m",
            "quantize",
            str(recipe_file),
            "--weights",
            str(folder / "run" / "weights.npz"),
            "--calibration",
            str(data),
            "--evaluation",
            str(evaluation),
            "--out",
            str(folder / out),
            *more,
        ]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    first = quantize(folder / "recipe.yaml", "first", "--data", str(data))
    assert first.returncode == 0, first.stderr[-2000:]
    assert json.loads(first.stdout.splitlines()[-1])["report"]["int8"]["accuracy"] >= 0.85
    bundle = load_bundle(folder / "first" / "tones.eab", "require")
    assert bundle.manifest.labels == ("rise", "drop", "unknown", "silence")
    assert bundle.manifest.accuracy[0].split == "report"

    again = quantize(folder / "recipe.yaml", "again", "--data", str(data))
    assert (folder / "again" / "tones.eab").read_bytes() == (folder / "first" / "tones.eab").read_bytes(), again.stderr[
        -500:
    ]

    strict = folder / "strict.yaml"
    strict.write_text(RECIPE.replace("model_bytes: 40000", "model_bytes: 1000"))
    refused = quantize(strict, "strict")
    assert refused.returncode == 1 and "the size of the model is" in refused.stderr.splitlines()[-1]
    assert not list((folder / "strict").glob("*.eab"))
