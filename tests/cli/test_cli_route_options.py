"""coterie run asks the routers: fewer experts, another threshold, another draw."""

from __future__ import annotations

import json

import pytest
import torch

from coterie.models import RouterSpec, calibrate, route, set_curves
from coterie.models.compat import quiet
from coterie.testing.checkpoints import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """A directory by the name of its router: a tiny Mixtral with tokenizer, curve, and calibration where it can be."""

    def make(name, **options):
        path = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = tiny_model("mixtral", layers=3, k=3)
        route(model, RouterSpec(name, options))
        if name == "top_p":
            calibrate(model, torch.randint(2, 300, (4, 32)), 2.0)
        set_curves(model, {"k": [[1, 2.3], [2, 1.93], [3, 1.81]], "measure": "bits per byte"})
        with quiet():
            model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        return path

    return {name: make(name) for name in ("smoe_dropout", "top_p", "thor", "expert_choice")}


def test_fewer_experts_what_they_cost_and_how_many_were_used(routed, coterie):
    result = coterie("run", routed["smoe_dropout"], "hello", "-n", 4, "--k", 2)
    assert result.exit_code == 0, result.output
    assert "--k 2: 1.93 bits per byte against 1.81 with 3" in result.stderr
    assert "2.00 experts per token" in result.stderr


def test_json_has_the_mean(routed, coterie):
    record = json.loads(coterie("run", routed["top_p"], "hello", "-n", 4, "--mean-experts", 1.5, "--json").stdout)
    assert 1 <= record["mean_experts"] < 3
    assert json.loads(coterie("run", "pocket", "hello", "-n", 2, "--json").stdout)["mean_experts"] is None


def test_draws_repeat_with_their_seed(routed, coterie):
    def text(*options):
        return coterie("run", routed["thor"], "hello", "-n", 12, "--temperature", 0, "-q", *options).stdout

    assert text("--seed", 3) == text("--seed", 3)
    assert len({text("--seed", seed) for seed in range(4)}) > 1
    assert text("--draw", "average", "--seed", 1) == text("--draw", "average", "--seed", 2)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("thor", ["--p", 0.5], "The routers of this model do not know --p; they take --k, --draw."),
        ("thor", ["--draw", "dice"], "draw='dice' is not known"),
        ("smoe_dropout", ["--k", 99], "k=99 is not allowed here: ask for a whole number from 1 to 8."),
        ("smoe_dropout", ["--k", 0], "k=0 is not allowed"),
        ("top_p", ["--p", 0.2, "--mean-experts", 2], "give one of them"),
        ("top_p", ["--mean-experts", 50], "this router can use"),
        ("expert_choice", [], "cannot generate token by token with a KV cache"),
    ],
)
def test_what_is_refused_is_refused_with_a_sentence(name, options, sentence, routed, coterie):
    result = coterie("run", routed[name], "hello", "-n", 2, *options)
    assert result.exit_code != 0
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_a_model_with_its_familys_routers(tiny, coterie):
    result = coterie("run", tiny, "hello", "-n", 2, "--k", 2)
    assert result.exit_code == 2
    assert "--k 2 asks the routers, and this model has its family's own" in result.stderr
    assert coterie("run", tiny, "hello", "-n", 2, "--seed", 1).exit_code == 0


def test_verify_says_what_it_compared_with(routed, coterie):
    result = coterie("verify", routed["top_p"], "--memory", "64MiB")
    assert result.exit_code == 0, result.output
    assert "bit-identical" in result.stdout
    assert "with routers of Coterie, everything resident" in result.stdout


def test_inspect_names_the_router(routed, coterie):
    result = coterie("inspect", routed["top_p"])
    assert result.exit_code == 0, result.output
    assert "top_p (" in result.stdout


def test_a_directory_without_its_description(routed, coterie, tmp_path):
    import shutil

    path = shutil.copytree(routed["top_p"], tmp_path / "copied")
    (path / "coterie.json").unlink()
    result = coterie("run", path, "hello")
    assert result.exit_code == 3
    assert "lacks coterie.json" in result.stderr
