"""`coterie trace` as a newcomer types it: a trace, statistics, both, and what is wrong with the rest."""

from __future__ import annotations

import json

import pytest

from coterie.models.statistics import Statistics
from coterie.routing import RoutePlan


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the experts meet in the morning and the router says who speaks " * 8)
    return file


def test_a_trace_as_before(coterie, tiny, text, tmp_path):
    done = coterie("trace", tiny, "--text", text, "--out", tmp_path / "trace.safetensors", "--tokens", 50)
    assert done.exit_code == 0, done.output
    assert "50 tokens through 2 layers with experts" in done.stdout
    assert f"Plan with it: coterie plan {tiny}" in done.stdout.replace("\n", " ")
    assert RoutePlan.load(tmp_path / "trace.safetensors").num_items == 50


def test_statistics_with_a_domain(coterie, tiny, text, tmp_path):
    out = tmp_path / "stats.safetensors"
    done = coterie("trace", tiny, "--text", text, "--domain", f"talk={text}", "--statistics", out, "--memory", "200MiB")
    assert done.exit_code == 0, done.output
    assert "redundancy" in done.stdout
    assert f"Written to {out}" in done.stdout
    statistics = Statistics.load(out)
    assert statistics.domains == ["talk"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["stats.safetensors", "text.txt"]


def test_both_as_json(coterie, tiny, text, tmp_path):
    out, stats = tmp_path / "trace", tmp_path / "stats"
    done = coterie(
        "trace", tiny, "--text", text, "--out", out, "--statistics", stats, "--max-tokens", 70, "--json",
        "--sample", 5, "--seed", 3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["tokens"] == 70
    assert record["statistics"]["tokens"] == 70
    assert record["statistics"]["seed"] == 3
    assert len(record["statistics"]["sites"]) == 2
    assert next(iter(Statistics.load(stats).sites.values())).inputs.shape[0] == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Say what to keep"),
        (["--text", "{text}"], "Say what to keep"),
        (["--text", "{text}", "--out", "{folder}/trace", "--domain", "a={text}"], "about statistics"),
        (["--text", "{text}", "--out", "{folder}/trace", "--gradients"], "about statistics"),
        (["--statistics", "{folder}/stats"], "no text to read"),
        (["--statistics", "{folder}/stats", "--domain", "{text}"], "is no domain"),
        (["--statistics", "{folder}/stats", "--domain", "=x"], "is no domain"),
        (["--statistics", "{folder}/stats", "--text", "{text}", "--gradients"], "experts in a store have none"),
        (["--statistics", "{folder}/no/stats", "--text", "{text}"], "There is no directory"),
        (["--statistics", "{folder}", "--text", "{text}"], "is a directory"),
        (["--statistics", "{folder}/stats", "--text", "{text}", "--max-tokens", "10"], "need at least 64"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, words, coterie, tiny, text, tmp_path):
    given = [one.format(text=text, folder=tmp_path) for one in arguments]
    done = coterie("trace", tiny, *given)
    assert done.exit_code != 0
    assert words in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]
