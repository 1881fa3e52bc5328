"""The GitHub Action and the GitLab job: their YAML is what the services read, their scripts do what they promise."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)
if shutil.which("bash") is None:
    pytest.skip("bash is not installed", allow_module_level=True)

import yaml
from tone_words import RECIPE as TONES
from tone_words import make_tone_words

from quantize.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
ACTION = yaml.safe_load((ROOT / "quantize" / "action.yml").read_text("utf-8"))
(JOB,) = yaml.safe_load((ROOT / "quantize" / "gitlab-ci.yml").read_text("utf-8")).values()
STEPS = ACTION["runs"]["steps"]
(QUANTIZE,) = [step for step in STEPS if step.get("id") == "quantize"]
OPTIONS = ("data", "weights", "calibration", "evaluation", "baseline", "key")
ERRORS = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]  # how GitHub calls it

FAKE_PYTHON = """#!/usr/bin/env bash
# A Python whose quantize writes down how it was called and the report that it is told to.
case "$3" in quantize*) ;; *) exec "{python}" "$@" ;; esac
printf '%s\\n' "$PYTHONPATH" "$@" >"{folder}/called"
cp "{folder}"/report.* build/quantize/ 2>/dev/null
exit "$(cat "{folder}/status")"
"""


@pytest.fixture
def python(tmp_path):
    """A fake Python; call it with the status and the report that its quantize shall give."""
    folder = tmp_path / "fake"
    folder.mkdir()
    path = folder / "python with space"
    path.write_text(FAKE_PYTHON.format(python=sys.executable, folder=folder))
    path.chmod(0o755)

    def tell(status, report=None):
        (folder / "status").write_text(str(status))
        if report:
            (folder / "report.json").write_text(json.dumps(report))
            (folder / "report.md").write_text(f"# {report['verdict']}\n")
        return path

    return tell


def act(folder, **inputs):
    """The Quantize step in a workspace `folder`: (finished process, outputs, summary, how quantize was called)."""
    workspace = folder / "work"
    (workspace / "build" / "quantize").mkdir(parents=True, exist_ok=True)
    outputs, summary, called = folder / "outputs", folder / "summary", folder / "fake" / "called"
    values = {name: item.get("default", "") for name, item in ACTION["inputs"].items()} | inputs
    given = {key: values[re.fullmatch(r"\$\{\{ inputs\.(\w+) }}", v)[1]] for key, v in QUANTIZE["env"].items()}
    environment = {**os.environ, **given, "GITHUB_ACTION_PATH": str(ROOT / "quantize")}
    environment |= {"GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(summary)}
    done = subprocess.run(
        [*ERRORS, "-c", QUANTIZE["run"]], cwd=workspace, env=environment, capture_output=True, text=True
    )
    found = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    said = summary.read_text() if summary.exists() else ""
    return done, found, said, called.read_text().splitlines() if called.exists() else []


def test_the_action_is_a_composite_one_that_github_reads():
    assert ACTION["runs"]["using"] == "composite" and ACTION["name"] and ACTION["description"]
    assert set(ACTION["inputs"]) == {"recipe", "model", "profile", "out", "python", *OPTIONS}
    for item in ACTION["inputs"].values():
        assert item["description"] and ("default" in item) != item.get("required", False)
    for step in STEPS:
        assert ("run" in step) != ("uses" in step) and step.get("shell") == ("bash" if "run" in step else None)
    ids = {step["id"] for step in STEPS if "id" in step}
    for name, item in ACTION["outputs"].items():
        step, output = re.fullmatch(r"\$\{\{ steps\.(\w+)\.outputs\.(\w+) }}", item["value"]).groups()
        assert step in ids and output == name and f"{name}=" in QUANTIZE["run"]


def test_no_value_is_pasted_into_a_script():
    assert not [step for step in STEPS if "${{" in step.get("run", "")]


def test_inputs_are_the_options_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    options = capsys.readouterr().out
    for script in (QUANTIZE["run"], *JOB["script"]):
        passed = set(re.findall(r"--([a-z]+)", script)) - {"recipe", "representative"}
        assert passed == {"out", "profile", *OPTIONS} and all(f"--{name} " in options for name in passed)


SCRIPTS = [step["run"] for step in STEPS if "run" in step] + JOB["before_script"] + JOB["script"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_bash(script):
    done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_environment_is_made_of_targets_that_exist(tmp_path):
    (step,) = [step for step in STEPS if step["name"] == "Environment"]
    (line,) = [line for line in JOB["before_script"] if "make" in line]
    environment = {**os.environ, "GITHUB_ACTION_PATH": str(ROOT / "quantize"), "toolkit": str(ROOT), "PYTHON": ""}
    for script in (step["run"], line):
        dry = script.replace("make -C", "make -n -C")
        done = subprocess.run([*ERRORS, "-c", dry], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert dry != script and done.returncode == 0, done.stderr


def test_a_pass_gives_bundle_report_and_summary(tmp_path, python):
    fake = python(0, {"verdict": "pass", "bundle": "build/quantize/kws.eab", "sentence": None})
    done, outputs, summary, _ = act(tmp_path, recipe="a.yaml", python=str(fake))
    assert done.returncode == 0, done.stderr
    report = "build/quantize/report.html"
    assert outputs == {"verdict": "pass", "bundle": "build/quantize/kws.eab", "report": report}
    assert summary == "# pass\n" and "::error" not in done.stdout


def test_a_breach_fails_with_the_sentence_and_no_bundle(tmp_path, python):
    fake = python(1, {"verdict": "fail", "bundle": None, "sentence": "the size of the model is 60,001 bytes."})
    done, outputs, summary, _ = act(tmp_path, recipe="a.yaml", python=str(fake))
    assert done.returncode == 1
    assert outputs == {"verdict": "fail", "bundle": "", "report": "build/quantize/report.html"}
    assert "::error title=quantize::the size of the model is 60,001 bytes." in done.stdout and summary == "# fail\n"


def test_an_error_before_the_gate_has_no_report_not_even_an_old_one(tmp_path, python):
    fake = python(2)
    old = tmp_path / "work" / "build" / "quantize" / "report.json"
    old.parent.mkdir(parents=True)
    old.write_text('{"verdict": "pass", "bundle": "old.eab", "sentence": null}')
    done, outputs, summary, _ = act(tmp_path, recipe="a.yaml", python=str(fake))
    assert done.returncode == 2 and outputs == {"verdict": "error", "bundle": "", "report": ""} and summary == ""


def test_every_input_arrives_as_it_is(tmp_path, python):
    inputs = {name: f"{name}; touch $(echo pwned) 'x\".file" for name in OPTIONS}
    fake = python(0, {"verdict": "pass", "bundle": "b", "sentence": None})
    *_, called = act(tmp_path, recipe="my recipe.yaml", profile="rpi4 my/hub.yaml", python=str(fake), **inputs)
    path, *arguments = called
    assert path == str(ROOT) and arguments[:6] == ["-P", "-m", "quantize", "my recipe.yaml", "--out", "build/quantize"]
    pairs = dict(zip(arguments[6:18:2], arguments[7:18:2]))
    assert pairs == {f"--{name}": value for name, value in inputs.items()}
    assert arguments[18:] == ["--profile", "rpi4", "--profile", "my/hub.yaml"]
    assert not list((tmp_path / "work").glob("pwned*"))


def test_a_model_of_ones_own_goes_to_the_command_for_it(tmp_path, python):
    fake = python(0, {"verdict": "pass", "bundle": "b", "sentence": None})
    inputs = {"recipe": "my recipe.yaml", "model": "my model.tflite", "calibration": "my clips"}
    *_, called = act(tmp_path, python=str(fake), **inputs)
    expected = ["-P", "-m", "quantize.own", "my model.tflite", "--recipe", "my recipe.yaml", "--out", "build/quantize",
                "--representative", "my clips"]  # fmt: skip
    assert called == [str(ROOT), *expected]
    environment = {**os.environ, **JOB["variables"], "PYTHON": str(fake), "CI_PROJECT_DIR": str(ROOT)}
    environment |= {name.upper(): value for name, value in inputs.items()}
    subprocess.run([*ERRORS, "-c", "\n".join(JOB["before_script"] + JOB["script"])], cwd=tmp_path, env=environment,
                   check=True)  # fmt: skip
    assert (tmp_path / "fake" / "called").read_text().splitlines() == [str(ROOT), *expected]


def test_the_gitlab_job_calls_the_same(tmp_path, python):
    fake = python(3)
    variables = {**JOB["variables"], "PYTHON": str(fake), "PROFILE": "rpi4 esp32-s3", "BASELINE": "b c.json"}
    environment = {**os.environ, **variables, "CI_PROJECT_DIR": str(ROOT)}
    script = "\n".join(JOB["before_script"] + JOB["script"])
    done = subprocess.run([*ERRORS, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    path, *arguments = (tmp_path / "fake" / "called").read_text().splitlines()
    assert path == str(ROOT) and arguments[3] == JOB["variables"]["RECIPE"] and (ROOT / arguments[3]).exists()
    assert arguments[4:] == [
        "--out", "build/quantize", "--baseline", "b c.json", "--profile", "rpi4", "--profile", "esp32-s3"
    ]  # fmt: skip
    assert JOB["artifacts"]["paths"] == ["build/quantize"] and JOB["artifacts"]["when"] == "always"


def test_the_action_really_refuses_a_user_s_own_model(tmp_path):
    """Untrained weights in a repository that has a package `models` of its own: converted, measured, and refused."""
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    (work / "models" / "__init__.py").write_text("raise SystemExit('this is not the toolkit')\n")
    words = make_tone_words(work / "words", speakers=5)
    for label, folder in {"unknown": "high", "silence": "_background_noise_"}.items():
        shutil.copytree(words / folder, words / label)
    (work / "tones.yaml").write_text(TONES.replace("embedded_accuracy_floor: 0.5", "embedded_accuracy_floor: 1.0"))
    program = (
        "import pathlib, sys; from models.recipe import load_recipe; from models.train import make_model, save_weights;"
        "save_weights(pathlib.Path(sys.argv[2]), make_model(load_recipe(sys.argv[1]))[0])"
    )
    command = [sys.executable, "-c", program, str(work / "tones.yaml"), str(work / "tones.npz")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    done, outputs, summary, _ = act(
        tmp_path,
        recipe="tones.yaml",
        weights="tones.npz",
        calibration="words/rise",
        evaluation="words",
        profile="rpi4 linux-hub",
        python=sys.executable,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert outputs == {"verdict": "fail", "bundle": "", "report": "build/quantize/report.html"}
    begin = "::error title=quantize::(the accuracy on the embedded set is .* of the recipe tones, .*)"
    said = re.search(rf"^{begin}$", done.stdout, re.M)
    assert said and said[1] in summary and "| profile linux-hub |" in summary
    assert {path.suffix for path in (work / "build" / "quantize").iterdir()} == {
        ".json", ".md", ".html", ".yaml", ".tflite"
    }  # fmt: skip
