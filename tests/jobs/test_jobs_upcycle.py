"""Mixtures made of dense models: copies are the dense model, prompts lead to their experts, one more expert fits in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from dense_models import apart, logits, save_dense
from safetensors.torch import load_file

from coterie.errors import OptionError, PromptError, UnsupportedError
from coterie.jobs import ExpertSource, UpcyclePlan, add_expert, copies_of, read_plan, upcycle
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer

NATIVE = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two others of its shape."""
    place = tmp_path_factory.mktemp("dense")
    return [str(save_dense(place / name, "llama", seed=seed)) for seed, name in enumerate(("base", "coder", "writer"))]


def two(models, **more):
    base, coder, writer = models
    experts = (ExpertSource(coder, ("def main():", "import os")), ExpertSource(writer, ("once upon a time",)))
    return UpcyclePlan(base, experts, **{"k": 1, "gates": "hidden", **more})


@pytest.mark.parametrize("family", NATIVE)
def test_copies_are_the_dense_model_whatever_the_router(tmp_path, family):
    source = save_dense(tmp_path / "dense", family, tie_word_embeddings=family == "qwen3")
    made = upcycle(copies_of(str(source), 4, 2), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == NATIVE[family]
    assert apart(logits(tmp_path / "out"), logits(source)) <= 1e-5
    assert made.method.mark == "exact"
    assert made.as_record()["after"]["experts"] == (4, 4)


def test_noise_is_near_and_hangs_on_the_seed(tmp_path, models):
    plan = copies_of(models[0], 3, 2, noise=0.01)
    made = upcycle(plan, tmp_path / "one")
    upcycle(plan, tmp_path / "same")
    upcycle(replace(plan, seed=1), tmp_path / "other")
    assert 0 < apart(logits(tmp_path / "one"), logits(models[0])) < 0.5
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other")]
    first = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    assert torch.equal(weights[0][first], weights[1][first])
    assert not torch.equal(weights[0][first], weights[2][first])
    assert not torch.equal(weights[0][first], weights[0][first.replace("experts.0", "experts.1")])
    assert made.exactness.startswith("near")


def test_each_models_feed_forward_is_an_expert(tmp_path, models):
    upcycle(two(models), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    base, coder, writer = (load_file(f"{path}/model.safetensors") for path in models)
    for expert, source in enumerate((coder, writer)):
        found = weights[f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight"]
        assert torch.equal(found, source["model.layers.1.mlp.down_proj.weight"])
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(weights[name], base[name])


@pytest.mark.parametrize("gates", ["hidden", "hidden_last", "cheap_embed"])
def test_prompts_lead_to_their_experts(tmp_path, models, gates):
    made = upcycle(two(models, gates=gates), tmp_path / "out")
    gate = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.block_sparse_moe.gate.weight"]
    assert gate.shape == (2, 32)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    states = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: states.append(args[0][0]))
    for text in ("import os", "once upon a time"):
        with torch.no_grad():
            model(input_ids=torch.tensor([tiny_tokenizer()(text)["input_ids"]]))
    if gates == "hidden":
        assert [int((each[1:].mean(0) @ gate.T).argmax()) for each in states] == [0, 1]
    assert made.method.options["gates"] == gates


def test_prompts_lead_to_experts_that_lie_loose_in_their_layer(tmp_path):
    names = [
        str(save_dense(tmp_path / name, "opt", seed=seed)) for seed, name in enumerate(("base", "coder", "writer"))
    ]
    made = upcycle(two(names), tmp_path / "out")
    assert made.made.container == "coterie"
    gate = load_file(tmp_path / "out" / "model.safetensors")["model.decoder.layers.0.fc1.gate.weight"]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    states = []
    model.model.decoder.layers[0].fc1.register_forward_pre_hook(
        lambda module, args: states.append(args[0].view(-1, 32))
    )
    for text in ("import os", "once upon a time"):
        with torch.no_grad():
            model(input_ids=torch.tensor([tiny_tokenizer()(text)["input_ids"]]))
    assert [int((each[1:].mean(0) @ gate.T).argmax()) for each in states] == [0, 1]


def test_embeddings_of_another_width_make_no_rows(tmp_path):
    names = [str(save_dense(tmp_path / str(seed), "opt", seed=seed, word_embed_proj_dim=16)) for seed in range(3)]
    with pytest.raises(OptionError, match="are 16 wide and its layers 32"):
        upcycle(two(names, gates="cheap_embed"), tmp_path / "out")


def test_prompts_that_look_alike_are_noted(tmp_path, models):
    plan = two(models)
    same = replace(plan, experts=(plan.experts[0], replace(plan.experts[1], prompts=("import os", "def main():"))))
    made = upcycle(same, tmp_path / "out")
    assert "look alike" in " ".join(made.notes)


def test_a_shared_expert_by_a_file(tmp_path, models):
    text = {
        "base_model": models[0], "gate_mode": "random", "experts_per_token": 1,
        "experts": [{"source_model": models[1]}, {"source_model": models[2]}],
        "shared_experts": [{"source_model": models[0], "residual_scale": 0.5}],
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(text))  # JSON is YAML
    upcycle(read_plan(tmp_path / "plan.yaml"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen2_moe"
    weights = load_file(tmp_path / "out" / "model.safetensors")
    shared = weights["model.layers.0.mlp.shared_expert.down_proj.weight"]
    dense = load_file(f"{models[0]}/model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert torch.allclose(shared, dense)  # halved by its scale, doubled for its gate, which is one half


def test_one_more_expert_for_a_mixture(tmp_path, models):
    upcycle(copies_of(models[0], 3, 2), tmp_path / "three")
    made = add_expert(tmp_path / "three", models[0], tmp_path / "four", prompts=["def main():"], negative=["once"])
    assert apart(logits(tmp_path / "four"), logits(models[0])) <= 1e-5  # a fourth copy changes nothing
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("three", "four"))
    gate = "model.layers.1.block_sparse_moe.gate.weight"
    assert torch.equal(after[gate][:3], before[gate])
    assert made.made.after.experts == (4, 4)
    add_expert(tmp_path / "three", models[1], tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    assert torch.allclose(found[gate][3], before[gate].mean(0), atol=1e-6)
    coder = load_file(f"{models[1]}/model.safetensors")
    assert torch.equal(
        found["model.layers.1.block_sparse_moe.experts.3.w1.weight"], coder["model.layers.1.mlp.gate_proj.weight"]
    )


def test_models_of_other_shapes_are_refused(tmp_path, models):
    plan = two([models[0], models[1], str(save_dense(tmp_path / "qwen3", "qwen3"))])
    with pytest.raises(OptionError, match="model_type is qwen3 there and llama in the base"):
        upcycle(plan, tmp_path / "out")
    with pytest.raises(OptionError, match="as wide as an expert"):
        add_expert(save_tiny(tmp_path / "moe", "mixtral"), models[0], tmp_path / "out")
    with pytest.raises(OptionError, match="no feed-forward there"):
        add_expert(save_tiny(tmp_path / "deep", "mixtral", layers=3), models[0], tmp_path / "out")
    with pytest.raises(OptionError, match="what it is for"):
        add_expert(tmp_path / "moe", models[0], tmp_path / "out", negative=["x"])
    with pytest.raises(UnsupportedError, match="has experts already"):
        upcycle(copies_of(str(tmp_path / "moe"), 2, 1), tmp_path / "out")
    blank = replace(two(models), experts=(ExpertSource(models[1], (" ",)), ExpertSource(models[2], ("x",))))
    with pytest.raises(PromptError, match="is empty"):
        upcycle(blank, tmp_path / "out")
    with pytest.raises(OptionError, match="a mixture has the type of its base"):
        upcycle(two(models, dtype="bfloat16"), tmp_path / "out")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OptionError, match="exists already"):
        upcycle(copies_of(models[0], 2, 1), tmp_path / "taken")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()
