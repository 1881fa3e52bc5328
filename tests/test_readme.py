"""The README's program and commands are run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT / "models" / "samples" / "scene.wav", tmp_path)
    return tmp_path


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_program_detects_keywords_in_ten_lines(folder):
    (program,) = blocks("python")
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = [line.split()[0] for line in done.stdout.splitlines()]
    utterances = json.loads((ROOT / "models" / "samples" / "scene.json").read_text())["utterances"]
    spoken = [u["label"] for u in utterances if u["label"] != "unknown"]
    heard = iter(words)
    assert all(label in heard for label in spoken)  # in this order
    assert len(words) <= len(spoken) + 1


def test_every_edge_audio_command_of_the_readme_runs(folder):
    clips = folder / "clips"
    clips.mkdir()
    shutil.copy(folder / "scene.wav", clips / "a.wav")
    shutil.copy(folder / "scene.wav", folder / "a.wav")
    commands = [line.split("#")[0].split() for line in blocks("sh")[1].splitlines()]
    assert {c[1] for c in commands} >= {
        "run",
        "listen",
        "classify",
        "info",
        "selftest",
        "bench",
        "plot",
        "features",
        "doctor",
    }
    for command in commands:
        if command[1] == "listen":
            continue  # needs a microphone: tests/test_listen.py
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", *command[1:]],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)


def test_every_make_target_and_file_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path in re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"`((?:models|tests|toolkit)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}
