"""Dense checkpoints split: all on is the dense model in every family, and what comes out loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from dense_models import INNER, apart, logits, save_dense, save_texts
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from coterie.errors import CheckpointError, OptionError, UnsupportedError
from coterie.jobs import collect_statistics, export_expert, split
from coterie.jobs.growing.split import CHANNELS
from coterie.surgery import Channels, LayerChannels, masked, open_dense

NATIVE = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save_dense(tmp_path_factory.mktemp("dense") / "llama")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    return save_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def seen(dense, domains):
    return collect_statistics(dense, [], domains=domains, sample=96, gradients=True).statistics


@pytest.mark.parametrize("family", NATIVE)
def test_all_on_is_the_dense_model_in_plain_transformers(tmp_path, family):
    source = save_dense(tmp_path / "dense", family, tie_word_embeddings=family in ("llama", "qwen3"))
    made = split(source, tmp_path / "out", 4, k=4, seed=3)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == NATIVE[family]
    assert apart(logits(tmp_path / "out"), logits(source)) <= 1e-5
    assert made.method.mark == "exact"
    assert made.exactness.startswith("exact")
    assert made.made.difference <= 1e-5


def test_a_shared_expert_is_part_of_the_whole(tmp_path, dense):
    split(dense, tmp_path / "out", 4, k=4, shared=0.25)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["shared_expert_intermediate_size"] == 16
    assert apart(logits(tmp_path / "out"), logits(dense)) <= 1e-5


def test_it_loads_in_a_fresh_process_without_coterie(tmp_path, dense):
    split(dense, tmp_path / "out", 4, k=2)
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}).eval()\n"
        "assert not any(name.startswith('coterie') for name in sys.modules)\n"
        "print(type(model).__name__, bool(model(input_ids=torch.arange(9)[None]).logits.isfinite().all()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("MixtralForCausalLM True")


def test_bfloat16_and_shards(tmp_path):
    source = save_dense(tmp_path / "dense", "llama", dtype=torch.bfloat16, shards=5)
    split(source, tmp_path / "out", 4, k=4)
    assert apart(logits(tmp_path / "out"), logits(source)) <= 1e-5  # times 4 is exact
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(tmp_path / "out" / "model.safetensors").values())


def test_a_sharper_router_is_near_and_says_so(tmp_path, dense, seen):
    made = split(dense, tmp_path / "out", 4, k=4, statistics=seen, router="fit", sharpness=1e-3)
    assert made.method.mark == "lossy"
    assert made.exactness.startswith("near")
    assert 1e-6 < apart(logits(tmp_path / "out"), logits(dense)) < 0.05


def test_text_makes_a_better_start_than_chance(tmp_path, dense, seen):
    sheets = []
    made = split(dense, tmp_path / "out", 4, k=2, statistics=seen, show=sheets.append)
    for each in made.decisions.values():
        assert each.about["router"] == "fit"
        assert each.about["agreement"] > each.about["chance"]
        assert 0 < each.about["best_error"] <= each.about["error"] < 1
        assert 2 <= each.scale <= 4
    shown = "\n".join(sheet.plain() for sheet in sheets)
    assert "kmeans-activations" in shown
    assert "FLOPs per token" in shown
    assert made.as_record()["layers"]["0"]["scale"] == made.decisions[0].scale
    card = (tmp_path / "out" / "README.md").read_text()
    assert "CMoE" in card


def test_read_me_masked_is_sliced_and_layouts_agree(tmp_path, dense, seen):
    """Property tests 1 and 6 of Read-ME, through files."""
    fused = split(dense, tmp_path / "fused", density=0.5, statistics=seen)
    split(dense, tmp_path / "permanent", density=0.5, permanent=True, statistics=seen)
    assert apart(logits(tmp_path / "permanent"), logits(tmp_path / "fused")) <= 1e-5
    plain = export_expert(dense, tmp_path / "prose", "prose", tmp_path / "fused")
    assert plain.made.difference <= 1e-5
    config = json.loads((tmp_path / "prose" / "config.json").read_text())
    assert (config["model_type"], config["intermediate_size"]) == ("llama", INNER // 2)
    model = AutoModelForCausalLM.from_pretrained(dense).eval()
    ids = torch.arange(2, 42).view(1, 40)
    with masked(model, Channels.load(tmp_path / "fused" / CHANNELS), 1), torch.no_grad():
        assert apart(model(input_ids=ids).logits[0], logits(tmp_path / "prose")) <= 1e-5
    assert list(fused.channels.about["domains"]) == ["code", "prose", "sums"]


def test_full_density_is_the_dense_model_for_any_router(tmp_path, dense, seen):
    made = split(dense, tmp_path / "out", density=1.0, statistics=seen, sharpness=5.0, k=2)
    assert apart(logits(tmp_path / "out"), logits(dense)) <= 1e-5
    assert made.exactness.startswith("exact")
    assert made.method.mark == "exact"


def test_domains_are_experts_and_gradients_can_choose(tmp_path, dense, seen):
    made = split(dense, tmp_path / "out", way="gradient", density=0.25, statistics=seen)
    assert [layer.num_experts for layer in made.channels.layers.values()] == [3, 3]


def test_saved_channels_give_the_same_cut(tmp_path, dense):
    first = split(dense, tmp_path / "first", 4, way="random", seed=5)
    again = split(dense, tmp_path / "again", channels=tmp_path / "first", k=4)
    for name, layer in first.channels.layers.items():
        assert torch.equal(layer.own, again.channels.layers[name].own)
    assert apart(logits(tmp_path / "again"), logits(dense)) <= 1e-5
    with pytest.raises(OptionError, match="of 4 experts, not 8"):
        split(dense, tmp_path / "other", 8, channels=tmp_path / "first")


def test_a_slice_of_families_with_biases_and_without_gates(tmp_path, domains):
    for family in ("gpt2", "opt"):
        source = save_dense(tmp_path / family, family)
        own = torch.randperm(INNER)[:32].view(2, 16).sort(dim=1).values
        names = [ffn.name for ffn in open_dense(source).ffns]
        lists = Channels({name: LayerChannels(own[0, :0], own, INNER) for name in names})
        made = export_expert(source, tmp_path / f"{family}-1", 1, lists)
        assert made.made.difference <= 1e-5
        model = AutoModelForCausalLM.from_pretrained(source).eval()
        with masked(model, lists, 1), torch.no_grad():
            wanted = model(input_ids=torch.arange(2, 42).view(1, 40)).logits[0]
        assert apart(logits(tmp_path / f"{family}-1"), wanted) <= 1e-5


def refused(error, what, *args, **options):
    with pytest.raises(error, match=what):
        split(*args, **options)


def test_what_cannot_be_is_said_in_a_sentence(tmp_path, dense, seen, domains):
    out = tmp_path / "out"
    refused(OptionError, "64 channels do not fall into 7 equal experts. Try 8", dense, out, 7)
    refused(OptionError, "--experts 8", dense, out)
    refused(OptionError, "k is 5, and there are 4", dense, out, 4, k=5)
    refused(OptionError, "Did you mean 'kmeans'", dense, out, 4, way="kmean")
    refused(OptionError, "--text FILE", dense, out, 4, way="co-activation")
    refused(OptionError, "3 domains for 2 experts", dense, out, 2, way="activation", statistics=seen)
    refused(OptionError, "two ways to say the same", dense, out, 4, statistics=seen, texts=domains["code"])
    refused(OptionError, "no family 'mixtrl'", dense, out, 4, family="mixtrl")
    refused(CheckpointError, "no such|not a|There is no", tmp_path / "nowhere", out, 4)
    out.mkdir()
    refused(OptionError, "exists already", dense, out, 4)
    assert not list(out.iterdir())
    assert not (tmp_path / "out.part").exists()


def test_other_models_are_refused(tmp_path, seen, pocket):
    other = save_dense(tmp_path / "other", "llama", seed=1)
    refused(CheckpointError, "another model", other, tmp_path / "out", statistics=seen, density=0.5)
    refused(UnsupportedError, "has experts already", pocket, tmp_path / "out", 4)
    gpt2 = save_dense(tmp_path / "gpt2", "gpt2")
    refused(OptionError, "cannot be written as mixtral", gpt2, tmp_path / "out", 4, family="mixtral")


def test_damaged_sources_leave_nothing(tmp_path):
    source = save_dense(tmp_path / "dense", "llama")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    refused(CheckpointError, "holds NaN", source, tmp_path / "out", 4)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def test_work_that_was_cut_off_goes_on(tmp_path, dense):
    def stop(text):
        if text.startswith("Layer 1"):
            raise KeyboardInterrupt

    split(dense, tmp_path / "whole", 4, way="random")
    with pytest.raises(KeyboardInterrupt):
        split(dense, tmp_path / "out", 4, way="random", say=stop)
    assert not (tmp_path / "out").exists()
    split(dense, tmp_path / "out", 4, way="random", resume=True)
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_missing_shard_is_a_sentence(tmp_path):
    source = save_dense(tmp_path / "dense", "llama", shards=5)
    sorted(source.glob("model-*.safetensors"))[1].unlink()
    refused(CheckpointError, "lacks the shard", source, tmp_path / "out", 4)


def test_an_expert_that_is_not_there(tmp_path, dense):
    made = split(dense, tmp_path / "out", 4, way="contiguous")
    with pytest.raises(OptionError, match="0 to 3"):
        export_expert(dense, tmp_path / "one", 4, made.channels)
    with pytest.raises(OptionError, match="give a number"):
        export_expert(dense, tmp_path / "one", "code", made.channels)
