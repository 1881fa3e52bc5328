"""Misuse of the host's commands: one sentence and exit status 2, as of `edge-audio` (test_bad_input.py)."""

from __future__ import annotations

import re

import pytest

from devices.__main__ import main as devices
from models.__main__ import main as models
from quantize.__main__ import main as quantize


@pytest.mark.parametrize("program, argv, words", [
    (devices, [], "the following arguments are required: COMMAND; see `python -m devices --help`"),
    (devices, ["deply"], "invalid choice: 'deply'"),
    (devices, ["status"], "the following arguments are required: --host; see `python -m devices status --help`"),
    (devices, ["logs", "--host", "pi@hall", "--lines", "all"], "argument -n/--lines: invalid int value: 'all'"),
    (devices, ["keyring", "sing", "rings"], "invalid choice: 'sing'"),
    (models, ["train"], "the following arguments are required: recipe, --data; see `python -m models train --help`"),
    (models, ["speak", "text", "out", "--split", "all"], "argument --split: invalid choice: 'all'"),
    (quantize, [], "the following arguments are required: recipe; see `python -m quantize --help`"),
    (quantize, ["kws.yaml", "--wieghts", "a.npz"], "unrecognized arguments: --wieghts a.npz"),
])
def test_misuse_is_one_sentence(capsys, program, argv, words):
    assert program(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"(devices|models|quantize): [^\n]+\.\n", err) and words in err
