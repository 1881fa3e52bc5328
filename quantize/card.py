"""The card of a released model: what it is for (written by hand) and what was measured (from accuracy.json)."""

from __future__ import annotations

from models.recipe import Recipe


def make_card(recipe: Recipe, about: str, known: dict, licences: list[dict]) -> str:
    """Markdown. known: what accuracy.json holds, see release.py."""
    details, (chosen, mean) = known["details"], known["figures"]
    lines = [f"# {recipe.name} {recipe.version}", "", about.strip(), "", "## Measured", ""]
    lines += [f"Command: `python -m quantize.release` on {chosen['data']}, split `report` ({chosen['clips']} clips), rule {chosen['rule']}, "
              f"{chosen['runtime']}; intervals at 95 %.", ""]
    lines += ["| what | accuracy |", "|---|---|"]
    lines += [f"| int8 step, this model (seed {chosen['seeds'][0]}, the best of {len(mean['seeds'])} on `tune`) | {_interval(chosen)} |",
              f"| int8 step, mean of seeds {', '.join(map(str, mean['seeds']))} | {_interval(mean)} |"]
    lines += [f"| seed {s['seed']}: float, int8 | {s['report_float']:.2%}, {s['report_int8']:.2%} |" for s in details["seeds"]]
    e = details["embedded"]
    lines += [f"| int8 step, embedded text-to-speech set ({e['clips']} clips) | {e['accuracy']:.2%} ({e['low']:.2%} to {e['high']:.2%}) |", ""]
    recall = details["report"]["recall"]
    lines += ["Recall per label on `report`:", "", "| " + " | ".join(recall) + " |", "|" + "---|" * len(recall),
              "| " + " | ".join(f"{v:.1%}" for v in recall.values()) + " |", ""]
    lines += ["Clips joined into one stream with noise under and between them and no reset:", "",
              "| split | keyword clips | found in the stream | right as single clips | other words | false accepts | hours |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {s['split']} | {s['keywords']} | {s['found_in_stream']} ({s['found_in_stream'] / s['keywords']:.1%}) | {s['found_as_clips']} "
              f"({s['found_as_clips'] / s['keywords']:.1%}) | {s['other_words']} | {s['false_accepts']} | {s['hours']} |" for s in details["stream"]]
    lines += ["", f"{details['model_bytes']} bytes of TFLite, {details['macs_per_second'] / 1e6:.2f} M multiply-accumulates per second of audio. "
              "Cost on a machine: `edge-audio bench kws`.", "", "## Data", ""]
    lines += [f"- {d['name']}: {d['licence']} ({d['source']})" for d in licences]
    return "\n".join(lines) + "\n"


def _interval(figure: dict) -> str:
    return f"{figure['value']:.2%} ({figure['low']:.2%} to {figure['high']:.2%})"
