"""The one door to TFLite: which runtime, the form of a step model, the states, an LSTM, any split, any step."""

from __future__ import annotations

import dataclasses
import sys
import types

import golden_lstm
import numpy as np
import pytest
from released import cuts, released

from toolkit import interpreter
from toolkit.errors import EdgeAudioError, MissingPartError, UnsupportedError, UsageError, VerificationError
from toolkit.interpreter import OPS, StepModel, TensorInfo, runtime_name

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies


@pytest.fixture(scope="module")
def flatbuffer() -> bytes:
    return released().members["model"]


@pytest.fixture
def model(flatbuffer) -> StepModel:
    return StepModel(flatbuffer)


def random_codes(n: int, width: int, seed: int = 1) -> np.ndarray:
    """int8 [n, width] that wander as features do."""
    steps = np.random.default_rng(seed).normal(0, 12, (n, width)).cumsum(axis=0)
    return (127 * np.sin(steps / 127)).astype(np.int8)


# --- the step model ---


def test_it_is_what_the_manifest_says(model):
    described = released().manifest.model
    assert model.input.shape == described.input.shape and model.input.zero_point == described.input.zero_point
    assert model.output.shape == described.output.shape
    assert model.output.scale == pytest.approx(described.output.scale, rel=1e-6)
    assert [(a.name, b.name) for a, b in model.states] == [(s.input, s.output) for s in described.states]
    assert model.frames_per_step == described.frames_per_step
    assert model.ops() == described.ops and set(model.ops()) <= OPS


def test_it_is_integer_through_and_through_and_not_delegated(model):
    assert {np.dtype(tensor["dtype"]).name for tensor in model.tensors()} <= {"int8", "int32"}
    assert "DELEGATE" not in {op["op_name"] for op in model._interpreter._get_ops_details()}


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(0, 61))
def test_any_split_gives_the_same_scores(lengths, n):
    model = StepModel(released().members["model"])
    codes = random_codes(n, model.input.shape[2], seed=n)
    scores = model.process(codes)
    whole_state = model.state()
    _, outputs, labels = model.output.shape
    assert scores.dtype == np.int8 and scores.shape == (n // model.frames_per_step * outputs, labels)
    model.reset()
    parts = [model.process(codes[part]) for part in cuts(lengths, n)]
    assert np.array_equal(np.concatenate([scores[:0], *parts]), scores)
    assert all(np.array_equal(a, b) for a, b in zip(model.state(), whole_state))


def test_reset_is_a_new_model_and_the_past_matters(model, flatbuffer):
    codes = random_codes(80, model.input.shape[2])
    first = model.process(codes)
    assert not np.array_equal(model.process(codes), first)
    model.process(codes[:1])  # waits for the rest of its step
    model.reset()
    for state, (entering, _) in zip(model.state(), model.states):
        assert (state == entering.zero_point).all()
    assert np.array_equal(model.process(codes), first)
    assert np.array_equal(StepModel(flatbuffer).process(codes), first)


def test_two_models_do_not_share_their_states(model, flatbuffer):
    codes = random_codes(40, model.input.shape[2])
    alone = model.process(codes)
    model.reset()
    other = StepModel(flatbuffer)
    turns = []
    for part in cuts([4], len(codes)):
        turns.append(model.process(codes[part]))
        other.process(-codes[part])
    assert np.array_equal(np.concatenate(turns), alone)


def test_the_memory_of_a_block_may_be_used_again(model):
    codes = random_codes(2 * model.frames_per_step, model.input.shape[2])
    expected = model.process(codes)
    model.reset()
    block, scores = np.empty((model.frames_per_step - 1, codes.shape[1]), np.int8), []
    for part in cuts([len(block)], len(codes)):
        piece = block[: part.stop - part.start]
        piece[:] = codes[part]
        scores.append(model.process(piece))
        block.fill(-99)
    assert np.array_equal(np.concatenate(scores), expected)


def test_state_is_a_copy(model):
    codes = random_codes(20, model.input.shape[2])
    model.process(codes)
    for state in model.state():
        state.fill(0)
    kept = model.state()
    model.process(codes)
    assert not all(np.array_equal(a, b) for a, b in zip(model.state(), kept))


@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_step_is_the_resized_whole(model, flatbuffer, steps):
    frames = steps * model.frames_per_step
    whole = StepModel(flatbuffer, frames=frames)
    assert whole.frames_per_step == frames
    assert (whole.stride, whole.input, whole.output) == (model.stride, model.input, model.output)
    for seed in range(3):
        codes = random_codes(frames, model.input.shape[2], seed)
        model.reset()
        whole.reset()
        assert np.array_equal(whole.process(codes), model.process(codes))
        assert all(np.array_equal(a, b) for a, b in zip(whole.state(), model.state()))


def test_a_step_is_as_long_as_asked_for_or_a_little_shorter(flatbuffer, model):
    least = model.input.shape[1]
    for frames in (0, 1, least, 2 * least - 1, 2 * least, 5 * least + 1):
        assert StepModel(flatbuffer, frames).frames_per_step == max(1, frames // least) * least


@pytest.mark.parametrize("frames", [1, 8, 50])
def test_the_end_gives_the_scores_of_what_waits(model, flatbuffer, frames):
    stepped = StepModel(flatbuffer, frames)
    for n in (0, 1, 2, 49, 50, 61):
        codes = random_codes(n, model.input.shape[2], seed=n)
        model.reset()
        scores = np.concatenate([stepped.process(codes), stepped.finish()])
        assert len(scores) == n // model.stride and np.array_equal(scores, model.process(codes)[: len(scores)])
        assert all((state == entering.zero_point).all() for state, (entering, _) in zip(stepped.state(), model.states))
        assert len(stepped.finish()) == 0


@pytest.mark.parametrize("codes", [np.zeros((4, 40), np.int16), np.zeros((4, 40)), np.zeros(40, np.int8),
                                   np.zeros((4, 39), np.int8), np.zeros((1, 4, 40), np.int8)],
                         ids=lambda x: f"{x.dtype}{x.shape}")
def test_other_codes_are_refused(model, codes):
    with pytest.raises(UsageError, match=r"expected int8 \[m, 40\]"):
        model.process(codes)


# --- an LSTM, whose state is inside ---


@pytest.fixture(scope="module")
def remembering() -> bytes:
    runtime_name()
    return (golden_lstm.FOLDER / "lstm.tflite").read_bytes()


def expected_scores() -> np.ndarray:
    scores = np.frombuffer((golden_lstm.FOLDER / "lstm.scores").read_bytes(), np.int8)
    return scores.reshape(-1, golden_lstm.LABELS)


@pytest.mark.parametrize("frames", [1, 4, 6, 600])
def test_an_lstm_gives_the_same_scores_in_any_step_and_runtime(remembering, frames):
    model, codes = StepModel(remembering, frames), golden_lstm.codes()
    assert model.states == () and interpreter.LSTM in model.ops() and set(model.ops()) <= OPS
    assert np.array_equal(model.process(codes), expected_scores())
    state = model.state()
    other = StepModel(remembering)
    other.process(codes)
    assert all(np.array_equal(a, b) for a, b in zip(state, other.state(), strict=True))


def test_an_lstm_starts_and_restarts_with_nothing(remembering):
    model, codes = StepModel(remembering), golden_lstm.codes()
    output, cell = model.variables
    assert (output.name, cell.name) == ("lstm0_output", "lstm0_cell")
    assert (output.shape, cell.shape, cell.zero_point) == ((1, golden_lstm.UNITS),) * 2 + (0,)
    assert output.zero_point != 0  # else nothing would be seen below
    for begin in (lambda: None, model.reset, model.finish):
        begin()
        for state, variable, dtype in zip(model.state(), model.variables, (np.int8, np.int16), strict=True):
            assert state.dtype == dtype and (state == variable.zero_point).all()
        assert np.array_equal(model.process(codes), expected_scores())
        assert all((state != variable.zero_point).any() for state, variable in zip(model.state(), model.variables))
        model.process(codes[:1])  # waits


def test_an_lstm_remembers(remembering):
    """The same frames after others give other scores, long after."""
    model, codes = StepModel(remembering), golden_lstm.codes()
    model.process(codes[300:])
    assert not np.array_equal(model.process(codes)[:20], expected_scores()[:20])


def test_only_the_cell_of_an_lstm_has_16_bits(remembering):
    model = StepModel(remembering)
    of_16_bits = [tensor["index"] for tensor in model.tensors() if tensor["dtype"] is np.int16]
    assert of_16_bits == [model.variables[1].index]
    assert {np.dtype(tensor["dtype"]).name for tensor in model.tensors()} == {"int8", "int16", "int32"}


# --- models of another form ---


def refusal(kind: type[EdgeAudioError], flatbuffer: bytes) -> str:
    with pytest.raises(kind) as raised:
        StepModel(flatbuffer)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")
    return str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no flatbuffer", bytes(5000)])
def test_what_is_no_model_is_refused(content):
    assert "cannot load the model" in refusal(UnsupportedError, content)


def renamed(flatbuffer: bytes, old: bytes, new: bytes) -> bytes:
    """With another name of the same length in the signature (and in the graph, where it does no harm)."""
    assert old in flatbuffer and len(old) == len(new)
    return flatbuffer.replace(old, new)


def test_a_signature_with_other_names_is_refused(flatbuffer):
    message = refusal(UnsupportedError, renamed(flatbuffer, b"frames\0", b"framez\0"))
    assert "'framez'" in message and "'frames' and 'scores'" in message
    assert "'frames' and 'scores'" in refusal(UnsupportedError, renamed(flatbuffer, b"scores\0", b"logits\0"))


def test_a_state_without_its_return_is_refused(flatbuffer, model):
    entering, leaving = (tensor.name.encode() + b"\0" for tensor in model.states[0])
    lost = leaving[:-2] + b"z\0"
    assert f"has no output {model.states[0][1].name!r}" in refusal(UnsupportedError, renamed(flatbuffer, leaving, lost))
    odd = entering[:-2] + b"z\0"
    assert "has no output" in refusal(UnsupportedError, renamed(flatbuffer, entering, odd))


def test_a_state_that_changes_its_scale_on_its_way_is_refused(flatbuffer, model, monkeypatch):
    """Both ends share one record in the released file, so that the leaving one is changed as it is read."""
    signature, name = StepModel._signature, model.states[0][1].name

    def changed(step):
        inputs, outputs = signature(step)
        return inputs, {**outputs, name: dataclasses.replace(outputs[name], scale=0.5)}

    monkeypatch.setattr(StepModel, "_signature", changed)
    entering = model.states[0][0].name
    with pytest.raises(VerificationError, match=f"the state {entering!r} enters as .*both must be equal"):
        StepModel(flatbuffer)


def test_scores_that_do_not_follow_the_frames_are_refused(flatbuffer, monkeypatch):
    """A model that pools over the frames of a step would give as many scores in a longer one."""
    signature = StepModel._signature
    first = signature(StepModel(flatbuffer))
    monkeypatch.setattr(StepModel, "_signature", lambda model: tuple(map(dict, first)))
    with pytest.raises(UnsupportedError, match="the model gives 1 scores for 8 frames; it was converted"):
        StepModel(flatbuffer, 8)


@pytest.mark.parametrize("shapes", [((1, 2, 40), (1, 0, 10)), ((1, 0, 40), (1, 1, 10)), ((1, 3, 40), (1, 2, 10)),
                                    ((2, 2, 40), (1, 1, 10)), ((1, 2, 40), (1, 10)), ((), (1, 1, 10))])
def test_another_form_is_refused(flatbuffer, monkeypatch, shapes):
    tensors = [TensorInfo(name, 0, shape, 0.1, 0) for name, shape in zip(("frames", "scores"), shapes)]
    monkeypatch.setattr(StepModel, "_signature", lambda model: ({"frames": tensors[0]}, {"scores": tensors[1]}))
    assert r"a step model turns [1, T, n] into [1, T / stride, labels]." in refusal(UnsupportedError, flatbuffer)


def test_a_state_that_only_leaves_is_refused():
    with pytest.raises(UnsupportedError, match="1 state outputs for 0 state inputs"):
        interpreter._check_states((), {"ring_state_out": TensorInfo("ring_state_out", 7, (1, 2, 3), 0.1, 0)})


# --- which runtime ---


@pytest.fixture
def choose(monkeypatch):
    """Ask again which runtime there is, with an environment and modules of the test's own."""
    interpreter._runtime.cache_clear()
    yield monkeypatch
    interpreter._runtime.cache_clear()


def fake_runtime(choose, package: str, version: str) -> None:
    module = types.ModuleType(f"{package}.interpreter")
    module.Interpreter = f"{package} {version}"
    module.OpResolverType = types.SimpleNamespace(BUILTIN_REF="reference kernels")
    top = types.ModuleType(package)
    top.__version__, top.__path__ = version, []
    choose.setitem(sys.modules, package, top)
    choose.setitem(sys.modules, f"{package}.interpreter", module)


def without_runtimes(choose) -> None:
    choose.delenv("EDGE_AUDIO_RUNTIME", raising=False)
    for name in list(sys.modules):
        if name.split(".")[0] in interpreter.RUNTIMES.values():
            choose.delitem(sys.modules, name)

    class Nothing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in interpreter.RUNTIMES.values():
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    choose.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])


def test_the_preferred_runtime_comes_first(choose):
    without_runtimes(choose)
    choose.setattr(np, "__version__", "1.26.4")
    fake_runtime(choose, "ai_edge_litert", "2.3.0")
    assert runtime_name() == "ai-edge-litert-2.3"
    interpreter._runtime.cache_clear()
    fake_runtime(choose, "tflite_runtime", "2.14.0")
    assert runtime_name() == "tflite-runtime-2.14"
    assert interpreter._runtime()[1] == {"num_threads": 1, "experimental_op_resolver_type": "reference kernels"}


def test_the_environment_chooses(choose):
    without_runtimes(choose)
    choose.setattr(np, "__version__", "1.26.4")
    fake_runtime(choose, "tflite_runtime", "2.14.0")
    choose.setenv("EDGE_AUDIO_RUNTIME", "ai-edge-litert")
    with pytest.raises(MissingPartError, match="^ai-edge-litert is not installed; install ai-edge-litert.$"):
        runtime_name()
    choose.setenv("EDGE_AUDIO_RUNTIME", "tflite")
    with pytest.raises(UsageError, match="'tflite'; expected tflite-runtime, ai-edge-litert or native"):
        runtime_name()


def test_none_is_one_sentence(choose):
    without_runtimes(choose)
    with pytest.raises(MissingPartError, match="^no TFLite runtime is installed; install tflite-run.*ai-edge-litert"):
        runtime_name()


def test_numpy_2_passes_over_tflite_runtime(choose):
    """Its import succeeds with numpy 2, and every model then fails with a bare SystemError."""
    without_runtimes(choose)
    choose.setattr(np, "__version__", "2.1.0")
    fake_runtime(choose, "tflite_runtime", "2.14.0")
    with pytest.raises(MissingPartError, match="tflite-runtime 2.14.0 cannot work with numpy 2.1.0, it needs .numpy<2"):
        runtime_name()
    fake_runtime(choose, "ai_edge_litert", "2.3.0")
    assert runtime_name() == "ai-edge-litert-2.3"


def test_a_runtime_that_does_not_load_is_named(choose):
    """A wheel for another machine: the package is there, its library is not."""
    without_runtimes(choose)
    choose.setattr(np, "__version__", "1.26.4")
    fake_runtime(choose, "tflite_runtime", "2.14.0")
    choose.setitem(sys.modules, "tflite_runtime.interpreter", None)
    with pytest.raises(MissingPartError, match="tflite-runtime does not load"):
        runtime_name()
