"""The gate: every limit of the recipe, of device profiles and of the last release, held against what was measured.

    gate(recipe, profiles, baseline, facts) -> lines {name, limit, measured, verdict, margin, unit, source, ...}

What a CI can trust decides what is a breach.

* Bytes, arena, multiply-accumulates and operators are exact functions of the flatbuffer: no machine changes them.
* Microseconds of a shared machine are not: `relative_cost` is the CPU time of a 20 ms block as a multiple of that of a
  reference bundle, which takes its turns in the same run, and it is over its limit only if the whole interval is.
  (Counting instructions would need perf or valgrind, which runners lack or forbid.)
* What a release measured holds for its flatbuffer, byte for byte, and is taken where nothing newer was measured.
* A limit that could not be measured is "not measured". A recipe states goals that need data a CI may not have, so that
  this fails only what budget.must_measure names. A profile is named because the bundle goes to that board, and what
  nobody measured does not fit it: there it always fails. A baseline only compares what both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.recipe import Recipe
from toolkit.interpreter import OPS
from toolkit.profile import DeviceProfile

from .baseline import Baseline

OK, FAIL, NOT_MEASURED = "ok", "FAIL", "not measured"
MOST, LEAST, ONLY = "at most", "at least", "only"


@dataclass(frozen=True)
class Metric:
    """What is measured: its name for people, its unit, and on which side of a limit it must lie."""

    title: str
    unit: Literal["bytes", "MAC/s", "times", "share", "points", "per hour", "operators", "LSB"]
    sense: Literal["at most", "at least", "only"] = MOST


METRICS = {
    "model_bytes": Metric("size of the model", "bytes"),
    "bundle_bytes": Metric("size of the bundle", "bytes"),
    "firmware_bytes": Metric("flash of model and tables", "bytes"),
    "memory_bytes": Metric("memory of the file and its tensors", "bytes"),
    "arena_bytes": Metric("tensor arena", "bytes"),
    "macs_per_second": Metric("cost of a second of audio", "MAC/s"),
    "relative_cost": Metric("time of a 20 ms block", "times"),
    "ops": Metric("operators", "operators", ONLY),
    "embedded_accuracy": Metric("accuracy on the embedded set", "share", LEAST),
    "accuracy": Metric("accuracy on report", "share", LEAST),
    "mean_accuracy": Metric("mean accuracy of a release's trainings on report", "share", LEAST),
    "accuracy_loss": Metric("loss of accuracy by int8 on report", "points"),
    "accuracy_loss_bound": Metric("upper bound of the loss by int8 on report", "points"),
    "mean_accuracy_loss_upper": Metric("upper bound of the loss by int8 over a release's trainings", "points"),
    "false_accepts_per_hour": Metric("upper bound of the false accepts on report", "per hour"),
    "false_reject_rate": Metric("false reject rate in the clean stream of report", "share"),
    "runtime_lsb": Metric("largest difference between the runtimes", "LSB"),
}
RECIPE_LIMITS = {  # setting of the budget: metric
    "accuracy_floor": "accuracy",
    "mean_accuracy_floor": "mean_accuracy",
    "embedded_accuracy_floor": "embedded_accuracy",
    "max_accuracy_loss": "accuracy_loss",
    "max_accuracy_loss_bound": "accuracy_loss_bound",
    "max_accuracy_loss_upper": "mean_accuracy_loss_upper",
    "false_accepts_per_hour": "false_accepts_per_hour",
    "false_reject_rate": "false_reject_rate",
    "model_bytes": "model_bytes",
    "macs_per_second": "macs_per_second",
    "arena_bytes": "arena_bytes",
    "relative_cost": "relative_cost",
    "ops": "ops",
}


@dataclass(frozen=True)
class Fact:
    """A value that was measured, or None and in the note the reason; low: where its interval begins."""

    value: Any
    note: str = ""
    low: float | None = None


@dataclass(frozen=True)
class Line:
    """One limit and what became of it."""

    name: str  # of the metric
    title: str
    limit: Any
    sense: str
    measured: Any  # None: not measured
    verdict: str
    margin: float | None  # what is left to the limit, in the unit; below 0: by how much it is broken
    unit: str
    source: str  # "recipe kws", "profile rpi4", "baseline kws 0.2.0"
    is_breach: bool
    note: str


def gate(recipe: Recipe, profiles: Sequence[DeviceProfile], baseline: Baseline | None, facts: dict) -> list[Line]:
    """A line per limit; facts: {metric: Fact}."""
    lines = [*_recipe_lines(recipe, facts), *(line for p in profiles for line in _profile_lines(p, facts))]
    if baseline:
        lines += [
            _line(name, limit, f"baseline {baseline.name} {baseline.version}", facts, False, f"was {shown(name, was)}")
            for name, was, limit in baseline.limits()
        ]
    return lines


def breaches(lines: Sequence[Line]) -> list[Line]:
    """The lines for which the gate stays closed."""
    return [line for line in lines if line.is_breach]


def sentence(lines: Sequence[Line]) -> str:
    """What, measured, limit, whose limit: of the first breach, and how many more there are. Without a full stop."""
    broken = breaches(lines)
    first, more = broken[0], len(broken) - 1
    limit, measured = shown(first.name, first.limit), shown(first.name, first.measured)
    if first.verdict == NOT_MEASURED:
        said = f"the {first.title} was not measured ({first.note}), and the {first.source} limits it to {limit}"
    elif first.sense == ONLY:
        strange = ", ".join(op for op in first.measured if op not in first.limit)
        said = f"the model uses {strange}, and the {first.source} allows only {limit}"
    else:
        over = shown(first.name, -first.margin, is_margin=True)
        side = "over" if first.sense == MOST else "under"
        said = f"the {first.title} is {measured}, {over} {side} the limit of the {first.source}, {limit}"
    others = f"; {more} more limit{'s are' if more > 1 else ' is'} broken" if more else ""
    return f"{said}{others}"


def allowed(name: str, limit: Any) -> str:
    """A limit for people: at most 60,000 bytes; only 12 operators."""
    sense = METRICS[name].sense
    return f"{sense} {f'{len(limit)} of them' if sense == ONLY else shown(name, limit)}"


def shown(name: str, value: Any, is_margin: bool = False) -> str:
    """A value of a metric for people: 59,424 bytes; 96.61 %; 0.15 points; 1.080 times; ADD, CONV_2D."""
    unit = METRICS[name].unit
    if value is None:
        return "-"
    if unit == "operators":
        return ", ".join(value) or "none"
    if unit == "points" or (unit == "share" and is_margin):
        return f"{100 * value:.2f} points"
    if unit == "share":
        return f"{100 * value:.2f} %"
    if unit in ("bytes", "MAC/s", "LSB"):
        return f"{value:,} {'byte' if unit == 'bytes' and value == 1 else unit}"
    return f"{value:.3f} {unit}"


def _recipe_lines(recipe: Recipe, facts: dict) -> Iterator[Line]:
    for setting, name in RECIPE_LIMITS.items():
        limit = getattr(recipe.budget, setting)
        if limit is not None:
            yield _line(name, limit, f"recipe {recipe.name}", facts, setting in recipe.budget.must_measure)


def _profile_lines(profile: DeviceProfile, facts: dict) -> Iterator[Line]:
    limits = {
        "firmware_bytes" if profile.is_firmware else "bundle_bytes": profile.flash_bytes,
        "arena_bytes" if profile.is_firmware else "memory_bytes": profile.ram_bytes,
        "macs_per_second": profile.macs_per_second,
        "ops": tuple(sorted(OPS - {"DELEGATE"})) if profile.ops is None else profile.ops,
    }
    for name, limit in limits.items():
        yield _line(name, limit, f"profile {profile.name}", facts, must=True)


def _line(name: str, limit: Any, source: str, facts: dict, must: bool, remark: str = "") -> Line:
    metric, fact = METRICS[name], facts.get(name, Fact(None, "nothing measures it here"))
    value, margin = fact.value, None
    if value is None:
        verdict = NOT_MEASURED
    elif metric.sense == ONLY:
        verdict = FAIL if set(value) - set(limit) else OK
    else:
        sign = 1 if metric.sense == MOST else -1
        margin = round((limit - value) * sign, 6)
        surely = value if fact.low is None else fact.low  # only `relative_cost` has one: what the noise cannot explain
        verdict = FAIL if (limit - surely) * sign < 0 else OK
    breach = verdict == FAIL or (verdict == NOT_MEASURED and must)
    note = "; ".join(filter(None, (remark, fact.note)))
    return Line(name, metric.title, limit, metric.sense, value, verdict, margin, metric.unit, source, breach, note)
