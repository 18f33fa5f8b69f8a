"""coterie compress and coterie quantize, typed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from coterie.cli.app import app
from coterie.testing.checkpoints import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("cli") / "olmoe", "olmoe", experts=4))


def typed(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [("compress", ["--rank", 4, "--keep", "0.1"], "rank gate"), ("quantize", ["--bits", "int4"], "error up")],
)
def test_made_and_run(verb, options, said, model, tmp_path):
    found = typed(verb, model, "--out", tmp_path / "small", *options)
    assert found.exit_code == 0, found.output
    assert said in found.output
    assert f"coterie run {tmp_path / 'small'}" in found.output
    ran = typed("run", tmp_path / "small", "the experts", "-n", 3, "--temperature", 0)
    assert ran.exit_code == 0, ran.output


@pytest.mark.parametrize("verb", ["compress", "quantize"])
def test_json(verb, model, tmp_path):
    options = ["--size", "90%"] if verb == "compress" else ["--bits", "mixed", "--average-bits", "6"]
    found = typed(verb, model, "--out", tmp_path / "small", *options, "--json")
    record = json.loads(found.stdout)
    assert record["method"]["mark"] == "lossy"
    assert record["after"]["nbytes"] < record["before"]["nbytes"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["compress", "{model}", "--out", "{out}"], 2, "--rank 32"),
        (["compress", "{model}", "--out", "{out}", "--rank", "4", "--text", "{out}.txt"], 2, "cannot be read"),
        (["compress", "{model}", "--out", "{out}", "--rank", "4", "--skip-layers", "x"], 2, "0,5-7"),
        (["quantize", "{out}", "--out", "{out}"], 3, ""),
        (["quantize", "{model}", "--out", "{model}"], 2, "exists already"),
        (["quantize", "{model}", "--out", "{out}/a/b"], 2, "mkdir -p"),
        (["quantize", "{model}", "--out", "{out}", "--bits", "int2"], 2, "int8, int4, mixed"),
    ],
)
def test_a_sentence_and_a_code(arguments, code, said, model, tmp_path):
    found = typed(*(each.format(model=model, out=tmp_path / "out") for each in arguments))
    assert found.exit_code == code, found.output
    assert said in found.output
    assert "Traceback" not in found.output
    assert found.exception is None or isinstance(found.exception, SystemExit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["compress", "quantize"])
def test_help_says_lossy(verb):
    assert "Lossy" in typed(verb, "--help").output
