"""The report in Markdown, for the summary of a CI job or a comment on a merge request."""

from __future__ import annotations

from .gate import NOT_MEASURED, allowed, shown

GATE_HEAD = ["limit", "of", "allowed", "measured", "margin", "verdict", "how"]


def markdown(report: dict) -> str:
    """report: what report.json holds, with "layers" where the error was measured layer by layer."""
    counts = {verdict: sum(g["verdict"] == verdict for g in report["gate"]) for verdict in ("ok", NOT_MEASURED)}
    verdict = "passed" if report["verdict"] == "pass" else f"**failed**: {report['sentence']}"
    parts = [
        f"# {report['name']} {report['version']}: the gate is {verdict}",
        f"{counts['ok']} of {len(report['gate'])} limits kept, {counts[NOT_MEASURED]} not measured.",
        table(GATE_HEAD, [gate_row(line) for line in report["gate"]]),
        "## Accuracy",
        table(["set", "clips", "float", "int8 step", "loss by int8"], _accuracy_rows(report)),
        "## Cost",
        table(["what", "value"], cost_rows(report)),
        "## Runtimes",
        f"Step and resized whole are equal in {', '.join(report['runtimes'])}.",
    ]
    if report["parity_lsb"]:
        rows = [
            [runtime, ", ".join(f"{lsb} LSB: {n:,}" for lsb, n in found.items())]
            for runtime, found in report["parity_lsb"].items()
        ]
        parts.append(table([f"beside {report['runtimes'][0]}", "scores that differ"], rows))
    if report.get("layers"):
        rows = [[v["layer"], v["op"], f"{of_layer(v):.1f} dB"] for v in worst_layers(report["layers"])[:5]]
        parts += ["## Where the error of int8 is largest", table(["layer", "operator", "signal to noise"], rows)]
    return "\n\n".join(parts) + "\n"


def of_layer(layer: dict) -> float:
    """Signal to quantization noise of a layer by itself in dB, or of all up to it where only that was measured."""
    return layer.get("alone_db", layer["sqnr_db"])


def worst_layers(layers: list[dict]) -> list[dict]:
    """By falling error of each by itself; layers as quantize/layer_error.py measures them."""
    return sorted(layers, key=of_layer)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a cell may hold anything."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = str.maketrans({"\\": "\\\\", "|": "\\|", "\n": " "})
    return "\n".join(f"| {' | '.join(str(cell).translate(escaped) for cell in line)} |" for line in lines)


def cost_rows(report: dict) -> list[list[str]]:
    """[what, value] of everything that a model costs."""
    block, arena = report["block"], report["arena"]
    return [
        ["TFLite", f"{report['model_bytes']:,} bytes, {report['compressed_bytes']:,} compressed"],
        ["bundle", f"{report['bundle_bytes']:,} bytes"],
        ["tensor arena", f"{arena['arena_bytes']:,} bytes in {arena['runtime']}" if arena["arena_bytes"] else "-"],
        ["multiply-accumulates", f"{report['macs_per_second']:,} per second of audio"],
        ["20 ms block on this machine", f"{block['us']} us, {block['ratio']:.2f} times {block['reference']}"],
        ["operators", ", ".join(report["ops"])],
    ]


def gate_row(line: dict) -> list[str]:
    """The cells of one limit, under GATE_HEAD."""
    name = line["name"]
    verdict = f"**{line['verdict']}**" if line["is_breach"] else line["verdict"]
    measured, margin = shown(name, line["measured"]), shown(name, line["margin"], is_margin=True)
    return [line["title"], line["source"], allowed(name, line["limit"]), measured, margin, verdict, line["note"]]


def _accuracy_rows(report: dict) -> list[list[str]]:
    rows = []
    for name in ("embedded", "report"):
        if report[name]:
            f, q, loss = (report[name].get(key) for key in ("float", "int8", "loss"))  # no float: quantize/own.py
            forms = [f"{r['accuracy']:.2%} ({r['low']:.2%} to {r['high']:.2%})" if r else "-" for r in (f, q)]
            said = loss and f"{100 * loss['value']:.2f} points ({100 * loss['low']:.2f} to {100 * loss['high']:.2f})"
            rows.append([name, str(q["clips"]), *forms, said or "-"])
    return rows
