"""The frame with a toy study: runs in processes, what is kept of them, the report and its tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy_study

from coterie.errors import MissingExtraError, OptionError, TrainingError
from coterie.studies import Arm, read_record, run_study, sheet_of
from coterie.studies.runner import work_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(file, report, states told on the way) of a toy study run from beginning to end."""
    out, states = tmp_path_factory.mktemp("whole") / "toy.json", []
    return out, run_study(toy_study.study(), out, watch=states.append), states


def test_a_study_runs_and_is_judged(whole):
    out, record, states = whole
    assert read_record(out) == record
    assert not work_of(out).exists()
    assert [(claim["key"], claim["verdict"]) for claim in record["claims"]] == [("a", "holds"), ("b", "does not hold")]
    assert [(run["arm"], run["seed"]) for run in record["runs"]] == [
        (arm, seed) for arm in ("slow", "fast") for seed in (0, 1, 2)
    ]
    assert record["runs"][4]["metrics"] == {"value": pytest.approx(3.2), "steps": 20, "bytes": 3, "nothing": None}
    assert (states[-1].steps, states[-1].of, states[-1].finished, states[-1].runs) == (90, 90, 6, 6)
    assert states[-1].seconds_left == 0


def test_the_report_says_what_it_rests_on(tmp_path):
    record = run_study(toy_study.study(), tmp_path / "toy.json", seeds=(5,), jobs=1)
    assert record["coterie"] == "study"
    assert record["format"] == 1
    assert record["seeds"] == [5]
    assert record["quick"] is False
    assert record["text"]["source"] == "toy"
    assert record["text"]["bytes"] == {"train": 3}
    assert len(record["text"]["sha256"]) == 64
    assert {"coterie", "python", "torch", "transformers", "numpy"} <= set(record["versions"])
    assert {"processor", "cores", "system", "threads_per_run"} <= set(record["machine"])
    assert all(run["seconds"] >= 0 for run in record["runs"])
    assert {"key", "text", "gated", "verdict", "why", "numbers"} == set(record["claims"][0])
    assert record["claims"][0]["why"] == "1 of 3 seeds were run"


def test_a_shortened_run_shows_nothing(tmp_path):
    record = run_study(toy_study.study(), tmp_path / "toy.json", seeds=(0, 1, 2), jobs=1, scale=0.1)
    assert {claim["verdict"] for claim in record["claims"]} == {"not shown"}
    assert record["runs"][0]["metrics"]["steps"] == 2  # a tenth, but two at least
    assert "shows nothing" in sheet_of(record).plain()


def test_the_sheet(whole):
    text = sheet_of(whole[1]).plain()
    assert "(a)       HOLDS [gated] fast is above slow by 1 or more, 3 of 3 seeds" in text
    assert "fast - slow 2.2" in text
    assert "DOES NOT HOLD [gated] slow is above 5" in text
    assert "1 of 2 gated claims hold, 1 does not" in text
    assert "fast   3.20     20" in text
    assert "toy (train 3 bytes)" in text


def test_a_run_that_fails_is_written_down_and_the_others_go_on(tmp_path):
    record = run_study(toy_study.study(fails=[1]), tmp_path / "toy.json", jobs=1)
    errors = [(run["arm"], run["seed"], run["error"]) for run in record["runs"] if "error" in run]
    assert errors == [("fast", 1, "The loss became nan.")]
    assert [claim["verdict"] for claim in record["claims"]] == ["not shown", "does not hold"]
    assert record["claims"][0]["why"] == "there is no fast"
    assert "fast seed 1: The loss became nan." in sheet_of(record).plain()


def test_what_starts_from_a_failed_run_fails(tmp_path):
    study = toy_study.study(fails=[0])
    third = Arm("third", "on top of fast", 10, {"value": 1.0}, after=("slow", "fast"))
    record = run_study(replace(study, arms=(*study.arms, third)), tmp_path / "toy.json", seeds=(0,), jobs=1)
    assert "fast seed 0 failed" in record["runs"][2]["error"]


def test_a_stopped_study_goes_on(tmp_path):
    out = tmp_path / "toy.json"
    seen = []

    def press(state):
        if state.finished == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(toy_study.study(), out, jobs=1, watch=press)
    assert not out.exists()
    kept = {file.name: json.loads(file.read_text()) for file in work_of(out).glob("*-seed*.json")}
    assert len(kept) == 3
    marked = sorted(work_of(out).glob("*-seed*.json"))[0]
    marked.write_text(json.dumps(json.loads(marked.read_text()) | {"seconds": 1234}))
    record = run_study(toy_study.study(), out, jobs=1, watch=seen.append)
    assert seen[0].before == 30
    assert record["runs"][0]["seconds"] == 1234  # not run again
    assert len(record["runs"]) == 6
    assert not work_of(out).exists()


def test_more_seeds_join_what_is_finished(tmp_path):
    out = tmp_path / "toy.json"

    def press(state):
        if state.finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(toy_study.study(), out, seeds=(0,), jobs=1, watch=press)
    seen = []
    run_study(toy_study.study(), out, seeds=(0, 1), jobs=1, watch=seen.append)
    assert seen[0].before == 30


def test_what_is_kept_of_another_text_is_in_the_way(tmp_path):
    out = tmp_path / "toy.json"

    def press(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(toy_study.study(), out, watch=press)
    (tmp_path / "other").write_bytes(b"other text")
    with pytest.raises(OptionError, match=r"toy\.json\.work is in the way"):
        run_study(toy_study.study(), out, text=tmp_path / "other")


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "toy.json.work").mkdir()
    (tmp_path / "toy.json.work" / "diary").write_text("dear")
    with pytest.raises(OptionError, match="in the way"):
        run_study(toy_study.study(), tmp_path / "toy.json")
    assert (tmp_path / "toy.json.work" / "diary").read_text() == "dear"


def test_a_fault_of_ours_is_shown_whole(tmp_path):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of ours"):
        run_study(toy_study.study(breaks=True), tmp_path / "toy.json", seeds=(0,), jobs=1)


def test_a_process_that_dies_is_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match="fast seed 0 ended by itself"):
        run_study(toy_study.study(dies=True), tmp_path / "toy.json", seeds=(0,), jobs=1)


def test_what_runs_is_ended_when_the_study_is_stopped(tmp_path):
    import multiprocessing

    def press(state):
        if "fast seed 0" in state.running:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(toy_study.study(waits=True), tmp_path / "toy.json", seeds=(0,), watch=press)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seeds": ()}, "at least one"), ({"seeds": (1, 1)}, "different"), ({"seeds": (-1,)}, "not -1"),
        ({"jobs": 0}, "jobs must be"), ({"scale": 0.0}, "scale in"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(tmp_path, arguments, said):
    with pytest.raises(OptionError, match=said):
        run_study(toy_study.study(), tmp_path / "toy.json", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_report_is_not_written_over(tmp_path):
    out = tmp_path / "toy.json"
    out.write_text("mine")
    with pytest.raises(OptionError, match="exists"):
        run_study(toy_study.study(), out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("content", ["", "[]", '{"coterie": "study", "format": 99}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(OptionError, match=r"x\.json"):
        read_record(tmp_path / "x.json")


def test_what_training_needs_is_asked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"coterie\[train\]"):
        run_study(toy_study.study(), tmp_path / "toy.json")
    assert not list(tmp_path.iterdir())
