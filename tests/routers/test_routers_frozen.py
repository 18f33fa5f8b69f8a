"""Frozen matrices, and scores by direction or in two parts."""

from __future__ import annotations

import copy
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coterie.errors import OptionError, RoutingError
from coterie.experts import FFN, FFNShape
from coterie.layers import MoE
from coterie.routers import Router, SiteShape, build_routers, cosine, smoe_dropout
from coterie.routers.score import Blend, Cosine, Frozen, HashScore, LinearScore, Recurrent
from coterie.routers.select import TopK
from coterie.routers.weigh import Selected
from coterie.routing import RouteContext

D, N, T = 16, 8, 40


def layer() -> MoE:
    return MoE(smoe_dropout(D, N, 2), FFN(N, FFNShape(D, 8)))


def test_learning_leaves_the_matrix_as_it_was():
    moe = layer()
    before = copy.deepcopy(moe.router.state_dict())
    assert not list(moe.router.parameters())
    optimizer = torch.optim.AdamW(moe.parameters(), lr=0.1, weight_decay=0.5)
    experts = moe.experts.down_proj.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        moe(torch.randn(T, D)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in moe.router.state_dict().items())
    assert not torch.equal(moe.experts.down_proj, experts)


def test_the_draw():
    score = Frozen(D, 2000, seed=3)
    assert score.weight.std() == pytest.approx(0.02, rel=0.02)
    assert score.weight.mean() == pytest.approx(0, abs=1e-3)
    assert not bool(score.bias.any())
    assert torch.equal(score.weight, Frozen(D, 2000, seed=3).weight)
    assert not torch.equal(score.weight, Frozen(D, 2000, seed=4).weight)
    assert set(score.state_dict()) == {"weight", "bias", "seed"}
    assert score.state_dict()["seed"].tolist() == [3]
    assert set(Frozen(D, N, bias=False).state_dict()) == {"weight", "seed"}


def test_the_draw_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Frozen(D, N)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_process_draws_the_same():
    program = (
        "import torch; from coterie.routers import smoe_dropout; r = smoe_dropout(16, 8, 2, seed=5);"
        "x = torch.sin(torch.arange(320.)).view(20, 16); print(r(x).chosen.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    x = torch.sin(torch.arange(320.0)).view(20, 16)
    assert done.stdout.strip() == str(smoe_dropout(D, N, 2, seed=5)(x).chosen.tolist())


def test_layers_differ():
    routers = build_routers("smoe_dropout", [SiteShape(D, N, 2)] * 3, {"seed": 7})
    assert [int(router.score.seed) for router in routers] == [7, 8, 9]
    assert torch.equal(routers[1].score.weight, smoe_dropout(D, N, 2, seed=8).score.weight)


def test_what_is_loaded_counts_not_what_is_drawn():
    mine, theirs = smoe_dropout(D, N, 2, seed=1), smoe_dropout(D, N, 2, seed=2)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(T, D)
    assert torch.equal(mine(x).chosen, theirs(x).chosen)
    assert int(theirs.score.seed) == 1


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_never_narrows(to):
    score = Frozen(D, N)
    weight = score.weight.clone()
    model = nn.Sequential(score, nn.Linear(2, 2)).to(to)
    assert score.weight.dtype == score.bias.dtype == torch.promote_types(to, torch.float32)
    assert torch.equal(score.weight.float(), weight)
    assert model[1].weight.dtype == to
    assert score(torch.randn(3, D).to(to), RouteContext())[0].dtype == torch.promote_types(to, torch.float32)
    assert score.seed.dtype == torch.int64


def test_logits_stay_wide_under_autocast():
    score, x = Frozen(D, N), torch.randn(T, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(x, RouteContext())[0], score(x, RouteContext())[0].float())
    assert torch.equal(score(x, RouteContext())[0], F.linear(x, score.weight, score.bias))


def test_orthogonal_rows():
    score = Frozen(64, 16, orthogonal=True, std=0.1)
    product = score.weight @ score.weight.T
    torch.testing.assert_close(product, torch.eye(16) * 0.1**2 * 64, atol=1e-5, rtol=1e-5)
    assert float(score.weight[0].sum()) != pytest.approx(float(Frozen(64, 16, orthogonal=True, seed=1).weight[0].sum()))
    with pytest.raises(OptionError, match="17 rows of 16"):
        smoe_dropout(16, 17, 2, orthogonal=True)


def test_calibration_evens_the_load():
    router = smoe_dropout(D, N, 2)
    x = torch.randn(4000, D) + 3 * torch.randn(D)
    before = router(x).items_per_expert().float()
    router.score.calibrate(x)
    after = router(x).items_per_expert().float()
    torch.testing.assert_close(router.score(x, RouteContext())[0].mean(0), torch.zeros(N), atol=1e-5, rtol=0)
    assert float(after.std()) < 0.5 * float(before.std())
    with pytest.raises(OptionError, match="bias=True"):
        Frozen(D, N, bias=False).calibrate(x)
    with pytest.raises(OptionError, match="one item"):
        Frozen(D, N).calibrate(x[:0])
    with pytest.raises(RoutingError, match="D=16"):
        Frozen(D, N).calibrate(x[:, 1:])


def test_more_choices_are_more_of_the_same():
    router, x = smoe_dropout(D, N, 2), torch.randn(T, D)
    state = copy.deepcopy(router.state_dict())
    sets = []
    for k in range(1, N + 1):
        routing = router(x, RouteContext(overrides={"k": k}))
        torch.testing.assert_close(routing.dense().sum(1), torch.ones(T))
        sets.append([set(row) for row in routing.chosen.tolist()])
    assert all(small < large for few, more in pairwise(sets) for small, large in zip(few, more, strict=True))
    torch.testing.assert_close(routing.dense(), torch.softmax(routing.logits, 1))
    assert all(torch.equal(value, state[name]) for name, value in router.state_dict().items())


@pytest.mark.parametrize("uniform", [False, True])
def test_output_scale_is_the_sum_of_the_weights(uniform):
    router = smoe_dropout(D, N, 3, uniform=uniform, output_scale=N)
    routing = router(torch.randn(T, D))
    torch.testing.assert_close(routing.dense().sum(1), torch.full((T,), float(N)))
    assert (routing.weight.unique().numel() == 1) == uniform


def test_cosine_looks_at_directions_alone():
    router, x = cosine(D, N, 2), torch.randn(T, D)
    routing = router(x)
    torch.testing.assert_close(routing.logits, router(x * 7).logits)
    assert float(routing.logits.detach().abs().max()) <= 1 / 0.3 + 1e-4
    score = router.score
    expected = F.cosine_similarity((x @ score.projector.T)[:, None], score.rows[None], dim=2) / 0.3
    torch.testing.assert_close(routing.logits, expected)
    assert score.dimension == N // 2
    assert Cosine(D, 2).dimension == 2


def test_the_temperature_is_cut_and_zeros_have_no_direction():
    router = cosine(D, N, 2)
    with torch.no_grad():
        router.score.log_temperature.fill_(-50.0)
    x = torch.cat([torch.zeros(1, D), torch.randn(5, D)]).requires_grad_()
    routing = router(x)
    assert float(routing.logits.detach().abs().max()) <= 100.001
    assert not bool(routing.logits[0].any())
    (routing.logits.square().sum() + routing.weight.sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in router.parameters())
    assert bool(torch.isfinite(x.grad).all())


def test_cosine_refusals():
    for wrong in ({"temperature": 0.0}, {"temperature": 0.001}, {"min_temperature": 0.0}, {"min_temperature": -1.0}):
        with pytest.raises(OptionError, match="temperature"):
            cosine(D, N, 2, **wrong)
    with pytest.raises(OptionError, match="dimension=-1"):
        cosine(D, N, 2, dimension=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blend_begins_as_its_base(dtype):
    base = LinearScore(D, N).to(dtype)
    blend = Blend(base, Cosine(D, N))
    x = torch.randn(T, D).to(dtype)
    logits, carry = blend(x, RouteContext())
    assert carry is None
    assert logits.dtype == dtype
    assert torch.equal(logits, base(x, RouteContext())[0])
    logits.float().square().sum().backward()
    assert bool(blend.gamma.grad.any())
    assert not bool(blend.extra.rows.grad.any())  # from the next step on


def test_a_blend_is_a_sum():
    blend, x = Blend(LinearScore(D, N), Cosine(D, N), gamma=0.7), torch.randn(T, D)
    base, extra = (part(x, RouteContext())[0] for part in (blend.base, blend.extra))
    torch.testing.assert_close(blend(x, RouteContext())[0], base + 0.7 * extra)


def test_a_blend_keeps_two_carries_apart():
    first, second = Recurrent(D, N, state=3, residual=1.0), Recurrent(D, N, state=5, cell="lstm")
    blend, x, carry = Blend(first, second, gamma=0.5), torch.randn(T, D), torch.randn(T, 3 + N + 10)
    assert blend.carry_width == carry.shape[1]
    logits, after = blend(x, RouteContext(carry=carry))
    left, right = carry.split([3 + N, 10], dim=1)
    expected = [first(x, RouteContext(carry=left)), second(x, RouteContext(carry=right))]
    torch.testing.assert_close(logits, expected[0][0] + 0.5 * expected[1][0])
    torch.testing.assert_close(after, torch.cat([expected[0][1], expected[1][1]], dim=1))
    assert blend(x, RouteContext())[1].shape == carry.shape
    with pytest.raises(RoutingError, match="21 columns"):
        blend(x, RouteContext(carry=carry[:, 1:]))


def test_a_blend_declares_what_its_parts_do():
    carrying = Blend(LinearScore(D, N), Recurrent(D, N, state=3))
    router = Router(carrying, TopK(2, N), Selected())
    assert (router.carries, router.causal, router.stochastic, router.scope) == (True, True, False, "token")
    with pytest.raises(OptionError, match="8 routes, the extra score 4"):
        Blend(LinearScore(D, N), LinearScore(D, 4))
    blend = Blend(HashScore(torch.tensor([[0], [1]]), N), Frozen(D, N), gamma=1.0)
    chosen = Router(blend, TopK(1, N), Selected())(torch.randn(2, D), RouteContext(ids=torch.tensor([1, 0]))).chosen
    assert chosen.tolist() == [[1], [0]]
