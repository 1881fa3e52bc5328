"""One training on several devices and in several processes comes to the weights of one on a single device."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")
pytest.importorskip("scipy", reason="scipy is not installed (requirements-host.txt)")

from tone_words import make_tone_words

from models.layers import tf
from models.recipe import load_recipe
from models.strategy import make_crew
from models.train import train
from toolkit.errors import ConfigError

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600  # for processes that wait for one another in vain
ARCHITECTURE = """
STRIDE = 2

def build(net, x, n_labels, norm):
    x = net.conv(x, 12, 8, "first", stride=STRIDE, bias=True)
    x = net.relu(net.norm(x, "first_norm") if norm else x, "first_relu")
    x = net.relu(net.conv(x, 12, 5, "second", bias=True), "second_relu")
    return net.conv(x, n_labels, 1, "label", bias=True)
"""
RECIPE = """
schema: 1
name: tones
data: {{words: [rise, drop], unknown_fraction: 1.0, silence_fraction: 0.5}}
augment: {{context_s: 0.2, noise_probability: 0.3, reverb_probability: 0.0, mixup_alpha: 0.2}}
model: {{architecture: {architecture}, parameters: {{norm: {norm}}}}}
train: {{epochs: 2, batch_size: 8, learning_rate: 1e-2, warmup_epochs: 1, weight_decay: 0.1, ema_decay: 0.8,
        unknown_weight: 0.3, checkpoint_every: 1}}
decision: {{window_frames: 100, flush_frames: 20}}
"""


def write_recipes(folder: Path) -> None:
    (folder / "architecture.py").write_text(ARCHITECTURE)
    for name, norm in (("plain", "false"), ("norm", "true")):
        (folder / f"{name}.yaml").write_text(RECIPE.format(architecture=folder / "architecture.py", norm=norm))


def recipe_of(folder: Path, name: str, strategy: str, **settings):
    recipe = load_recipe(folder / f"{name}.yaml")
    return replace(recipe, train=replace(recipe.train, strategy=strategy, **settings))


def main(folder: Path, strategy: str, worker: int) -> None:
    """What one process does. STRATEGY-N.txt is its log; RUN/worker-1 is kept of the folder that a worker deletes."""
    lines = []

    def stop(text: str) -> None:
        lines.append(text)
        if "epoch 2/2" in text:
            raise KeyboardInterrupt  # as a person does

    if strategy == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    for name, log in (("plain", stop), ("plain", lines.append), ("norm", lines.append)):
        run = folder / f"{name}-{strategy}"
        with contextlib.suppress(KeyboardInterrupt):
            train(recipe_of(folder, name, strategy), folder / "data", run, folder / "epochs", log)
        own = sorted(Path(tempfile.gettempdir()).glob(f"{run.name}-worker{worker}-*"), key=os.path.getmtime)
        if own:
            shutil.copytree(own[-1], run / f"worker-{worker}", dirs_exist_ok=True)
    (folder / f"{strategy}-{worker}.txt").write_text("\n".join(lines))
    wrong = {"batch_size": 9} if strategy == "mirrored" else {"seed": 2 + worker}
    try:
        train(recipe_of(folder, "plain", strategy, **wrong), folder / "data", folder / "other", folder / "epochs")
    except ConfigError as error:
        (folder / f"{strategy}-{worker}-refused.txt").write_text(str(error))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training on one device, and what main() makes in a process of two devices and in two processes."""
    folder = tmp_path_factory.mktemp("distribute")
    make_tone_words(folder / "data", speakers=12)
    write_recipes(folder)
    train(recipe_of(folder, "plain", "single"), folder / "data", folder / "plain-single", folder / "epochs")

    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    tasks = [("mirrored", 0), ("multi_worker", 0), ("multi_worker", 1)]
    processes = []
    try:
        for strategy, worker in tasks:
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": worker}}),
                "TMPDIR": str(folder),
            }
            command = [sys.executable, __file__, str(folder), strategy, str(worker)]
            with open(folder / f"{strategy}-{worker}.err", "w") as errors:
                processes.append(subprocess.Popen(command, stdout=errors, stderr=errors, env=environment, cwd=ROOT))
        for process, (strategy, worker) in zip(processes, tasks):
            process.wait(TIMEOUT_S)
            assert process.returncode == 0, (folder / f"{strategy}-{worker}.err").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


def checkpoint(run: Path) -> dict[str, np.ndarray]:
    """All that the last checkpoint of a run holds, by name: weights, their averages, the optimizer's state."""
    reader = tf.train.load_checkpoint(str(run / "checkpoints"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "GRAPH" not in name}


def assert_near(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys() and any("average" in name for name in a)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_two_replicas_come_to_the_weights_of_one(folder, strategy):
    assert_near(checkpoint(folder / f"plain-{strategy}"), checkpoint(folder / "plain-single"))


def test_batch_normalization_sees_the_share_of_a_replica(folder):
    assert_near(checkpoint(folder / "norm-mirrored"), checkpoint(folder / "norm-multi_worker"))


@pytest.mark.parametrize("name", ["plain", "norm"])
def test_workers_hold_the_same_bits(folder, name):
    run = folder / f"{name}-multi_worker"
    chief, other = checkpoint(run), checkpoint(run / "worker-1")
    assert chief.keys() == other.keys()
    for key in chief:
        np.testing.assert_array_equal(chief[key], other[key], err_msg=key)


def test_all_resume_and_the_chief_alone_writes(folder):
    run = folder / "plain-multi_worker"
    for worker in range(2):
        lines = (folder / f"multi_worker-{worker}.txt").read_text().splitlines()
        assert f"worker {worker}: resuming after epoch 1 from {run / 'checkpoints' / 'ckpt-1'}" in lines
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    assert load_recipe(run / "recipe.yaml").train.strategy == "multi_worker"
    assert not list(folder.glob("*-worker1-*"))


def test_what_cannot_be_shared_is_one_sentence(folder):
    for worker in range(2):
        assert "not the same recipe" in (folder / f"multi_worker-{worker}-refused.txt").read_text()
    assert "a multiple of 2" in (folder / "mirrored-0-refused.txt").read_text()
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    "tf_config",
    [
        None,
        "worker 0",
        "[]",
        '{"cluster": {"worker": ["one:4040"]}}',
        '{"cluster": {"worker": ["one:4040", "two:4040"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["one:4040"], "evaluator": ["two:4040"]}, "task": {"type": "evaluator", "index": 0}}',
    ],
)
def test_a_wrong_cluster_is_one_sentence(tmp_path, monkeypatch, tf_config):
    write_recipes(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if tf_config is not None:
        monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(ConfigError, match="TF_CONFIG"):
        make_crew(recipe_of(tmp_path, "plain", "multi_worker").train)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
