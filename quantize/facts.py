"""What a bundle costs and knows, as facts for the gate: {metric: value, how it was measured, or why it was not}."""

from __future__ import annotations

import numpy as np

from models.compare import block_costs
from toolkit.bundle import Bundle
from toolkit.errors import VerificationError
from toolkit.flatbuffer import read_model

from .arena import Arena, measure_arena
from .gate import Fact

NEEDS_DATA, NEEDS_RELEASE = "needs --data", "needs python -m quantize.release"
NOT_HERE = {name: Fact(None, NEEDS_DATA) for name in ("accuracy", "accuracy_loss", "accuracy_loss_bound")} | {
    name: Fact(None, NEEDS_RELEASE)
    for name in ("mean_accuracy", "mean_accuracy_loss_upper", "false_accepts_per_hour", "false_reject_rate")
}
COST_ROUNDS = 9  # of which the second and the eighth hold the median of all with 96 % (a sign test)


def arena_of(model: bytes, codes: np.ndarray) -> Arena:
    """Of clips of int8 codes [n, T, width]; where TFLite Micro does not run the model, nothing and the reason."""
    try:
        return measure_arena(model, codes)
    except VerificationError as error:  # it is there and does not run the model
        return Arena(None, reason=str(error).rstrip("."))


def cost_of(bundle: Bundle, reference: Bundle) -> dict:
    """CPU time of a 20 ms block, and as a multiple of the reference's, which takes its turns with it."""
    costs = np.array([block_costs([bundle, reference], 2.0) for _ in range(COST_ROUNDS)])
    ratios = np.sort(costs[:, 0] / costs[:, 1])
    value, low, high = (round(float(ratios[i]), 4) for i in (COST_ROUNDS // 2, 1, COST_ROUNDS - 2))
    name = f"{reference.manifest.name} {reference.manifest.version}"
    return {"us": round(float(np.median(costs[:, 0])), 1), "ratio": value, "low": low, "high": high, "reference": name}


def memory_of(model: bytes) -> int:
    """Bytes of the file and of each of its tensors by itself: a bound for what a runtime takes that keeps both."""
    tensors = [t for t in read_model(model).tensors if t.data is None]
    return len(model) + sum(int(np.prod(t.shape)) * np.dtype(t.type).itemsize for t in tensors)


def facts_of(report: dict, bundle: Bundle, arena: Arena, known: dict) -> dict[str, Fact]:
    """{metric: Fact}; known: what a release measured of this very flatbuffer, or nothing. What is measured here comes
    before what the release measured."""
    model, block, embedded = bundle.members["model"], report["block"], report["embedded"]["int8"]
    lsb = max((max(found) for found in report["parity_lsb"].values()), default=None)
    here = {
        "model_bytes": Fact(len(model)),
        "bundle_bytes": Fact(report["bundle_bytes"]),
        "firmware_bytes": Fact(len(model) + len(bundle.members["tables"])),
        "memory_bytes": Fact(memory_of(model), "each tensor by itself, as if no memory were used twice"),
        "arena_bytes": Fact(arena.bytes, arena.runtime or arena.reason.rstrip(".")),
        "macs_per_second": Fact(report["macs_per_second"]),
        "relative_cost": Fact(
            block["ratio"], f"{block['low']:.2f} to {block['high']:.2f} of {block['reference']}", block["low"]
        ),
        "ops": Fact(tuple(report["ops"])),
        "embedded_accuracy": Fact(embedded["accuracy"], f"{embedded['clips']} clips"),
        "runtime_lsb": Fact(lsb, "only one runtime is installed" if lsb is None else ", ".join(report["parity_lsb"])),
    }
    if report["report"]:
        in_float, int8, loss = (report["report"][key] for key in ("float", "int8", "loss"))
        clips = f"{int8['clips']} clips"
        here["accuracy"] = Fact(int8["accuracy"], clips)
        here["accuracy_loss"] = Fact(round(in_float["accuracy"] - int8["accuracy"], 4), clips)
        here["accuracy_loss_bound"] = Fact(loss["high"], f"95 %, paired bootstrap, {clips}")
    facts = NOT_HERE | (facts_of_release(known) if known else {})
    return facts | {name: fact for name, fact in here.items() if fact.value is not None or name not in facts}


def facts_of_release(known: dict) -> dict[str, Fact]:
    """{metric: Fact} of what models/zoo/NAME/accuracy.json holds."""
    (chosen, mean), details = known["figures"][:2], known["details"]
    stream, note = details["streams"]["report"][0], "by the release of this very model"
    one = next(s for s in details["seeds"] if s["seed"] == chosen["seeds"][0])
    values = {
        "model_bytes": details["model_bytes"],
        "arena_bytes": details["arena"]["arena_bytes"],
        "macs_per_second": details["macs_per_second"],
        "embedded_accuracy": details.get("embedded", {}).get("accuracy"),
        "accuracy": chosen["value"],
        "accuracy_loss": round(one["report_float"] - one["report_int8"], 4),
        "mean_accuracy": mean["value"],
        "mean_accuracy_loss_upper": details["loss_by_int8"]["high"],
        "false_accepts_per_hour": stream["false_accepts_per_hour_upper"],
        "false_reject_rate": stream["false_reject_rate"],
    }
    return {name: Fact(value, note) for name, value in values.items() if value is not None}
