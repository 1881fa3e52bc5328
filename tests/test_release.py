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
from quantize.negatives import HEAD_BYTES, check_apart
from quantize.pack import Packer
from toolkit.audio import write_wav
from toolkit.bundle import load_bundle
from toolkit.config import dump_config
from toolkit.errors import DataError
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
    words = {"tune": other_words(), "report": other_words()[::-1]}
    negatives = {split: [recording(audio / split, clips)] for split, clips in words.items()}

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


def test_released_weights_can_be_decided_anew(known, recipe, data, root, tmp_path, monkeypatch, capsys):
    """On other hours. What the decision does not touch stays: the net, the accuracy of clips, the cost."""
    again, words = shutil.copytree(root, tmp_path / "again"), other_words()
    monkeypatch.setattr(releasing, "ROOT", again)
    monkeypatch.setattr(releasing, "convert", figures.convert)  # of without_tensorflow
    folders = {"tune": [], "report": []}
    for split, clips in {"tune": words, "report": words[::-1]}.items():
        folders[split] = [recording(tmp_path / f"{split}_{part}", clips[part:] + clips[:part]) for part in range(2)]
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe))
    arguments = [part for split, paths in folders.items() for part in (f"--negatives-{split}", *map(str, paths))]
    command = [str(tmp_path / "recipe.yaml"), "--data", str(data), *arguments]
    assert releasing.main(command) == 0
    decided = json.loads((again / "models" / "zoo" / "kws" / "accuracy.json").read_text())
    before, after = known["details"].copy(), decided["details"].copy()
    old, new = before.pop("streams"), after.pop("streams")
    assert (decided["model_sha256"], decided["figures"]) == (known["model_sha256"], known["figures"])
    assert after == json.loads(json.dumps(before))
    assert new["negatives"]["tune"] == [f"{tmp_path.name}/tune_{part}" for part in range(2)]
    for split in folders:
        assert new[split][0]["hours"] == pytest.approx(2 * old[split][0]["hours"], abs=1e-4)
    bundle = load_bundle(again / "toolkit" / "bundles" / "kws.eab", "require")
    assert asdict(bundle.manifest.decision) == decided["decision"]
    assert bundle.members["card"] == (again / "models" / "zoo" / "kws" / "card.md").read_bytes()

    (again / "models" / "zoo" / "kws" / "accuracy.json").write_text(json.dumps(decided | {"model_sha256": "0" * 64}))
    capsys.readouterr()
    assert releasing.main(command) == 2
    (sentence,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("release: "))
    assert "is about: name its trainings with --runs." in sentence

    (again / "models" / "zoo" / "kws" / "accuracy.json").unlink()
    assert releasing.main(command) == 2
    assert capsys.readouterr().err == "release: kws has not been released yet: name its trainings with --runs.\n"


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


@pytest.mark.parametrize("shared", ["folder", "link", "inner folder", "outer folder", "bytes", "one recording"])
def test_a_recording_of_both_splits_is_refused_before_anything_is_computed(shared, recipe, data, tmp_path, capsys):
    """Whatever it is called there: the threshold would be judged by what it was chosen on."""
    tune, report = recording(tmp_path / "tune", other_words()), recording(tmp_path / "report", other_words()[::-1])
    folders = {"tune": [tune], "report": [report]}
    said = "lie one within the other"
    if shared in ("folder", "link"):
        tmp_path.joinpath("link").symlink_to(tune)
        folders["report"].append(tune if shared == "folder" else tmp_path / "link")
        said = "are the same"
    elif shared == "inner folder":
        folders["report"] = [shutil.copytree(report, tune / "report")]
    elif shared == "outer folder":
        folders["report"] = [tmp_path]
    else:
        shutil.copyfile(tune / "long.wav", report / "other.wav")
        said = f"{report / 'other.wav'} of --negatives-report is the recording {tune / 'long.wav'} of --negatives-tune"
        if shared == "one recording":
            folders["tune"] = [tune / "long.wav"]
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe))
    arguments = [part for split, paths in folders.items() for part in (f"--negatives-{split}", *map(str, paths))]
    command = [str(tmp_path / "recipe.yaml"), "--data", str(data), "--runs", str(tmp_path), *arguments]
    assert releasing.main(command) == (1 if said.startswith(str(report)) else 2)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert said in sentence and sentence.endswith(".")


def test_recordings_that_only_begin_alike_are_not_the_same(tmp_path):
    """As do all that are made with silence before the first word."""
    wave = np.random.default_rng(1).integers(-9, 9, 3 * HEAD_BYTES).astype(np.int16)
    for split, last in (("tune", 1), ("report", 2)):
        wave[-1] = last
        (tmp_path / split).mkdir()
        write_wav(tmp_path / split / "long.wav", wave, 16000)
    check_apart([tmp_path / "tune"], [tmp_path / "report"])
    write_wav(tmp_path / "tune" / "again.wav", wave, 16000)
    with pytest.raises(DataError, match="report/long.wav of .*tune/again.wav of .* byte for byte"):
        check_apart([tmp_path / "tune"], [tmp_path / "report"])


def test_the_command_says_what_is_missing_in_one_sentence(tmp_path, capsys):
    recipe, nowhere = ROOT / "models" / "recipes" / "kws.yaml", str(tmp_path / "nowhere")
    arguments = ["--runs", nowhere, "--negatives-tune", nowhere, "--negatives-report", nowhere]
    assert releasing.main([str(recipe), "--data", nowhere, *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("release: ") and output.err.count("\n") == 1
    assert nowhere in output.err
