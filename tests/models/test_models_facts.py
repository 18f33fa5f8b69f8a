"""Routers are asked, not looked up: for every family, and held against what the live model does."""

from __future__ import annotations

import pytest
import torch

from coterie.models.compat import skeleton
from coterie.models.facts import Groups, RouterFacts, router_facts
from coterie.models.find import find_sites
from coterie.models.hypotheses import SCORES
from coterie.models.trace import trace
from coterie.testing.checkpoints import FAMILIES, tiny_model
from coterie.testing.families import ROWS, tiny_config

GROUPS = Groups(2, 1, "two best")

# read off transformers' modelling files: what each router computes in its forward
EXPECTED = {
    "mixtral": {"score": "softmax", "renormalised": True, "correction": "", "shared": 0},
    "olmoe": {"score": "softmax", "renormalised": False},
    "qwen3_moe": {"score": "softmax", "renormalised": False},
    "qwen2_moe": {"score": "softmax", "renormalised": False, "shared": 1, "shared_gated": True, "shared_width": 16},
    "deepseek_v2": {"score": "softmax", "renormalised": False, "correction": ""},
    "deepseek_v3": {
        "score": "sigmoid", "renormalised": True, "scale": 2.5, "groups": GROUPS, "choice": "groups", "shared": 1,
        "correction": "gate.e_score_correction_bias",
    },
    "gpt_oss": {"score": "softmax", "renormalised": True, "logit_bias": "router.bias", "correction": ""},
    "phimoe": {"score": "sparsemixer", "jitter": {"router_jitter_noise": 0.01}},
    "granitemoe": {"score": "softmax", "renormalised": True},
    "granitemoehybrid": {"score": "softmax", "renormalised": True, "shared": 1, "shared_width": 16},
    "jamba": {"score": "softmax", "renormalised": False},
    "glm4_moe": {"score": "sigmoid", "renormalised": True, "correction": "gate.e_score_correction_bias", "shared": 1},
    "ernie4_5_moe": {
        "score": "softmax", "renormalised": True, "correction": "gate.moe_statics.e_score_correction_bias", "shared": 2,
    },
    "beam": {"score": "sigmoid", "scale": 1.0, "block_scale": 2.5},
    "deepseek_v4": {"score": "sqrt softplus", "scale": 1.5},
    "gemma4": {"score": "softmax", "expert_scale": "per_expert_scale"},
    "zaya": {"score": "softmax", "num_routes": 9, "top_k": 1},
    "minimax_m2": {"score": "sigmoid", "correction": "e_score_correction_bias"},
    "dbrx": {"score": "softmax", "renormalised": True},
    "llama4": {"score": "sigmoid", "renormalised": False},
    "longcat_flash": {"score": "softmax", "num_routes": 11, "scale": 6.0},
    "nllb_moe": {"score": "softmax", "renormalised": True, "scale": 0.8},
    "step3p7": {"score": "sigmoid", "renormalised": True},
    "switch_transformers": {"score": "softmax", "renormalised": False},
    "openai_privacy_filter": {"score": "softmax", "scale": 0.5, "block_scale": 2.0, "logit_bias": "router.bias"},
}  # fmt: skip
# inkling weighs routed and shared experts together, which no single site can show
NOT_KNOWN = {"inkling"}


def facts_of(family, **options) -> RouterFacts:
    model = skeleton(tiny_config(family, **options), torch.float32)
    return router_facts(model, find_sites(model)[-1])


@pytest.mark.parametrize("family", ROWS)
def test_every_family_answers(family):
    facts = facts_of(family)
    assert facts.num_experts == 8
    if family in NOT_KNOWN:
        assert facts.score is None
        assert facts.note
        assert "not known" in facts.describe()
        return
    assert facts.score is not None, facts
    assert facts.choice is not None, facts
    assert facts.note == ""
    for name, value in EXPECTED.get(family, {}).items():
        found = getattr(facts, name)
        matches = name == "expert_scale" and found.endswith(value)
        assert matches or found == pytest.approx(value), (name, found)


def test_config_fields_show_through():
    assert facts_of("olmoe", norm_topk_prob=True).renormalised is True
    assert facts_of("deepseek_v3", n_group=1, topk_group=1).choice == "largest scores"
    assert facts_of("deepseek_v3", routed_scaling_factor=1.0).scale == pytest.approx(1.0)
    assert facts_of("mixtral", router_aux_loss_coef=0.25).losses == {"router_aux_loss_coef": 0.25}
    assert facts_of("mixtral", router_jitter_noise=0.5).jitter == {"router_jitter_noise": 0.5}
    greedy = facts_of("deepseek_v2", topk_method="greedy")
    limited = facts_of("deepseek_v2", experts=16, k=3, topk_method="group_limited_greedy", n_group=4, topk_group=2)
    assert (greedy.groups, limited.groups) == (None, Groups(4, 2, "best"))


def test_a_hash_router_chooses_by_token_id():
    config = tiny_config("deepseek_v4")
    model = skeleton(config, torch.float32)
    kinds = {type(site.gate).__name__: router_facts(model, site).choice for site in find_sites(model)}
    assert kinds.get("DeepseekV4HashRouter", "token id") == "token id"
    assert kinds.get("DeepseekV4TopKRouter", "largest scores") == "largest scores"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_foretell_what_the_live_model_does(family):
    model = tiny_model(family)
    with trace(model) as recording, torch.no_grad():
        model(torch.randint(2, 300, (1, 16)))
    for site in find_sites(model):
        facts, routing = router_facts(model, site), recording.plan()[site.name]
        expected = SCORES[facts.score](routing.logits.float()).gather(1, routing.chosen)
        if facts.renormalised:
            expected = expected / expected.sum(-1, keepdim=True)
        found = routing.dense().gather(1, routing.chosen)
        assert torch.allclose(found, expected * facts.scale, rtol=1e-3, atol=1e-6)


def test_asking_leaves_the_model_and_the_random_state_alone():
    model = tiny_model("deepseek_v3")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    router_facts(model, find_sites(model)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_router_that_cannot_be_asked_is_not_guessed(monkeypatch):
    model = skeleton(tiny_config("mixtral"), torch.float32)
    site = find_sites(model)[0]
    monkeypatch.setattr(type(site.gate), "forward", lambda *_: 1 / 0)
    facts = router_facts(model, site)
    assert (facts.score, facts.renormalised, facts.choice, facts.num_routes) == (None, None, None, None)
    assert "division by zero" in facts.note
    assert facts.describe().count("not known") == 3


def test_the_line_for_people():
    text = facts_of("deepseek_v3").describe()
    assert text == (
        "sigmoid over 8 experts, top 2, from the 1 best of 2 groups (by their two best), "
        "correction for the choice alone, weights renormalised times 2.5"
    )
