"""`coterie train advmoe --images`: what comes out, how it goes on, and what is said when it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

FAST = ("--epochs", 2, "--batch", 16, "--option", "attack.steps=1", "--option", "judge.steps=1")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = np.random.default_rng(0).random((40, 8, 8)).astype(np.float32)
    np.savez("a.npz", x=array, y=np.arange(40) % 4)
    return tmp_path


def test_a_classifier_from_images(coterie, place):
    done = coterie("train", "advmoe-digits", "--images", "a.npz", "--out", "own", *FAST)
    assert done.exit_code == 0, done.output
    assert "Training: step 4 of 4" in done.stderr
    assert "Of 4 images held back" in done.stderr
    assert "Try: coterie attack own TEST_IMAGES" in done.stderr
    report = json.loads((place / "own" / "report.json").read_text())
    assert (report["epochs"], report["batch"], report["attack"]["steps"]) == (2, 16, 1)
    assert (place / "own" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    again = coterie("train", "advmoe-digits", "--images", "a.npz", "--out", "own", *FAST)
    assert again.exit_code == 2
    assert "own exists already" in again.stderr


def test_quiet_says_nothing(coterie, place):
    done = coterie("train", "advmoe-digits", "--images", "a.npz", "--out", "own", "--quiet", *FAST)
    assert done.exit_code == 0
    assert done.output == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["advmoe"], "add --images DATA"),
        (["--epochs", "3", "top-p"], "add --images DATA"),
        (["--images", "a.npz"], "needs a recipe: coterie train advmoe --images a.npz"),
        (["advmoe", "--images", "b.npz"], "There are no images 'b.npz'"),
        (["advmo", "--images", "a.npz"], "There is no recipe advmo"),
        (["top-p", "--images", "a.npz"], "There is no recipe top-p"),
        (["advmoe", "--images", "a.npz", "--text", "x"], "--text go with text"),
        (["advmoe", "--images", "a.npz", "--steps", "3"], "--steps go with text"),
        (["advmoe", "--images", "a.npz", "--router", "top_p"], "--router go with text"),
        (["advmoe-digits", "--images", "a.npz", "--option", "attack.epsilon=2"], "epsilon=2 must be"),
        (["advmoe-digits", "--images", "a.npz", "--option", "epsilon=2"], "SECTION.NAME=VALUE"),
        (["advmoe-digits", "--images", "a.npz", "--option", "attack.epsilon=["], "is no value"),
        (["advmoe-digits", "--images", "a.npz", "--option", "attack.eps=1"], "attack has no 'eps'"),
        (["advmoe-digits", "--images", "a.npz", "--resume"], "no finished checkpoint to resume from"),
        (["advmoe-digits", "--images", "a.npz", "--rate", "-1"], "rate must be above 0"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(coterie, place, arguments, text):
    done = coterie("train", *arguments, "--out", "own")
    assert done.exit_code == 2
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert {file.name for file in place.iterdir()} == {"a.npz"}


def test_a_divergence_ends_in_a_sentence(coterie, place):
    arguments = ("advmoe-digits", "--images", "a.npz", "--out", "own", "--rate", "1e30", *FAST)
    done = coterie("train", *arguments)
    assert done.exit_code == 1
    assert "Error: At step" in done.stderr
    assert "lower rates" in done.stderr


def test_stopped_by_hand_it_says_how_to_go_on_and_goes_on(coterie, place):
    command = ["train", "advmoe-digits", "--images", "a.npz", "--out", "own", *map(str, FAST)]
    command += ["--epochs", "400"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from coterie.cli import main; sys.argv[0] = 'coterie'; main()"
    )
    starting = [sys.executable, "-c", code, *command]
    with subprocess.Popen(starting, stderr=subprocess.PIPE, text=True, env=environment) as running:
        for line in running.stderr:
            if "step 40 of" in line:
                running.send_signal(signal.SIGINT)
                break
        said = running.stderr.read()
    assert running.returncode == 130
    assert "Type the same command with --resume to go on from step" in said
    assert not (place / "own").exists()
    kept = list((place / "own.work").glob("checkpoint-*/complete"))
    assert len(kept) == 1
    refused = coterie(*command)
    assert "Add --resume" in refused.stderr
    changed = coterie(*command[:-1], "399", "--resume")
    assert "by another recipe" in changed.stderr
