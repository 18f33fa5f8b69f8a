"""Recipes: what they may say, and what they are told when they say something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tiny_models import VOCABULARY

from coterie.errors import OptionError, UnsupportedError
from coterie.training import (
    Consistency,
    Group,
    Groups,
    Objective,
    Options,
    changed,
    linear,
    piecewise,
    read_recipe,
    shipped_recipes,
)  # fmt: skip
from coterie.training.model_for import model_for
from coterie.training.recipe import DataWords, ModelWords, SteeringWords
from coterie.training.recipe_read import recipe_of

FULL = """
model: {family: qwen3_moe, layers: 2, width: 32, heads: 2, experts: 4, inner: 16, k: 2, dense_layers: [1]}
router: {name: adamoe, k: 3, num_nulls: 4}
losses:
  balance: {shape: piecewise, values: [0.02, 1e-4], at: [0.5]}
  entropy: 1e-4
  nulls: averaged
  layers: sum
  consistency: {alpha: 5, warmup: 0.1}
data: {text: notes.txt, tokenizer: 300, length: 32, validation: 0.1}
training: {steps: 9, batch: 4, rate: 1e-3, decay_shape: cosine, betas: [0.9, 0.99], dropout: 0.1}
schedules: {k: {shape: linear, start: 1, end: 3}}
groups:
  router: {rate: 1e-4, weight_decay: 0}
  freeze: embeddings
steering: {null_offset: 0.9}
curve: {k: [1, 2, 3]}
seed: 7
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_everything_it_says_is_understood(tmp_path):
    recipe = read_recipe(written(tmp_path, FULL))
    assert recipe.name == "mine"
    assert recipe.model == ModelWords(layers=2, width=32, heads=2, experts=4, inner=16, k=2, dense_layers=(1,))
    assert (recipe.router, recipe.router_options) == ("adamoe", {"k": 3, "num_nulls": 4})
    assert recipe.objective == Objective(
        balance=piecewise([0.02, 1e-4], [0.5]), entropy=1e-4, nulls="averaged", layers="sum",
        consistency=Consistency(5, 0.1),
    )  # fmt: skip
    assert recipe.data == DataWords(("notes.txt",), 300, 32, 0.1)
    assert recipe.options == Options(
        9, batch=4, rate=1e-3, warmup=0, decay_shape="cosine", betas=(0.9, 0.99), seed=7
    )  # fmt: skip
    assert recipe.dropout == 0.1
    assert recipe.schedules == {"k": linear(1, 3)}
    assert recipe.groups == Groups(router=Group(1e-4, 0), frozen=("embeddings",))
    assert recipe.steering == SteeringWords(null_offset=0.9)
    assert recipe.curve == {"k": (1, 2, 3)}


def test_what_is_left_out_has_its_default():
    recipe = recipe_of({"model": {}, "router": "top_k"})
    assert recipe.model == ModelWords()
    assert recipe.objective == Objective()
    assert recipe.options == Options(500, warmup=0)


def test_paths_beside_the_recipe_are_found(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert read_recipe(written(tmp_path, FULL)).data.text == (str(tmp_path / "notes.txt"),)


def test_a_coefficient_of_others_waits_for_the_model():
    recipe = recipe_of(
        {"model": {"from": "somewhere"}, "router": "top_k", "losses": {"balance": {"transformers": 1e-3}}}
    )
    assert recipe.borrowed == ("transformers", 1e-3)


@pytest.mark.parametrize("name", shipped_recipes())
def test_those_that_ship_can_be_read(name):
    recipe = read_recipe(name)
    assert recipe.data.text == ("python",)


def test_the_recipe_of_the_docs_can_be_read():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    [words] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert recipe_of(yaml.safe_load(words)).router == "adamoe"


def test_changes_reach_the_words_too():
    recipe = changed(recipe_of({"model": {}, "router": "top_k"}), steps=3, text=["a.txt"], seed=2, length=16)
    assert (recipe.options.steps, recipe.options.seed, recipe.data.text, recipe.data.length) == (3, 2, ("a.txt",), 16)
    assert recipe.words["training"] == {"steps": 3}
    assert recipe.words["data"] == {"text": ["a.txt"], "length": 16}
    assert recipe.words["seed"] == 2
    assert changed(recipe) == recipe


def broken(**sections):
    return {"model": {}, "router": "top_k", **sections}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (None, "needs 'model' and 'router'"),
        ([], "a group of 'name: value' lines"),
        (broken(trainig={}), "no 'trainig'. Did you mean 'training'"),
        (broken(router="rmeo"), "router.name cannot be 'rmeo'. Did you mean 'rmoe'"),
        (broken(router={"name": "top_p", "pp": 1}), "no 'pp'. Did you mean 'p'"),
        (broken(router={"p": 1}), "needs a name"),
        (broken(model={"width": "wide"}), "model.width must be a number, not 'wide'"),
        (broken(model={"widht": 8}), "no 'widht'. Did you mean 'width'"),
        (broken(model={"experts": 0}), "model.experts must be a whole number, at least 1, not 0"),
        (broken(model={"k": 9, "experts": 8}), "k is 9, and there are 8 experts"),
        (broken(model={"from": "here", "width": 3}), "no 'width'"),
        (broken(losses={"balence": 1}), "Did you mean 'balance'"),
        (broken(losses={"balance": {"mixtral": 1}}), "cannot be 'mixtral'"),
        (broken(losses={"balance": {"shape": "lin"}}), "losses.balance.shape cannot be 'lin'"),
        (broken(losses={"balance_norm": "slot"}), "Did you mean 'slots'"),
        (broken(losses={"consistency": {"alpha": -1}}), "alpha must be at least 0"),
        (broken(data={"tokenizer": "word"}), "Write one of: bytes, model"),
        (broken(data={"tokenizer": 10}), "258"),
        (broken(data={"length": 1}), "length must be at least 2"),
        (broken(data={"text": 3}), "a word or a list of words"),
        (broken(training={"steps": 1.5}), "training.steps must be a whole number, not 1.5"),
        (broken(training={"stpes": 1}), "Did you mean 'steps'"),
        (broken(training={"rate": 0}), "training: rate must be above 0"),
        (broken(training={"betas": [1]}), "two numbers"),
        (broken(training={"activation_checkpointing": "yes"}), "must be true or false, not 'yes'"),
        (broken(schedules={"kk": 1}), "Did you mean 'k'"),
        (broken(groups={"rooter": {}}), "Did you mean 'router'"),
        (broken(groups={"router": {"rate": "fast"}}), "groups.router.rate must be a number"),
        (broken(steering={"mean_expert": 1}), "Did you mean 'mean_experts'"),
        (broken(curve={"k": 3}), "curve.k must be a list of numbers"),
        (broken(seed=-1), "seed must be a whole number, at least 0"),
    ],
)
def test_what_it_may_not_say_is_named_with_its_place(words, said):
    with pytest.raises(OptionError) as error:
        recipe_of(words)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"model: {}\nrouter: [", "line 2 is not YAML"), (b"\xff\xfe", "not UTF-8"), (b"", "needs 'model'")],
)
def test_a_file_that_is_none(tmp_path, content, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=said):
        read_recipe(path)


def test_a_file_that_is_not_there_names_those_that_ship():
    with pytest.raises(OptionError, match="smoe-dropout"):
        read_recipe("nowhere.yaml")


# ---- models


class Tokens:
    eos_token_id, pad_token_id = 0, 1

    def __len__(self):
        return VOCABULARY


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral"])
def test_a_model_is_made_of_its_sizes(family):
    words = ModelWords(family=family, layers=2, width=32, heads=2, experts=4, inner=16, k=2)
    model = model_for(words, Tokens(), 16)
    assert model.training
    experts = [value for name, value in model.named_parameters() if name.endswith("down_proj") and value.dim() == 3]
    assert [tuple(value.shape) for value in experts] == [(4, 32, 16)] * 2


def test_any_family_by_its_own_fields():
    config = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}  # fmt: skip
    assert model_for(ModelWords(family="flex_olmo", config=config), Tokens(), 16).config.model_type == "flex_olmo"


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (ModelWords(family="granitemoe"), UnsupportedError, "qwen3_moe, olmoe, mixtral"),
        (ModelWords(family="no_such", config={"x": 1}), OptionError, "no_such"),
        (ModelWords(family="mixtral", dense_layers=(1,)), OptionError, "experts in every layer"),
        (ModelWords(width=30, heads=4), OptionError, "does not split into 4 heads"),
    ],
)
def test_a_model_that_cannot_be_made(words, kind, said):
    with pytest.raises(kind, match=said):
        model_for(words, Tokens(), 16)
