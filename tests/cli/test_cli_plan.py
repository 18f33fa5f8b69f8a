"""plan, trace and doctor as a user types them."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module

import pytest

from coterie.routing import RoutePlan
from coterie.store.measure import Speed, Speeds

TEXT = "the experts meet in the morning and the router says who speaks. " * 6


@pytest.fixture(autouse=True)
def speeds(monkeypatch):
    """No probe: any machine is this one."""
    made_up = Speed(1e9, "made up")
    plan, checkup = (
        import_module("coterie.jobs.running.plan"),
        import_module("coterie.jobs.checking.checkup_checkpoint"),
    )
    monkeypatch.setattr(plan, "measure_speeds", lambda blobs, dtype, compiled: Speeds(made_up, made_up, 1e-6))
    monkeypatch.setattr(checkup, "disk_speed", lambda blobs: made_up)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def refused(result, code, *words):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    for word in words:
        assert word in result.stderr


def test_plan_prints_tables(tiny, coterie):
    result = coterie("plan", tiny, "--memory", "64MiB", "--context", 64)
    assert result.exit_code == 0, result.output
    for word in ("olmoe", "dense weights", "stale-first", "lru", "lfu", "What memory buys", "<- this budget"):
        assert word in result.stdout
    assert result.stderr == ""


def test_plan_as_json(tiny, coterie):
    result = coterie("plan", tiny, "--memory", "64MiB", "--context", 64, "--batch", 2, "--prompt", 8, "--json")
    record = json.loads(result.stdout)
    assert record["model"]["name"] == str(tiny)
    assert record["problem"] == ""
    assert record["routes"]["prompt"] == 8
    assert {one["policy"] for one in record["forecasts"]} == {"stale-first", "lru", "lfu"}


def test_plan_below_the_floor_shows_the_numbers_and_ends_as_run_does(tiny, coterie):
    planned, run = (coterie(verb, tiny, *more, "--memory=1KiB") for verb, more in (("plan", ()), ("run", ("hi",))))
    assert planned.exit_code == run.exit_code == 2
    assert "What memory buys" in planned.stdout
    assert "the smallest budget that works" in planned.stdout
    refused(planned, 2, "floor", "Give at least")


def test_the_smallest_budget_that_is_named_works(tiny, coterie):
    floor = json.loads(coterie("plan", tiny, "--memory=1KiB", "--json").stdout)["budget"]["floor"]
    assert coterie("plan", tiny, f"--memory={floor}").exit_code == 0
    assert coterie("plan", tiny, f"--memory={floor - 1}").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--memory", "plenty"], 2, "not a size"),
        (["--context", "100000"], 2, "512"),
        (["--trace", "nowhere"], 1, "nowhere"),
    ],
)
def test_plan_with_bad_options(arguments, code, word, tiny, coterie):
    refused(coterie("plan", tiny, *arguments), code, word)


def test_plan_of_no_model(coterie, tmp_path):
    refused(coterie("plan", tmp_path / "nowhere"), 3, "nowhere")


def test_trace_then_plan(tiny, text, coterie, tmp_path):
    out = tmp_path / "trace.safetensors"
    result = coterie("trace", tiny, "--text", text, "--out", out, "--tokens", 50, "--memory", "64MiB")
    assert result.exit_code == 0, result.output
    assert f"coterie plan {tiny} --trace {out}" in result.stdout
    assert RoutePlan.load(out).num_items == 50
    planned = coterie("plan", tiny, "--memory", "64MiB", "--context", 64, "--trace", out)
    assert "routes as recorded, 50 tokens" in planned.stdout


def test_a_text_longer_than_the_context_is_several_sequences(tiny, text, coterie, tmp_path):
    out = tmp_path / "trace"
    result = coterie("trace", tiny, "--text", text, "--out", out, "--tokens", 50, "--context", 20, "--json")
    assert json.loads(result.stdout)["tokens"] == 50
    plan = RoutePlan.load(out)
    assert plan.sequence.unique(return_counts=True)[1].tolist() == [20, 20, 10]


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (b"\x00\x01\xff", "no plain text"), (None, "cannot be read")]
)
def test_trace_of_a_bad_text(content, word, tiny, coterie, tmp_path):
    text, out = tmp_path / "text", tmp_path / "trace"
    if content is not None:
        text.write_bytes(content)
    out.write_text("what was there")
    refused(coterie("trace", tiny, "--text", text, "--out", out), 2, word)
    assert out.read_text() == "what was there"


def test_trace_to_nowhere(tiny, text, coterie, tmp_path):
    refused(coterie("trace", tiny, "--text", text, "--out", tmp_path / "no" / "trace"), 2, "mkdir")


def test_doctor_of_a_machine(coterie):
    result = coterie("doctor")
    assert result.exit_code == 0, result.output
    assert "libraries" in result.stdout
    assert "0 problems" in result.stdout


def test_doctor_of_a_model(tiny, coterie):
    result = coterie("doctor", tiny, "--checksum", "--values", "--json")
    record = json.loads(result.stdout)
    assert record["exit_code"] == result.exit_code == 0
    found = {finding["check"]: finding["state"] for finding in record["findings"]}
    assert found["shards"] == found["values"] == found["checksums"] == "ok"


def test_doctor_of_a_broken_model(tiny, coterie, tmp_path):
    path = shutil.copytree(tiny, tmp_path / "broken")
    next(path.glob("*.safetensors")).write_bytes(b"garbage")
    result = coterie("doctor", path)
    assert result.exit_code == 3
    assert "Traceback" not in result.output
    assert "problem  shards" in result.stdout
    (path / "config.json").unlink()
    assert coterie("doctor", path).exit_code == 3


def test_doctor_of_nothing(coterie, tmp_path):
    result = coterie("doctor", tmp_path / "nowhere")
    assert result.exit_code == 3
    assert "nowhere" in result.stdout


def test_doctor_with_a_library_that_does_not_load(monkeypatch, coterie):
    monkeypatch.setitem(sys.modules, "coterie.jobs.checking.doctor", None)
    refused(coterie("doctor"), 4, "cannot be imported", "pip install")
