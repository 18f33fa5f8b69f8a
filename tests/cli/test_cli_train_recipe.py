"""`coterie train RECIPE` and `coterie train --model`: what comes out, and what is said when nothing can."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from safetensors.torch import load_file

WORDS = {
    "model": {"layers": 2, "width": 32, "heads": 2, "experts": 4, "inner": 16, "k": 2},
    "router": {"name": "top_p", "p": 0.4},
    "losses": {"entropy": 1e-3},
    "data": {"text": "notes.txt", "length": 16},
    "training": {"steps": 6, "batch": 2, "rate": 1e-2, "save_every": 2, "log_every": 1},
    "curve": {"p": [0.1, 0.9]},
}
FILES = {"config.json", "coterie.json", "model.safetensors", "README.md", "recipe.yaml", "report.html", "report.json"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("The otter swam to the weir, and the heron watched it.\n\n" * 60)
    return tmp_path


def recipe(place, name="mine", **sections):
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**WORDS, **sections}))
    return path


def train(coterie, *arguments):
    done = coterie("train", *arguments)
    assert done.exit_code == 0, done.output
    return done


def test_a_recipe_becomes_a_model_with_report_and_card(coterie, place):
    done = train(coterie, recipe(place), "--out", "own")
    assert "step 6 of 6" in done.stderr
    assert re.search(r"bits per byte on unseen text .* experts per token .*report\.html", done.stderr)
    assert {file.name for file in (place / "own").iterdir()} >= FILES
    assert not (place / "own.work").exists()
    report = json.loads((place / "own" / "report.json").read_text())
    assert report["router"] == {"name": "top_p", "options": {"p": 0.4}}
    assert report["after"]["bits_per_byte"] < report["before"]["bits_per_byte"]
    assert [point["value"] for point in report["curves"]["p"]] == [0.1, 0.9]
    assert report["curves"]["p"][0]["mean_experts"] == 1 < report["curves"]["p"][1]["mean_experts"]
    assert [len(row) for row in report["history"]["experts"]] == [3] * 6  # step and two layers
    assert [len(layer) for layer in report["history"]["load"]] == [4, 4]
    stored = json.loads((place / "own" / "coterie.json").read_text())
    assert stored["curves"]["measure"] == "bits per byte"
    assert [at for at, _ in stored["curves"]["p"]] == [0.1, 0.9]


def test_the_page_needs_nothing_from_elsewhere(coterie, place):
    train(coterie, recipe(place), "--out", "own", "--quiet")
    page = (place / "own" / "report.html").read_text()
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=", page)
    assert page.count("<svg") >= 5  # losses, added losses, experts, load and its legend, the curve
    assert "Load per expert" in page
    assert "name: top_p" in page


def test_what_was_trained_runs_and_loads(coterie, place):
    train(coterie, recipe(place), "--out", "own", "--quiet", "--steps", "2")
    ran = coterie("run", "own", "The otter", "-n", "3", "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["new_tokens"] == 3


def test_stopped_and_resumed_it_is_the_same_model(coterie, place, monkeypatch):
    from coterie.cli.progress import Progress

    path = recipe(place)
    train(coterie, path, "--out", "whole", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "training", _stop_at(5))
        stopped = coterie("train", path, "--out", "parts")
    assert stopped.exit_code == 130
    assert "--resume to go on from step 4" in stopped.stderr
    assert coterie("train", path, "--out", "parts").exit_code == 2  # not without saying so
    train(coterie, path, "--out", "parts", "--resume", "--quiet")
    first, second = (load_file(place / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(bool((first[name] == second[name]).all()) for name in first)


def _stop_at(step):
    def pressed(self, now, steps, loss):
        if now == step:
            raise KeyboardInterrupt

    return pressed


def test_another_recipe_does_not_go_on_with_it(coterie, place, monkeypatch):
    from coterie.cli.progress import Progress

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "training", _stop_at(3))
        coterie("train", recipe(place), "--out", "own")
    other = coterie("train", recipe(place, losses={"entropy": 0.5}), "--out", "own", "--resume")
    assert other.exit_code == 2
    assert "another recipe" in other.stderr
    train(coterie, recipe(place), "--out", "own", "--resume", "--steps", "4", "--quiet")


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_command_gives_the_same_weights(coterie, place, seed):
    for name in ("a", "b"):
        train(coterie, recipe(place), "--out", name, "--seed", seed, "--steps", "2", "-q")
    first, second = (load_file(place / name / "model.safetensors") for name in ("a", "b"))
    assert all(bool((first[name] == second[name]).all()) for name in first)


# ---- a checkpoint


@pytest.mark.parametrize(
    ("router", "options"),
    [("top_p", ["--target-mean-experts", "2"]), ("adamoe", ["--option", "k=6", "--option", "num_nulls=16"])],
)
def test_a_checkpoint_gets_another_router(coterie, tiny, place, router, options):
    train(
        coterie, "--model", tiny, "--router", router, *options, "--text", "notes.txt", "--out", "own", "--steps", "3",
        "--length", "16", "--freeze", "experts", "-q",
    )  # fmt: skip
    report = json.loads((place / "own" / "report.json").read_text())
    assert report["original"]["mean_experts"] == 4
    assert report["router"]["name"] == router
    if router == "top_p":
        assert report["before"]["mean_experts"] == pytest.approx(2, abs=0.3)
    before, after = (_experts(path) for path in (tiny, place / "own"))
    assert len(before) == len(after) > 0
    assert all(bool((before[name] == after[name]).all()) for name in before)


def _experts(path):
    found = {}
    for file in path.glob("*.safetensors"):
        found |= {name: value for name, value in load_file(file).items() if ".experts." in name}
    return found


# ---- what cannot be done


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"modle": {}}, "Did you mean 'model'"),
        ({"router": "topp"}, "Did you mean 'top_p'"),
        ({"router": {"name": "top_p", "p": 0}}, "above 0"),
        ({"router": {"name": "top_p", "p": 1.5}}, "up to 1"),
        ({"router": {"name": "top_k", "k": 5}, "curve": {}}, "k=5"),
        ({"model": {**WORDS["model"], "experts": 0}}, "at least 1, not 0"),
        ({"model": {**WORDS["model"], "k": 5}}, "there are 4 experts"),
        ({"losses": {"nulls": "averaged"}}, "no router of the model has nulls"),
        ({"schedules": {"k": {"shape": "linear", "start": 1, "end": 9}}}, "4 routes"),
        ({"curve": {"k": [9]}}, "9"),
        ({"data": {"text": "nowhere.txt"}}, "nowhere.txt does not exist"),
        ({"data": {"text": "notes.txt", "length": 4000}}, "Give more text"),
        ({"model": {"family": "gpt_oss"}}, "Choose a family among"),
        ({"model": {"from": "nowhere"}}, "nowhere"),
        ({"training": {**WORDS["training"], "rate": 1e9}}, "Resume from the last checkpoint"),
    ],
)
def test_a_recipe_that_cannot_be_made(coterie, place, sections, said):
    result = coterie("train", recipe(place, **sections), "--out", "own", "-q")
    assert result.exit_code not in (0, 130)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert not (place / "own").exists()
    if "training" not in sections:
        assert not (place / "own.work").exists()


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"a\x00b", "binary"), (b"\xff\xfe", "not UTF-8")])
def test_text_that_is_none(coterie, place, content, said):
    (place / "notes.txt").write_bytes(content)
    result = coterie("train", recipe(place), "--out", "own", "-q")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "notes.txt" in result.stderr


def test_padding_in_the_text_is_text_like_any_other(coterie, place):
    """The text of a padding token is read as its characters, so that nothing can be all padding."""
    (place / "notes.txt").write_text("<|pad|>" * 600)
    train(coterie, recipe(place), "--out", "own", "-q")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of them"),
        (["top-p", "--model", "x"], "one of them"),
        (["top-p", "--router", "top_k"], "go with --model"),
        (["top-p", "--domains", "a"], "pocket"),
        (["--model", "x"], "needs --router"),
        (["--model", "x", "--router", "top_k", "--option", "k"], "NAME=VALUE"),
        (["--model", "x", "--router", "top_k", "--option", "k=["], "is no value"),
        (["--model", "pocket", "--router", "top_q", "--text", "notes.txt"], "Did you mean 'top_p'"),
        (
            ["--model", "pocket", "--router", "top_k", "--option", "k=99", "--text", "notes.txt", "--length", "16"],
            "k=99",
        ),
        (["--model", "pocket", "--router", "top_k"], "no text"),
        (["nowhere.yaml"], "There is no recipe"),
        (["pocket"], "--text"),
        (["pocket", "--text", "notes.txt", "--rate", "1"], "--rate"),
        (["top-p", "--out", "notes.txt"], "exists already"),
        (["top-p", "--resume", "--out", "own"], "no finished checkpoint"),
        (["mine.yaml", "--out", "/proc/own"], "cannot be written"),
    ],
)
def test_options_that_do_not_go_together(coterie, place, arguments, said):
    recipe(place)
    result = coterie("train", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr


def test_a_dense_checkpoint_is_refused(coterie, place):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained("dense")
    result = coterie("train", "--model", "dense", "--router", "top_p", "--text", "notes.txt")
    assert result.exit_code == 4
    assert "dense model" in result.stderr
