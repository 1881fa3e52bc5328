"""The reader of .tflite: what it reads is what TFLite reads, and no bytes whatever make it crash."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_tflite as tiny
from golden import FOLDER
from released import released

from toolkit.errors import UnsupportedError
from toolkit.flatbuffer import Graph, read_model
from toolkit.interpreter import StepModel

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
GOLDEN = ("bc_resnet", "ds_cnn", "ds_tc_resnet")


def golden_model(name: str) -> bytes:
    return (FOLDER / f"{name}.tflite").read_bytes()


def small_model() -> bytes:
    """frames [1, 2, 3] -> PAD and ADD -> scores [1, 1, 8]; most of its bytes are structure."""
    scale = {"scales": (0.5,), "zero_point": 3}
    tensors = [tiny.Tensor((1, 2, 3), **scale), tiny.Tensor((4,), type="int32", data=np.array([1, 2, 3, 1], np.int32)),
               tiny.Tensor((1, 2, 3, 1), **scale), tiny.Tensor((4, 2), type="int32", data=np.eye(4, 2, -2, np.int32)),
               tiny.Tensor((1, 2, 4, 1), **scale), tiny.Tensor((1, 2, 4, 1), (0.7,), -5),
               tiny.Tensor((3,), type="int32", data=np.array([1, 1, 8], np.int32)), tiny.Tensor((1, 1, 8), (0.7,), -5)]
    operators = [tiny.Operator("RESHAPE", (0, 1), (2,)), tiny.Operator("PAD", (2, 3), (4,)),
                 tiny.Operator("ADD", (4, 4), (5,), {0: tiny.Scalar("b", 1)}), tiny.Operator("RESHAPE", (5, 6), (7,))]
    return tiny.model(tensors, operators, {"frames": 0}, {"scores": 7})


@pytest.mark.parametrize("name", ["kws", *GOLDEN])
def test_it_reads_what_tflite_reads(name):
    """Every tensor by shape, type, scales, zero points and content; every operator by name, inputs and outputs."""
    data = released().members["model"] if name == "kws" else golden_model(name)
    graph, reference = read_model(data), StepModel(data)
    details = {tensor["index"]: tensor for tensor in reference.tensors()}
    assert len(graph.operators) > 10
    for i, tensor in enumerate(graph.tensors):
        expected = details[i]["quantization_parameters"]
        assert tensor.shape == tuple(details[i]["shape"]) and tensor.type == np.dtype(details[i]["dtype"]).name
        assert np.array_equal(tensor.scales, expected["scales"])
        assert np.array_equal(tensor.zero_points, expected["zero_points"])
        if tensor.data is not None:
            assert np.array_equal(tensor.data, reference._interpreter.get_tensor(i))
            assert len(tensor.scales) <= 1 or tensor.axis == expected["quantized_dimension"]
    ops = [op for op in reference._interpreter._get_ops_details() if op["op_name"] != "DELEGATE"]
    assert [(op.name, op.inputs, op.outputs) for op in graph.operators] == [
        (op["op_name"], tuple(op["inputs"]), tuple(op["outputs"])) for op in ops]
    assert graph.inputs["frames"] == reference.input.index and graph.outputs["scores"] == reference.output.index
    assert set(graph.inputs) == {"frames", *(entering.name for entering, _ in reference.states)}


def test_options_and_their_defaults():
    graph = read_model(small_model())
    assert graph.operators[2].options == {"activation": 1} and graph.operators[0].options == {}
    assert graph.tensors[5].zero_points == -5 and graph.tensors[3].data.tolist() == [[0, 0], [0, 0], [1, 0], [0, 1]]
    absent = read_model(tiny.model([tiny.Tensor((1, 2, 3), (1.0,))] * 2,
                                   [tiny.Operator("CONV_2D", (0, -1), (1,))], {"frames": 0}, {"scores": 1}))
    assert absent.operators[0].options["dilation_w"] == 1 and absent.operators[0].inputs == (0, -1)


@pytest.mark.parametrize("data, reason", [
    (b"", "begins with"), (b"\0" * 100, "begins with"), (b"\0\0\0\0TFL3", "0 subgraphs"),
    (b"\xff\xff\xff\xffTFL3" + bytes(50), "lie outside"), (b"\x08\0\0\0TFL3" + b"\xff" * 60, "lie outside"),
    (b"\x08\0\0\0TFL3" + bytes(60), "0 subgraphs")])
def test_what_is_no_model_is_refused_in_one_sentence(data, reason):
    with pytest.raises(UnsupportedError, match=reason) as caught:
        read_model(data)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_every_cut_is_refused():
    data = small_model()
    for end in range(len(data) - 40):  # the key of the signature comes last and is not read
        with pytest.raises(UnsupportedError):
            read_model(data[:end])


@hypothesis.settings(max_examples=500)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_gives_a_graph_or_the_error(changes):
    """Nothing else is raised, nothing is read outside, and a graph that comes out names only what it holds."""
    data = bytearray(small_model())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        graph = read_model(bytes(data))
    except UnsupportedError:
        return
    assert isinstance(graph, Graph)
    for op in graph.operators:
        assert all(-1 <= i < len(graph.tensors) for i in op.inputs + op.outputs)
    for tensor in graph.tensors:
        assert tensor.data is None or tensor.data.shape == tensor.shape


def test_a_long_list_is_refused_before_it_is_read():
    """Ten thousand references to one table take 40 kB; more are not followed."""
    operators = [tiny.Operator("ADD", (0, 0), (0,))] * 10_001
    with pytest.raises(UnsupportedError, match="a list of 10001 items, at most 10000"):
        read_model(tiny.model([tiny.Tensor((1, 1, 1), (1.0,))], operators, {"frames": 0}, {"scores": 0}))
