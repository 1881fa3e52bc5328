"""The report in its three forms says the same, completely; the HTML needs nothing from elsewhere."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from test_gate import BASELINE, BOARD, GOOD, LINUX, RECIPE, Fact

from quantize.gate import FAIL, gate, sentence, shown
from quantize.html import page
from quantize.markdown import GATE_HEAD, markdown, table

LABELS = ["yes", "no", "unknown", "silence"]
CONFUSION = [[28, 1, 1, 0], [0, 30, 0, 0], [2, 0, 28, 0], [0, 0, 0, 30]]
RESULT = {"accuracy": 0.9667, "low": 0.9173, "high": 0.987, "clips": 120, "recall": {}, "confusion": CONFUSION}
SET = {"float": RESULT, "int8": RESULT, "loss": {"value": 0.0, "low": -0.0083, "high": 0.0083}, "labels": LABELS}
LAYERS = [
    {"layer": f"net/block_{i:02}/<conv> & | more", "op": "<b>", "sqnr_db": 30.0 - i, "alone_db": 40.0 - i, "used": 0.5}
    for i in range(20)
]
VOID = {"meta", "line", "rect", "circle"}


def report(**changes):
    facts = GOOD | changes.pop("facts", {})
    lines = gate(RECIPE, [BOARD, LINUX], BASELINE, facts)
    is_broken = any(line.is_breach for line in lines)
    made = {
        "name": "kws",
        "version": "0.2.0",
        "model_sha256": "e" * 64,
        "model_bytes": 59_000,
        "compressed_bytes": 50_000,
        "bundle_bytes": 300_000,
        "macs_per_second": 2_900_000,
        "ops": ["ADD", "CONV_2D"],
        "runtimes": ["tflite-runtime-2.14", "ai-edge-litert-2.3"],
        "parity_lsb": {"ai-edge-litert-2.3": {0: 9_000, 1: 12}},
        "embedded": SET,
        "report": SET,
        "arena": {"arena_bytes": 27_000, "runtime": "tflite-micro-0"},
        "block": {"us": 11.6, "ratio": 1.0, "low": 0.97, "high": 1.02, "reference": "kws 0.2.0"},
        "gate": [asdict(line) for line in lines],
        "verdict": "fail" if is_broken else "pass",
        "sentence": sentence(lines) if is_broken else None,
        "layers": LAYERS,
    }
    return json.loads(json.dumps(made | changes))  # as it is read back


class Page(HTMLParser):
    """Texts by cell, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.rows = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "action", "data") and "url(" not in (value or "")
        assert tag not in ("script", "link", "img", "iframe", "object", "use")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


BROKEN = report(facts={"model_bytes": Fact(70_000), "accuracy": Fact(None, "needs --data")})


@pytest.mark.parametrize("made", [report(), BROKEN, report(report=None, layers=None, parity_lsb={})])
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(made):
    text = page(made)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.I)
    assert Page(text).rows and text.count("<svg") == text.count("</svg>") >= 1
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text


@pytest.mark.parametrize("made", [report(), BROKEN])
def test_every_limit_is_in_the_page_and_in_the_table(made):
    rows = [row for row in Page(page(made)).rows if len(row) == len(GATE_HEAD)]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in markdown(made).splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("*") for cell in line] for line in lines if len(line) == len(GATE_HEAD)]
    assert rows[0] == cells[0] == GATE_HEAD
    assert len(made["gate"]) == len(rows) - 1 == len(cells) - 2
    for line, row, cell in zip(made["gate"], rows[1:], cells[2:]):
        assert row == cell and row[0] == line["title"] and row[1] == line["source"]
        assert (row[3], row[5]) == (shown(line["name"], line["measured"]), line["verdict"])


def test_the_sentence_leads_both():
    assert BROKEN["verdict"] == "fail" and FAIL in page(BROKEN)
    assert "The size of the model is 70,000 bytes, 10,000 bytes over" in "".join(Page(page(BROKEN)).texts[:8])
    assert "70,000 bytes, 10,000 bytes over" in markdown(BROKEN).splitlines()[0]
    assert markdown(report()).startswith("# kws 0.2.0: the gate is passed\n")


def test_both_say_what_was_not_measured():
    for text in (page(BROKEN), markdown(BROKEN)):
        assert "not measured" in text and "needs --data" in text


def test_the_confusion_of_both_sets_is_shown():
    rows = Page(page(report())).rows
    at = [i for i, row in enumerate(rows) if row == ["", *LABELS]]
    assert len(at) == 2
    for i in at:
        assert [[int(n or 0) for n in row[1:]] for row in rows[i + 1 : i + 5]] == CONFUSION


def test_the_worst_layers_are_named_first_and_strange_names_do_no_harm():
    text = page(report())
    drawn = [text for text in Page(text).texts if text.endswith(" dB, <b>")]
    assert drawn[0] == "21.0 dB, <b>" and len(drawn) == 12 and "<conv>" not in text and "<b>" not in text
    assert "...lock_19/<conv> & | more" in Page(text).texts  # so long that it would leave the picture
    assert "net/block_19/<conv> & \\| more" in markdown(report())


def test_differences_of_runtimes_are_drawn_per_lsb():
    texts = Page(page(report())).texts
    assert "9,000 scores" in texts and "12 scores" in texts and "1 LSB" in texts
    assert "0 LSB: 9,000, 1 LSB: 12" in markdown(report())


def test_every_markdown_table_is_well_formed():
    for block in markdown(report()).split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1 and set(block.splitlines()[1]) == set("| -")


def test_a_cell_may_hold_what_ends_cells_and_rows():
    assert table(["a"], [["x|y\nz"]]).splitlines()[2] == "| x\\|y z |"
