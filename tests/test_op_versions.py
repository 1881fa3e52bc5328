"""The table of versions is what the runtime itself registers, and one version more is refused, by both alike."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from quantize.op_versions import LARGEST, RUNTIME, check_op_versions
from quantize.slim import pack_tree, tflite_schema
from tests.released import released
from toolkit.errors import UnsupportedError, VerificationError
from toolkit.interpreter import OPS, StepModel, runtime_name

SCHEMA = tflite_schema()
REFUSED = "Didn't find op for builtin opcode"


def one_operator(name: str, version: int) -> bytes:
    """A model of one operator that no runtime could run, but must look up when it loads the model."""
    tree, graph, code, op, tensor = (getattr(SCHEMA, f"{kind}T")() for kind in (
        "Model", "SubGraph", "OperatorCode", "Operator", "Tensor"))
    code.builtinCode = code.deprecatedBuiltinCode = getattr(SCHEMA.BuiltinOperator, name)
    code.version = version
    tensor.shape, tensor.type = np.int32([1, 1]), SCHEMA.TensorType.INT8
    op.inputs = op.outputs = graph.inputs = graph.outputs = np.int32([0])
    graph.tensors, graph.operators = [tensor], [op]
    tree.version, tree.buffers, tree.operatorCodes, tree.subgraphs = 3, [SCHEMA.BufferT()], [code], [graph]
    return pack_tree(tree)


def said_on_loading(model: bytes) -> str:
    with pytest.raises((UnsupportedError, ValueError, TypeError)) as caught:  # it has no signature either
        StepModel(model)
    return str(caught.value)


def raised(model: bytes, name: str, version: int) -> bytes:
    """The model with another version of one operator."""
    tree = SCHEMA.ModelT.InitFromObj(SCHEMA.Model.GetRootAs(model, 0))
    code = next(c for c in tree.operatorCodes if c.builtinCode == getattr(SCHEMA.BuiltinOperator, name))
    code.version = version
    return pack_tree(tree)


def test_every_operator_that_is_allowed_has_a_limit():
    assert set(LARGEST) == OPS - {"DELEGATE"}


@pytest.mark.parametrize("name", LARGEST)
def test_the_limit_is_that_of_the_runtime(name):
    if runtime_name() != RUNTIME:
        pytest.skip(f"{RUNTIME} is not installed, {runtime_name()} is")
    assert REFUSED not in said_on_loading(one_operator(name, LARGEST[name]))
    said = said_on_loading(one_operator(name, LARGEST[name] + 1))
    assert REFUSED in said and name in said


def test_the_released_model_is_within_all_limits():
    versions = check_op_versions(released().members["model"])
    assert set(versions) == set(StepModel(released().members["model"]).ops())
    assert versions["CONV_2D"] == 3 and list(versions) == sorted(versions)  # 3: int8


@pytest.mark.parametrize("name", ["CONV_2D", "RESHAPE"])
def test_a_newer_version_is_refused_with_its_number_and_the_limit(name):
    model, limit = released().members["model"], LARGEST[name]
    assert check_op_versions(raised(model, name, limit))[name] == limit
    with pytest.raises(VerificationError, match=f"{name} in version {limit + 1}, .* up to version {limit};"):
        check_op_versions(raised(model, name, limit + 1))


def test_of_several_versions_the_largest_counts():
    tree = SCHEMA.ModelT.InitFromObj(SCHEMA.Model.GetRootAs(released().members["model"], 0))
    conv = next(c for c in tree.operatorCodes if c.builtinCode == SCHEMA.BuiltinOperator.CONV_2D)
    for version in (5, 2):
        code = SCHEMA.OperatorCodeT()
        code.__dict__.update(conv.__dict__, version=version)
        tree.operatorCodes.append(code)
    assert check_op_versions(pack_tree(tree))["CONV_2D"] == 5


@pytest.mark.parametrize("name", ["CUSTOM", "SUM"])
def test_an_operator_that_is_not_allowed_is_refused(name):
    with pytest.raises(VerificationError, match=f"the model uses {name}; only ADD, "):
        check_op_versions(one_operator(name, 1))
