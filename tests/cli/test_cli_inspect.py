"""`coterie inspect`: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

TEXT = "the experts meet in the morning and the router says who speaks. " * 8


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(TEXT)
    return file


def refused(result, code, *words):
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.stderr.startswith("Error: ")
    for word in words:
        assert word in result.stderr, (word, result.stderr)


def test_without_a_text_it_tells_what_the_model_is(tiny, coterie):
    result = coterie("inspect", tiny)
    assert result.exit_code == 0, result.output
    for word in ("olmoe", "16 experts, top 4", "router", "softmax", "on disk", "at least", f"coterie run {tiny}"):
        assert word in result.stdout
    assert result.stderr == ""


def test_json(tiny, coterie):
    record = json.loads(coterie("inspect", tiny, "--json").stdout)
    assert record["family"] == "olmoe"
    assert record["active_parameters"] < record["parameters"]
    assert record["routers"][0]["score"] == "softmax"


def test_with_a_text_it_tells_what_is_used(tiny, text, coterie, tmp_path):
    page, picture = tmp_path / "use.html", tmp_path / "use.png"
    page.write_text("old")
    result = coterie("inspect", tiny, "--text", text, "--tokens", 64, "--report", page, "--png", picture)
    assert result.exit_code == 0, result.output
    assert "notes.txt: the first 64 tokens" in result.stdout
    assert f"Written: {page}, {picture}" in result.stdout
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([page, picture, text])


def test_without_pictures_it_says_how_to_have_them(tiny, text, coterie):
    result = coterie("inspect", tiny, "--text", text, "--text", text, "--tokens", 64)
    assert "--report" in result.stdout
    assert "--png" in result.stdout
    assert "difference" in result.stdout


def test_use_as_json(tiny, text, coterie):
    record = json.loads(coterie("inspect", tiny, "--text", text, "--tokens", 64, "--json").stdout)
    assert record["model"] == str(tiny)
    assert len(record["sites"]) == 2
    assert sum(record["sites"][0]["load"]) == 64 * 4
    assert record["written"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "x.html"], ["--report", "--text"]),
        (["--png", "x.png"], ["--png", "--text"]),
        (["--memory", "1GiB"], ["--memory", "--text"]),
    ],
)
def test_options_that_want_a_text(options, words, tiny, coterie):
    refused(coterie("inspect", tiny, *options), 2, *words)


def test_outputs_are_checked_before_the_model_is_opened(text, coterie, tmp_path):
    gone = tmp_path / "gone"
    for option in ("--report", "--png"):
        refused(coterie("inspect", gone, "--text", text, option, tmp_path / "no" / "x"), 2, "mkdir -p")
        refused(coterie("inspect", gone, "--text", text, option, tmp_path), 2, "is a directory")
    refused(coterie("inspect", gone, "--text", text), 3, "gone")


def test_the_text_is_not_overwritten(tiny, text, coterie):
    refused(coterie("inspect", tiny, "--text", text, "--report", text), 2, "another file")
    assert text.read_text() == TEXT


def test_a_missing_library_is_said_before_the_model_is_opened(text, coterie, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = coterie("inspect", tmp_path / "gone", "--text", text, "--png", tmp_path / "x.png")
    refused(result, 1, "coterie[report]")


def test_a_binary_text_is_refused(tiny, coterie):
    refused(coterie("inspect", tiny, "--text", next(tiny.glob("*.safetensors"))), 2, "no plain text")


def test_a_budget_below_the_floor_is_refused(tiny, text, coterie):
    refused(coterie("inspect", tiny, "--text", text, "--memory", "1KiB"), 2, "floor", "shorter context")


def test_a_terminal_gets_tables(tiny):
    master, slave = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "coterie.cli", "inspect", str(tiny)], stdout=slave, stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # a pseudo-terminal ends so when the other side has closed
        pass
    _, errors = running.communicate(timeout=60)
    os.close(master)
    assert running.returncode == 0, errors
    assert b"\x1b[" in shown
    assert b"16 experts" in shown


def test_a_directory_of_texts_is_read(coterie, tiny, tmp_path):
    notes = tmp_path / "notes"
    (notes / "deeper").mkdir(parents=True)
    refused(coterie("inspect", tiny, "--text", notes), 2, "holds no .txt file")
    (notes / "deeper" / "a.txt").write_text("The otter swam to the weir. " * 20)
    (notes / "b.txt").write_text("The heron watched it. " * 20)
    done = coterie("inspect", tiny, "--text", notes)
    assert done.exit_code == 0, done.output
    assert "a.txt" in done.stdout
    assert "b.txt" in done.stdout


def test_statistics_tell_use_weight_and_likeness(tiny, coterie, text, tmp_path):
    told = tmp_path / "stats.safetensors"
    assert coterie("trace", tiny, "--text", text, "--statistics", told, "--sample", 8).exit_code == 0
    result = coterie("inspect", tiny, "--statistics", told)
    assert result.exit_code == 0, result.output
    for word in ("busiest", "most weight", "nearest by output", "most alike", "counted on", "notes.txt", "verdict"):
        assert word in result.stdout
    use = json.loads(coterie("inspect", tiny, "--statistics", told, "--json").stdout)["use"]
    assert [layer["layer"] for layer in use["layers"]] == [0, 1]
    for layer in use["layers"]:
        assert sum(layer["usage"]) == 4 * layer["tokens"] == 4 * use["tokens"]
        assert len(layer["gate_mass"]) == 16
        first, second, cosine = layer["alike"]
        assert first != second
        assert -1 <= cosine <= 1
    assert json.loads(coterie("inspect", tiny, "--json").stdout)["use"] is None
    refused(coterie("inspect", tiny, "--statistics", told, "--text", text), 2, "one of the two")
