"""`coterie train pocket`: from text to a model that runs, and what it says when it cannot."""

from __future__ import annotations

import json
import random

import pytest

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path, dice = tmp_path_factory.mktemp("text"), random.Random(0)
    for split in ("train", "valid", "test"):
        lines = [f"{dice.choice(NAMES)} met {dice.choice(NAMES)} at {dice.randint(1, 12)} o'clock." for _ in range(400)]
        (path / f"talk.{split}.txt").write_text("\n\n".join(lines))
    return path


def test_a_model_is_trained_and_runs(coterie, text, tmp_path):
    out = tmp_path / "own"
    trained = coterie("train", "pocket", "--text", text, "--out", out, "--steps", "2", "--seed", "5")
    assert trained.exit_code == 0, trained.output
    assert "step 2 of 2" in trained.stderr
    assert "coterie run" in trained.stderr
    assert json.loads((out / "measures.json").read_text())["recipe"]["options"]["seed"] == 5
    ran = coterie("run", out, "Ada met", "--memory", "16MiB", "-n", "3", "--json")
    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["new_tokens"] == 3


def test_a_run_that_is_stopped_says_how_to_go_on(coterie, text, tmp_path, monkeypatch):
    from coterie.cli.progress import Progress

    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "training", pressed)
    result = coterie("train", "pocket", "--text", text, "--out", tmp_path / "own", "--steps", "9")
    assert result.exit_code == 130
    assert "Stopped before the first checkpoint" in result.stderr
    (tmp_path / "own.work" / "checkpoint-5").mkdir()
    (tmp_path / "own.work" / "checkpoint-5" / "complete").touch()
    again = coterie("train", "pocket", "--text", text, "--out", tmp_path / "own", "--steps", "9")
    assert again.exit_code == 2
    assert "--resume" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "nowhere"], "needs one --text"),
        (["--domains", "talk,song"], "Choose among: talk"),
        (["--resume"], "no finished checkpoint"),
        (["--sources", "nowhere.json"], "where the text is from"),
        (["--seed", str(2**40)], "seed"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(coterie, text, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = coterie("train", "pocket", "--text", text, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_only_what_can_be_trained_is(coterie, text):
    result = coterie("train", "everest", "--text", text)
    assert result.exit_code == 2
    assert "There is no recipe everest" in result.stderr


def test_a_directory_that_is_not_there(coterie, tmp_path):
    result = coterie("train", "pocket", "--text", tmp_path / "nowhere", "--out", tmp_path / "own")
    assert result.exit_code == 2
    assert "not a directory" in result.stderr


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"\x00\x01", "binary"), (b"\xff", "not UTF-8")])
def test_a_file_that_is_no_text_is_named(coterie, tmp_path, content, said):
    for split in ("train", "valid", "test"):
        (tmp_path / f"talk.{split}.txt").write_bytes(content)
    result = coterie("train", "pocket", "--text", tmp_path, "--out", tmp_path / "own")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "talk.train.txt" in result.stderr


def test_too_little_text_is_said(coterie, tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"talk.{split}.txt").write_text("A few words, no more.")
    result = coterie("train", "pocket", "--text", tmp_path, "--out", tmp_path / "own")
    assert result.exit_code == 2
    assert "Give more" in result.stderr
    assert not (tmp_path / "own.work").exists()
