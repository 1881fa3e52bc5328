"""The card of a released model: what it is for (written by hand) and what was measured (from accuracy.json)."""

from __future__ import annotations

from models.recipe import Recipe


def make_card(recipe: Recipe, about: str, known: dict, licences: list[dict]) -> str:
    """Markdown. about: the hand-written part; known: what accuracy.json holds, see release.py."""
    details, (chosen, mean) = known["details"], known["figures"]
    megamacs = details["macs_per_second"] / 1e6
    parts = [
        f"# {recipe.name} {recipe.version}",
        about.strip(),
        "## Measured",
        f"By `python -m quantize.release` on {chosen['data']}, split `report` ({chosen['clips']} clips), "
        f"rule {chosen['rule']}, {chosen['runtime']}; intervals at 95 %.",
        _table(["what", "accuracy"], _accuracy_rows(details, chosen, mean)),
        "Recall per label on `report`:",
        _table(list(details["report"]["recall"]), [[f"{v:.1%}" for v in details["report"]["recall"].values()]]),
        "Clips joined into one stream with noise between them and no reset:",
        _table(
            ["split", "keywords", "found in the stream", "right as clips", "other words", "false accepts", "hours"],
            [_stream_row(s) for s in details["stream"]],
        ),
        f"{details['model_bytes']} bytes of TFLite, {megamacs:.2f} M multiply-accumulates per second of audio. "
        "Cost on a machine: `edge-audio bench kws`.",
        "## Data",
        "\n".join(f"- {d['name']}: {d['licence']} ({d['source']})" for d in licences),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy_rows(details: dict, chosen: dict, mean: dict) -> list[list[str]]:
    embedded, seeds = details["embedded"], ", ".join(map(str, mean["seeds"]))
    rows = [
        [f"int8 step, this model (seed {chosen['seeds'][0]}, the best on `tune`)", _interval(chosen)],
        [f"int8 step, mean of the seeds {seeds}", _interval(mean)],
    ]
    rows += [
        [f"seed {s['seed']}: float, int8", f"{s['report_float']:.2%}, {s['report_int8']:.2%}"] for s in details["seeds"]
    ]
    spoken = {**embedded, "value": embedded["accuracy"]}
    return [*rows, [f"int8 step, embedded text-to-speech set ({embedded['clips']} clips)", _interval(spoken)]]


def _stream_row(s: dict) -> list[str]:
    def of_keywords(count: int) -> str:
        return f"{count} ({count / s['keywords']:.1%})"

    found, alone = of_keywords(s["found_in_stream"]), of_keywords(s["found_as_clips"])
    return [str(v) for v in (s["split"], s["keywords"], found, alone, s["other_words"], s["false_accepts"], s["hours"])]


def _interval(figure: dict) -> str:
    return f"{figure['value']:.2%} ({figure['low']:.2%} to {figure['high']:.2%})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
