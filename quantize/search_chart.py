"""What a search found, for people: its table in Markdown and its picture."""

from __future__ import annotations

from pathlib import Path

from .gate import shown
from .markdown import table
from .search_space import BITS

OF_BITS = """bits: 8 is int8, as it ships; 4 is int8 too, with 16 values per kernel: fewer bytes where it is stored
compressed, and nothing else; 16 has int16 activations and cannot be shipped: its integers are not the same in every
runtime."""
COSTS = {"macs_per_second": "MAC/s", "model_bytes": "bytes", "compressed_bytes": "compressed bytes"}


def markdown(head: str, space: list[str], cost: str, found: list[dict]) -> str:
    """The rows of quantize/search.py, the front first, each with the limit that binds."""
    ordered = sorted(found, key=lambda row: (not row["is_front"], row["cost"]))
    further = ["compressed_bytes"] if BITS in space and cost != "compressed_bytes" else []
    rows = [
        [
            "yes" if row["is_front"] else "",
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row["parameters"].values()),
            f"{row['cost']:,}",
            *(f"{row['facts'][name]:,}" if row["is_trained"] else "-" for name in further),
            _accuracy(row),
            _binding(row),
        ]
        for row in ordered
    ]
    columns = ["front", *space, *(COSTS[name] for name in (cost, *further)), "accuracy on tune", "binding limit"]
    return "\n\n".join([head, table(columns, rows), *([OF_BITS] if BITS in space else [])]) + "\n"


def draw_front(title: str, cost: str, limit: float | None, found: list[dict], path: Path) -> None:
    """Accuracy over cost with 95 % intervals: the front, what lies behind it, what breaks a limit of the profile, what
    no bundle could hold. What was refused before training has no accuracy and stands on the axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    front = sorted((row for row in found if row["is_front"]), key=lambda row: row["cost"])
    behind = [row for row in found if row["fits"] and not row["is_front"]]
    over = [row for row in found if row["ships"] and not row["fits"] and row["accuracy"] is not None]
    wide = [row for row in found if not row["ships"] and row["accuracy"] is not None]
    refused = [row for row in found if row["accuracy"] is None]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for rows, style, label in (
        (front, "o-", "front"),
        (behind, "C7o", "behind it"),
        (over, "C3x", "over a limit"),
        (wide, "C1^", "int16, cannot be shipped"),
    ):
        if rows:
            x, y = [row["cost"] for row in rows], [100 * row["accuracy"] for row in rows]
            ends = [[100 * abs(row[end] - row["accuracy"]) for row in rows] for end in ("low", "high")]
            axes.errorbar(x, y, yerr=ends, fmt=style, capsize=3, elinewidth=0.8, label=label)
    if refused:
        at = axes.get_xaxis_transform()  # x in data, y from 0 at the axis to 1
        axes.plot([row["cost"] for row in refused], [0.02] * len(refused), "C3|", transform=at, label="not measured")
    if limit is not None:
        axes.axvline(limit, color="grey", linestyle=":", label="limit of the profile")
    axes.set(xlabel=COSTS[cost], ylabel="accuracy on tune / %", title=title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _accuracy(row: dict) -> str:
    if row["accuracy"] is None:
        return row["failed"] or "refused before training"
    return f"{100 * row['accuracy']:.2f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _binding(row: dict) -> str:
    """The share of the limit that is used, as in flash: 93 % of 1,000,000 bytes; and what nobody measured."""
    binds = row["binds"]
    said = f"{binds['title']}: {_of_limit(binds)}" if binds else "none"
    if binds and binds["verdict"] == "FAIL":
        said = f"**over** {said}"
    if not row["ships"]:
        said = f"**cannot be shipped**; {said}"
    return said + (f" (not measured: {', '.join(row['not_measured'])})" if row["not_measured"] else "")


def _of_limit(binds: dict) -> str:
    if binds["share"] is None:
        return f"{shown(binds['limit'], binds['measured'])}, of which not all are allowed"
    return f"{100 * binds['share']:.0f} % of {shown(binds['limit'], binds['allowed'])}"
