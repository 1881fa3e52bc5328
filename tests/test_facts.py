"""What the gate is told: measured where it can be, else by the release of the same bytes, else not at all."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from models.recipe import load_recipe
from quantize.arena import Arena
from quantize.baseline import read_baseline
from quantize.facts import cost_of, facts_of, facts_of_release
from quantize.gate import METRICS, breaches, gate
from tests.released import released
from toolkit.flatbuffer import read_model

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "models" / "zoo"
KNOWN = json.loads((ZOO / "kws" / "accuracy.json").read_text())
RESULT = {"accuracy": 0.9, "low": 0.8, "high": 0.95, "clips": 678}


@pytest.fixture(scope="module")
def bundle():
    return released()


def report(bundle, **changes):
    return {
        "macs_per_second": bundle.manifest.model.macs_per_second,
        "ops": list(bundle.manifest.model.ops),
        "runtimes": ["tflite-runtime-2.14", "ai-edge-litert-2.3"],
        "parity_lsb": {"ai-edge-litert-2.3": {0: 900, 2: 1}},
        "bundle_bytes": bundle.path.stat().st_size,
        "embedded": {"float": RESULT, "int8": RESULT},
        "report": None,
        "block": {"us": 12.0, "ratio": 1.05, "low": 1.01, "high": 1.1, "reference": "kws 0.2.0"},
        **changes,
    }


def test_every_metric_is_measured_or_has_its_reason(bundle):
    facts = facts_of(report(bundle), bundle, Arena(None, reason="tflite-micro is not installed."), {})
    assert set(facts) == set(METRICS)
    missing = {name: fact.note for name, fact in facts.items() if fact.value is None}
    assert all(missing.values()) and missing.pop("arena_bytes") == "tflite-micro is not installed"
    assert {name for name, why in missing.items() if why == "needs --data"} == {
        "accuracy", "accuracy_loss", "accuracy_loss_bound"
    }  # fmt: skip
    assert facts["runtime_lsb"].value == 2 and facts["relative_cost"].low == 1.01


def test_bytes_are_those_of_the_members(bundle):
    facts = facts_of(report(bundle), bundle, Arena(27_000, "tflite-micro-0"), {})
    model, tables = len(bundle.members["model"]), len(bundle.members["tables"])
    assert facts["model_bytes"].value == model == bundle.manifest.model.size_bytes
    assert facts["firmware_bytes"].value == model + tables
    states = sum(math.prod(state.shape) for state in bundle.manifest.model.states)
    tensors = [t for t in read_model(bundle.members["model"]).tensors if t.data is None]
    needed = facts["memory_bytes"].value - model
    assert 2 * states < needed == sum(math.prod(t.shape) for t in tensors)  # in and out, and between; all int8


def test_a_release_is_asked_where_nothing_was_measured_here(bundle):
    facts = facts_of(report(bundle), bundle, Arena(None, reason="not here"), KNOWN)
    assert facts["accuracy"].value == KNOWN["figures"][0]["value"] and "by the release" in facts["accuracy"].note
    assert facts["arena_bytes"].value == KNOWN["details"]["arena"]["arena_bytes"]
    assert facts["embedded_accuracy"].value == 0.9  # measured here


def test_what_is_measured_here_comes_first(bundle):
    on_report = {"float": RESULT | {"accuracy": 0.91}, "int8": RESULT, "loss": {"value": 0.01, "low": 0, "high": 0.02}}
    facts = facts_of(report(bundle, report=on_report), bundle, Arena(1, "tflite-micro-0"), KNOWN)
    assert (facts["accuracy"].value, facts["accuracy_loss"].value, facts["arena_bytes"].value) == (0.9, 0.01, 1)
    assert facts["accuracy_loss_bound"].value == 0.02 and "678 clips" in facts["accuracy_loss_bound"].note


def test_one_runtime_alone_shows_no_difference(bundle):
    facts = facts_of(report(bundle, parity_lsb={}), bundle, Arena(1, "tflite-micro-0"), {})
    assert facts["runtime_lsb"].value is None and facts["runtime_lsb"].note == "only one runtime is installed"


def test_a_bundle_costs_as_much_as_itself(bundle):
    cost = cost_of(bundle, bundle)
    assert cost["low"] <= cost["ratio"] <= cost["high"] and cost["us"] > 0
    assert cost["low"] < 1.1 and cost["high"] > 0.9  # which is what the gate asks


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ZOO.glob("*/accuracy.json")))
def test_the_committed_baseline_is_of_the_release_and_the_release_keeps_its_budget(name):
    known = json.loads((ZOO / name / "accuracy.json").read_text())
    baseline, facts = read_baseline(ZOO / name / "baseline.json", name), facts_of_release(known)
    assert baseline.model_sha256 == known["model_sha256"]
    assert all(facts[metric].value == was for metric, was in baseline.measured.items() if metric in facts)
    assert not breaches(gate(load_recipe(ROOT / "models" / "recipes" / f"{name}.yaml"), [], baseline, facts))
