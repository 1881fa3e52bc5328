"""Hard negatives: what a bundle takes for a keyword is cut out of speech that holds none."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed (requirements-host.txt)")
pytest.importorskip("soundfile", reason="soundfile, which reads the sample clips, is not installed")

from released import scene

from models.__main__ import main
from models.waves import read_wave
from toolkit.audio import write_wav

RATE = 16000


@pytest.fixture
def speech(tmp_path):
    """The sample scene, whose words the detector knows, as if it held none; and silence."""
    folder = tmp_path / "speech"
    folder.mkdir()
    write_wav(folder / "words.wav", scene(), RATE)
    write_wav(folder / "silence.wav", np.zeros(4 * RATE, np.int16), RATE)
    return folder


def test_pieces_are_what_the_stream_heard_until_the_report(speech, tmp_path, capsys):
    out = tmp_path / "hard"
    assert main(["mine", "kws", str(speech), "--out", str(out), "--threshold", "0.5"]) == 0
    made = json.loads(capsys.readouterr().out)
    pieces = sorted(out.glob("*.flac"))
    assert sum(made["pieces"].values()) == len(pieces) >= 5
    for number, path in enumerate(pieces):
        assert path.name == f"{number:05d}_{path.stem[6:]}.flac" and path.stem[6:] in made["pieces"]
        piece = read_wave(path)
        assert RATE < len(piece) <= round(2.2 * RATE)
        where = np.lib.stride_tricks.sliding_window_view(scene(), 400)[:, ::40]
        assert (where == piece[:400:40]).all(axis=1).any()  # a stretch of the recording, unchanged


def test_a_higher_threshold_keeps_fewer(speech, tmp_path, capsys):
    counts = []
    for threshold in ("0.15", "0.9999"):
        main(["mine", "kws", str(speech), "--out", str(tmp_path / threshold), "--threshold", threshold])
        counts.append(sum(json.loads(capsys.readouterr().out)["pieces"].values()))
    assert counts[0] > counts[1]


def test_it_refuses_keywords_and_a_folder_in_use(speech, tmp_path, capsys):
    (speech / "transcripts.jsonl").write_text('{"text": "go on"}\n')
    assert main(["mine", "kws", str(speech), "--out", str(tmp_path / "hard")]) == 1
    assert "says 'go', a keyword" in capsys.readouterr().err
    assert main(["mine", "kws", str(speech), "--out", str(speech)]) == 1
    assert "holds files; name a new folder" in capsys.readouterr().err
