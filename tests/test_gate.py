"""Every limit is shown closing the gate, alone and with its sentence; what was not measured; the last release."""

import json
from dataclasses import replace

import pytest

from models.recipe import BudgetSettings, DataSettings, Recipe
from quantize.baseline import ABSOLUTE, RELATIVE, Baseline, read_baseline, write_baseline
from quantize.gate import FAIL, METRICS, NOT_MEASURED, OK, RECIPE_LIMITS, Fact, breaches, gate, sentence
from toolkit.errors import ConfigError
from toolkit.profile import DeviceProfile

BUDGET = BudgetSettings(
    accuracy_floor=0.955,
    mean_accuracy_floor=0.96,
    embedded_accuracy_floor=0.93,
    max_accuracy_loss=0.01,
    max_accuracy_loss_bound=0.02,
    max_accuracy_loss_upper=0.005,
    false_accepts_per_hour=0.5,
    false_reject_rate=0.05,
    model_bytes=60_000,
    macs_per_second=3_000_000,
    arena_bytes=30_000,
    relative_cost=1.1,
    ops=("ADD", "CONV_2D"),
)
RECIPE = Recipe(schema=1, name="kws", data=DataSettings(words=("yes", "no")), budget=BUDGET)
BOARD = DeviceProfile(
    1, "board", "a board", "xtensa", "tflite-micro", 100_000, 30_000, 3_000_000, 10.0, "usb", "i2s", ("ADD", "CONV_2D")
)
LINUX = replace(BOARD, name="linux", runtime="tflite-runtime", flash_bytes=400_000, ram_bytes=90_000, ops=None)
BASELINE = Baseline("kws", "0.1.0", "0" * 64, {"model_bytes": 59_000, "macs_per_second": 2_900_000, "runtime_lsb": 0})
GOOD = {
    "model_bytes": Fact(59_000),
    "bundle_bytes": Fact(300_000),
    "firmware_bytes": Fact(64_000),
    "memory_bytes": Fact(80_000),
    "arena_bytes": Fact(27_000),
    "macs_per_second": Fact(2_900_000),
    "relative_cost": Fact(1.0, low=0.97),
    "ops": Fact(("ADD", "CONV_2D")),
    "embedded_accuracy": Fact(0.98),
    "accuracy": Fact(0.966),
    "mean_accuracy": Fact(0.97),
    "accuracy_loss": Fact(0.002),
    "accuracy_loss_bound": Fact(0.006),
    "mean_accuracy_loss_upper": Fact(0.002),
    "false_accepts_per_hour": Fact(0.15),
    "false_reject_rate": Fact(0.04),
    "runtime_lsb": Fact(1),
}


def broken_by(profiles=(), baseline=None, recipe=RECIPE, **facts):
    lines = gate(recipe, profiles, baseline, {**GOOD, **facts})
    return lines, breaches(lines)


def test_what_is_within_every_limit_passes():
    lines, broken = broken_by([BOARD, LINUX], BASELINE)
    assert not broken and {line.verdict for line in lines} == {OK}
    assert len(lines) == len(RECIPE_LIMITS) + 4 + 4 + 3
    assert all(line.margin is None or line.margin >= 0 for line in lines)


def test_exactly_the_limit_passes():
    assert not broken_by(model_bytes=Fact(60_000), accuracy=Fact(0.955))[1]


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("accuracy", 0.94, "the accuracy on report is 94.00 %, 1.50 points under the limit of the recipe kws, 95.50 %"),
        ("mean_accuracy", 0.95, "is 95.00 %, 1.00 points under the limit of the recipe kws, 96.00 %"),
        ("embedded_accuracy", 0.92, "the accuracy on the embedded set is 92.00 %, 1.00 points under the limit"),
        ("accuracy_loss", 0.011, "by int8 on report is 1.10 points, 0.10 points over the limit of the recipe kws"),
        ("accuracy_loss_bound", 0.021, "upper bound of the loss by int8 on report is 2.10 points, 0.10 points over"),
        ("mean_accuracy_loss_upper", 0.006, "over a release's trainings is 0.60 points, 0.10 points over"),
        ("false_accepts_per_hour", 0.6, "is 0.600 per hour, 0.100 per hour over the limit of the recipe kws, 0.500"),
        ("false_reject_rate", 0.07, "in the clean stream of report is 7.00 %, 2.00 points over the limit"),
        ("model_bytes", 60_001, "the size of the model is 60,001 bytes, 1 byte over the limit of the recipe kws"),
        ("macs_per_second", 3_000_001, "is 3,000,001 MAC/s, 1 MAC/s over the limit of the recipe kws, 3,000,000 MAC/s"),
        ("arena_bytes", 30_016, "the tensor arena is 30,016 bytes, 16 bytes over the limit of the recipe kws, 30,000"),
        ("ops", ("ADD", "TRANSPOSE"), "the model uses TRANSPOSE, and the recipe kws allows only ADD, CONV_2D"),
    ],
)
def test_each_limit_of_a_recipe_closes_the_gate_alone(name, value, said):
    lines, broken = broken_by(**{name: Fact(value)})
    assert [line.name for line in broken] == [name] and broken[0].verdict == FAIL
    assert broken[0].margin is None or broken[0].margin < 0
    whole = sentence(lines)
    assert said in whole and not whole.endswith(".")


def test_no_limit_of_a_recipe_is_without_such_a_test():
    closing = test_each_limit_of_a_recipe_closes_the_gate_alone.pytestmark[0].args[1]
    assert {name for name, _, _ in closing} | {"relative_cost"} == set(RECIPE_LIMITS.values())


def test_a_slower_block_is_refused_only_where_noise_cannot_explain_it():
    assert not broken_by(relative_cost=Fact(1.15, low=1.05))[1]
    lines, broken = broken_by(relative_cost=Fact(1.2, low=1.12))
    assert [line.name for line in broken] == ["relative_cost"]
    said = "the time of a 20 ms block is 1.200 times, 0.100 times over the limit of the recipe kws, 1.100 times"
    assert said in sentence(lines)


@pytest.mark.parametrize(
    "profile, name, value, said",
    [
        (BOARD, "firmware_bytes", 100_001, "flash of model and tables is 100,001 bytes, 1 byte over the limit of"),
        (BOARD, "arena_bytes", 30_001, "the limit of the profile board, 30,000 bytes"),
        (BOARD, "macs_per_second", 3_000_002, "2 MAC/s over the limit of the profile board"),
        (BOARD, "ops", ("CONV_2D", "MEAN"), "the model uses MEAN, and the profile board allows only ADD, CONV_2D"),
        (LINUX, "bundle_bytes", 400_100, "size of the bundle is 400,100 bytes, 100 bytes over the limit of the"),
        (LINUX, "memory_bytes", 90_001, "the limit of the profile linux, 90,000 bytes"),
        (LINUX, "ops", ("SUM",), "the model uses SUM, and the profile linux allows only ADD, AVERAGE_POOL_2D"),
    ],
)
def test_each_limit_of_a_profile_closes_the_gate_alone(profile, name, value, said):
    free = replace(RECIPE, budget=BudgetSettings())
    lines, broken = broken_by([profile], recipe=free, **{name: Fact(value)})
    assert [(line.name, line.source) for line in broken] == [(name, f"profile {profile.name}")]
    assert said in sentence(lines)


def test_a_bundle_that_fits_one_board_and_not_the_other_is_refused_for_the_other():
    free = replace(RECIPE, budget=BudgetSettings())
    _, broken = broken_by([LINUX, replace(BOARD, flash_bytes=1000)], recipe=free)
    assert [line.source for line in broken] == ["profile board"]


def test_several_breaches_are_counted_in_one_sentence():
    lines, _ = broken_by(model_bytes=Fact(70_000), arena_bytes=Fact(40_000), accuracy=Fact(0.5))
    said = sentence(lines)
    assert "accuracy on report is 50.00 %" in said and "; 2 more limits are broken" in said


def test_what_was_not_measured_is_said_and_lets_a_recipe_pass():
    lines, broken = broken_by(accuracy=Fact(None, "needs --data"))
    line = next(line for line in lines if line.name == "accuracy")
    assert (line.verdict, line.measured, line.note) == (NOT_MEASURED, None, "needs --data") and not broken


def test_a_recipe_may_ask_that_something_is_measured():
    strict = replace(RECIPE, budget=replace(BUDGET, must_measure=("accuracy_floor",)))
    lines, broken = broken_by(recipe=strict, accuracy=Fact(None, "needs --data"))
    assert [line.name for line in broken] == ["accuracy"]
    assert sentence(lines) == (
        "the accuracy on report was not measured (needs --data), and the recipe kws limits it to 95.50 %"
    )
    assert not broken_by(recipe=strict)[1]


def test_a_board_whose_arena_nobody_measured_is_refused():
    lines, broken = broken_by([BOARD], arena_bytes=Fact(None, "tflite-micro is not installed"))
    assert [line.source for line in broken] == ["profile board"]
    said = "was not measured (tflite-micro is not installed), and the profile board limits it to 30,000 bytes"
    assert said in sentence(lines)


@pytest.mark.parametrize("name", ["accuracy", "arena_bytes", "profiles", "must_measure"])
def test_only_limits_that_are_set_can_be_asked_for(name):
    with pytest.raises(ConfigError, match="budget.must_measure names"):
        BudgetSettings(must_measure=(name,))


@pytest.mark.parametrize(
    "name, was, good, bad",
    [
        ("model_bytes", 50_050, 50_550, 50_551),
        ("arena_bytes", 20_000, 20_200, 20_201),
        ("macs_per_second", 1_000_000, 1_000_000, 1_000_001),
        ("embedded_accuracy", 0.95, 0.93, 0.929),
        ("accuracy", 0.966, 0.961, 0.9609),
        ("accuracy_loss", 0.001, 0.006, 0.0061),
        ("runtime_lsb", 1, 3, 4),
    ],
)
def test_a_regression_beyond_its_tolerance_closes_the_gate(name, was, good, bad):
    free = replace(RECIPE, budget=BudgetSettings())
    baseline = Baseline("kws", "0.1.0", "0" * 64, {name: was})
    assert not broken_by((), baseline, free, **{name: Fact(good)})[1]
    lines, broken = broken_by((), baseline, free, **{name: Fact(bad)})
    assert [(line.name, line.source) for line in broken] == [(name, "baseline kws 0.1.0")]
    assert "the limit of the baseline kws 0.1.0" in sentence(lines) and broken[0].note.startswith("was ")


def test_every_tolerance_has_such_a_test():
    regressions = test_a_regression_beyond_its_tolerance_closes_the_gate.pytestmark[0].args[1]
    assert {name for name, *_ in regressions} == {*RELATIVE, *ABSOLUTE} <= set(METRICS)


def test_a_baseline_does_not_ask_for_what_this_run_cannot_measure():
    baseline = Baseline("kws", "0.1.0", "0" * 64, {"accuracy": 0.99})
    assert not broken_by((), baseline, accuracy=Fact(None, "needs --data"))[1]


def test_what_is_written_is_the_next_baseline(tmp_path):
    path = tmp_path / "baseline.json"
    write_baseline(path, "kws", "0.2.0", "a" * 64, GOOD | {"accuracy": Fact(None, "needs --data")})
    read = read_baseline(path, "kws")
    assert (read.version, read.model_sha256, read.measured["model_bytes"]) == ("0.2.0", "a" * 64, 59_000)
    assert "accuracy" not in read.measured and not broken_by((), read)[1]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"name": "other"}, "is the baseline of 'other': expected one of 'kws'"),
        ({"schema": 2}, "is not a baseline of schema 1"),
        ({"extra": 1}, "expected measured, model_sha256, name, schema, version"),
        ({"measured": {"speed": 1}}, "measured.speed is 1: expected numbers of"),
        ({"measured": {"accuracy": "high"}}, "measured.accuracy is 'high'"),
        ({"measured": {"accuracy": True}}, "measured.accuracy is True"),
    ],
)
def test_a_baseline_that_is_none_is_one_sentence(tmp_path, change, said):
    path = tmp_path / "baseline.json"
    write_baseline(path, "kws", "0.2.0", "a" * 64, GOOD)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        read_baseline(path, "kws")
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_file_that_is_no_json_or_no_object_is_one_sentence(tmp_path, text):
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="baseline"):
        read_baseline(path, "kws")
