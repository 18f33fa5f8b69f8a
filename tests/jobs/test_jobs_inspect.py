"""What `inspect` says of a checkpoint is what is in the files and what loading it takes; no weight is read."""

from __future__ import annotations

import json

import pytest
import torch

from coterie.errors import BudgetError, CheckpointError, OptionError
from coterie.jobs.inspecting.inspect import inspect
from coterie.jobs.running.load import load
from coterie.models.checkpoint import open_checkpoint
from coterie.testing.checkpoints import save_tiny
from coterie.testing.families import save_tiny_family, tiny_family
from coterie.testing.quantised import QUANTISED, save_tiny_quantised


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def make(family, **options):
        return save_tiny(tmp_path_factory.mktemp(family), family, **{"tokenizer": False, "layers": 3, **options})

    return make


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("stacked", [False, True])
def test_parts_add_up_to_the_files(family, stacked, saved):
    path = saved(family, stacked=stacked, dtype=torch.bfloat16)
    found = inspect(path)
    checkpoint = open_checkpoint(path)
    stored = sum(part.nbytes for part in checkpoint.ranges.values())
    assert sum(part.nbytes for part in found.parts) + found.storage.unused == found.storage.nbytes == stored
    assert found.storage.stacked == stacked
    parts = {part.name: part for part in found.parts}
    assert parts["experts"].nbytes == checkpoint.expert_bytes == 2 * parts["experts"].parameters
    assert parts["embeddings"].nbytes == 320 * 32 * 2
    each = sum(len(kind.layers) * kind.parameters for kind in found.layer_kinds)
    outside = parts["embeddings"].parameters + parts["output head"].parameters + found.width
    assert each + outside == found.parameters


def test_alike_layers_are_one_row(saved):
    kinds = inspect(saved("deepseek_v3")).layer_kinds
    assert [(kind.layers, kind.feed_forward) for kind in kinds] == [
        ((0,), "dense, inner 48"), ((1, 2), "8 experts, top 2 + shared"),
    ]  # fmt: skip
    assert kinds[1].parameters > kinds[1].active > 0


def test_what_it_takes_is_what_loading_takes(saved):
    path = saved("olmoe")
    needs = inspect(path, context=64).needs
    host = load(path, needs.floor, context=64)
    assert host.coterie.budget.slots == 1
    host.coterie.close()
    with pytest.raises(BudgetError, match="below"):
        load(path, needs.floor - 1, context=64)
    assert load(path, needs.everything, context=64).coterie.budget.slots == 24
    assert needs.cache == 64 * needs.cache_per_token


def test_where_experts_lie(saved):
    whole = inspect(saved("olmoe", experts=8)).storage
    assert (whole.files, whole.experts, whole.one_read, whole.straddling) == (1, 24, 24, 0)
    split = inspect(saved("olmoe", experts=8, shards=40)).storage
    assert split.files > 10
    assert 0 < split.straddling <= split.experts
    assert split.most_reads > 1


def test_no_weight_is_read(saved, monkeypatch):
    path = saved("qwen3_moe")
    for module in ("coterie.models.tensors", "coterie.models.compat.loading", "coterie.models.resident"):
        for name in ("read_tensor", "read_into"):
            monkeypatch.setattr(f"{module}.{name}", lambda *_: pytest.fail("a weight was read"), raising=False)
    inspect(path)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3"])
def test_the_record_is_json_and_the_sheet_is_text(family, saved):
    found = inspect(saved(family))
    record = json.loads(json.dumps(found.as_record()))
    assert record["parameters"] == found.parameters
    assert record["routers"][0]["top_k"] == 2
    text = found.describe()
    for word in ("active", "experts", "router", "at least", "coterie run", "per token"):
        assert word in text
    assert all(len(line) <= 120 for line in text.splitlines() if "--memory" not in line and "safetensors" not in line)


def test_tied_head_and_dense_layers_are_said(saved):
    found = inspect(saved("qwen3_moe", tie_word_embeddings=True, mlp_only_layers=[1]))
    assert found.tied
    assert "head and embedding tied" in found.describe()
    assert [kind.layers for kind in found.layer_kinds] == [(0, 2), (1,)]
    assert "N = 0, 2" in found.describe()


def test_attention_is_described(saved):
    assert "grouped-query" in inspect(saved("mixtral")).attention["description"]
    assert "latent" in inspect(saved("deepseek_v3")).attention["description"]


def test_what_cannot_be_inspected(tmp_path, saved):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        inspect(tmp_path)
    with pytest.raises(OptionError, match="512"):
        inspect(saved("olmoe"), context=100_000)


@pytest.mark.parametrize(("family", "method"), QUANTISED)
def test_quantised_checkpoints(family, method, tmp_path):
    found = inspect(save_tiny_quantised(tmp_path / family, family, method, tokenizer=False))
    assert found.quantised.startswith(method)
    assert sum(part.nbytes for part in found.parts) == found.storage.nbytes
    parts = {part.name: part for part in found.parts}
    assert parts["experts"].nbytes < 2 * parts["experts"].parameters
    assert f"quantised ({method}" in found.describe()


def test_the_cache_is_counted_though_training_switched_it_off(saved):
    assert inspect(saved("olmoe", use_cache=False), context=64).needs.cache > 0


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "zaya", "nemotron_h", "granitemoehybrid", "gemma4", "muse_spark"])
def test_families_with_more_than_text_and_attention(family, tmp_path):
    found = inspect(save_tiny_family(tmp_path / family, tiny_family(family)))
    assert sum(part.nbytes for part in found.parts) + found.storage.unused == found.storage.nbytes
    assert sum(len(kind.layers) for kind in found.layer_kinds) == found.layers
    assert "router" in found.describe()
