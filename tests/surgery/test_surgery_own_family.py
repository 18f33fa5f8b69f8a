"""Mixtures of dense families that have none of their own: exact, loaded afresh, served from disk, edited again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import coterie
from coterie.errors import CheckpointError, CoterieError, OptionError, UnsupportedError
from coterie.jobs import compress, copies_of, prune, quantize, split, upcycle
from coterie.jobs import merge as merge_experts
from coterie.models import RouterSpec, count_parameters, find_sites, open_checkpoint, route, trace
from coterie.models.compat import quiet
from coterie.surgery import open_dense
from coterie.surgery.mixture import mixture_family
from coterie.testing.checkpoints import tiny_tokenizer

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 1, "head_dim": 8, "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
    "ffn_dim": 64, "word_embed_proj_dim": 32, "initializer_range": 0.2, "init_std": 0.2,
}  # fmt: skip
IDS = torch.arange(2, 40)[None]
MASK = torch.ones_like(IDS)
# with a gate, fused, with biases, with matrices turned, loose in the layer, under other names on disk
KINDS = ("gemma", "phi3", "phi", "gpt2", "opt", "gpt_neox")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """``dense(kind)`` -> (directory, logits)."""
    made = {}

    def make(kind, **more):
        if (kind, *more) in made:
            return made[kind, *more]
        known = CONFIG_MAPPING[kind]().to_dict()
        fields = {name: value for name, value in SIZES.items() if name in known}
        if known.get("head_dim", 0) is None:
            fields.pop("head_dim")
        path = tmp_path_factory.mktemp(kind) / "dense"
        torch.manual_seed(0)
        with quiet():
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**fields, **more})).eval()
            with torch.no_grad():
                for tensor in model.parameters():
                    if tensor.dim() == 1:
                        tensor.add_(0.1 * torch.randn_like(tensor))  # biases that tell whether they count once
            model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        made[kind, *more] = path, logits(model)
        return made[kind, *more]

    return make


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, attention_mask=MASK).logits[0]


def loaded(path):
    with quiet():
        return AutoModelForCausalLM.from_pretrained(path).eval()


def apart(found, wanted):
    return float((found - wanted).abs().max() / wanted.std())


def served(path):
    host = coterie.load(path, context=64, prefill=64, all_logits=True, slots=2)
    try:
        return logits(host)
    finally:
        host.coterie.close()


@pytest.mark.parametrize("kind", KINDS)
def test_all_experts_on_are_the_dense_model(dense, tmp_path, kind):
    path, wanted = dense(kind)
    made = split(path, tmp_path / "out", 4, k=4).made
    assert (made.container, made.after.experts) == ("coterie", (4, 4))
    assert apart(logits(loaded(made.path)), wanted) < 1e-5
    assert made.difference < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_expert_and_fewer_on_are_what_was_made_and_are_served_alike(dense, tmp_path, kind):
    path, wanted = dense(kind)
    made = split(path, tmp_path / "out", 4, k=2, shared=0.25, router="random").made
    found = logits(loaded(made.path))
    assert apart(found, wanted) > 1e-2
    assert apart(served(made.path), found) < 1e-5
    assert made.after.active < made.before.active
    every = split(path, tmp_path / "all", 4, k=4, shared=0.25).made
    assert apart(logits(loaded(every.path)), wanted) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_the_dense_model_whatever_the_router(dense, tmp_path, kind):
    path, wanted = dense(kind)
    made = upcycle(copies_of(str(path), 3, 2), tmp_path / "out").made
    assert apart(logits(loaded(made.path)), wanted) < 1e-5
    assert apart(served(made.path), wanted) < 1e-5


@pytest.mark.parametrize(("kind", "family"), [("olmo2", "flex_olmo"), ("granite", "granitemoe")])
def test_native_families_that_have_the_attention(dense, tmp_path, kind, family):
    more = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5} if kind == "granite" else {}
    path, wanted = dense(kind, **more)
    made = split(path, tmp_path / "out", 4, k=4).made
    assert (made.container, open_checkpoint(made.path).config.model_type) == ("native", family)
    assert not (made.path / "coterie.json").exists()
    assert apart(logits(loaded(made.path)), wanted) < 1e-5


def test_any_family_can_be_asked_to_stay_itself(dense, tmp_path):
    path, wanted = dense("qwen3")
    made = split(path, tmp_path / "out", 4, k=4, family="coterie").made
    assert made.container == "coterie"
    assert apart(logits(loaded(made.path)), wanted) < 1e-5
    with_shared = split(path, tmp_path / "shared", 4, k=4, shared=0.25).made
    assert with_shared.container == "coterie"  # Qwen3-MoE has no shared expert
    with pytest.raises(OptionError, match=r"cannot be written as mixtral.*Families that can: qwen3_moe, coterie"):
        split(path, tmp_path / "c", 4, k=4, family="mixtral")


def test_bfloat16_stays_bfloat16(dense, tmp_path):
    path, _ = dense("opt")
    model = loaded(path).bfloat16()
    with quiet():
        model.save_pretrained(tmp_path / "narrow")
    made = upcycle(copies_of(str(tmp_path / "narrow"), 2, 1), tmp_path / "out").made
    model = loaded(made.path)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert made.difference < 1e-5


def test_a_fresh_process_loads_it_and_plain_transformers_refuses_it(dense, tmp_path):
    path, wanted = dense("opt")
    made = upcycle(copies_of(str(path), 2, 2), tmp_path / "out").made
    torch.save({"ids": IDS, "mask": MASK, "logits": wanted}, tmp_path / "seen.pt")
    code = (
        "import sys, torch, transformers\n"
        "transformers.utils.logging.disable_progress_bar()\n"
        "try:\n    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "except ValueError as error:\n    print('coterie' in str(error))\n"
        "import coterie.models\n"
        "seen = torch.load(sys.argv[1] + '/../seen.pt')\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n    found = model(seen['ids'], attention_mask=seen['mask']).logits[0]\n"
        "print(torch.allclose(found, seen['logits'], atol=1e-4))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made.path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("kind", ["gemma", "opt"])
def test_it_is_a_model_like_others(dense, tmp_path, kind):
    path, _ = dense(kind)
    made = split(path, tmp_path / "out", 4, k=2, shared=0.25, router="random").made
    model, checkpoint = loaded(made.path), open_checkpoint(made.path)
    before = logits(model)
    assert count_parameters(model).num_total == sum(each.numel() for each in model.parameters())
    assert count_parameters(checkpoint.config).total == count_parameters(model).total
    assert count_parameters(model).total["shared experts"] > 0
    with torch.no_grad(), trace(model) as recording:
        model(input_ids=IDS, attention_mask=MASK)
    assert [site.name for site in checkpoint.sites] == list(recording.plan().sites)
    model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
    assert all(each.grad is not None for name, each in model.named_parameters() if "experts" in name or "gate" in name)
    with quiet():
        model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded(tmp_path / "again")), before)
    assert open_checkpoint(tmp_path / "again").ranges.keys() == checkpoint.ranges.keys()
    route(model, RouterSpec("adamoe", {"num_nulls": 4}))
    with quiet():
        model.save_pretrained(tmp_path / "routed")
    assert torch.equal(logits(loaded(tmp_path / "routed")), logits(model))


def test_its_experts_can_be_pruned_and_merged(dense, tmp_path):
    made = split(dense("phi")[0], tmp_path / "out", 4, k=2, router="random").made
    text = {"made up": "the experts meet in the morning and the router says who speaks. " * 20}
    fewer = prune(made.path, tmp_path / "fewer", 3, texts=text, uniform=True).made
    assert (fewer.container, fewer.after.experts) == ("coterie", (3, 3))
    assert apart(served(fewer.path), logits(loaded(fewer.path))) < 1e-5
    folded = merge_experts(made.path, tmp_path / "folded", 2, texts=text, uniform=True).made
    assert (folded.container, folded.after.experts) == ("coterie", (2, 2))
    assert apart(served(folded.path), logits(loaded(folded.path))) < 1e-5
    again = prune(fewer.path, tmp_path / "again", 2, texts=text, uniform=True).made
    assert again.after.experts == (2, 2)


def test_its_experts_can_be_stored_smaller(dense, tmp_path):
    path, wanted = dense("opt")
    made = split(path, tmp_path / "out", 4, k=4, shared=0.25).made
    small = quantize(made.path, tmp_path / "small", "int8").made
    assert apart(logits(loaded(small.path)), wanted) < 0.1
    assert apart(served(small.path), logits(loaded(small.path))) < 1e-5
    assert small.after.nbytes < made.after.nbytes
    factored = compress(made.path, tmp_path / "factored", rank=12).made  # all that a matrix of 12 x 32 can have
    assert apart(logits(loaded(factored.path)), wanted) < 1e-3


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda mixture: mixture.update(top_k=9), "a token goes to 9 of 3 experts"),
        (lambda mixture: mixture.update(activation="magic"), "activation 'magic' is unknown"),
        (lambda mixture: mixture.pop("experts"), "describes a mixture that cannot be made"),
        (lambda mixture: mixture.update(inner="wide"), "describes a mixture that cannot be made"),
        (lambda mixture: mixture.update(blocks=[]), "its numbers are none"),
        (lambda mixture: mixture.update(blocks=["model.nowhere.mlp"]), "which its model has not"),
        (lambda mixture: mixture.update(inner=32), "contradicts itself"),
        (lambda mixture: mixture.update(blocks=mixture["blocks"][:1]), "lacks"),
    ],
)
def test_a_record_that_is_not_true(dense, tmp_path, edit, words):
    path, _ = dense("gemma")
    made = upcycle(copies_of(str(path), 3, 2), tmp_path / "out").made
    file = made.path / "coterie.json"
    record = json.loads(file.read_text())
    assert record["format"] == 3
    edit(record["mixture"])
    file.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(made.path)
    with pytest.raises(CoterieError):
        loaded(made.path)


def test_layers_that_differ_cannot_be_said(dense):
    opened = open_dense(dense("gemma")[0])
    from dataclasses import replace

    first = opened.ffns[0]
    other = replace(opened, ffns=(replace(first, shape=replace(first.shape, inner=48)), opened.ffns[1]))
    with pytest.raises(UnsupportedError, match=r"differ from layer to layer \(inner widths 48, 64\)"):
        mixture_family(other)


def test_sites_are_where_they_were(dense, tmp_path):
    path, _ = dense("opt")
    made = upcycle(copies_of(str(path), 2, 1), tmp_path / "out").made
    assert [site.name for site in find_sites(loaded(made.path))] == [
        "model.decoder.layers.0.fc1.experts", "model.decoder.layers.1.fc1.experts"
    ]  # fmt: skip


def test_layers_that_a_forward_passes_again_are_made_once(dense, tmp_path):
    path, wanted = dense("hrm_text")
    with pytest.raises(UnsupportedError, match=r"stores several weights of .* in one tensor"):
        split(path, tmp_path / "no", 4, k=4)
    with quiet():
        loaded(path).save_pretrained(tmp_path / "plain", save_original_format=False)
    made = split(tmp_path / "plain", tmp_path / "out", 4, k=4).made
    assert apart(logits(loaded(made.path)), wanted) < 1e-5
