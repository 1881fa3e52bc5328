"""The native runtime computes exactly the integers of TFLite's reference kernels: scores and states, 0 LSB."""

from __future__ import annotations

import ctypes
import functools
import struct

import numpy as np
import pytest
from golden import FOLDER
from released import cuts, released, scene
from tiny_tflite import Scalar, Tensor, constant, step_model

from toolkit import engine, lowering, native, program
from toolkit.engine import Engine
from toolkit.errors import MissingPartError, UnsupportedError, UsageError, VerificationError
from toolkit.features import Requantization
from toolkit.flatbuffer import read_model
from toolkit.interpreter import StepModel
from toolkit.stream import make_front_end

pytestmark = pytest.mark.usefixtures("core")
hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
MODELS = ("kws", "bc_resnet", "ds_cnn", "ds_tc_resnet")
WHOLE = 1000


def model_bytes(name: str) -> bytes:
    return released().members["model"] if name == "kws" else (FOLDER / f"{name}.tflite").read_bytes()


def codes_for(name: str, width: int, n: int = 400) -> np.ndarray:
    """int8 [n, width]: the sample scene for the released bundle, else noise that grows to the full range."""
    if name == "kws":
        features = make_front_end(released(), "numpy").process(scene()[: n * 160])
        return Requantization(**released().manifest.model.requantize.__dict__).apply_numpy(features)
    noise = np.random.default_rng(3).normal(0, 1, (n, width)) * np.linspace(0, 90, n)[:, None]
    return noise.round().clip(-128, 127).astype(np.int8)


# --- whole models ---


@pytest.mark.parametrize("frames", [1, 2, 4, 8, WHOLE])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_states_are_those_of_tflite(name, frames):
    here, there = Engine(model_bytes(name), min(frames, 400)), StepModel(model_bytes(name), min(frames, 400))
    codes = codes_for(name, here.input.shape[2])
    half = len(codes) // 3
    for part in (codes[:half], codes[half:]):
        scores, expected = here.process(part), there.process(part)
        assert scores.dtype == np.int8 and np.array_equal(scores, expected)
        assert [a.tobytes() for a in here.state()] == [b.tobytes() for b in there.state()]
        assert [a.shape for a in here.state()] == [b.shape for b in there.state()]
    assert np.array_equal(here.finish(), there.finish())
    assert len(np.unique(expected, axis=0)) > 1 or frames == WHOLE, "the model answers to what it hears"


@pytest.mark.parametrize("name", MODELS)
def test_it_has_the_face_of_a_step_model(name):
    here, there = Engine(model_bytes(name), 5), StepModel(model_bytes(name), 5)
    for attribute in ("input", "output", "states", "stride", "frames_per_step"):
        assert getattr(here, attribute) == getattr(there, attribute)
    assert here.ops() == there.ops() and list(here.variables) == list(there.variables) and here.runtime == "native"
    public = {key for key in dir(there) if not key.startswith("_")}
    assert {"input", "output", "states", "stride", "frames_per_step", "process", "finish", "reset", "state",
            "ops"} <= public & {key for key in dir(here) if not key.startswith("_")}


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(0, 61))
def test_any_split_gives_the_same_scores(lengths, n):
    model = Engine(model_bytes("ds_tc_resnet"), 4)
    codes = codes_for("ds_tc_resnet", model.input.shape[2], 61)[:n]
    scores = model.process(codes)
    rest = model.finish()
    parts = [model.process(codes[part]) for part in cuts(lengths, n)]
    assert np.array_equal(np.concatenate([scores[:0], *parts]), scores) and np.array_equal(model.finish(), rest)


def test_results_are_the_callers_own():
    model = Engine(model_bytes("ds_cnn"))
    codes = codes_for("ds_cnn", model.input.shape[2])
    first = model.process(codes[-40:])
    kept, state = first.copy(), model.state()
    states = [s.copy() for s in state]
    model.process(codes[:40])
    assert np.array_equal(first, kept) and all(map(np.array_equal, state, states))


def test_wrong_codes_are_refused():
    model = Engine(model_bytes("ds_cnn"))
    for codes in (np.zeros((4, 10), np.int16), np.zeros((4, 11), np.int8), np.zeros(40, np.int8)):
        with pytest.raises(UsageError, match=r"expected int8 \[m, 10\]"):
            model.process(codes)


def test_without_the_core_it_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    engine._library.cache_clear()
    try:
        with pytest.raises(MissingPartError, match="make core"):
            Engine(model_bytes("ds_cnn"))
    finally:
        engine._library.cache_clear()


# --- what it does not compute ---


def test_an_operator_that_it_does_not_know_is_named():
    x = Tensor((), (0.5,), 0)
    with pytest.raises(UnsupportedError, match="does not compute MUL"):
        Engine(step_model((1, 1, 4), (1, 1, 4), x, x, "MUL", [], {}, twice=True))
    weights = Tensor((4, 4), (0.1,), data=np.ones((4, 4), np.int8))
    with pytest.raises(UnsupportedError, match="does not compute FULLY_CONNECTED"):
        Engine(step_model((1, 1, 4), (1, 1, 4), x, x, "FULLY_CONNECTED", [weights, constant([0] * 4)], {}))
    with pytest.raises(UnsupportedError, match="does not compute UNIDIRECTIONAL_SEQUENCE_LSTM|int8"):
        Engine((FOLDER / "lstm.tflite").read_bytes())


@pytest.mark.parametrize("change, reason", [
    ({"zero_point": 1, "scales": (0.1,)}, "CONV_2D has weights"), ({"scales": (0.1,) * 2}, "CONV_2D has weights"),
    ({"type": "int16", "data": np.ones((3, 1, 1, 4), np.int16)}, "constant int8 weights"),
    ({"shape": (3, 1, 1, 2), "data": np.ones((3, 1, 1, 2), np.int8)}, "in groups of 2"),
    ({"shape": (3, 2, 1, 4), "data": np.ones((3, 2, 1, 4), np.int8)}, "no room"), ({"data": None}, "constant int8"),
    ({"scales": (1e9,)}, "do not fit 32 bits")])
def test_a_convolution_of_another_form_is_refused(change, reason):
    ones = np.ones((3, 1, 1, 4), np.int8)
    fields = {"shape": ones.shape, "scales": (0.1,), "zero_point": 0, "axis": 0, "data": ones}
    options = {0: Scalar("b", 1), 1: Scalar("i", 1), 2: Scalar("i", 1)}
    x = Tensor((), (0.5,), 0)
    with pytest.raises(UnsupportedError, match=reason):
        constants = [Tensor(**fields | change), constant([0, 0, 0])]
        Engine(step_model((1, 1, 4), (1, 1, 3), x, x, "CONV_2D", constants, options))


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_model_runs_or_is_refused(changes):
    data = bytearray(model_bytes("ds_cnn"))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        model = Engine(bytes(data))
    except (UnsupportedError, VerificationError):
        return
    model.process(np.zeros((4, model.input.shape[2]), np.int8))


# --- the program and the C core ---


@functools.cache
def compiled(name: str = "ds_tc_resnet") -> bytes:
    return bytes(Engine(model_bytes(name))._program)


def accepted(blob: bytes) -> int:
    words = np.frombuffer(blob, np.uint8).copy()
    return engine._library().ea_model_memory_bytes(native._address(words), len(blob))


def test_the_core_refuses_what_would_leave_its_memory():
    """Every word of the header and of each operation, made too large and negative."""
    blob = compiled()
    assert accepted(blob) > 0 and accepted(blob[:-1]) == 0 and accepted(blob + b"\0") == 0 and accepted(blob[:60]) == 0
    n_operations = struct.unpack_from("<i", blob, 24)[0]
    signed = {21, 22, 23}  # zero point, low and high
    for word in range(16 + 24 * n_operations):
        for value in (-1 if word < 16 or (word - 16) % 24 not in signed else -129, 1 << 28, (1 << 31) - 1):
            changed = bytearray(blob)
            struct.pack_into("<i", changed, 4 * word, value)
            size = accepted(bytes(changed))
            assert size == 0 or size < 2**29 and value == 1 << 28, f"word {word} is {value}"


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.lists(st.tuples(st.integers(3, 2000), st.integers(-2, 300)), min_size=1, max_size=3))
def test_any_program_that_the_core_accepts_stays_in_its_memory(changes):
    """The arena lies between guards. (A sanitizer build, by EDGE_AUDIO_CORE, sees reads too.)"""
    blob, lib = bytearray(compiled("ds_cnn")), engine._library()
    n_words = 16 + 24 * struct.unpack_from("<i", blob, 24)[0]
    for word, value in changes:
        struct.pack_into("<i", blob, 4 * (word % n_words) if word % n_words > 2 else 12, value)
    words = np.frombuffer(bytes(blob), np.uint8).copy()
    size = lib.ea_model_memory_bytes(native._address(words), len(blob))
    if size == 0 or size > 1 << 20:
        return
    memory = np.full(size // 8 + 17, 0x5A5A5A5A5A5A5A5A, np.uint64)
    handle = ctypes.c_void_p()
    start = native._address(memory) + 64
    assert lib.ea_model_init(ctypes.addressof(handle), native._address(words), len(blob), start, size) == 0
    frames, scores = np.zeros(1 << 16, np.int8), np.zeros(1 << 16, np.int8)
    lib.ea_model_process(handle, native._address(frames), 2, native._address(scores))
    guards = memory.view(np.uint8)
    assert (guards[:64] == 0x5A).all() and (guards[64 + size :] == 0x5A).all()


def test_states_and_zeros_cost_one_move_each():
    """What a step model says of rings, edges and shapes is placed, not computed."""
    blob = compiled()
    n_fills, n_operations = struct.unpack_from("<ii", blob, 20)
    kinds = [struct.unpack_from("<i", blob, 64 + 96 * i)[0] for i in range(n_operations)]
    model = Engine(model_bytes("ds_tc_resnet"))
    computed = [op for op in read_model(model_bytes("ds_tc_resnet")).operators if op.name.endswith("CONV_2D")]
    assert kinds[n_fills:].count(lowering.Kind.COPY) == len(model.states)
    assert len([k for k in kinds if k in (lowering.Kind.CONV, lowering.Kind.DEPTHWISE)]) == len(computed)


def test_constants_are_those_of_the_core():
    text = "".join((native.LIBRARY.parent / name).read_text("ascii") for name in ("ea_model.h", "ea_layers.h"))
    for name, value in {"EA_MODEL_MAGIC": "0x504d4145", "EA_MODEL_VERSION": program.VERSION, "EA_LANES": lowering.LANES,
                        "EA_MODEL_HEADER_WORDS": 16, "EA_OPERATION_WORDS": 24}.items():
        assert f"#define {name} {value}" in text
    assert program.MAGIC == 0x504D4145 and program.LARGEST == 1 << 28
    for kind in list(lowering.Kind)[:6]:
        assert f"EA_{kind.name} = {kind.value}" in text
