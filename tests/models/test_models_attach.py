"""Our routers and experts inside transformers' models, and out again."""

from __future__ import annotations

import copy

import pytest
import torch

from coterie.errors import UnsupportedError
from coterie.experts import FFN
from coterie.models import attach, experts_from, find_sites, load_host, open_checkpoint, resident_experts, router_from
from coterie.routers import Router, RouteTable
from coterie.routers.score import LinearScore
from coterie.routers.select import TopK
from coterie.routers.weigh import Raw
from coterie.testing.checkpoints import FAMILIES, tiny_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# largest error over largest value; gradients pass the rounding of both directions
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def ours(model, **which):
    makers = {
        "experts": lambda site, old: experts_from(old),
        "router": lambda site, old: router_from(old, model.config),
    }
    return attach(model, **{name: make for name, make in makers.items() if which.get(name, True)})


def close(found, expected, tolerance):
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def loss_and_gradients(model, ids):
    model.zero_grad()
    out = model(ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), {p: p.grad.clone() for p in model.parameters() if p.grad is not None}


@pytest.mark.parametrize("which", [{}, {"router": False}, {"experts": False}], ids=["both", "experts", "router"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_converted_parts_change_neither_logits_nor_gradients(family, dtype, which, prompt):
    model, tolerance = tiny_model(family, dtype=DTYPES[dtype], layers=3, k=3), TOLERANCE[DTYPES[dtype]]
    expected, theirs = loss_and_gradients(model, prompt)
    with ours(model, **which):
        found, gradients = loss_and_gradients(model, prompt)
    close(found, expected, tolerance)
    assert gradients.keys() == theirs.keys()  # the same parameters, shared
    for parameter, gradient in gradients.items():
        close(gradient, theirs[parameter], 4 * tolerance)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "deepseek_v3"])
def test_renormalisation_is_read_from_the_config(family, norm, prompt):
    model = tiny_model(family, norm_topk_prob=norm)
    expected = model(prompt).logits
    with ours(model, experts=False):
        close(model(prompt).logits, expected, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generate_recorders_padding_and_deepcopy(family, prompt, left_padded):
    model = tiny_model(family)
    options = {"attention_mask": left_padded, "max_new_tokens": 6, "do_sample": False}
    tokens, expected = model.generate(prompt, **options), model(prompt, output_router_logits=True)
    with ours(model):
        assert torch.equal(model.generate(prompt, **options), tokens)
        twin = copy.deepcopy(model)
        for one in (model, twin):
            found = one(prompt, output_router_logits=True)
            torch.testing.assert_close(found.router_logits, expected.router_logits)
            torch.testing.assert_close(found.aux_loss, expected.aux_loss)
        assert twin.model.layers[1].mlp.gate.session is not model.model.layers[1].mlp.gate.session
        assert len({id(site.gate.session) for site in find_sites(twin)}) == 1


@pytest.mark.parametrize("asked_before", [True, False])
@pytest.mark.parametrize("asked_inside", [True, False])
def test_undo_leaves_nothing(asked_before, asked_inside, prompt):
    model = tiny_model("mixtral")
    modules = dict(model.named_modules())
    logits = model(prompt, output_router_logits=asked_before or None).logits
    attachment = ours(model)
    assert all(type(site.gate).__name__ == "BridgedMixtralTopKRouter" for site in find_sites(model))
    inside = model(prompt, output_router_logits=asked_inside or None)
    assert not asked_inside or len(inside.router_logits) == 2
    attachment.undo()
    attachment.undo()  # a second time does nothing
    assert dict(model.named_modules()) == modules
    assert not model.base_model._forward_pre_hooks
    assert not model.base_model._forward_hooks
    assert not any(site.experts._is_expert_parallel for site in find_sites(model))
    after = model(prompt, output_router_logits=True)
    assert torch.equal(after.logits, logits)
    assert len(after.router_logits) == 2


def test_nothing_leaks_to_stock_models(prompt):
    model, stock = tiny_model("mixtral"), tiny_model("mixtral")
    with ours(model):
        model(prompt, output_router_logits=True)
        assert len(stock(prompt, output_router_logits=True).router_logits) == 2
        assert len(tiny_model("mixtral")(prompt, output_router_logits=True).router_logits) == 2


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@torch.no_grad()
def test_null_experts_reach_stock_experts(implementation, prompt):
    """A router with null routes: its variable number of choices, through transformers' own experts."""
    model = tiny_model("olmoe")
    model.set_experts_implementation(implementation)

    def with_nulls(site, old):
        torch.manual_seed(site.layer)
        routes = RouteTable((*range(8), 8, 8, 8, 8), 8)
        return Router(LinearScore(32, 12, init_std=1.0), TopK(3, 12), Raw(), routes)

    with attach(model, router=with_nulls):
        found = model(prompt).logits
        counts = {int(n) for site in find_sites(model) for n in _experts_per_item(site.gate)}
        with attach(model, experts=lambda site, old: experts_from(old, method="reference")):
            close(found, model(prompt).logits, 1e-5)
    assert len(counts) > 1


def _experts_per_item(gate):
    _, _, indices = gate(torch.randn(64, 32))
    return (indices < 8).sum(1)


def test_routers_are_told_about_their_items(prompt, left_padded):
    """The context of each call, and the carry from layer to layer."""
    model, heard = tiny_model("olmoe", layers=3), []

    class Listening(Router):
        def forward(self, x, ctx=None):
            heard.append(ctx)
            routing = super().forward(x, ctx)
            object.__setattr__(routing, "carry", torch.zeros(()) if ctx.carry is None else ctx.carry + 1)
            return routing

    def listening(site, old):
        return Listening(LinearScore(32, 8), TopK(2, 8), Raw())

    with attach(model, router=listening):
        model.generate(prompt, attention_mask=left_padded, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    prefill, step = heard[0], heard[3]
    assert [ctx.site for ctx in heard] == 2 * [f"model.layers.{i}.mlp.experts" for i in range(3)]
    assert [ctx.carry if ctx.carry is None else int(ctx.carry) for ctx in heard] == 2 * [None, 0, 1]
    assert torch.equal(prefill.ids, prompt.reshape(-1))
    assert torch.equal(prefill.mask, left_padded.reshape(-1).bool())
    assert prefill.sequence.tolist() == [0] * 9 + [1] * 9
    assert prefill.position[left_padded.reshape(-1).bool()].tolist() == [*range(6), *range(9)]
    assert (step.position.tolist(), step.sequence.tolist(), step.mask.tolist()) == ([6, 9], [0, 1], [True, True])


def test_gradient_checkpointing(prompt):
    model = tiny_model("mixtral").train()
    with ours(model):
        expected = loss_and_gradients(model, prompt)
        model.activation_checkpointing_enable()
        found = loss_and_gradients(model, prompt)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][p], gradient) for p, gradient in expected[1].items())


def test_a_hosted_model_takes_routers_and_experts_too(saved, prompt):
    host = load_host(open_checkpoint(saved("qwen3_moe")), resident_experts)
    expected = host(prompt).logits
    with attach(host, experts=lambda site, old: old.inner, router=lambda site, old: router_from(old, host.config)):
        close(host(prompt).logits, expected, 1e-5)


def test_experts_share_parameters_and_draw_nothing():
    model = tiny_model("olmoe")
    before = torch.get_rng_state()
    experts = experts_from(model.model.layers[0].mlp.experts)
    router = router_from(model.model.layers[0].mlp.gate, model.config)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(experts, FFN)
    assert experts.down_proj is model.model.layers[0].mlp.experts.down_proj
    assert router.score.weight is model.model.layers[0].mlp.gate.weight


def test_what_cannot_be_converted():
    model = tiny_model("olmoe")
    with pytest.raises(UnsupportedError, match="Linear is not behind"):
        experts_from(torch.nn.Linear(2, 2))
    model.config.model_type = "granitemoe"
    with pytest.raises(UnsupportedError, match="no router for the family 'granitemoe'"):
        router_from(model.model.layers[0].mlp.gate, model.config)
    with pytest.raises(UnsupportedError, match="no mixture-of-experts layer"):
        attach(torch.nn.Linear(2, 2))
