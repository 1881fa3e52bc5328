"""A smaller flatbuffer that computes exactly the same integers: what no runtime reads is left out, equal parts are
written once.

Of the 106.6 kB that the converter makes of `kws`, 82.7 kB remain:

    names, notes and metadata, for people and other tools                  5.1 kB   left out
    int64 zero points of weights and biases, all zero, one per channel    16.7 kB   written once (the parser wants them)
    equal buffers, vectors, quantizations and options                      2.3 kB   written once

61.9 kB are weights, 4.2 kB biases, 8.4 kB scales; 8.2 kB tell 84 tensors, 36 operations and the signature.
Kept though the kernels never read them: the scales of per-channel biases (4.2 kB). XNNPACK refuses a convolution
without, which would then run four times slower, and differ by up to 4 LSB.
Signature names are kept: every caller finds its tensors by them (toolkit/interpreter.py).
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np

from toolkit.errors import MissingPartError, VerificationError

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # of constants: the schema's force_align, which Python's generated code does not know


def slim(model: bytes) -> bytes:
    """The same graph in fewer bytes; the same bytes for the same model, and slim(slim(m)) == slim(m).

    Raises VerificationError for what is not a TFLite model with its constants inside, MissingPartError without
    TensorFlow (of which only the file of the schema is read: importing it takes seconds, and tflite-runtime then loads
    no model in the process).
    """
    schema = tflite_schema()
    if model[4:8] != IDENTIFIER:
        raise VerificationError(f"the model begins with {bytes(model[:8])!r}; a TFLite flatbuffer has {IDENTIFIER!r}.")
    try:
        tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise VerificationError(f"the model's flatbuffer of {len(model)} bytes is damaged ({error}).") from None
    if any(buffer.offset for buffer in tree.buffers):
        raise VerificationError("the model keeps its constants behind the flatbuffer; convert it to one below 2 GB.")
    _drop_descriptions(tree)
    _merge_buffers(tree, schema)
    _share_tables(tree)
    return pack_tree(tree)


def tflite_schema():
    """The module of TFLite's schema in TensorFlow's package, without importing TensorFlow."""
    package = importlib.util.find_spec("tensorflow")
    if package is None:
        raise MissingPartError("TensorFlow is not installed; `make quantize` installs requirements-host.txt.")
    path = Path(package.submodule_search_locations[0]) / "lite" / "python" / "schema_py_generated.py"
    spec = importlib.util.spec_from_file_location("tflite_schema", path)
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return schema


def pack_tree(tree) -> bytes:
    """The bytes of a model in the schema's object form; equal vectors of numbers are written once."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def __init__(self):
            super().__init__(0)
            self.written = {}  # (dtype, content): offset

        def CreateNumpyVector(self, x):
            key = x.dtype.str, x.tobytes()
            if key not in self.written:
                if x.dtype == np.uint8:  # the content of a buffer
                    self.Prep(ALIGNMENT, x.size)
                self.written[key] = super().CreateNumpyVector(x)
            return self.written[key]

    builder = Builder()
    builder.Finish(tree.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _drop_descriptions(tree) -> None:
    """Names and notes for people, the observed ranges of tensors, the parts of other tools."""
    tree.description = tree.metadata = tree.metadataBuffer = None
    for graph in tree.subgraphs:
        graph.name = None
        for tensor in graph.tensors:
            tensor.name, tensor.hasRank = None, False
            quantization = tensor.quantization
            if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
                tensor.quantization = None
            else:
                quantization.min = quantization.max = None


def _merge_buffers(tree, schema) -> None:
    """Buffer 0 is the empty one, of all tensors that are computed; one buffer per content of the constants."""
    buffers, numbers = [schema.BufferT()], {}
    for graph in tree.subgraphs:
        for tensor in graph.tensors:
            old = tree.buffers[tensor.buffer]
            if old.data is None or len(old.data) == 0:
                tensor.buffer = 0
                continue
            content = old.data.tobytes()
            if content not in numbers:
                numbers[content] = len(buffers)
                buffers.append(old)
            tensor.buffer = numbers[content]
    tree.buffers = buffers


class _Once:
    """A table of the schema that is packed once however many others point to it."""

    def __init__(self, table):
        self.table, self.offset = table, None

    def Pack(self, builder) -> int:
        if self.offset is None:
            self.offset = self.table.Pack(builder)
        return self.offset


def _share_tables(tree) -> None:
    """Equal quantizations and equal options of operations become one table."""
    tables: dict[tuple, _Once] = {}

    def shared(table):
        return None if table is None else tables.setdefault(_content(table), _Once(table))

    for graph in tree.subgraphs:
        for tensor in graph.tensors:
            tensor.quantization = shared(tensor.quantization)
        for operator in graph.operators:
            operator.builtinOptions = shared(operator.builtinOptions)


def _content(table) -> tuple:
    """What two equal tables have in common; nested tables are equal only to themselves."""
    values = sorted(vars(table).items())
    return type(table).__name__, *((k, v.tobytes() if isinstance(v, np.ndarray) else v) for k, v in values)
