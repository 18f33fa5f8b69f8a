"""`--distill-steps` of the verbs that make a model smaller."""

from __future__ import annotations

import json

import pytest

from coterie.testing.checkpoints import save_tiny

LINE = "the experts meet in the morning and the router says who speaks\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "full", "olmoe", layers=1, experts=4, k=2, width=16, inner=8)
    (tmp_path / "text.txt").write_text("".join(f"{n} {LINE}" for n in range(400)))
    return tmp_path


def test_the_result_learns_from_the_model(coterie, place):
    result = coterie("prune", "full", "--experts", "3", "--text", "text.txt", "--out", "small", "--distill-steps", "2")
    assert result.exit_code == 0, result.output
    assert "Distilled over 2 steps (2,048 tokens): perplexity on text held back" in result.stdout
    assert "## Distillation" in (place / "small" / "README.md").read_text()


def test_as_json(coterie, place):
    result = coterie(
        "compress", "full", "--rank", "4", "--out", "small", "--distill-steps", "2", "--distill-text", "text.txt",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["distillation"]["steps"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--distill-text", "text.txt"], "--distill-steps N"),
        (["--distill-steps", "3"], "--distill-text FILE"),
        (["--distill-steps", "3", "--distill-text", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
@pytest.mark.parametrize("verb", [["merge", "full", "--experts", "3"], ["compress", "full", "--rank", "4"]])
def test_what_cannot_be_done_is_said_before_anything_is_made(coterie, place, verb, options, said):
    result = coterie(*verb, "--out", "small", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (place / "small").exists()
