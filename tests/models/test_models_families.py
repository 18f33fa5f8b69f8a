"""Every mixture-of-experts family that the installed transformers can build: from disk, under a budget, bit for bit."""

from __future__ import annotations

import contextlib
import functools
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.errors import OptionError, UnsupportedError
from coterie.jobs.running.load import load
from coterie.models import attach, experts_from, find_sites, load_host, open_checkpoint, resident_experts, trace
from coterie.models.compat import text_inputs
from coterie.models.families import EXCLUDED, WHOLE_PROMPT
from coterie.testing.families import ROWS, save_tiny_family, shared_layout_families, tiny_family

# their experts' parameters are not of the form ours have; each refusal has its test
NOT_SHARED = {"muse_spark", "dbrx", "longcat_flash", "nllb_moe", "switch_transformers"}
SERVED = [family for family in ROWS if family not in EXCLUDED]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(family)`` -> (directory, the model that was saved there)."""

    @functools.cache
    def make(family):
        model = tiny_family(family)
        if family == "nllb_moe":  # see AT_ODDS
            for site in find_sites(model):
                site.experts.forward = functools.partial(as_published, site.experts)
        return save_tiny_family(tmp_path_factory.mktemp(family), model), model

    return make


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(2, 300, (2, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model, ids, **options):
    return model(input_ids=ids, **text_inputs(model, ids), **options).logits


def as_published(experts, x, mask, weights):
    """What NLLB-MoE was published with: each expert computes the tokens that have a weight for it."""
    outputs = torch.stack([experts[f"expert_{e}"](x) for e in range(experts.num_experts)], -1)
    return (1 - experts.moe_token_dropout) * (outputs * weights[:, None]).sum(-1)


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_table_has_every_family_of_the_installed_transformers():
    shared = set(shared_layout_families())
    assert shared <= ROWS.keys() | EXCLUDED.keys(), shared - ROWS.keys()
    assert len(shared - EXCLUDED.keys()) >= 60


@pytest.mark.parametrize("family", SERVED)
def test_a_family_runs_under_a_budget_with_the_bits_of_everything_resident(family, saved, prompt):
    path, original = saved(family)
    checkpoint = open_checkpoint(path)
    expected = logits_of(load_host(checkpoint, resident_experts), prompt)
    assert error(expected, logits_of(original, prompt)) < 1e-4
    traced = not checkpoint.config.is_encoder_decoder
    for slots in (1, 5):
        host = load(checkpoint, context=32, batch=2, all_logits=True, slots=slots)
        with trace(host) if traced else contextlib.nullcontext() as recording:
            assert torch.equal(logits_of(host, prompt), expected)
        host.coterie.store.check()
        assert host.coterie.store.resident <= slots
        host.coterie.close()
    if not traced:
        return
    plan = recording.plan()
    assert plan.sites
    assert all(routing.num_items == prompt.numel() for routing in plan.sites.values())


@pytest.mark.parametrize("family", [family for family in SERVED if family != "openai_privacy_filter"])
def test_a_family_generates_what_transformers_generates(family, saved, prompt):
    path, original = saved(family)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    expected = original.generate(prompt, **options)
    host = load(path, context=32, batch=2, slots=5, prefill=4)  # the prompt comes in three pieces
    assert torch.equal(host.generate(prompt, **options), expected)
    host.coterie.close()


@pytest.mark.parametrize("family", WHOLE_PROMPT)
def test_families_that_read_a_prompt_whole_have_to(family, saved, prompt):
    _, original = saved(family)
    whole = logits_of(original, prompt)
    with torch.no_grad():
        first = original(input_ids=prompt[:, :6], use_cache=True)
    rest = logits_of(original, prompt[:, 6:], past_key_values=first.past_key_values)
    try:
        original.generate(prompt, max_new_tokens=1, prefill_chunk_size=4)
    except ValueError:
        return
    assert error(rest, whole[:, 6:]) > 1e-3, "it can go on now: take it out of WHOLE_PROMPT"


@pytest.mark.parametrize("family", EXCLUDED)
def test_families_that_are_not_served_are_refused_with_the_reason(family, tmp_path):
    save_tiny_family(tmp_path / "model", tiny_family(family))
    with pytest.raises(UnsupportedError, match=re.escape(EXCLUDED[family])):
        open_checkpoint(tmp_path / "model")


def test_diffusion_gemma_gives_no_logits_of_a_next_token(prompt):
    """Why it is excluded: it takes a block of text to denoise and a prompt apart from it."""
    model = tiny_family("diffusion_gemma")
    block = model(input_ids=prompt).logits
    assert block.shape[:2] != prompt.shape


def test_a_speaking_model_is_served_by_the_part_that_thinks(saved, prompt, tmp_path):
    """Its checkpoint holds more models under prefixes, and a config of configs."""
    path, original = saved("qwen3_omni_moe")
    whole = tmp_path / "whole"
    whole.mkdir()
    config = json.loads((path / "config.json").read_text())
    wrapped = {"model_type": "qwen3_omni_moe", "architectures": ["Qwen3OmniMoeForConditionalGeneration"]}
    (whole / "config.json").write_text(json.dumps({**wrapped, "thinker_config": config}))
    tensors = {f"thinker.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    save_file({**tensors, "talker.model.norm.weight": torch.ones(4)}, whole / "model.safetensors")
    host = load(whole, context=32, batch=2, all_logits=True, slots=3)
    assert error(logits_of(host, prompt), logits_of(original, prompt)) < 1e-4
    host.coterie.close()


@pytest.mark.parametrize("family", [family for family in SERVED if family not in NOT_SHARED])
def test_our_experts_take_the_place_of_a_live_models(family, saved, prompt):
    _, original = saved(family)
    expected = logits_of(original, prompt)
    with attach(original, experts=lambda site, old: experts_from(old)):
        assert error(logits_of(original, prompt), expected) < 1e-4
    assert torch.equal(logits_of(original, prompt), expected)


def test_experts_that_share_a_norm_do_not_attach(saved):
    _, original = saved("muse_spark")
    with pytest.raises(UnsupportedError, match="share one norm"):
        attach(original, experts=lambda site, old: experts_from(old))


def test_a_router_that_wants_more_than_rows_is_not_replaced(saved):
    _, original = saved("minimax_m2")
    with pytest.raises(UnsupportedError, match="decides by more than its input"):
        attach(original, router=lambda site, old: None)


def test_pictures_and_sounds_are_left_on_disk(saved):
    path, original = saved("qwen3_vl_moe")
    checkpoint = open_checkpoint(path)
    assert checkpoint.beside == ("model.visual",)
    host = load_host(checkpoint, resident_experts)
    assert not [name for name, _ in host.named_parameters() if "visual" in name]
    assert [name for name, _ in original.named_parameters() if "visual" in name]


def test_a_router_that_wants_more_than_rows_cannot_be_asked_ahead(saved):
    path, _ = saved("minimax_m2")
    with pytest.raises(OptionError, match="previous-step"):
        load(path, context=32, slots=3, prefetch="next-gate")
