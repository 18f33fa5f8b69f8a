"""What dynamic routing (arXiv 2403.07652) must keep: whole routers, layers, losses and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.experts import FFN, FFNShape
from coterie.layers import MoE
from coterie.ops import combine_reference, entropy, mean_experts, switch_balance
from coterie.routers import Router, SiteShape, build_routers, min_p, top_p
from coterie.routers.score import LinearScore
from coterie.routers.select import MinP, TopP
from coterie.routers.weigh import Raw
from coterie.routing import RouteContext, Routing

D, E, T = 8, 6, 30


def sharp(router: Router) -> Router:
    torch.nn.init.normal_(router.score.weight)  # type: ignore[arg-type]
    return router


def flat(router: Router) -> Router:
    torch.nn.init.zeros_(router.score.weight)  # type: ignore[arg-type]
    return router


def asking(**overrides: Any) -> RouteContext:
    return RouteContext(overrides=overrides)


def test_p_of_zero_is_the_best_expert_with_its_probability() -> None:
    router, x = sharp(top_p(D, E)), torch.randn(T, D)
    routing = router(x, asking(p=0.0))
    assert routing.probs is not None
    best = routing.probs.max(1)
    assert torch.equal(routing.expert, best.indices)
    assert torch.equal(routing.weight, best.values)


def test_p_of_one_is_the_dense_mixture() -> None:
    router, x = sharp(top_p(D, E, p=1.0)), torch.randn(T, D)
    layer = MoE(router, FFN(E, FFNShape(D, 4)))
    y, routing = layer.route_and_run(x)
    assert routing.num_assignments == T * E
    probs = torch.softmax(x @ router.score.weight.T, 1)  # type: ignore[operator]
    assert torch.allclose(routing.dense(), probs)
    everyone = Routing.from_padded(torch.ones(T, E), torch.arange(E).expand(T, E), E)
    mixture = (probs[..., None] * layer.experts.rows(x, everyone).view(T, E, D)).sum(1)
    torch.testing.assert_close(y, mixture, rtol=1e-5, atol=1e-6)


def test_p_of_one_leaves_out_what_is_never_chosen() -> None:
    router = flat(top_p(D, E, p=1.0, bias=True))
    with torch.no_grad():
        router.score.bias.copy_(torch.tensor([0.0, -200.0, 0.0, float("-inf"), 0.0, 0.0]))  # type: ignore[union-attr, operator]
    assert router(torch.randn(2, D)).chosen.sort().values.tolist() == [[0, 1, 2, 4, 5]] * 2


@pytest.mark.parametrize("p", [0.25, 0.4, 0.5])
@pytest.mark.parametrize("strict", [False, True])
def test_an_undecided_router(p: float, strict: bool) -> None:
    routing = flat(top_p(D, 16, p=p, strict=strict))(torch.randn(T, D))
    count = math.floor(p * 16) + 1 if strict else math.ceil(p * 16)
    assert routing.experts_per_item().tolist() == [count] * T
    torch.testing.assert_close(entropy(routing), torch.tensor(math.log(16)))


def test_the_balance_loss_of_balanced_and_of_collapsed_routing() -> None:
    x = torch.eye(E).repeat(4, 1)
    router = top_p(E, E, p=0.4)
    with torch.no_grad():  # every expert is first for as many items, and second for as many
        router.score.weight.copy_(torch.eye(E) * 2 + torch.eye(E).roll(1, 0) * 1.5)  # type: ignore[operator, union-attr]
    routing = router(x)
    mean = float(mean_experts(routing))
    assert mean == 1 or mean == 2
    assert float(switch_balance(routing, norm="tokens").detach()) == pytest.approx(mean)
    assert float(switch_balance(routing, norm="slots").detach()) == pytest.approx(1)
    with torch.no_grad():
        router.score.weight.copy_(torch.eye(E)[:, :1] * torch.ones(E) * 1e4)  # type: ignore[operator, union-attr]
    assert float(switch_balance(router(x), norm="tokens").detach()) == pytest.approx(E)


def test_padding_changes_no_loss_and_no_statistic() -> None:
    router, x = sharp(top_p(D, E, p=0.9, k_max=2)), torch.randn(T, D)
    mask = torch.arange(T + 10) < T
    alone, padded = router(x), router(torch.cat([x, torch.zeros(10, D)]), RouteContext(mask=mask))
    for loss in (switch_balance, entropy, mean_experts):
        torch.testing.assert_close(loss(padded, mask), loss(alone))
    assert 0 < float(alone.extra["truncated"]) < 1
    assert torch.equal(padded.extra["truncated"], alone.extra["truncated"])


def test_the_entropy_loss_moves_experts_that_were_not_chosen() -> None:
    logits = torch.randn(T, E, requires_grad=True)
    routing = Router(_Given(logits), TopP(0.4, E), Raw())(torch.zeros(T, 1))
    (grad,) = torch.autograd.grad(entropy(routing), logits)
    assert bool((grad[routing.dense() == 0] != 0).all())
    (through_weights,) = torch.autograd.grad(_route(logits).weight.sum(), logits)
    one_expert = _route(logits).experts_per_item() == 1
    assert bool(through_weights[one_expert].any(1).all()), "an item with one expert teaches the router too"


@pytest.mark.parametrize("k_max", [None, 2])
def test_ragged_padded_and_dense_agree(k_max: int | None) -> None:
    router, x = sharp(top_p(D, E, p=0.7, k_max=k_max)), torch.randn(T, D)
    experts = FFN(E, FFNShape(D, 4))
    routing = router(x)
    ragged = experts(x, routing)
    again = Routing.from_padded(*routing.padded(E), E)
    everyone = Routing.from_padded(torch.ones(T, E), torch.arange(E).expand(T, E), E)
    dense = (routing.dense()[..., None] * experts.rows(x, everyone).view(T, E, D)).sum(1)
    torch.testing.assert_close(experts(x, again), ragged, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense, ragged, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(combine_reference(experts.rows(x, routing), routing), ragged, rtol=1e-5, atol=1e-5)


def test_truncation_is_reported_where_there_is_a_cap() -> None:
    router, x = sharp(top_p(D, E, p=0.9)), torch.randn(T, D)
    counts = router(x).experts_per_item()
    assert router(x).extra == {}
    truncated = router(x, asking(k=2)).extra["truncated"]
    assert float(truncated) == pytest.approx(float((counts > 2).float().mean()))
    assert router(x, asking(k=E)).extra["truncated"] == 0
    nobody = router(x, RouteContext(mask=torch.zeros(T, dtype=torch.bool), overrides={"k": 2}))
    assert nobody.extra["truncated"] == 0


def test_bfloat16_counts_as_float32_does() -> None:
    logits = torch.randn(400, 64).bfloat16()
    wide = Router(_Given(logits.float()), TopP(0.95, 64), Raw())(torch.zeros(400, 1))
    assert torch.equal(Router(_Given(logits), TopP(0.95, 64), Raw())(torch.zeros(400, 1)).expert, wide.expert)


@pytest.mark.parametrize(
    ("normalise", "options", "total"), [("sum", {}, 1.0), ("sum", {"scale": 2.0}, 2.0), ("scale", {"scale": 3.0}, None)]
)
def test_normalisation(normalise: Any, options: dict[str, float], total: float | None) -> None:
    router, x = sharp(top_p(D, E, normalise=normalise, **options)), torch.randn(T, D)
    plain = top_p(D, E)
    plain.load_state_dict(router.state_dict())
    if total is None:
        torch.testing.assert_close(router(x).weight, plain(x).weight * 3)
    else:
        torch.testing.assert_close(router(x).dense().sum(1), torch.full((T,), total))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: top_p(D, E, p=0.0), "p=0.0 .*above 0, up to 1"),
        (lambda: top_p(D, E, p=1.5), "above 0, up to 1"),
        (lambda: top_p(D, E, p=True), "above 0, up to 1"),
        (lambda: min_p(D, E, ratio=-0.5), "ratio=-0.5"),
        (lambda: top_p(D, E, k_max=7), "1 to 6"),
        (lambda: min_p(D, E, k_max=0), "1 to 6"),
        (lambda: top_p(D, E, normalise="all"), "'none', 'sum' or 'scale'"),  # type: ignore[arg-type]
        (lambda: top_p(D, E, scale=2.0), "normalise='scale'"),
        (lambda: top_p(D, E, activation="tanh"), "softmax, sigmoid"),  # type: ignore[arg-type]
        (lambda: TopP(-0.1, E), "from 0 to 1"),
        (lambda: MinP(1.1, E), "from 0 to 1"),
        (lambda: build_routers("top_p", [SiteShape(D, E, 2)], {"kmax": 2}), "mean 'k_max'"),
    ],
)
def test_refusals(build: Callable[[], object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        build()


@pytest.mark.parametrize("p", [-0.1, 1.01, "0.4", None])
@pytest.mark.parametrize("preset", [top_p, min_p])
def test_overrides_out_of_range(preset: Callable[..., Router], p: Any) -> None:
    with pytest.raises(OptionError, match="from 0 to 1"):
        preset(D, E)(torch.randn(T, D), asking(p=p))


@pytest.mark.parametrize("p", [0.4, 1.0])
def test_nan_is_met_where_it_enters(p: float) -> None:
    x = torch.randn(T, D)
    x[3, 0] = float("nan")
    with pytest.raises(RoutingError, match="1 of 30 items"):
        top_p(D, E, p=p)(x)
    mask = torch.arange(T) != 3
    assert top_p(D, E, p=p)(x, RouteContext(mask=mask)).check().experts_per_item()[3] == 0


class _Given(LinearScore):
    """Logits from outside."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(1, logits.shape[1])
        self.logits = logits

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        return self.logits, None


def _route(logits: Tensor) -> Routing:
    routing: Routing = Router(_Given(logits), TopP(0.4, E), Raw())(torch.zeros(T, 1))
    return routing
