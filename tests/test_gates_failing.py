"""The commands themselves at a closed gate: no success, one sentence that names what is wrong, and no new bundle.

Each limit by itself is closed in test_gate.py, each proof in test_quantize.py; what a stranger's model is refused for
in test_own.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from spoken_words import make_spoken_words
from test_figures import recipe_of_embedded

from models.recipe import load_recipe
from quantize import own
from quantize.__main__ import main
from quantize.convert import in_child, load_model
from quantize.slim import pack_tree, tflite_schema
from quantize.verify import check_integer
from tests.released import SAMPLES, released
from toolkit.audio import write_wav
from toolkit.bundle import load_bundle
from toolkit.config import dump_config
from toolkit.errors import VerificationError
from toolkit.interpreter import StepModel

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "models" / "recipes" / "kws.yaml"
ZOO = ROOT / "models" / "zoo" / "kws"
SCHEMA = tflite_schema()


def refused(capsys, out: Path, command, *arguments) -> str:
    """The one sentence of a command that fails before anything is written."""
    assert command([*map(str, arguments), "--out", str(out)]) == 1
    output = capsys.readouterr()
    *progress, sentence = output.err.splitlines()
    assert output.out == "" and not out.exists() and sentence.startswith("quantize: ") and sentence.endswith(".")
    assert all(line.startswith("quantize: ") and not line.endswith(".") for line in progress)
    return sentence


def refused_at_once(capsys, out: Path, command, *arguments) -> str:
    """The one sentence of a command that fails before it says that it has begun."""
    assert command([*map(str, arguments), "--out", str(out)]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("quantize: ") and not out.exists()
    return sentence


# --- what goes in ---


def test_a_calibration_set_of_silence_is_refused_with_the_reason(tmp_path, capsys):
    silence = tmp_path / "silence"
    silence.mkdir()
    for i in range(20):
        write_wav(silence / f"{i}.wav", np.zeros(16000, np.int16), 16000)
    said = refused(capsys, tmp_path / "out", main, RECIPE, "--calibration", silence)
    assert f"the 20 calibration clips of {silence} are silent or constant" in said and "give clips of speech" in said


def test_a_corrupted_weight_file_is_refused(tmp_path, capsys):
    """One bit in the middle of the released weights; it is the archive's own checksum that tells."""
    weights = bytearray((ZOO / "weights.npz").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "weights.npz").write_bytes(weights)
    said = refused(capsys, tmp_path / "out", main, RECIPE, "--weights", tmp_path / "weights.npz")
    assert f"{tmp_path / 'weights.npz'} holds no weights that can be read (Bad CRC-32" in said


def loading(paths: list[Path]) -> list[str]:
    """What each file of weights is refused with, in a process that may hold TensorFlow."""
    said = []
    for path in paths:
        with pytest.raises(VerificationError) as error:
            load_model(load_recipe(RECIPE), path)
        said.append(str(error.value))
    return said


def test_weights_are_refused_however_they_are_damaged(tmp_path):
    """As what fails, not as a command that makes no sense: a CI must tell the two."""
    with np.load(ZOO / "weights.npz") as data:
        values = dict(data)
    kernel = next(name for name in values if name.endswith("kernel"))
    forms = {
        "shape": {**values, kernel: values[kernel][..., :1]},
        "short": {name: value for name, value in values.items() if name != kernel},
        "long": {**values, "other": values[kernel]},
        "nan": {**values, kernel: np.where(values[kernel] == values[kernel].max(), np.nan, values[kernel])},
    }
    files = {name: tmp_path / f"{name}.npz" for name in ("nowhere", "truncated", "array", "packed", *forms)}
    for name, form in forms.items():
        np.savez(files[name], **form)
    files["truncated"].write_bytes((ZOO / "weights.npz").read_bytes()[:-1000])
    with open(files["array"], "wb") as file:
        np.save(file, values[kernel])
    np.savez_compressed(files["packed"], **values)
    packed = bytearray(files["packed"].read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    files["packed"].write_bytes(packed)
    said = dict(zip(files, in_child(loading, list(files.values())), strict=True))
    assert all(str(files[name]) in sentence and "\n" not in sentence for name, sentence in said.items())
    unreadable = {name for name, sentence in said.items() if "holds no weights that can be read" in sentence}
    assert unreadable == {"nowhere", "truncated", "array", "packed"}
    assert {kernel in said[name] for name in ("shape", "short")} == {True} and said["long"].endswith("recipe: other.")
    assert "weights that are not finite" in said["nan"] and VerificationError.exit_code == 1


@pytest.mark.parametrize("command", ["a recipe", "a model of one's own"])
def test_an_evaluation_set_without_a_class_is_refused_before_anything_is_computed(tmp_path, capsys, command):
    shutil.copytree(SAMPLES / "evaluation", tmp_path / "evaluation")
    shutil.rmtree(tmp_path / "evaluation" / "stop")
    (tmp_path / "mine.tflite").write_bytes(released().members["model"])
    arguments = [tmp_path / "mine.tflite", "--recipe", RECIPE, "--evaluation", tmp_path / "evaluation"]
    of = (main, *arguments[2:]) if command == "a recipe" else (own.main, *arguments)
    said = refused_at_once(capsys, tmp_path / "out", *of)
    assert f"the evaluation set {tmp_path / 'evaluation'} holds no clip of 'stop'" in said


def test_a_data_set_without_a_class_is_refused_before_anything_is_computed(tmp_path, capsys):
    data = make_spoken_words(tmp_path / "words")
    shutil.rmtree(data / "stop")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(recipe_of_embedded()))
    said = refused_at_once(capsys, tmp_path / "out", main, recipe, "--data", data)
    assert f"{data} holds no folder 'stop', which data.words names" in said


# --- a float operation in an integer model ---


def smuggled(model: bytes) -> bytes:
    """The same model, but its scores pass through a ReLU in float: int8 enters it and int8 leaves it."""
    tree = SCHEMA.ModelT.InitFromObj(SCHEMA.Model.GetRootAs(model, 0))
    graph, kinds = tree.subgraphs[0], SCHEMA.BuiltinOperator
    outputs = {entry.name: entry.tensorIndex for entry in tree.signatureDefs[0].outputs}
    scores, here = outputs[b"scores"], [len(graph.tensors) + i for i in range(3)]
    for name, kind in ((b"before", SCHEMA.TensorType.INT8), *[(b"float", SCHEMA.TensorType.FLOAT32)] * 2):
        tensor = SCHEMA.TensorT()
        tensor.__dict__.update(graph.tensors[scores].__dict__, name=name, type=kind)
        tensor.quantization = graph.tensors[scores].quantization if kind == SCHEMA.TensorType.INT8 else None
        graph.tensors.append(tensor)
    made = next(op for op in graph.operators if scores in op.outputs)
    made.outputs = np.array([here[0]], np.int32)
    way = zip((kinds.DEQUANTIZE, kinds.RELU, kinds.QUANTIZE), here, (*here[1:], scores))
    for kind, enters, leaves in way:
        code, op = SCHEMA.OperatorCodeT(), SCHEMA.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 1
        op.opcodeIndex = len(tree.operatorCodes)
        op.inputs, op.outputs = np.array([enters], np.int32), np.array([leaves], np.int32)
        tree.operatorCodes.append(code)
        graph.operators.append(op)
    return pack_tree(tree)


def test_a_float_operation_that_was_smuggled_in_is_refused(tmp_path, capsys):
    """It computes, so that no runtime would tell: what comes out is the ReLU of the scores."""
    model, codes = released().members["model"], np.random.default_rng(1).integers(-99, 99, (40, 40)).astype(np.int8)
    strange, step = StepModel(smuggled(model)), StepModel(model)
    expected = np.maximum(step.process(codes), step.output.zero_point)
    assert np.array_equal(strange.process(codes), expected) and (strange.input, strange.stride) == (step.input, 2)
    check_integer(model)
    with pytest.raises(VerificationError, match="the model uses DEQUANTIZE; only ADD, .* are allowed"):
        check_integer(smuggled(model))
    (tmp_path / "mine.tflite").write_bytes(smuggled(model))
    said = refused(capsys, tmp_path / "out", own.main, tmp_path / "mine.tflite", "--recipe", RECIPE)
    assert "the model uses DEQUANTIZE" in said


# --- what comes out ---


def quantize(out: Path, hash_seed: str, *arguments: str) -> tuple[int, list[str], dict]:
    """python -m quantize in a process of its own -> (status, lines of stderr, report)."""
    command = [sys.executable, "-m", "quantize", str(RECIPE), "--out", str(out), *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines(), json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same command twice in one folder; the second time for a board that is too small."""
    folder = tmp_path_factory.mktemp("twice")
    board = (ROOT / "devices" / "profiles" / "rpi-zero2w.yaml").read_text().replace("name: rpi-zero2w", "name: tiny")
    lines = ["flash_bytes: 20000" if line.startswith("flash_bytes") else line for line in board.splitlines()]
    (folder / "tiny.yaml").write_text("\n".join(lines))
    out = folder / "out"
    first = (*quantize(out, "1"), {path.name: path.read_bytes() for path in out.iterdir()})
    second = (*quantize(out, "2", "--profile", str(folder / "tiny.yaml")),
              {path.name: path.read_bytes() for path in out.iterdir()})
    return first, second


def test_quantizing_twice_gives_the_same_flatbuffer_and_the_same_bundle(twice):
    (status, said, report, files), (_, _, again, files_again) = twice
    assert status == 0, said[-1]
    assert files["model.tflite"] == files_again["model.tflite"]
    assert report["model_sha256"] == again["model_sha256"] == hashlib.sha256(files["model.tflite"]).hexdigest()
    assert report["bundle_sha256"] == again["bundle_sha256"] == hashlib.sha256(files["kws.eab"]).hexdigest()


def test_a_closed_gate_says_why_and_leaves_the_bundle_before(twice, tmp_path):
    (_, _, _, files), (status, said, report, files_again) = twice
    size = len(files["kws.eab"])
    assert status == 1 and report["verdict"] == "fail" and report["bundle"] is None
    sentence = f"the size of the bundle is {size:,} bytes, {size - 20_000:,} bytes over the limit of the profile tiny"
    assert said[-1].startswith(f"quantize: {sentence}, 20,000 bytes; the report is ")
    broken = [line for line in report["gate"] if line["is_breach"]]
    assert [(line["name"], line["source"]) for line in broken] == [("bundle_bytes", "profile tiny")]
    assert set(files_again) == set(files) and files_again["kws.eab"] == files["kws.eab"]
    assert files_again["report.json"] != files["report.json"] and b"profile tiny" in files_again["report.html"]
    (tmp_path / "kws.eab").write_bytes(files_again["kws.eab"])
    assert load_bundle(tmp_path / "kws.eab", "require").sha256 == report["bundle_sha256"]
