"""The ratios are those of the formula, and the layer that is to blame is the one that is named.

But for the last test the float model is the int8 model itself, its integers taken as real numbers: what then differs
is rounding alone, and each fault that a test adds.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from models.recipe import load_recipe
from quantize.calibrate import representative_codes
from quantize.convert import Converted
from quantize.layer_error import LARGEST_DB, compare_layers, layer_errors, sqnr_db, worst
from quantize.slim import pack_tree, tflite_schema
from tests.released import released
from tests.tiny_tflite import Operator, Tensor, model
from toolkit.errors import DataError, VerificationError
from toolkit.interpreter import StepModel

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
SCHEMA = tflite_schema()
CODES = np.clip(np.random.default_rng(1).normal(0, 24, (4, 60, 40)), -128, 127).astype(np.int8)
MIX, ADD = 20, 21  # operators of tests/golden/ds_tc_resnet.tflite: the 1x1 convolution of a block, then its residual


def tree_of(data: bytes):
    return SCHEMA.ModelT.InitFromObj(SCHEMA.Model.GetRootAs(data, 0))


def stored(tree, tensor) -> np.ndarray:
    """The integers of a constant; of a computed tensor an empty array."""
    data = tree.buffers[tensor.buffer].data
    kind = {SCHEMA.TensorType.INT8: np.int8}.get(tensor.type, np.int32)
    return np.frombuffer(b"" if data is None else data.tobytes(), kind)


def store(tree, tensor, values: np.ndarray) -> None:
    """A new buffer for one tensor; others may share the old one."""
    tree.buffers.append(SCHEMA.BufferT())
    tree.buffers[-1].data = np.frombuffer(values.tobytes(), np.uint8)
    tensor.buffer = len(tree.buffers) - 1


def float_twin(data: bytes) -> bytes:
    """The same graph in float; operator 7 is called layer7."""
    tree = tree_of(data)
    graph = tree.subgraphs[0]
    for tensor in graph.tensors:
        known = tensor.quantization
        if known is not None and known.scale is not None:
            values = stored(tree, tensor)
            if values.size:
                along = [1] * len(tensor.shape)
                along[known.quantizedDimension] = len(known.scale)
                store(tree, tensor, (values.reshape(tensor.shape) * known.scale.reshape(along)).astype(np.float32))
            tensor.type, tensor.quantization = SCHEMA.TensorType.FLOAT32, None
    for k, op in enumerate(graph.operators):
        name = f"step/layer{k}_relu/Relu;step/layer{k}_norm/FusedBatchNormV3;step/layer{k}/Conv2D1"
        graph.tensors[op.outputs[0]].name = name.encode()
    return pack_tree(tree)


def additions(*outputs: Tensor) -> bytes:
    """frames [1, 1, 4] + a constant (+ it again), one output tensor for each."""
    last = len(outputs)
    tensors = [Tensor((1, 1, 4), (1 / 32,)), *outputs, Tensor((4,), (0.01,), data=np.int8([50, -100, 7, 0]))]
    operators = [Operator("ADD", (i, last + 1), (i + 1,)) for i in range(last)]
    return model(tensors, operators, {"frames": 0}, {"scores": last})


@pytest.fixture(scope="module")
def golden() -> bytes:
    return (GOLDEN / "ds_tc_resnet.tflite").read_bytes()


@pytest.fixture(scope="module")
def unharmed(golden):
    return compare_layers(float_twin(golden), golden, CODES)


def named(errors, layer: str):
    return next(error for error in errors if error.layer == layer)


def test_one_layer_by_hand():
    """Every figure again from the integers that the runtime gives step by step."""
    data = additions(Tensor((1, 1, 4), (0.02,), 3))
    codes = np.clip(2 * CODES[:, :, :4].astype(int), -128, 127).astype(np.int8)
    frames, layer = compare_layers(float_twin(data), data, codes)
    expected = codes / 32 + np.array([0.5, -1.0, 0.07, 0.0])
    step, scores = StepModel(data), []
    for clip in codes:
        scores.append(step.process(clip).astype(int))
    got = (np.stack(scores) - 3) * 0.02
    ratio = 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum())
    assert layer.sqnr_db == pytest.approx(ratio, abs=1e-3) and 0 < ratio < 40
    assert layer.alone_db == layer.sqnr_db  # the frames are exact
    rounded = np.clip(np.round(expected / 0.02), -131, 124) * 0.02
    ratio = 10 * np.log10((expected**2).sum() / ((expected - rounded) ** 2).sum())
    assert layer.rounding_db == pytest.approx(ratio, abs=0.05)  # a value in the middle of two may go the other way
    assert (layer.low, layer.high) == pytest.approx((expected.min(), expected.max()), abs=1e-5)
    outside = ((expected < -131.5 * 0.02) | (expected > 124.5 * 0.02)).mean()
    assert layer.saturated == pytest.approx(outside, abs=0.005) and outside > 0.05
    assert (layer.op, layer.scale, layer.zero_point, layer.used) == ("ADD", pytest.approx(0.02), 3, 1.0)
    assert (frames.layer, frames.sqnr_db, frames.alone_db, frames.saturated) == ("frames", LARGEST_DB, LARGEST_DB, 0)
    assert frames.to_dict()["scale"] == 1 / 32


def test_known_ratios():
    assert sqnr_db(100.0, 1.0) == pytest.approx(20.0)
    assert (sqnr_db(1.0, 0.0), sqnr_db(0.0, 0.0), sqnr_db(0.0, 1.0)) == (LARGEST_DB, LARGEST_DB, -LARGEST_DB)


def test_a_layer_is_not_blamed_for_what_enters_it():
    data = additions(Tensor((1, 1, 4), (0.4,)), Tensor((1, 1, 4), (0.04,)))
    _, coarse, fine = errors = compare_layers(float_twin(data), data, CODES[:, :, :4])
    assert fine.sqnr_db < 25 and fine.alone_db > 40  # its own 256 codes are fine
    assert worst(errors, 1) == [coarse]


def test_the_range_that_is_used_is_counted():
    data = additions(Tensor((1, 1, 4), (0.125,)))
    ramp = np.arange(-128, 128).astype(np.int8).reshape(1, 256, 1).repeat(4, axis=2)
    assert compare_layers(float_twin(data), data, ramp)[1].used == 77 / 256  # -4 - 1 .. 3.97 + 0.5 are codes -40 .. 36


def test_the_layer_with_too_wide_a_range_is_named(golden, unharmed):
    """Eight times the scale are three bits, 18 dB."""
    tree = tree_of(golden)
    graph = tree.subgraphs[0]
    known = graph.tensors[graph.operators[MIX].outputs[0]].quantization
    known.scale = known.scale * np.float32(8)
    harmed = compare_layers(float_twin(golden), pack_tree(tree), CODES)
    before, after = named(unharmed, f"layer{MIX}"), named(harmed, f"layer{MIX}")
    assert worst(harmed, 1) == [after] and after.scale == pytest.approx(8 * before.scale)
    assert before.alone_db - after.alone_db == pytest.approx(18, abs=2)
    assert before.rounding_db - after.rounding_db == pytest.approx(18, abs=2)
    assert after.used < 0.2 < 0.5 < before.used
    assert named(harmed, f"layer{ADD + 2}").alone_db > 30 > named(harmed, f"layer{ADD + 2}").sqnr_db  # goes on


def test_the_layer_with_bad_weights_is_named_and_its_range_is_not_blamed(golden, unharmed):
    tree = tree_of(golden)
    graph = tree.subgraphs[0]
    weights = graph.tensors[graph.operators[MIX].inputs[1]]
    store(tree, weights, (stored(tree, weights) // 32 * 32).astype(np.int8))  # three bits
    harmed = compare_layers(float_twin(golden), pack_tree(tree), CODES)
    before, after = named(unharmed, f"layer{MIX}"), named(harmed, f"layer{MIX}")
    assert worst(harmed, 1) == [after]
    assert after.alone_db < before.alone_db - 15 and after.rounding_db == pytest.approx(before.rounding_db, abs=0.01)


def test_no_activation_is_read_after_another_was_written_over_it(unharmed):
    """An ADD with a ReLU may take the place of its first input; that one is negative half of the time."""
    assert named(unharmed, f"layer{MIX}").low < -1 and named(unharmed, f"layer{ADD}").low == 0


def test_values_that_only_move_are_left_out(unharmed):
    assert {error.op for error in unharmed} == {"INPUT", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD"}
    assert min(error.sqnr_db for error in unharmed) > 15


def test_an_lstm_is_one_layer_called_after_the_one_before_it():
    data = (GOLDEN / "lstm.tflite").read_bytes()
    twin = tree_of(float_twin(data))
    graph = twin.subgraphs[0]
    names = [code.builtinCode for code in twin.operatorCodes]
    lstm = names.index(SCHEMA.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM)
    op = next(op for op in graph.operators if op.opcodeIndex == lstm)
    op.intermediates = None
    graph.tensors[op.outputs[0]].name = b"tfl.unidirectional_sequence_lstm"  # as the converter has it
    errors = compare_layers(pack_tree(twin), data, CODES[:, :, :8])
    conv, of_lstm, label = errors[1:]
    assert of_lstm.op == "UNIDIRECTIONAL_SEQUENCE_LSTM" and of_lstm.layer == "after layer2"
    assert of_lstm.sqnr_db > 25 and -1 <= of_lstm.low < 0 < of_lstm.high <= 1


def test_graphs_that_are_not_the_same_are_refused(golden):
    other = (GOLDEN / "ds_cnn.tflite").read_bytes()
    with pytest.raises(VerificationError, match="operator 0 of the int8 model is RESHAPE .* where both are the same"):
        compare_layers(float_twin(other), golden, CODES)
    shorter = tree_of(float_twin(golden))
    shorter.subgraphs[0].operators.pop()
    with pytest.raises(VerificationError, match="of the float model none"):
        compare_layers(pack_tree(shorter), golden, CODES)


def test_a_float_model_in_place_of_int8_is_refused(golden):
    with pytest.raises(VerificationError, match="not a full-integer model"):
        compare_layers(float_twin(golden), float_twin(golden), CODES)


def test_clips_shorter_than_a_step_are_refused(golden):
    with pytest.raises(DataError, match="at least 2 frames"):
        compare_layers(float_twin(golden), golden, CODES[:, :1])


def test_the_released_model_beside_its_float_weights():
    recipe = load_recipe(ROOT / "models" / "recipes" / "kws.yaml")
    codes = representative_codes(recipe, ROOT / "models" / "samples" / "calibration", is_dataset=False)[::10]
    converted = Converted(released().members["model"], 2, 0)
    errors = layer_errors(recipe, ROOT / "models" / "zoo" / "kws" / "weights.npz", converted, codes)
    layers = [error.layer for error in errors]
    assert layers[:5] == ["frames", "front0", "front1", "front2", "stem"] and layers[-1] == "label"
    assert {"block0_time", "block0_mix", "block0_add"} < set(layers) and len(set(layers)) == len(layers)
    assert all(15 < error.sqnr_db <= error.alone_db + 0.5 for error in errors[1:])
    assert all(error.saturated < 0.01 and error.used > 0.3 for error in errors[1:])
