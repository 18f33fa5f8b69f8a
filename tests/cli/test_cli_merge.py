"""coterie merge and coterie prune: what they print, what they write, what they say when it cannot be."""

from __future__ import annotations

import json
from importlib import import_module

import pytest

from coterie.cli.surgery_options import layer_numbers
from coterie.errors import OptionError

PROSE = "\n".join(f"On day {day} the otter swam to weir {day * 7 % 11}." for day in range(30))


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(PROSE)
    return file


@pytest.fixture(scope="module")
def statistics(tiny, tmp_path_factory):
    from coterie.jobs.tracing.statistics import collect_statistics

    file = tmp_path_factory.mktemp("stats") / "stats.safetensors"
    collect_statistics(tiny, {"made up": PROSE}, file, sample=32)
    return file


def test_merge_says_what_is_there_twice_first_and_what_it_cost_last(coterie, tiny, text, tmp_path):
    out, page = tmp_path / "out", tmp_path / "r.html"
    done = coterie("merge", tiny, "--experts", 8, "--text", text, "--out", out, "--uniform", "--report", page)
    assert done.exit_code == 0, done.stderr
    places = [done.stdout.index(word) for word in ("Redundancy", "verdict", "Groups", "error of merging", "perplexity")]
    assert places == sorted(places)
    assert f"Written to {out} (alias). Try it: coterie run {out}" in done.stdout
    assert (out / "coterie.json").exists()
    assert "Merge, Then Compress" in (out / "README.md").read_text()
    assert "<svg" in page.read_text()
    answer = coterie("run", out, "the otter", "-n", 3, "--quiet")
    assert answer.exit_code == 0, answer.stderr


def test_prune_as_json(coterie, tiny, statistics, tmp_path):
    out = tmp_path / "out"
    done = coterie(
        "prune", tiny, "-e", 8, "--method", "naee", "--limit", 0, "--statistics", statistics, "--out", out, "--json"
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["container"] == "native"
    assert record["after"]["experts"] == [8, 8]
    assert record["method"]["name"] == "prune"
    assert all(0 < layer["error"] < 2 and len(layer["kept"]) == 8 for layer in record["layers"].values())
    assert len(record["redundancy"]) == 2
    assert not (out / "coterie.json").exists()


def test_options_reach_the_method(coterie, tiny, statistics, tmp_path):
    done = coterie(
        "merge", tiny, "-e", 6, "--statistics", statistics, "--out", tmp_path / "out", "--json", "--skip-layers", "0",
        "--dominant", "frequency", "--group", "random", "--align", "none", "--weigh", "uniform", "--seed", 3,
        "--capacity", 4, "--router", "map", "--reference", "first",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    options = record["method"]["options"]
    wanted = {
        "dominant": "frequency", "group": "random", "align": "none", "weigh": "uniform", "seed": 3, "capacity": 4,
        "router": "map", "reference": "first", "skip_layers": [0], "method": "m-smoe",
    }  # fmt: skip
    assert {name: options[name] for name in wanted} == wanted
    assert record["after"]["experts"] == [16, 6]
    assert max(map(len, record["layers"]["1"]["groups"])) <= 4


@pytest.mark.parametrize("verb", ["merge", "prune"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-e", 32], "has 16 experts in a layer, and 32 are asked for"),
        (["-e", 8, "--method", "guess"], "method is one of"),
        (["-e", 8, "--skip-layers", "one"], "'one' names no layers"),
        (["-e", 8, "--container", "box"], "There is no container 'box'"),
        (["-e", 8, "--report", "/nowhere/r.html"], "There is no directory /nowhere"),
        (["-e", 8, "--memory", "7KiB", "--resume"], ""),
    ],
)
def test_bad_options_end_in_a_sentence(verb, arguments, words, coterie, tiny, statistics, tmp_path):
    out = tmp_path / "out"
    if not words:  # memory too small for the text's statistics
        (tmp_path / "n.txt").write_text(PROSE)
        given, words = ["--text", tmp_path / "n.txt"], "7KiB"
    else:
        given = ["--statistics", statistics]
    done = coterie(verb, tiny, "--out", out, *given, *arguments)
    assert done.exit_code in (1, 2, 3, 4)
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr or words == "7KiB"
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("verb", ["merge", "prune"])
def test_bad_files_end_in_a_sentence(verb, coterie, tiny, statistics, tmp_path):
    binary, empty, short = (tmp_path / name for name in ("b.txt", "e.txt", "s.txt"))
    binary.write_bytes(bytes(range(256)))
    empty.write_text("")
    short.write_text("hello there")
    for given, words in (
        (["--text", binary], "no plain text"), (["--text", empty], "is empty"), (["--text", short], "Give more text"),
        (["--text", tmp_path / "none.txt"], "cannot be read"), (["--statistics", binary], "b.txt"), ([], "judged by"),
    ):  # fmt: skip
        done = coterie(verb, tiny, "-e", 8, "--out", tmp_path / "out", *given)
        assert done.exit_code in (1, 2, 3, 4)
        assert done.stderr.startswith("Error: ")
        assert words in done.stderr
    done = coterie(verb, tiny, "-e", 8, "--out", tmp_path, "--statistics", statistics)
    assert "exists already" in done.stderr


def test_layers_by_numbers_and_ranges():
    assert layer_numbers(None) == []
    assert layer_numbers("3, 0-1,1") == [0, 1, 3]
    with pytest.raises(OptionError, match="Write 2-5"):
        layer_numbers("5-2")


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("merge", ["-e", 8, "--statistics"]),
        ("prune", ["-e", 8, "--statistics"]),
        ("compress", ["--rank", 4, "--statistics"]),
        ("quantize", ["--bits", "int4", "--statistics"]),
        ("export", ["--format", "native"]),
    ],
)
def test_an_interruption_says_what_is_left(verb, options, coterie, tiny, statistics, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("coterie.surgery.rewrite"), "check_written", interrupted)
    out = tmp_path / "out"
    command = [verb, tiny, *options, *[statistics] * ("--statistics" in options), "--out", out]
    done = coterie(*command)
    assert done.exit_code == 130
    assert not out.exists()
    assert f"What is whole lies in {out}.part. Go on by --resume" in done.stderr
    assert "unfinished work" in coterie(*command).stderr
    monkeypatch.undo()
    assert coterie(*command, "--resume").exit_code == 0
    assert out.exists()
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(("verb", "options"), [("prune", ["-e", 8]), ("quantize", [])])
def test_an_interruption_after_the_model_is_whole_says_so(verb, options, coterie, tiny, text, tmp_path, monkeypatch):
    at = {"prune": "fewer"}.get(verb, verb)
    monkeypatch.setattr(import_module(f"coterie.jobs.shrinking.{at}"), "surgery_report", interrupted)
    out = tmp_path / "out"
    done = coterie(verb, tiny, *options, "--text", text, "--out", out)
    assert done.exit_code == 130
    assert f"{out} is whole" in done.stderr
    assert coterie("run", out, "the otter", "-n", 1, "--quiet").exit_code == 0


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_the_mean_of_models(coterie, tiny, tmp_path):
    out = tmp_path / "out"
    done = coterie("merge", tiny, "--with", f"{tiny}=3", "--weight", 1, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "0.75" in done.stdout
    assert f"Written to {out} (native). Try it: coterie run {out}" in done.stdout
    assert "Model soups" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--with", "MODEL=much"), "'much' is no number"),
        (("--with", "=2"), "names no model"),
        (("--with", "MODEL", "--with", "MODEL=2"), "is there twice"),
        (("--with", "MODEL=-1"), "The weights sum to 0"),
        (("--with", "MODEL", "--experts", 4), "--experts does not go with --with"),
        (("--weight", 2, "--experts", 4), "--weight does not go with"),
        (("--with", "nowhere"), "nowhere"),
        ((), "Say how many experts"),
    ],
)
def test_a_mean_that_cannot_be(coterie, tiny, tmp_path, options, said):
    typed = [str(option).replace("MODEL", str(tiny)) for option in options]
    done = coterie("merge", tiny, *typed, "--out", tmp_path / "out")
    assert done.exit_code in (2, 3), done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out").exists()
