"""The manifest: one right form, and a sentence with the place for everything else."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from bundle_factory import RUNTIME, make_bytes, make_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.bundle import walk
from toolkit.errors import BundleFormatError, UnsupportedError
from toolkit.manifest import Accuracy, Manifest, canonical_json, decode, encode, parse_manifest

BYTES = walk(make_bytes(), "original")["manifest.json"]
DROP = object()


def changed(path: str, value) -> dict:
    """The valid manifest with one value changed, added or (DROP) removed; ``path`` like "model.input.shape"."""
    manifest = json.loads(BYTES)
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = manifest
    for step in parents:
        place = place[step]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    return manifest


def refusal(data, kind=BundleFormatError) -> str:
    with pytest.raises(kind) as error:
        parse_manifest(data if isinstance(data, bytes) else canonical_json(data))
    assert str(error.value).startswith("manifest.json") and str(error.value).isprintable()
    return str(error.value)


def test_round_trip():
    manifest = parse_manifest(BYTES)
    assert manifest.to_bytes() == BYTES
    assert Manifest.from_dict(json.loads(BYTES)) == manifest
    assert manifest.runtimes == (RUNTIME,)
    assert manifest.labels[3] == "K\u00fcche" and manifest.decision.threshold == 0.6
    assert manifest.members["card"].file == "card.md" and manifest.model.input.shape == (1, 2, 40)
    assert replace(manifest, members={}) == make_manifest()


def test_canonical_form():
    assert canonical_json({"b": [1, 2.5, "\u00e9"], "a": None}) == b'{"a":null,"b":[1,2.5,"\\u00e9"]}\n'
    assert BYTES.isascii() and BYTES.endswith(b"}\n") and b": " not in BYTES


@pytest.mark.parametrize("other", [
    BYTES[:-1], BYTES + b"\n", b" " + BYTES, BYTES.replace(b",", b", ", 1),
    json.dumps(json.loads(BYTES), indent=1).encode(),
    BYTES.replace(b'"threshold":0.6', b'"threshold":0.60'), BYTES.replace(b'"threshold":0.6', b'"threshold":6e-1'),
    BYTES.replace(b'"value":0.95', b'"value":0.95,"value":0.95'), BYTES.replace(b'"fmin_hz":60.0', b'"fmin_hz":60.00'),
    BYTES.replace(b'"low":0.94', b'"low":0'), BYTES.replace(b'"name":"kws"', b'"name":"\\u006bws"'),
    BYTES.replace(b"\\u00fc", b"\\u00FC"),
])
def test_same_meaning_in_other_bytes(other):
    assert other != BYTES
    assert Manifest.from_dict(json.loads(other))
    assert "not in canonical form" in refusal(other)


@pytest.mark.parametrize("data", [
    b"", b"{", b"\xff\xfe", "{\"name\":\"\u00fc\"}".encode(), b"[" * 100_000, b'{"a":NaN' , b"1" * 5000,
])
def test_not_json(data):
    assert "not JSON in ASCII" in refusal(data)


@pytest.mark.parametrize("data", [b"[]\n", b"null\n", b"1\n", b'"kws"\n'])
def test_json_but_no_object(data):
    assert "expected an object" in refusal(data)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
@pytest.mark.parametrize("before", [b'"threshold":0.6', b'"fmin_hz":60.0'])
def test_no_number_without_a_value(number, before):
    key = before.split(b":")[0]
    message = refusal(BYTES.replace(before, key + b":" + number))
    assert key.decode().strip('"') in message and "expected a" in message


@pytest.mark.parametrize(("path", "value", "words"), [
    ("task", "vad", "manifest.json: task is 'vad', expected 'kws' or 'sed' or 'denoise'"),
    ("task", DROP, "manifest.json: the key task is missing"),
    ("trehshold", 1, "unknown key 'trehshold'; the keys are task, name"),
    ("decision.treshold", 0.5, "manifest.json: decision: unknown key 'treshold'; did you mean threshold?"),
    ("decision.threshold", 1.5, "manifest.json: decision.threshold is 1.5, expected a number from 0.0 to 1.0"),
    ("decision.threshold", "0.5", "decision.threshold is '0.5', expected a number"),
    ("decision.threshold", True, "decision.threshold is True, expected a number"),
    ("decision.threshold", 10**400, "decision.threshold is 1000"),
    ("decision.window_frames", 25.0, "decision.window_frames is 25.0, expected a whole number"),
    ("decision.window_frames", 0, "decision.window_frames is 0, expected a number from 1 to"),
    ("decision.rule", "mean", "expected 'peak'"),
    ("decision", None, "decision must be an object with task kws"),
    ("decision", DROP, "the key decision is missing"),
    ("name", "../kws", "name is '../kws', expected 1 to 48"),
    ("name", "kws\n", "name is 'kws\\n', expected"),
    ("version", "1.0", "version is '1.0', expected a version"),
    ("version", "1.0.01", "expected a version"),
    ("version", "1.0.\u0661", "version is '1.0.\\u0661'"),
    ("tap", "clean ", "tap is 'clean ', expected 'raw' or 'clean'"),
    ("labels", [], "labels has 0 items"),
    ("labels", "yes", "labels is 'yes', expected a list"),
    ("labels", ["a", "b", "a", "c"], "labels is ['a', 'b', 'a', 'c'], expected no item twice"),
    ("labels.0", "\x1b[2J", "labels[0] is '\\x1b[2J', expected 1 to 64 printable"),
    ("labels.0", "\ud800", "labels[0] is '\\ud800', expected"),
    ("labels.0", "a\u202eb", "labels[0] is 'a\\u202eb', expected"),
    ("labels", ["yes", "no"], "model.output has 4 scores for 2 labels"),
    ("front_end.id", "AB" * 32, "front_end.id is 'ABAB"),
    ("front_end.config", {}, "front_end.config is {}, expected 1 to 64 items"),
    ("front_end.config.n_mels", None, "front_end.config.n_mels is None, expected a whole number or a number or a text"),
    ("front_end.config.n_mels", [40], "front_end.config.n_mels is [40], expected"),
    ("front_end.config.N Mels", 40, "front_end.config: a key is 'N Mels', expected"),
    ("members.model.size", -1, "members.model.size is -1"),
    ("members.model.size", 6, "model.size_bytes is not the size of the model"),
    ("members.model.file", "a/b", "members.model.file is 'a/b', expected a file name"),
    ("members.model.file", "a..b", "expected a file name"),
    ("members.model.file", "manifest.json", "expected other than manifest.json and manifest.sig"),
    ("members.model.file", "card.md", "members names a file twice"),
    ("members.model", DROP, "members lacks model"),
    ("members.extra", {"file": "x", "sha256": "ab" * 32, "size": 1}, "members: a key is 'extra', expected model, ta"),
    ("model.input.shape", [1, 2, 0], "model.input.shape[2] is 0"),
    ("model.input.shape", [1, 3, 40], "model.input has shape [1, 3, 40], expected [1, 2, ...]"),
    ("model.input.shape", [], "model.input.shape is [], expected 1 to 6 items"),
    ("model.input.scale", 0.0, "model.input.scale is 0.0"),
    ("model.output.zero_point", 128, "model.output.zero_point is 128"),
    ("model.states.0.scale", -1.0, "model.states[0].scale is -1.0"),
    ("model.states.0.output", "state_in_0", "model.states names a tensor twice"),
    ("model.requantize.shift", 0, "model.requantize.shift is 0, expected a number from 1 to 46"),
    ("model.ops", [], "model.ops is [], expected 1 to 200"),
    ("model.arena_bytes", 0, "model.arena_bytes is 0, expected"),
    ("model.arena_bytes", 1.5, "model.arena_bytes is 1.5, expected a whole number or null"),
    ("accuracy.0.low", 0.96, "accuracy of 'accuracy' lies outside its own interval"),
    ("accuracy.0.seeds", [True], "accuracy[0].seeds[0] is True, expected a whole number"),
    ("tools.tensorflow", 2.21, "tools.tensorflow is 2.21, expected a text"),
    ("selftest.exact", ["tflite-runtime-2.15"], "members lacks the scores of tflite-runtime-2.15"),
    ("selftest.exact", [], "selftest.exact is [], expected 1 to 32 items"),
    ("selftest.max_lsb", 256, "selftest.max_lsb is 256"),
    ("created_from.date", "2024-01-01", "created_from: unknown key 'date'"),
])
def test_refused_with_its_place(path, value, words):
    assert words in refusal(changed(path, value))


@pytest.mark.parametrize("schema", [0, 1, 99])
def test_unknown_schema(schema):
    """Also of a document in which nothing else is known."""
    for data in (changed("schema", schema), {"schema": schema, "new": {}}):
        message = refusal(data, UnsupportedError)
        assert f"schema is {schema}, this version of edge-audio-toolkit reads schema 2" in message


@pytest.mark.parametrize("schema", [True, 1.0, "1", None, DROP])
def test_schema_of_a_wrong_type(schema):
    assert "schema is" in refusal(changed("schema", schema))


@pytest.mark.parametrize("tap", ["raw", "clean"])
@pytest.mark.parametrize("task", ["kws", "sed", "denoise"])
def test_what_each_task_listens_to_and_decides(task, tap):
    manifest = changed("task", task) | {"tap": tap}
    if task == "denoise":
        manifest |= {"labels": [], "decision": None}
    if tap == "clean" and task != "kws":
        assert f"tap is clean, but {task} listens to raw only" in refusal(manifest)
    else:
        assert parse_manifest(canonical_json(manifest)).task == task


def test_every_key_is_needed_and_no_other_allowed():
    """At every object of the document except the two that hold names of the maker's choice."""
    def objects(value, path=()):
        if isinstance(value, dict):
            if path not in (("front_end", "config"), ("tools",), ("members",)):
                yield path
            for key, item in value.items():
                yield from objects(item, (*path, key))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from objects(item, (*path, i))

    whole = json.loads(BYTES)
    paths = list(objects(whole))
    assert len(paths) == 18
    for path in paths:
        place = whole
        for step in path:
            place = place[step]
        for key in [*place, "spare"]:
            kept = copy.deepcopy(place)
            if key == "spare":
                place[key] = 1
                assert "unknown key 'spare'" in refusal(whole)
            else:
                del place[key]
                assert f"key {key} is missing" in refusal(whole)
            place.clear()
            place.update(kept)


def test_numbers_of_the_writer_become_plain():
    """An integer given for a float is written as a float; numpy's own numbers are refused, not written by chance."""
    np = pytest.importorskip("numpy")
    figure = {"metric": "accuracy", "value": 1, "low": 0, "high": 1, "confidence": 1, "data": "d", "split": "s",
              "clips": 1, "seeds": [], "rule": "peak", "runtime": "r"}
    assert b'"value":1.0' in canonical_json(encode(decode(Accuracy, figure, "figure")))
    for value in (np.float32(0.5), np.int64(1)):
        with pytest.raises(BundleFormatError, match="figure.value is .*, expected a number"):
            decode(Accuracy, figure | {"value": value}, "figure")


texts = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.data(), json_values)
def test_any_value_anywhere_is_taken_as_it_is_or_refused(data, value):
    """No value in any place raises another error, and what is taken comes out again unchanged."""
    manifest = json.loads(BYTES)
    place = manifest
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        parsed = Manifest.from_dict(manifest)
    except (BundleFormatError, UnsupportedError):
        return
    assert parsed.to_dict() == manifest
    assert parse_manifest(parsed.to_bytes()) == parsed
