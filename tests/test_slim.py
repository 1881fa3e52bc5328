"""A slimmed model computes the same integers in every runtime, resized or not, and holds nothing needless.

The model under test is the released one, made fat again as the converter makes it: names, notes, a buffer per tensor,
nothing shared. So the tests stand whether or not the released model has been slimmed.
"""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from quantize.slim import ALIGNMENT, slim, tflite_schema
from quantize.verify import run_everywhere
from tests.released import released
from toolkit.errors import VerificationError
from toolkit.interpreter import StepModel


def tree_of(model: bytes):
    schema = tflite_schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))


def fatten(model: bytes) -> bytes:
    """With all that a converter writes beside the graph."""
    import flatbuffers

    schema, tree = tflite_schema(), tree_of(model)
    graph, buffers = tree.subgraphs[0], [schema.BufferT()]
    tree.description, graph.name = b"made by a converter", b"main"
    for i, tensor in enumerate(graph.tensors):
        tensor.name, tensor.hasRank = f"step/layer{i}/a_name_as_long_as_converters_make_them".encode(), True
        buffers.append(schema.BufferT())
        buffers[-1].data = tree.buffers[tensor.buffer].data
        tensor.buffer = len(buffers) - 1
        if tensor.quantization is None:
            tensor.quantization = schema.QuantizationParametersT()
        else:
            tensor.quantization.min = tensor.quantization.max = np.float32([1.5])
    note = schema.MetadataT()
    note.name, note.buffer = b"CONVERSION_METADATA", len(buffers)
    buffers.append(schema.BufferT())
    buffers[-1].data = np.arange(200, dtype=np.uint8)
    tree.buffers, tree.metadata = buffers, [note]
    builder = flatbuffers.Builder(0)
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def fat() -> bytes:
    return fatten(released().members["model"])


@pytest.fixture(scope="module")
def slimmed(fat) -> bytes:
    return slim(fat)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """Noise over the whole range of int8, and slow waves that drive the states to their ends."""
    rng = np.random.default_rng(1)
    noise = rng.integers(-128, 128, (2, 120, 40))
    waves = 127 * np.sin(np.arange(120)[:, None] / np.linspace(2, 30, 40)) * rng.choice([-1, 1], (2, 1, 40))
    return np.concatenate([noise, waves]).astype(np.int8)


def test_a_quarter_of_the_file_goes(fat, slimmed):
    assert len(slimmed) < 0.8 * len(fat)


def test_what_remains_is_the_graph(slimmed):
    """Constants, a scale per channel of weights and biases, and tables of fewer than 100 bytes per tensor."""
    tree = tree_of(slimmed)
    graph = tree.subgraphs[0]
    constants = sum(len(b.data) for b in tree.buffers if b.data is not None)
    scales = sum(4 * len(t.quantization.scale) for t in graph.tensors if t.quantization is not None)
    assert len(slimmed) - constants - scales < 100 * len(graph.tensors)
    assert {t.name for t in graph.tensors} == {None}
    assert tree.metadata is None and tree.description is None
    assert sum(b.data is None for b in tree.buffers) == 1 and tree.buffers[0].data is None


def test_every_constant_lies_on_sixteen_bytes(slimmed):
    """Kernels read int32 biases in place; the schema asks for it."""
    schema = tflite_schema()
    model = schema.Model.GetRootAs(slimmed, 0)
    starts = [b._tab.Vector(b._tab.Offset(4)) for i in range(1, model.BuffersLength()) for b in [model.Buffers(i)]]
    assert len(starts) > 20 and {start % ALIGNMENT for start in starts} == {0}


def test_the_same_integers_by_step_and_resized(fat, slimmed, codes):
    """Scores and states in this process; `run_everywhere` resizes both and asks the other runtimes."""
    before, after = StepModel(fat), StepModel(slimmed)
    assert [a[0].name for a in after.states] == [b[0].name for b in before.states]  # the signature is the same
    for clip in codes:
        assert np.array_equal(before.process(clip), after.process(clip))
        assert all(np.array_equal(a, b) for a, b in zip(before.state(), after.state()))
    there, here = run_everywhere(fat, codes), run_everywhere(slimmed, codes)
    assert [r.runtime for r in there] == [r.runtime for r in here]
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(there, here))
    assert np.ptp(here[0].scores.astype(int)) > 50  # not constant


DEFAULT_KERNELS = """
import sys, numpy as np
from importlib import import_module
interpreter = import_module(sys.argv[1] + ".interpreter").Interpreter(model_path=sys.argv[2], num_threads=1)
run = interpreter.get_signature_runner()
rng = np.random.default_rng(1)
for _ in range(20):
    inputs = {n: rng.integers(-128, 128, d["shape"], dtype=np.int8) for n, d in run.get_input_details().items()}
    for name, value in sorted(run(**inputs).items()):
        sys.stdout.write(name + value.tobytes().hex() + "\\n")
"""


@pytest.mark.parametrize("package", ["tflite_runtime", "ai_edge_litert"])
def test_the_same_integers_in_the_default_kernels(fat, slimmed, tmp_path, package):
    """XNNPACK, where the runtime has it, still takes the convolutions: it rounds otherwise, so it would show."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    said = []
    for name, model in (("fat", fat), ("slim", slimmed)):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(model)
        command = [sys.executable, "-c", DEFAULT_KERNELS, package, str(path)]
        said.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said[0] == said[1] and said[0].count("scores") == 20


def test_slimming_is_done_once_and_always_the_same(fat, slimmed):
    assert slim(fat) == slimmed
    assert slim(slimmed) == slimmed


@pytest.mark.parametrize("damage", [lambda m: b"", lambda m: b"RIFF" + m[4:8][::-1] + m[8:], lambda m: m[:2000]])
def test_what_is_no_model_is_one_sentence(slimmed, damage):
    with pytest.raises(VerificationError, match=r"^the model.*\.$"):
        slim(damage(slimmed))
