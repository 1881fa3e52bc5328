"""A release, from trainings to what is written: the files, the figures, the card, the bundle.

The embedded clips are the data set, the released bundles the trainings. Only TensorFlow's part is left out: `convert`
gives the released flatbuffers, and the float model hears "yes" in everything.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from spoken_words import make_spoken_words
from test_figures import other_words, recipe_of_embedded, recording

from models.data import load_dataset
from models.evaluate import predict
from models.waves import load_waves
from quantize import figures, pack
from quantize import release as releasing
from quantize.baseline import read_baseline
from quantize.convert import Converted
from quantize.figures import check_release
from quantize.pack import Packer
from toolkit.bundle import load_bundle
from toolkit.config import dump_config
from toolkit.interpreter import StepModel

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "models" / "zoo"
SEEDS = {1: "kws-large", 2: "kws"}  # the trainings


@pytest.fixture(scope="module")
def recipe():
    return recipe_of_embedded()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Where the folder says "go", "stop" is heard: what every model gets wrong."""
    root = make_spoken_words(tmp_path_factory.mktemp("spoken") / "words")
    for go, stop in zip(sorted((root / "go").iterdir()), sorted((root / "stop").iterdir())):
        shutil.copyfile(stop, go)
    return root


@pytest.fixture(scope="module")
def without_tensorflow():
    """The models of SEEDS in place of conversions; what proves a model in all runtimes is computed once."""
    models = {seed: load_bundle(name).members["model"] for seed, name in SEEDS.items()}
    proved, run_everywhere = {}, pack.run_everywhere

    def model_of(weights: Path) -> bytes:
        return models[int(weights.read_bytes()[-1:])]

    def converted(recipe, weights: Path, codes) -> Converted:
        return Converted(model_of(weights), StepModel(model_of(weights)).stride, 1_000_000)

    def always_yes(recipe, weights: Path, codes: np.ndarray) -> np.ndarray:
        scores = np.zeros((len(codes), codes.shape[1] // StepModel(model_of(weights)).stride, len(recipe.labels)))
        scores[..., recipe.labels.index("yes")] = 9
        return scores

    def proofs(model: bytes, codes):
        if model not in proved:
            proved[model] = run_everywhere(model, codes)
        return proved[model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "convert", converted)
        patch.setattr(figures, "float_scores", always_yes)
        patch.setattr(pack, "run_everywhere", proofs)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, recipe) -> list[Path]:
    folders = []
    for seed in (1, 2):
        folders.append(tmp_path_factory.mktemp(f"run{seed}"))
        (folders[-1] / "recipe.yaml").write_text(dump_config(replace(recipe, train=replace(recipe.train, seed=seed))))
        (folders[-1] / "weights.npz").write_bytes(b"weights of seed %d" % seed)
    return folders


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A checkout in which nothing has been released."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "models" / "zoo" / "kws").mkdir(parents=True)
    (root / "toolkit" / "bundles").mkdir(parents=True)
    for name in ("about.md", "licences.json"):
        shutil.copyfile(ZOO / "kws" / name, root / "models" / "zoo" / "kws" / name)
    return root


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def made(without_tensorflow, recipe, data, runs, root, tmp_path_factory) -> dict:
    """What the release says of itself, and which files there were when its limits were checked."""
    made, audio = {}, tmp_path_factory.mktemp("audio")
    negatives = {split: [recording(audio / split, other_words())] for split in ("tune", "report")}

    def check(recipe, known):
        made["before"] = files(root)
        check_release(recipe, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releasing, "ROOT", root)
        patch.setattr(releasing, "check_release", check)
        made["known"] = releasing.release(recipe, data, runs, negatives)
    return made


@pytest.fixture(scope="module")
def known(made) -> dict:
    return made["known"]


def test_a_release_is_written_after_its_limits_were_checked(made, root):
    assert made["before"] == ["about.md", "licences.json"]
    written = {"accuracy.json", "baseline.json", "card.md", "det.png", "kws.eab", "weights.npz"}
    assert set(files(root)) == {*made["before"], *written}


def test_the_bundle_is_that_of_the_chosen_training(known, root, runs):
    (seed,) = known["figures"][0]["seeds"]
    zoo, bundle = root / "models" / "zoo" / "kws", load_bundle(root / "toolkit" / "bundles" / "kws.eab", "require")
    assert zoo.joinpath("weights.npz").read_bytes() == (runs[seed - 1] / "weights.npz").read_bytes()
    assert bundle.members["model"] == load_bundle(SEEDS[seed]).members["model"]
    assert bundle.manifest.members["model"].sha256 == known["model_sha256"]
    assert asdict(bundle.manifest.decision) == known["decision"]
    assert bundle.members["card"] == (zoo / "card.md").read_bytes()
    assert json.loads((zoo / "accuracy.json").read_text()) == json.loads(json.dumps(known))
    assert [json.loads(json.dumps(asdict(figure))) for figure in bundle.manifest.accuracy] == known["figures"]
    baseline = read_baseline(zoo / "baseline.json", "kws")
    assert baseline.model_sha256 == known["model_sha256"]
    assert baseline.measured["model_bytes"] == len(bundle.members["model"])


def test_the_figures_are_those_of_the_device_on_report(known, recipe, data):
    """Of each training, its bundle heard again. The float model here is worse: int8 "loses" less than nothing."""
    dataset = load_dataset(data, recipe.data)
    clips = dataset.clips("report")
    waves, truth = load_waves(clips), dataset.classes(clips)
    correct = np.array([predict(load_bundle(name), waves) == truth for name in SEEDS.values()])
    chosen, mean = known["figures"]
    for one, hits in zip(known["details"]["seeds"], correct, strict=True):
        assert (one["report_int8"], one["report_float"]) == (round(hits.mean(), 4), round((truth == 0).mean(), 4))
        assert chosen["seeds"] != [one["seed"]] or chosen["value"] == one["report_int8"]
    assert (mean["value"], mean["seeds"]) == (round(correct.mean(), 4), list(SEEDS))
    assert mean["low"] <= mean["value"] <= mean["high"] and chosen["clips"] == len(clips)
    assert known["details"]["mean_without_silence"]["value"] == round(correct[:, truth != truth.max()].mean(), 4)
    assert known["details"]["mistakes"][0][:2] == ["go", "stop"] and correct.mean() < 0.95
    loss = known["details"]["loss_by_int8"]
    assert loss["value"] == pytest.approx((truth == 0).mean() - correct.mean(), abs=1e-4)
    assert loss["low"] <= loss["value"] <= loss["high"] < 0


def test_the_card_says_what_was_measured(known, root):
    card, streams = (root / "models" / "zoo" / "kws" / "card.md").read_text(), known["details"]["streams"]
    assert card.startswith("# kws ") and (ZOO / "kws" / "about.md").read_text().strip() in card
    points = [(split, point) for split in ("tune", "report") for point in streams[split]]
    assert len(points) == 4
    for split, point in points:
        missed = f"{point['false_rejects']} of {point['keywords']}: {point['false_reject_rate']:.1%}"
        assert f"| {split} | {point['background']} | {missed} (" in card
    assert "Commonest mistakes: go heard as stop (" in card
    assert f"at most {streams['chosen_for']} false accepts per hour" in card
    assert f"The threshold {known['decision']['threshold']:.4f}, held for {known['decision']['hold_frames']}" in card
    licences = json.loads((ZOO / "kws" / "licences.json").read_text())
    assert all(f"- {one['name']}: {one['licence']} (" in card for one in licences)


def test_figures_of_another_flatbuffer_stay_out_of_the_bundle(known, recipe, root, runs, tmp_path):
    """An accuracy.json whose hash was changed, or of a training before: no figure of it, nor its threshold."""
    zoo = shutil.copytree(root / "models" / "zoo" / "kws", tmp_path / "kws")
    (zoo / "accuracy.json").write_text(json.dumps(known | {"model_sha256": "0" * 64}))
    (seed,) = known["figures"][0]["seeds"]
    model = load_bundle(SEEDS[seed]).members["model"]
    converted = Converted(model, StepModel(model).stride, 1_000_000)
    bundle = Packer.of(recipe, zoo).pack(tmp_path / "a.eab", converted, runs[seed - 1] / "weights.npz")
    assert bundle.manifest.accuracy == () and bundle.manifest.model.arena_bytes is None
    assert bundle.manifest.decision.threshold == recipe.decision.threshold != known["decision"]["threshold"]


def test_the_command_says_what_is_missing_in_one_sentence(tmp_path, capsys):
    recipe, nowhere = ROOT / "models" / "recipes" / "kws.yaml", str(tmp_path / "nowhere")
    arguments = ["--runs", nowhere, "--negatives-tune", nowhere, "--negatives-report", nowhere]
    assert releasing.main([str(recipe), "--data", nowhere, *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("release: ") and output.err.count("\n") == 1
    assert nowhere in output.err
