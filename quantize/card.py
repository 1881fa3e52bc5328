"""The card of a released model: what it is for (written by hand) and what was measured (from accuracy.json)."""

from __future__ import annotations

from models.conditions import condition_table
from models.recipe import Recipe


def make_card(recipe: Recipe, about: str, known: dict, licences: list[dict]) -> str:
    """Markdown. about: the hand-written part; known: what accuracy.json holds, see release.py."""
    details, (chosen, mean), decision = known["details"], known["figures"], known["decision"]
    streams, loss, noises = details["streams"], details["loss_by_int8"], ", ".join(details["conditions"]["noise"])
    negatives = {split: ", ".join(folders) for split, folders in streams["negatives"].items()}
    parts = [
        f"# {recipe.name} {recipe.version}",
        about.strip(),
        "## Accuracy of clips",
        f"By `python -m quantize.release` on {chosen['data']}, split `report` ({chosen['clips']} clips), "
        f"rule {chosen['rule']}, {chosen['runtime']}; intervals at 95 %.",
        _table(["what", "accuracy"], _accuracy_rows(details, chosen, mean)),
        f"int8 loses {loss['value']:.2%} ({loss['low']:.2%} to {loss['high']:.2%}) of float's accuracy on the same "
        "clips (paired bootstrap over the clips, pooled over the trainings).",
        "Recall per label on `report`:",
        _table(list(details["report"]["recall"]), [[f"{v:.1%}" for v in details["report"]["recall"].values()]]),
        _mistakes(details["mistakes"]),
        "## By level and noise",
        f"The same clips without silence; noise that training has not heard ({noises}).",
        _table(*condition_table(details["conditions"])),
        "## Streams",
        f"Keywords of the split at known times over its background, and keyword-free audio "
        f"({negatives['report']} on `report`, {negatives['tune']} on `tune`). The threshold "
        f"{decision['threshold']:.4f}, held for {decision['hold_frames']} scores, each over a window of "
        f"{decision['stream_window_frames']}, was chosen on `tune` for at most {streams['chosen_for']} false accepts "
        f"per hour (upper 95 % bound); on `report`, which states what it gives, {streams['target_fa_per_hour']} are "
        "allowed.",
        _table(
            ["split", "background", "missed", "false accepts", "hours", "per hour"],
            [_stream_row(split, point) for split in ("tune", "report") for point in streams[split]],
        ),
        _other_words(streams["other_words"]),
        "![detection-error trade-off](det.png)",
        "## Cost",
        _cost(details),
        "## Data",
        "\n".join(f"- {d['name']}: {d['licence']} ({d['source']})" for d in licences),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy_rows(details: dict, chosen: dict, mean: dict) -> list[list[str]]:
    seeds = ", ".join(map(str, mean["seeds"]))
    rows = [
        [f"int8 step, this model (seed {chosen['seeds'][0]}, the best on the streams of `tune`)", _interval(chosen)],
        [f"int8 step, mean of the seeds {seeds}", _interval(mean)],
        [f"float, mean of the seeds {seeds}", _interval(details["mean_float"])],
        ["int8 step, mean, without the silence clips", _interval(details["mean_without_silence"])],
    ]
    rows += [
        [f"seed {s['seed']}: float, int8", f"{s['report_float']:.2%}, {s['report_int8']:.2%}"] for s in details["seeds"]
    ]
    if "embedded" in details:
        spoken = details["embedded"]
        figure = _interval({**spoken, "value": spoken["accuracy"]})
        rows.append([f"int8 step, embedded text-to-speech set ({spoken['clips']} clips)", figure])
    return rows


def _mistakes(mistakes: list[list]) -> str:
    if not mistakes:
        return "No clip of `report` is taken for another label."
    return "Commonest mistakes: " + ", ".join(f"{a} heard as {b} ({n})" for a, b, n in mistakes) + "."


def _stream_row(split: str, point: dict) -> list[str]:
    low, high = point["false_reject_rate_low"], point["false_reject_rate_high"]
    missed = (
        f"{point['false_rejects']} of {point['keywords']}: {point['false_reject_rate']:.1%} ({low:.1%} to {high:.1%})"
    )
    names = ("", "_low", "_high", "_upper")
    rates = [point[f"false_accepts_per_hour{name}"] for name in names]
    rate = "not stated: too few hours"
    if rates[0] is not None:
        rate = "{:.3f} ({:.3f} to {:.3f}), at most {:.3f}".format(*rates)
    return [split, point["background"], missed, str(point["false_accepts"]), f"{point['hours']:.1f}", rate]


def _other_words(words: dict) -> str:
    return (
        f"Of {words['words']} single other words of `report`, {words['mistaken']} are taken for a keyword in the clean "
        f"stream ({words['mistaken_per_100']:.1f} of 100, {words['mistaken_per_100_low']:.1f} to "
        f"{words['mistaken_per_100_high']:.1f})."
    )


def _cost(details: dict) -> str:
    arena = details["arena"]
    memory = f"{arena['arena_bytes']} bytes of tensor arena in {arena['runtime']}" if arena["arena_bytes"] else ""
    return (
        f"{details['model_bytes']} bytes of TFLite{', ' * bool(memory)}{memory}, "
        f"{details['macs_per_second'] / 1e6:.2f} M multiply-accumulates per second of audio, {details['block_us']} us "
        f"of CPU time per 20 ms block in {details['block_runtime']} on the busy x86-64 machine of the release. On "
        "yours: `edge-audio bench NAME`."
    )


def _interval(figure: dict) -> str:
    return f"{figure['value']:.2%} ({figure['low']:.2%} to {figure['high']:.2%})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
