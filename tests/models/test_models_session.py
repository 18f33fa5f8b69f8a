"""One forward's state: whose items, which carry, and what a layer computed anew is given."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from coterie.errors import OptionError, UnsupportedError
from coterie.models import RouterSpec, Session, attach, experts_from, find_sites, route, session_of
from coterie.routers import Router, RouteTable
from coterie.routers.score import LinearScore, WithNulls
from coterie.routers.select import TopK
from coterie.routers.weigh import TrueOnly
from coterie.routing import RouteContext
from coterie.testing.checkpoints import tiny_model

PRESETS = [
    RouterSpec("top_k"), RouterSpec("top_p", {"p": 0.8}), RouterSpec("adamoe"), RouterSpec("rmoe", {"residual": 0.5}),
    RouterSpec("adamoe", {"null": "identity"}), RouterSpec("thor"), RouterSpec("top_k", {"capacity": 1.0}),
]  # fmt: skip


def routed(spec, family="mixtral", layers=3, **options):
    torch.manual_seed(1)
    model = tiny_model(family, layers=layers, k=3, **options)
    return model, route(model, spec)


def gradients(model, *batches):
    model.zero_grad()
    torch.stack([model(ids, labels=ids, use_cache=False).loss for ids in batches]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("spec", PRESETS, ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(spec, prompt):
    """Two forwards before one backward: each layer goes back to the forward it belongs to."""
    model, attachment = routed(spec)
    model.train()
    attachment.session.base = RouteContext(step=3, seed=5)
    other = prompt.roll(1, 1)
    expected = gradients(model, prompt, other)
    model.activation_checkpointing_enable()
    found = gradients(model, prompt, other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_layer_computed_anew_gets_its_carry_and_its_choice(prompt):
    model, _ = routed(RouterSpec("rmoe"))
    model.train()
    model.activation_checkpointing_enable()
    heard = []
    for site in find_sites(model):
        site.gate.inner.register_forward_pre_hook(lambda router, args: heard.append(args[1]))
    loss = model(prompt, labels=prompt).loss
    model(prompt.roll(2, 1))  # another forward meanwhile
    first = heard[:3]
    del heard[:]
    loss.backward()
    anew = {ctx.site: ctx for ctx in heard}
    assert all(ctx.chosen is None for ctx in first)
    for ctx in first:
        assert anew[ctx.site].chosen is not None
        assert anew[ctx.site].carry is ctx.carry
        assert torch.equal(anew[ctx.site].ids, prompt.reshape(-1))


def test_contexts_of_others_are_kept(prompt):
    """Whoever checkpoints selectively has contexts of his own."""
    model, attachment = routed(RouterSpec("rmoe"))
    model.train()
    calls = []

    def contexts():
        calls.append(1)
        return torch.autograd.profiler.record_function("first"), torch.autograd.profiler.record_function("again")

    expected = gradients(model, prompt)
    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    found = gradients(model, prompt)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert len(calls) == 3
    attachment.undo()
    assert model.model.layers[0]._gradient_checkpointing_func.keywords["context_fn"] is contexts


def test_reentrant_checkpointing_is_refused(prompt):
    model, _ = routed(RouterSpec("top_k"))
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UnsupportedError, match=r"not reentrant.*use_reentrant"):
        model(prompt)


def test_checkpointing_by_somebody_else(prompt):
    """Whatever calls a layer twice within a forward replays it."""
    model, _ = routed(RouterSpec("rmoe"))
    model.train()
    expected = gradients(model, prompt)
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    found = gradients(model, prompt)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_undo_gives_layers_their_checkpointing_back(prompt):
    model, attachment = routed(RouterSpec("top_k"))
    model.train()
    model.activation_checkpointing_enable()
    model(prompt)
    assert "context_fn" in model.model.layers[0]._gradient_checkpointing_func.keywords
    attachment.undo()
    assert all("context_fn" not in layer._gradient_checkpointing_func.keywords for layer in model.model.layers)
    assert session_of(model) is None


@torch.no_grad()
def test_no_carry_leaks_into_the_next_forward(prompt):
    model, _ = routed(RouterSpec("rmoe"))
    expected = model(prompt).logits
    model(prompt.roll(1, 1))
    assert torch.equal(model(prompt).logits, expected)
    first = find_sites(model)[0].gate
    rows = torch.randn(7, 32)
    alone = first.inner(rows).chosen
    model(prompt)
    assert torch.equal(first.session.route(first.site, first.inner, rows).chosen, alone)  # a block called on its own


def test_a_forward_that_fails_leaves_nothing_behind(prompt):
    model, attachment = routed(RouterSpec("rmoe"))
    with torch.no_grad(), pytest.raises(IndexError):
        model(prompt + 10_000)
    assert attachment.session._frame.context.ids is None


@torch.no_grad()
def test_draws_follow_the_sequence_not_the_row(prompt):
    model, attachment = routed(RouterSpec("thor", {"draw": "sequence"}))
    session = attachment.session
    session.keep = True
    session.sequences = torch.tensor([41, 7])
    model(prompt)
    both = {site: r.chosen.view(2, 9, -1) for site, r in session.routings.items()}
    session.sequences = torch.tensor([7])
    model(prompt[1:])
    for site, routing in session.routings.items():
        assert torch.equal(routing.chosen.view(9, -1), both[site][1])
    assert any(not torch.equal(each[0], each[1]) for each in both.values())


@torch.no_grad()
def test_passes_are_copies_of_one_batch(prompt):
    model, attachment = routed(RouterSpec("thor"))
    session, heard = attachment.session, []
    find_sites(model)[0].gate.inner.register_forward_pre_hook(lambda router, args: heard.append(args[1]))
    session.passes, session.sequences = 2, torch.tensor([5, 9])
    model(torch.cat([prompt, prompt]))
    assert heard[0].sequence.view(4, 9)[:, 0].tolist() == [5, 9, 5, 9]
    assert heard[0].pass_id.view(4, 9)[:, 0].tolist() == [0, 0, 1, 1]
    with pytest.raises(OptionError, match="3 rows is not 2 passes"):
        model(torch.cat([prompt, prompt[:1]]))
    session.passes, session.sequences = 1, torch.tensor([1, 2, 3])
    with pytest.raises(OptionError, match="3 sequence ids do not fit 2 rows"):
        model(prompt)


def test_what_is_set_reaches_every_router(prompt):
    model, attachment = routed(RouterSpec("top_k"))
    session, heard = attachment.session, []
    for site in find_sites(model):
        site.gate.inner.register_forward_pre_hook(lambda router, args: heard.append(args[1]))
    session.base = RouteContext(step=4, micro_step=1, total_steps=9, seed=3, overrides={"k": 1})
    model.train()(prompt)
    assert {(c.step, c.micro_step, c.total_steps, c.seed, c.training) for c in heard} == {(4, 1, 9, 3, True)}
    session.keep = True
    model(prompt)
    assert {r.chosen.shape[1] for r in session.routings.values()} == {1}


def test_kept_routings_hold_the_graph(prompt):
    model, attachment = routed(RouterSpec("top_k"))
    attachment.session.keep = True
    model.train()(prompt)
    routings = attachment.session.routings
    assert list(routings) == [site.name for site in find_sites(model)]
    sum(r.probs.square().sum() for r in routings.values()).backward()
    assert all(site.gate.inner.score.weight.grad.abs().sum() > 0 for site in find_sites(model))


@torch.no_grad()
def test_usage_counts_real_items(prompt, left_padded):
    model, attachment = routed(RouterSpec("top_k"))
    session = attachment.session
    session.counting = True
    model(prompt, attention_mask=left_padded)
    assert session.usage.items == 3 * int(left_padded.sum())
    assert session.usage.mean_experts == 3


@torch.no_grad()
def test_choosing_by_the_whole_text_is_refused_where_a_cache_is_continued(prompt):
    model, _ = routed(RouterSpec("expert_choice"))
    assert model(prompt).logits.shape[:2] == prompt.shape  # scoring is its place
    with pytest.raises(UnsupportedError, match=r"cannot generate token by token with a KV cache.*use_cache=False"):
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2, do_sample=False)
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2, do_sample=False, use_cache=False,
        min_new_tokens=2,
    )  # fmt: skip
    assert tokens.shape == (2, 11)


@torch.no_grad()
def test_an_item_may_end_without_experts(prompt):
    """Stock experts and ours, one item at a time too, where nobody goes anywhere."""
    model = tiny_model("olmoe")

    def closed(site, old):
        score = WithNulls(LinearScore(32, 8), 8, 32)
        score.pin(8, 1e4)
        return Router(score, TopK(2, 16), TrueOnly(8), RouteTable.with_nulls(8, 8))

    with attach(model, router=closed):
        stock = [model(ids).logits for ids in (prompt, prompt[:1, :1])]
        with attach(model, experts=lambda site, old: experts_from(old)):
            for ids, logits in zip((prompt, prompt[:1, :1]), stock, strict=True):
                torch.testing.assert_close(model(ids).logits, logits)


def test_without_routers_there_is_no_session():
    model = tiny_model("mixtral")
    assert session_of(model) is None
    with attach(model, experts=lambda site, old: experts_from(old)) as attachment:
        assert isinstance(attachment.session, Session)
