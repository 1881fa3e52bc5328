"""The report as one HTML file: no script, no font, no image from elsewhere; light and dark as the reader has it."""

from __future__ import annotations

import math
from html import escape

from .markdown import GATE_HEAD, cost_rows, gate_row, of_layer, worst_layers

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #666; --line: #d8d8d8; --bar: #3b6fb6; --ok: #1a7f37;
  --fail: #c0232c; --page: #fff; --heat: 59, 111, 182; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #9a9a9a; --line: #3a3a3a; --bar: #7aa7e0;
  --ok: #56c271; --fail: #ff7b72; --page: #161616; --heat: 122, 167, 224; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; } .wide td:first-child { min-width: 11rem; }
table { border-collapse: collapse; font-size: .87rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.note { color: var(--soft); } td.cell { text-align: right; padding: .25rem .45rem; }
.ok { color: var(--ok); } .fail { color: var(--fail); font-weight: 700; } .soft { color: var(--soft); }
svg { display: block; width: 100%; max-width: 48rem; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
svg .bar { fill: var(--bar); } svg .axis { stroke: var(--line); } svg .range { stroke: var(--bar); stroke-width: 2; }
"""
LABEL, PLOT, VALUE, ROW = 200, 330, 230, 20  # px of a chart: left of it, itself, right of it, and per row
WORST_LAYERS = 12
LAYER_COLUMNS = {
    "layer": "layer",
    "op": "operator",
    "sqnr_db": "all error, dB",
    "alone_db": "by itself, dB",
    "rounding_db": "rounding, dB",
    "low": "least",
    "high": "greatest",
    "used": "codes used",
    "saturated": "saturated",
}


def page(report: dict) -> str:
    """report: what report.json holds, with "layers" where the error was measured layer by layer."""
    passed, title = report["verdict"] == "pass", f"{report['name']} {report['version']}"
    kind, said = ("ok", "passed") if passed else ("fail", "failed")
    rows = [gate_row(line) for line in report["gate"]]
    kinds = ["fail" if g["is_breach"] else "soft" if g["verdict"] != "ok" else "ok" for g in report["gate"]]
    parts = [
        f"<h1>{escape(title)}: <span class='{kind}'>{said}</span></h1>",
        "" if passed else f"<p class='fail'>{escape(report['sentence'][:1].upper() + report['sentence'][1:])}</p>",
        "<h2>Gate</h2>",
        _gate_table(GATE_HEAD, rows, kinds),
        "<h2>Accuracy</h2>",
        _accuracy(report),
        *(_confusion(report, name) for name in ("report", "embedded") if report[name]),
        "<h2>Cost</h2>",
        _table(["what", "value"], cost_rows(report)),
        "<h2>Runtimes</h2>",
        _runtimes(report),
        _layers(report.get("layers") or []),
        f"<p class='soft'>model {escape(report['model_sha256'])}</p>",
    ]
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


def bars(rows: list[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars: (label, length from 0 to 1, what it is in words)."""
    shapes = []
    for i, (label, length, words) in enumerate(rows):
        y, width = i * ROW, max(1.0, min(1.0, length) * PLOT)
        shapes += [
            f"<text x='{LABEL - 8}' y='{y + 14}' text-anchor='end'>{escape(label)}</text>",
            f"<rect class='bar' x='{LABEL}' y='{y + 3}' width='{width:.1f}' height='{ROW - 6}'/>",
            f"<text x='{LABEL + width + 6:.1f}' y='{y + 14}'>{escape(words)}</text>",
        ]
    return _svg(shapes, len(rows), title)


def intervals(rows: list[tuple[str, dict]], title: str) -> str:
    """Dots with their 95 % intervals on a common axis: (label, {value, low, high}), shares."""
    low = math.floor(20 * min(r["low"] for _, r in rows)) / 20
    low, high = min(low, 0.95), 1.0
    x = lambda share: LABEL + (share - low) / (high - low) * PLOT  # noqa: E731
    shapes = []
    for i, (label, r) in enumerate(rows):
        y = i * ROW + 10
        shapes += [
            f"<text x='{LABEL - 8}' y='{y + 4}' text-anchor='end'>{escape(label)}</text>",
            f"<line class='axis' x1='{LABEL}' x2='{LABEL + PLOT}' y1='{y}' y2='{y}'/>",
            f"<line class='range' x1='{x(r['low']):.1f}' x2='{x(r['high']):.1f}' y1='{y}' y2='{y}'/>",
            f"<circle class='bar' cx='{x(r['value']):.1f}' cy='{y}' r='4'/>",
            f"<text x='{LABEL + PLOT + 10}' y='{y + 4}'>{r['value']:.2%} ({r['low']:.2%} to {r['high']:.2%})</text>",
        ]
    y = len(rows) * ROW + 14
    shapes += [f"<text x='{x(s):.1f}' y='{y}' text-anchor='middle'>{s:.0%}</text>" for s in (low, high)]
    return _svg(shapes, len(rows) + 1, title)


def _svg(shapes: list[str], rows: int, title: str) -> str:
    return (
        f"<svg viewBox='0 0 {LABEL + PLOT + VALUE} {rows * ROW}' role='img'><title>{escape(title)}</title>"
        f"{''.join(shapes)}</svg>"
    )


def _gate_table(head: list[str], rows: list[list[str]], kinds: list[str]) -> str:
    verdict, note = head.index("verdict"), len(head) - 1
    lines = []
    for row, kind in zip(rows, kinds):
        cells = [
            f"<td class='{kind if i == verdict else 'note' if i == note else ''}'>{escape(cell.strip('*'))}</td>"
            for i, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return _around(head, lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return _around(head, [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows])


def _around(head: list[str], lines: list[str]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<div class='wide'><table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _accuracy(report: dict) -> str:
    rows, losses = [], []
    for name in ("report", "embedded"):
        measured = report[name]
        if not measured:
            continue
        for form in ("float", "int8") if "float" in measured else ("int8",):  # no float: quantize/own.py
            r = measured[form]
            rows.append((f"{name}, {form}", {"value": r["accuracy"], "low": r["low"], "high": r["high"]}))
        if "float" not in measured:
            continue
        loss = {key: 100 * value for key, value in measured["loss"].items()}
        losses.append(
            f"on {name} int8 loses {loss['value']:.2f} points ({loss['low']:.2f} to {loss['high']:.2f}) of float's "
            f"accuracy on the same {measured['int8']['clips']} clips"
        )
    said = "; ".join(losses)
    said = f"<p>{said[:1].upper()}{said[1:]} (paired bootstrap).</p>" if losses else ""
    return intervals(rows, "accuracy with 95 % intervals") + said


def _confusion(report: dict, name: str) -> str:
    """Rows true, columns predicted, in clips; the shade is the share of the row."""
    labels, confusion = report[name]["labels"], report[name]["int8"]["confusion"]
    lines = []
    for label, row in zip(labels, confusion):
        cells = "".join(
            f"<td class='cell' style='background: rgba(var(--heat), {0.7 * n / max(1, sum(row)):.2f})'>{n or ''}</td>"
            for n in row
        )
        lines.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    return f"<h2>Confusion of int8 on {name}: rows are true, columns heard</h2>" + _around(["", *labels], lines)


def _runtimes(report: dict) -> str:
    parts = [f"<p>Step and resized whole are equal in {escape(', '.join(report['runtimes']))}.</p>"]
    for runtime, found in report["parity_lsb"].items():
        most = math.log10(1 + max(found.values()))
        rows = [(f"{lsb} LSB", math.log10(1 + n) / most, f"{n:,} scores") for lsb, n in found.items()]
        title = f"{runtime} beside {report['runtimes'][0]}: scores by their difference (logarithmic)"
        parts.append(f"<p>{escape(title)}</p>{bars(rows, title)}")
    return "".join(parts)


def _layers(layers: list[dict]) -> str:
    """layers: {layer, op, sqnr_db, ...} each, as quantize/layer_error.py measures them."""
    if not layers:
        return ""
    worst = worst_layers(layers)[:WORST_LAYERS]
    most = max(1.0, *(of_layer(layer) for layer in worst))
    rows = [(_short(v["layer"]), max(0.0, of_layer(v)) / most, f"{of_layer(v):.1f} dB, {v['op']}") for v in worst]
    chart = bars(rows, "signal to quantization noise of each layer by itself, the worst first")
    keys = [key for key in LAYER_COLUMNS if key in layers[0]]
    cells = [[_number(layer.get(key)) for key in keys] for layer in layers]
    every = _table([LAYER_COLUMNS[key] for key in keys], cells)
    return (
        "<h2>Where the error of int8 is largest</h2><p>Signal to quantization noise of each layer by itself, the worst "
        f"first.</p>{chart}<details><summary>all {len(layers)} activations</summary>{every}</details>"
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return name if len(name) <= 26 else "..." + name[-23:]
