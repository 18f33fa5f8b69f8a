"""The battery of routers.

A row (`RouterCase`) names a router, builds it and gives its rule once more for a single item in
plain Python. Every function in `ROUTER_CHECKS` then runs over every row:

    @pytest.mark.parametrize("check", ROUTER_CHECKS, ids=lambda c: c.__name__)
    @pytest.mark.parametrize("case", MY_ROWS, ids=lambda c: c.name)
    def test_router(case, check):
        check(case)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import torch

from coterie.routers.base import Router
from coterie.routing import Routing
from coterie.testing.router_asserts import assert_count, assert_probs, assert_same
from coterie.testing.router_case import RouterCase, dense_by_rule, limited_contexts, select_items
from coterie.testing.router_requests import check_allowed, check_draws, check_override, check_replay


def check_contract(case: RouterCase) -> None:
    """The result keeps the contract of `Routing`, its tables have their shapes, for no, one and many items."""
    router = case.make()
    for num_items in (0, 1, 13):
        x, ctx = case.items(num_items)
        routing = router(x, ctx).check()
        num_routes = router.routes.num_routes
        assert (routing.num_items, routing.num_experts) == (num_items, router.num_experts)
        assert routing.logits.shape == routing.probs.shape == (num_items, num_routes)
        assert_count(case, routing, case.k)
        assert routing.probs.dtype == routing.weight.dtype == torch.float32
        assert bool(((routing.chosen >= 0) & (routing.chosen <= num_routes)).all())
        assert_probs(routing, torch.ones_like(routing.probs, dtype=torch.bool))
        assert [set(row) for row in _experts(routing)] == [set(row) for row in _experts_of_chosen(router, routing)]


def check_facts(case: RouterCase) -> None:
    """The instance declares what the row says."""
    router = case.make()
    for fact in ("learned", "causal", "variable_k", "carries", "stochastic", "scope"):
        assert getattr(router, fact) == getattr(case, fact), fact


def check_reference(case: RouterCase) -> None:
    """Experts and weights agree with the row's rule, item by item, under every limit a context can set."""
    router = case.make()
    for ctx_name, x, ctx in limited_contexts(case, router.num_experts):
        routing = router(x, ctx)
        expected = dense_by_rule(case, router, x, ctx)
        torch.testing.assert_close(routing.dense(), expected, msg=_under(ctx_name))


def check_gradients(case: RouterCase) -> None:
    """Every parameter of a learned router gets a finite gradient, not all zero; others have none.

    Those that the row names learn from the probs and get nothing from the weights.
    """
    router = case.make()
    x, ctx = case.items()
    routing = router(x, ctx)
    assert routing.weight.requires_grad == case.learned
    if not case.learned:
        return
    mix = torch.randn(routing.weight.shape, generator=torch.Generator().manual_seed(2))
    (routing.weight * mix).sum().backward(retain_graph=True)
    for name in case.by_probs:
        grad = router.get_parameter(name).grad
        assert grad is None or not bool(grad.any()), name
    if case.by_probs:
        routing.probs.square().sum().backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


def check_gradients_of_nothing(case: RouterCase) -> None:
    """Masked items leave the gradient finite, in the weights and in the probs."""
    router = case.make()
    x, ctx = case.items()
    routing = router(x, replace(ctx, mask=torch.zeros(len(x), dtype=torch.bool)))
    assert routing.num_assignments == 0
    if case.learned:
        (routing.weight.sum() + routing.probs.sum()).backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in router.parameters())


def check_mask(case: RouterCase) -> None:
    """Masked items get nothing; the others do not change, unless the row says that others matter."""
    router = case.make()
    x, ctx = case.items()
    mask = torch.arange(len(x)) % 3 != 1
    routing = router(x, replace(ctx, mask=mask)).check()
    assert bool((routing.experts_per_item()[~mask] == 0).all())
    assert bool((routing.chosen[~mask] == router.routes.num_routes).all())
    assert_probs(routing, mask[:, None].expand(routing.probs.shape))
    if case.alone:
        assert_same(routing, router(x, ctx).masked(mask))


def check_permutation(case: RouterCase) -> None:
    """Permuting the items permutes the routing."""
    router = case.make()
    x, ctx = case.items()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    assert_same(router(x[order], select_items(ctx, order)), router(x, ctx).expand(order))


def check_composition(case: RouterCase) -> None:
    """An item is routed alike alone and in company, unless the row says that others matter."""
    if not case.alone:
        return
    router = case.make()
    x, ctx = case.items()
    whole = router(x, ctx)
    for index in (torch.tensor([5]), torch.tensor([0, 7, 12])):
        assert_same(router(x[index], select_items(ctx, index)), whole.expand(index))


def check_padding(case: RouterCase) -> None:
    """Padding between and after the items, whatever it holds, changes nothing for them."""
    router = case.make()
    x, ctx = case.items()
    real = torch.tensor([True, True, False, True, False, True] + [True] * 9 + [False] * 2)
    padded_x = torch.full((len(real), *x.shape[1:]), 50.0)
    padded_x[real] = x
    place = (real.cumsum(0) - 1).clamp(min=0)
    routing = router(padded_x, replace(select_items(ctx, place), mask=real)).check()
    assert bool((routing.experts_per_item()[~real] == 0).all())
    assert_same(routing.expand(real.nonzero().flatten()), router(x, ctx))


def check_determinism(case: RouterCase) -> None:
    """Two calls and two builds give the same bits, in training mode and out of it."""
    router = case.make()
    x, ctx = case.items()
    first = router(x, ctx)
    for again in (router(x, ctx), case.make()(x, ctx), router.eval()(x, ctx)):
        assert torch.equal(first.expert, again.expert)
        assert torch.equal(first.weight, again.weight)


def check_state_dict(case: RouterCase) -> None:
    """Saved and loaded into a router built from another seed, it decides the same."""
    router = case.make()
    with torch.no_grad():  # as built, buffers are equal in both and would prove nothing
        for buffer in router.buffers():
            buffer.copy_(torch.rand(buffer.shape) if buffer.is_floating_point() else buffer.flip(0))
    file = io.BytesIO()
    torch.save(router.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    other = case.build()
    other.load_state_dict(torch.load(file))
    x, ctx = case.items()
    mine, theirs = router(x, ctx), other(x, ctx)
    assert torch.equal(mine.expert, theirs.expert)
    assert torch.equal(mine.weight, theirs.weight)


def check_bfloat16(case: RouterCase) -> None:
    """bfloat16 items and parameters give float32 weights and keep the contract."""
    router = case.make().bfloat16()
    x, ctx = case.items()
    routing = router(x.bfloat16(), ctx).check()
    assert routing.weight.dtype == torch.float32
    assert routing.probs.dtype == torch.float32


ROUTER_CHECKS: tuple[Callable[[RouterCase], None], ...] = (
    check_contract, check_facts, check_reference, check_gradients, check_gradients_of_nothing, check_mask,
    check_permutation, check_composition, check_padding, check_determinism, check_state_dict, check_override,
    check_allowed, check_replay, check_draws, check_bfloat16,
)  # fmt: skip


def _under(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def _experts(routing: Routing) -> list[list[int]]:
    return [routing.expert[routing.item == t].tolist() for t in range(routing.num_items)]


def _experts_of_chosen(router: Router, routing: Routing) -> list[list[int]]:
    table = (*router.routes.expert, router.num_experts)
    assert routing.chosen is not None
    return [[table[r] for r in row if table[r] < router.num_experts] for row in routing.chosen.tolist()]
