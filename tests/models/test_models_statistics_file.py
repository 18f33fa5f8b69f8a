"""The file of statistics: all of it comes back, and what is damaged or of another model is refused in words."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointError, OptionError
from coterie.models import open_checkpoint
from coterie.models.channel_statistics import FFNStatistics
from coterie.models.collect import collect
from coterie.models.feed_forwards import collect_channels
from coterie.models.identity import identity
from coterie.models.statistics import Statistics
from coterie.routing import RoutePlan
from coterie.testing.checkpoints import save_tiny, tiny_model


def ids_of():
    return torch.randint(2, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def statistics():
    model = tiny_model("olmoe", experts=4)
    with collect(model, sample=4) as collection, torch.no_grad():
        collection.domain = "code"
        model(input_ids=ids_of())
        sites = collection.statistics()
    return Statistics(sites, {}, "abc", {"model": "tiny", "family": "olmoe", "texts": [], "seed": 0})


def same(a, b):
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, torch.Tensor):
            assert torch.equal(left, right), field.name
            assert left.dtype == right.dtype
        elif field.name == "domains":
            assert list(left) == list(right)
            for name, use in left.items():
                same(use, right[name])
        else:
            assert left == right, field.name


def test_everything_comes_back(statistics, tmp_path):
    path = tmp_path / "stats.safetensors"
    statistics.save(path)
    back = Statistics.load(path)
    assert (back.model, back.about, back.tokens, back.domains) == ("abc", dict(statistics.about), 40, ["code"])
    assert list(back.sites) == list(statistics.sites)
    for name, site in statistics.sites.items():
        same(site, back[name])
    assert [file.name for file in tmp_path.iterdir()] == ["stats.safetensors"]
    with pytest.raises(OptionError, match=r"no layer 'mlp'; they have: model\.layers\.0"):
        back["mlp"]


def test_dense_ones_come_back(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=320, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2)
    )
    with collect_channels(model, sample=4) as collection, torch.no_grad():
        for collection.domain in ("code", "prose"):
            model(input_ids=ids_of())
        ffns = collection.statistics()
    Statistics({}, ffns, "abc", {}).save(tmp_path / "stats")
    back = Statistics.load(tmp_path / "stats")
    for name, ffn in ffns.items():
        assert isinstance(back.ffns[name], FFNStatistics)
        same(ffn, back.ffns[name])
    assert back.domains == ["code", "prose"]


def test_an_aliased_layer_comes_back(statistics, tmp_path):
    name, site = next(iter(statistics.sites.items()))
    aliased = dataclasses.replace(site, experts_of=(0, 0, 1))
    Statistics({name: aliased}, {}, "abc", {}).save(tmp_path / "stats")
    same(aliased, Statistics.load(tmp_path / "stats")[name])


def test_a_folder_that_cannot_be_written(statistics, tmp_path):
    with pytest.raises(OptionError, match="cannot be written"):
        statistics.save(tmp_path / "no" / "stats.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match="cannot be written"):
        statistics.save(tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def changed(path, about=None, **tensors):
    """Write the file again with another header or other tensors; a tensor of None is left out."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    kept = load_file(path) | tensors
    save_file({k: v for k, v in kept.items() if v is not None}, path, metadata=header | (about or {}))


DAMAGE = {
    "missing": (lambda path: path.unlink(), "There are no statistics at"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read as statistics"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as statistics"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read as statistics"),
    "text": (lambda path: path.write_text("usage"), "cannot be read as statistics"),
    "a plan": (lambda path: RoutePlan({}).save(path), "holds no statistics but a RoutePlan"),
    "weights": (lambda path: save_file({"w": torch.zeros(1)}, path), "holds no statistics"),
    "a later version": (lambda path: changed(path, {"version": "9"}), "of version 9, this Coterie reads 1"),
    "no layers": (lambda path: changed(path, {"sites": "[{}]"}), "is damaged"),
    "a broken header": (lambda path: changed(path, {"sites": "{"}), "is damaged"),
    "a lost tensor": (lambda path: changed(path, **{"sites.0.usage": None}), "is damaged"),
    "NaN": (lambda path: changed(path, **{"sites.0.reap": torch.full((4,), torch.nan)}), "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_words(damage, statistics, tmp_path):
    path = tmp_path / "stats.safetensors"
    statistics.save(path)
    do, words = DAMAGE[damage]
    do(path)
    with pytest.raises(CheckpointError, match=words) as caught:
        Statistics.load(path)
    assert "coterie trace MODEL --text FILE --statistics FILE" in str(caught.value)


def test_statistics_of_another_model_are_refused(statistics, tmp_path):
    path = save_tiny(tmp_path / "model", "olmoe", tokenizer=False)
    checkpoint = open_checkpoint(path)
    own = dataclasses.replace(statistics, model=identity(checkpoint))
    own.check(checkpoint)
    resharded = save_tiny(tmp_path / "shards", "olmoe", tokenizer=False, shards=5)
    own.check(open_checkpoint(resharded))
    moved = tmp_path / "elsewhere"
    shutil.move(path, moved)
    own.check(open_checkpoint(moved))
    sibling = open_checkpoint(save_tiny(tmp_path / "sibling", "olmoe", tokenizer=False, seed=1))
    with pytest.raises(CheckpointError) as caught:
        own.check(sibling)
    assert "The statistics are of tiny" in str(caught.value)
    assert str(sibling.path) in str(caught.value)
    assert own.model[:12] in str(caught.value)
    assert identity(sibling)[:12] in str(caught.value)


def test_one_changed_number_of_the_config_is_another_model(tmp_path):
    path = save_tiny(tmp_path / "model", "mixtral", tokenizer=False)
    before = identity(open_checkpoint(path))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"transformers_version": "1.0"}))
    assert identity(open_checkpoint(path)) == before
    (path / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1}))
    assert identity(open_checkpoint(path)) != before


def test_another_router_of_ours_is_another_model_and_a_measured_curve_is_not(tmp_path):
    from coterie.models import RouterSpec, route, set_curves

    found = []
    for number, (k, curves) in enumerate(((2, {}), (1, {}), (2, {"k": [[1, 2.3]]}))):
        model = tiny_model("mixtral")
        route(model, RouterSpec("top_k", {"k": k}))
        set_curves(model, curves)
        model.save_pretrained(tmp_path / str(number))
        found.append(identity(open_checkpoint(tmp_path / str(number))))
    assert found[0] == found[2] != found[1]
