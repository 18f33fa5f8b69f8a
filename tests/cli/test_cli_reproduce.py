"""`coterie reproduce`: a study from the command line, what it says on the way, and when it cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
import toy_study

from coterie.studies import State, catalogue


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """``coterie reproduce toy`` in an empty directory."""
    monkeypatch.setitem(catalogue.STUDIES._items, "toy", "toy_study")
    monkeypatch.setattr(toy_study, "STUDY", toy_study.study(), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_from_the_command_line(coterie, toy):
    result = coterie("reproduce", "toy")
    assert result.exit_code == 0, result.output
    assert "fast is above slow by 1 or more" in result.stdout
    assert "DOES NOT HOLD" in result.stdout
    assert "step 90 of 90, 6 of 6 runs finished" in result.stderr
    assert "The report is reproduce-toy.json." in result.stderr
    record = json.loads((toy / "reproduce-toy.json").read_text())
    assert [claim["verdict"] for claim in record["claims"]] == ["holds", "does not hold"]


def test_options(coterie, toy):
    result = coterie("reproduce", "toy", "--seeds", "4,5", "--jobs", "1", "--out", "mine.json", "--json", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert json.loads(result.stdout) == json.loads((toy / "mine.json").read_text())
    assert json.loads(result.stdout)["seeds"] == [4, 5]


def test_quick_shows_nothing(coterie, toy):
    result = coterie("reproduce", "toy", "--quick")
    assert result.exit_code == 0
    record = json.loads((toy / "reproduce-toy-quick.json").read_text())
    assert record["seeds"] == [0]
    assert {claim["verdict"] for claim in record["claims"]} == {"not shown"}
    assert "shows nothing" in result.stdout


def test_a_study_that_is_stopped_goes_on(coterie, toy, monkeypatch):
    from coterie.cli import reproduce

    def press(self, state):
        if state.finished == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reproduce._Watch, "see", press)
        stopped = coterie("reproduce", "toy", "--jobs", "1")
    assert stopped.exit_code == 130
    assert "Stopped. 3 finished runs are kept" in stopped.stderr
    assert not (toy / "reproduce-toy.json").exists()
    assert coterie("reproduce", "toy", "--jobs", "1").exit_code == 0


def test_the_studies_are_listed(coterie):
    result = coterie("reproduce")
    assert result.exit_code == 0
    for name in catalogue.STUDIES:
        assert name in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rmeo"], "Did you mean 'rmoe'?"),
        (["everest"], "There are: "),
        (["toy", "--seeds", "0,x"], "--seeds 0,1,2"),
        (["toy", "--seeds", "0,0"], "different"),
        (["toy", "--seeds", "-1"], "not -1"),
        (["rmoe", "--text", "nowhere"], "does not exist"),
        (["toy", "--out", "nowhere/x.json"], "mkdir -p nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(coterie, toy, arguments, said):
    result = coterie("reproduce", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert not list(toy.iterdir())


def test_a_report_is_not_written_over(coterie, toy):
    (toy / "reproduce-toy.json").write_text("mine")
    result = coterie("reproduce", "toy")
    assert result.exit_code == 2
    assert "exists" in result.stderr
    assert (toy / "reproduce-toy.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State(0, 90, 0, 0, 6, 1.0, ("a seed 0",)), "step 0 of 90, 0 of 6 runs finished: a seed 0"),
        (State(50, 90, 40, 3, 6, 20.0, ()), "step 50 of 90, 3 of 6 runs finished, about 80 seconds left"),
        (State(10, 100, 0, 3, 6, 60.0, ()), "step 10 of 100, 3 of 6 runs finished, about 9 minutes left"),
    ],
)
def test_what_is_told_on_the_way(state, said):
    from coterie.cli.reproduce import told

    assert told(state) == said
