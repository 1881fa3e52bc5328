"""The version of every operator in a flatbuffer, against the oldest runtime that must load it.

Newer converters raise the version of an operator where they use what older kernels do not have, and an older runtime
then refuses the whole model ("Didn't find op for builtin opcode ..."). The converter here is TensorFlow 2.21's, the
oldest runtime tflite-runtime 2.14.
"""

from __future__ import annotations

from toolkit.errors import VerificationError

from .slim import tflite_schema

RUNTIME = "tflite-runtime-2.14"
LARGEST = {
    "ADD": 5,
    "AVERAGE_POOL_2D": 3,
    "CONCATENATION": 3,
    "CONV_2D": 6,
    "DEPTHWISE_CONV_2D": 6,
    "FULLY_CONNECTED": 9,
    "LOGISTIC": 3,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MUL": 7,
    "PAD": 4,
    "RELU": 3,
    "RESHAPE": 1,
    "SLICE": 5,
    "STRIDED_SLICE": 4,
    "TANH": 3,
    "TRANSPOSE": 5,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 3,
}  # of toolkit/interpreter.py OPS, as tensorflow/lite/kernels/register_ref.cc of v2.14.0 (4dacf3f368e) registers them,
# and tests/test_op_versions.py asks the wheel; BUILTIN_REF, which is used here, takes no newer ones than BUILTIN


def check_op_versions(model: bytes) -> dict[str, int]:
    """{operator: its version, the largest where it has several}, by name. Raises VerificationError for a version that
    RUNTIME does not load, and for an operator that is not in LARGEST."""
    schema = tflite_schema()
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    tree, versions = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0)), {}
    for code in tree.operatorCodes:
        name = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "an unknown operator")
        if name not in LARGEST:
            raise VerificationError(f"the model uses {name}; only {', '.join(LARGEST)} are allowed.")
        if code.version > LARGEST[name]:
            raise VerificationError(
                f"the model uses {name} in version {code.version}, {RUNTIME} loads it up to version {LARGEST[name]}; "
                "convert it with an older TensorFlow, or simplify that layer."
            )
        versions[name] = max(code.version, versions.get(name, 0))
    return dict(sorted(versions.items()))
