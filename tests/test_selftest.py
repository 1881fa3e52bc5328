"""The acceptance test that a bundle carries: it passes here, and fails for whatever is not as it was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from released import changed, released, scores_role

from toolkit import stream
from toolkit.__main__ import main
from toolkit.bundle import write_bundle
from toolkit.errors import BundleFormatError
from toolkit.interpreter import StepModel, _runtime, runtime_name
from toolkit.manifest import SCORES_ROLE, Selftest
from toolkit.selftest import selftest

FIELDS = ["bundle", "version", "sha256", "runtime", "backend", "features_equal", "max_lsb", "limit_lsb", "passed",
          "reason"]


@pytest.fixture(autouse=True)
def tflite(monkeypatch):
    """The runtime whose scores the bundle holds; the native one, which comes first, has a test of its own."""
    monkeypatch.setenv("EDGE_AUDIO_RUNTIME", _runtime()[2].rpartition("-")[0])


def test_the_native_runtime_is_held_to_equality(monkeypatch):
    monkeypatch.setenv("EDGE_AUDIO_RUNTIME", "native")
    result = selftest(released())
    assert (result["runtime"], result["passed"], result["max_lsb"], result["limit_lsb"]) == ("native", True, 0, 0)


def test_the_released_bundle_passes(backend):
    result = selftest(released(), backend)
    assert list(result) == FIELDS
    assert result["passed"] is True and result["reason"] is None and result["features_equal"] is True
    assert (result["runtime"], result["backend"]) == (runtime_name(), backend)
    assert result["max_lsb"] <= result["limit_lsb"]
    assert result["sha256"] == released().sha256


def test_this_runtime_is_held_to_its_own_scores():
    if runtime_name() not in released().manifest.selftest.exact:
        pytest.skip(f"the released bundle holds no scores of {runtime_name()}")
    assert selftest(released())["limit_lsb"] == 0


def altered(role: str, dtype: str, index: int, by: int) -> dict[str, bytes]:
    """The member with one integer moved by `by`, away from the end of its range."""
    values = np.frombuffer(released().members[role], dtype).copy()
    values[index] += by if values[index] < 0 else -by
    return {role: values.tobytes()}


@pytest.mark.parametrize("index", [0, 777, -1])
def test_one_expected_score_off_by_one_fails(tmp_path, index):
    bundle = changed(tmp_path / "x.eab", altered(scores_role(), "i1", index, 1),
                     selftest=Selftest(exact=(scores_role().removeprefix(SCORES_ROLE),), max_lsb=0))
    result = selftest(bundle)
    assert result["passed"] is False and result["features_equal"] and result["max_lsb"] >= 1
    assert result["reason"].startswith(f"scores of {runtime_name()} differ by")


@pytest.mark.parametrize("index", [0, 9999, -1])
def test_one_expected_feature_off_by_one_fails(tmp_path, index, backend):
    result = selftest(changed(tmp_path / "x.eab", altered("selftest_features", "<i2", index, 1)), backend)
    assert result["passed"] is False and result["features_equal"] is False and "front end" in result["reason"]


def test_another_input_fails(tmp_path):
    result = selftest(changed(tmp_path / "x.eab", altered("selftest_input", "<i2", 20_000, 1000)))
    assert result["passed"] is False and result["features_equal"] is False


def test_other_weights_fail(tmp_path):
    """Signs turned in an eighth of the model's largest constant: the model still loads, and every hash is right.

    (A single weight may belong to a channel that the test never switches on: against that there is the hash.)
    """
    flatbuffer = released().members["model"]
    model = StepModel(flatbuffer)
    constants = [model._interpreter.get_tensor(tensor["index"]).tobytes()
                 for tensor in model.tensors() if tensor["dtype"] is np.int8]
    largest = max((content for content in constants if flatbuffer.count(content) == 1), key=len)
    start, eighth = flatbuffer.index(largest), len(largest) // 8
    for at in range(start, start + 8 * eighth, eighth):
        turned = bytes(byte ^ 0x80 for byte in flatbuffer[at : at + eighth])
        spoiled = flatbuffer[:at] + turned + flatbuffer[at + eighth :]
        result = selftest(changed(tmp_path / "x.eab", {"model": spoiled}))
        assert result["passed"] is False and result["features_equal"] is True


def test_a_front_end_that_is_one_off_fails(monkeypatch):
    """As a miscompiled core would be: one value of one frame."""
    process = stream.FrontEnd.process

    def miscompiled(self, samples):
        features = process(self, samples)
        if len(features):
            features[-1, -1] += features[-1, -1] > 1000
        return features

    monkeypatch.setattr(stream.FrontEnd, "process", miscompiled)
    assert selftest(released())["reason"].startswith("the front end gives other integers")


# --- a runtime that the bundle does not know ---


def of_a_stranger(tmp_path, off_by: int, limit: int):
    """The bundle with scores of one runtime that is not this one, each wrong by off_by."""
    original = released()
    scores = np.frombuffer(original.members[scores_role()], "i1").astype(int)
    scores = np.where(scores < 0, scores + off_by, scores - off_by).astype(np.int8)
    contents = {role: (member.file, original.members[role]) for role, member in original.manifest.members.items()
                if not role.startswith(SCORES_ROLE)}
    contents[SCORES_ROLE + "other-runtime-1.0"] = ("selftest_scores.other.s8", scores.tobytes())
    manifest = replace(original.manifest, members={}, selftest=Selftest(("other-runtime-1.0",), limit))
    return write_bundle(tmp_path / "x.eab", manifest, contents)


@pytest.mark.parametrize("off_by, passes", [(0, True), (3, True), (4, False), (40, False)])
def test_another_runtime_may_differ_by_max_lsb(tmp_path, off_by, passes):
    if runtime_name() not in released().manifest.selftest.exact:
        pytest.skip(f"the released bundle holds no scores of {runtime_name()}")
    result = selftest(of_a_stranger(tmp_path, off_by, limit=3))
    assert (result["passed"], result["max_lsb"], result["limit_lsb"]) == (passes, off_by, 3)


# --- tests that test nothing ---


def test_scores_of_another_length_fail(tmp_path):
    held = released().members[scores_role()]
    for content in (held[:-1], held + b"\0", b""):
        result = selftest(changed(tmp_path / "x.eab", {scores_role(): content}))
        assert result["passed"] is False and result["max_lsb"] is None and "the bundle holds" in result["reason"]


def test_an_empty_test_does_not_pass(tmp_path):
    members = {"selftest_input": b"", "selftest_features": b""}
    members |= {role: b"" for role in released().members if role.startswith(SCORES_ROLE)}
    result = selftest(changed(tmp_path / "x.eab", members))
    assert result["passed"] is False and result["features_equal"] is True and "gives 0 scores" in result["reason"]


@pytest.mark.parametrize("role", ["selftest_input", "selftest_features"])
def test_half_an_integer_is_refused(tmp_path, role):
    bundle = changed(tmp_path / "x.eab", {role: released().members[role] + b"\0"})
    with pytest.raises(BundleFormatError, match=role):
        selftest(bundle)


# --- the command ---


def test_the_command(tmp_path, capsys):
    released()
    assert main(["selftest", "kws"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["passed"] is True and output.err == ""


def test_the_command_fails_with_one_sentence_and_tests_the_other_bundles(tmp_path, capsys):
    path = tmp_path / "x.eab"
    changed(path, altered("selftest_features", "<i2", 5, 1))
    assert main(["selftest", "--signature", "off", str(path), "kws"]) == 1
    output = capsys.readouterr()
    assert [json.loads(line)["passed"] for line in output.out.splitlines()] == [False, True]
    assert output.err == (f"edge-audio: {path} fails its self-test: the front end gives other integers than those the "
                          "bundle was measured with.\n")
