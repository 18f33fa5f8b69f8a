"""The router with a memory over depth: against torch's own cell, and the rules of its carry."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.errors import OptionError, RoutingError
from coterie.routers import Router, SiteShape, build_routers, rmoe, top_k
from coterie.routers.score import Recurrent
from coterie.routing import RouteContext, Routing

D, P, E, K, L, T = 16, 6, 8, 2, 3, 20


class Stack(nn.Module):
    """L layers of routers and nothing else; the dense layers between them hand the carry on."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.layers = nn.ModuleList(build_routers("rmoe", [SiteShape(D, E, K)] * L, {"state": P, **options}))

    def forward(self, xs: list[Tensor], carry: Tensor | None = None) -> list[Routing]:
        found = []
        for router, x in zip(self.layers, xs, strict=True):
            found.append(router(x, RouteContext(carry=carry)).check())
            carry = found[-1].carry
        return found


def stack(**options: object) -> tuple[Stack, list[Tensor]]:
    made = Stack(**options)
    return made, [torch.randn(T, D) for _ in range(L)]


def score_of(made: Stack, layer: int) -> Recurrent:
    score = made.layers[layer].score
    assert isinstance(score, Recurrent)
    return score


CELLS = {"gru": nn.GRUCell, "rnn": nn.RNNCell, "lstm": nn.LSTMCell}


@pytest.mark.parametrize("projector", ["per_layer", "shared"])
@pytest.mark.parametrize("cell", CELLS)
def test_equals_a_chain_of_torch_cells(cell, projector):
    made, xs = stack(cell=cell, projector=projector)
    torch_cell = CELLS[cell](P, P)
    torch_cell.load_state_dict(score_of(made, 0).recurrence.cell.state_dict())
    state = None
    for layer, (x, found) in enumerate(zip(xs, made(xs), strict=True)):
        score = score_of(made, layer)
        own = score.projector if projector == "per_layer" else score_of(made, 0).recurrence.projector
        state = torch_cell(x @ own.T, state)
        hidden = state[0] if cell == "lstm" else state
        logits = hidden @ score.readout.weight.T
        torch.testing.assert_close(found.logits, logits, atol=1e-6, rtol=0)
        weights, chosen = torch.softmax(logits, 1).topk(K)
        torch.testing.assert_close(
            found.weight, Routing.from_padded(weights / weights.sum(1, keepdim=True), chosen, E).weight
        )


def test_gates_by_hand():
    """Equations 2, 3 and 5 in single sums."""
    made, xs = stack()
    score = score_of(made, 1)
    cell = score.recurrence.cell
    before = torch.randn(T, P)
    x = xs[0] @ score.projector.T
    into = x @ cell.weight_ih.T + cell.bias_ih
    back = before @ cell.weight_hh.T + cell.bias_hh
    reset = torch.sigmoid(into[:, :P] + back[:, :P])
    keep = torch.sigmoid(into[:, P : 2 * P] + back[:, P : 2 * P])
    new = torch.tanh(into[:, 2 * P :] + reset * back[:, 2 * P :])
    expected = (1 - keep) * new + keep * before
    torch.testing.assert_close(made.layers[1](xs[0], RouteContext(carry=before)).carry, expected)


@pytest.mark.parametrize("carry", ["full", "detach", "none"])
def test_what_passes_and_what_learns(carry):
    made, xs = stack(carry=carry)
    routings = made(xs)
    (gradient,) = torch.autograd.grad(
        routings[-1].logits.square().sum(), score_of(made, 0).projector, allow_unused=True
    )
    reaches = gradient is not None and bool(gradient.any())
    assert reaches == (carry == "full")
    score = made.layers[1].score
    width = score.carry_width
    assert (width, score.carries) == ((0, False) if carry == "none" else (P, True))
    logits = [made.layers[1](xs[1], RouteContext(carry=torch.full((T, P), value))).logits for value in (0.0, 3.0)]
    assert torch.equal(*logits) == (carry == "none")


def test_all_variants_have_the_same_parameters():
    sizes = {carry: sum(p.numel() for p in Stack(carry=carry).parameters()) for carry in ("full", "detach", "none")}
    assert set(sizes.values()) == {L * D * P + L * P * E + 6 * P**2 + 6 * P}


@pytest.mark.parametrize(
    ("layers", "width", "state", "experts", "millions"), [(8, 352, 128, 16, 0.475), (24, 1280, 128, 16, 4.08)]
)
def test_parameters_of_the_paper_s_models(layers, width, state, experts, millions):
    with torch.device("meta"):
        routers = build_routers("rmoe", [SiteShape(width, experts, 2)] * layers, {"state": state})
    found = sum(p.numel() for p in nn.ModuleList(routers).parameters())
    assert found == layers * width * state + layers * state * experts + 6 * state**2 + 6 * state
    assert found / 1e6 == pytest.approx(millions, abs=0.005)


def test_permutation_and_independence():
    made, xs = stack()
    order = torch.randperm(T)
    for found, moved in zip(made(xs), made([x[order] for x in xs]), strict=True):
        assert torch.equal(moved.chosen, found.chosen[order])
        torch.testing.assert_close(moved.weight, found.expand(order).weight)
    other = [x.clone() for x in xs]
    other[0][7] += 5
    for found, changed in zip(made(xs), made(other), strict=True):
        rest = torch.arange(T) != 7
        assert torch.equal(found.chosen[rest], changed.chosen[rest])
    assert not torch.equal(found.logits[7], changed.logits[7])  # it remembers, layers later


def test_token_by_token_is_the_whole():
    made, xs = stack()
    whole = made(xs)
    for t in range(T):
        for layer, step in enumerate(made([x[t : t + 1] for x in xs])):
            assert torch.equal(step.chosen[0], whole[layer].chosen[t])
            torch.testing.assert_close(step.logits[0], whole[layer].logits[t], atol=1e-5, rtol=0)


def test_nothing_is_left_from_the_forward_before():
    made, xs = stack()
    first, second = made(xs), made(xs)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(first, second, strict=True))


def test_weights_sum_to_one_and_all_experts_are_softmax():
    made, xs = stack(k=E)
    routing = made(xs)[-1]
    torch.testing.assert_close(routing.dense(), torch.softmax(routing.logits, 1))
    made, xs = stack()
    routing = made(xs)[-1]
    torch.testing.assert_close(routing.dense().sum(1), torch.ones(T), atol=1e-6, rtol=0)
    assert routing.experts_per_item().tolist() == [K] * T


@pytest.mark.parametrize("carry", ["full", "none"])
@pytest.mark.parametrize("detached", [False, True])
def test_logits_add_up_over_layers(carry, detached):
    made, xs = stack(residual=0.5, detach_residual=detached, carry=carry)
    plain = Stack(carry=carry)
    plain.load_state_dict(made.state_dict())
    with_residual, without = made(xs), plain(xs)
    total = torch.zeros(T, E)
    for found, own in zip(with_residual, without, strict=True):
        total = own.logits + 0.5 * total
        torch.testing.assert_close(found.logits, total)
        assert torch.equal(found.carry[:, -E:], found.logits)
        assert found.carry.shape == (T, E + (P if carry == "full" else 0))
    (gradient,) = torch.autograd.grad(
        with_residual[1].logits.sum(), score_of(made, 0).readout.weight, allow_unused=True
    )
    assert (gradient is not None and bool(gradient.any())) == (not detached)


def test_a_cosine_reads_out_too():
    made, xs = stack(readout="cosine")
    routing = made(xs)[1]
    score = score_of(made, 1)
    hidden = routing.carry @ score.readout.projector.T
    cosine = F.cosine_similarity(hidden[:, None], score.readout.rows[None], dim=2)
    torch.testing.assert_close(routing.logits, cosine / 0.3, atol=1e-5, rtol=1e-5)


def test_one_owner_in_the_state_dict():
    made, xs = stack()
    cells = [name for name in made.state_dict() if ".cell." in name]
    assert cells == [f"layers.0.score.recurrence.cell.{n}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    other = Stack()
    other.load_state_dict(torch.load(file))
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(made(xs), other(xs), strict=True))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["copy", "pickle"]
)
def test_a_copy_of_the_model_shares_its_own_cell(copied):
    made, xs = stack()
    before = [routing.logits for routing in made(xs)]
    other = copied(made)
    cell = score_of(other, 0).recurrence
    assert all(score_of(other, layer).recurrence is cell for layer in range(L))
    assert cell is not score_of(made, 0).recurrence
    with torch.no_grad():
        cell.cell.weight_ih.add_(1)
    assert all(torch.equal(a, b.logits) for a, b in zip(before, made(xs), strict=True))
    assert all(not torch.equal(a, b.logits) for a, b in zip(before, other(xs), strict=True))


def test_a_cast_reaches_every_layer():
    made, xs = stack()
    made.double()
    found = made([x.double() for x in xs])
    assert {routing.logits.dtype for routing in found} == {torch.float64}
    rows = [x[:3].double().requires_grad_() for x in xs]
    assert torch.autograd.gradcheck(lambda *rows: made(list(rows))[-1].logits, rows)
    made.bfloat16()
    found = made([x.bfloat16() for x in xs])
    assert {(r.logits.dtype, r.carry.dtype, r.weight.dtype) for r in found} == {(torch.float32,) * 3}


def test_autocast_leaves_the_recurrence_wide():
    made, xs = stack()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(xs)
    for a, b in zip(found, made(xs), strict=True):
        assert a.logits.dtype == a.carry.dtype == torch.float32
        torch.testing.assert_close(a.logits, b.logits, atol=2e-2, rtol=2e-2)


def test_a_model_learns_through_depth():
    """The last layer's experts can be chosen by what only the first layer saw."""
    torch.manual_seed(0)
    made = Stack()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-2)
    losses = []
    for _ in range(100):
        first = torch.randn(64, D)
        target = first[:, :E].argmax(1)
        routings = made([first, torch.zeros(64, D), torch.zeros(64, D)])
        loss = F.cross_entropy(routings[-1].logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1.7  # ln 8 = 2.08 without a memory


def test_refusals():
    first = rmoe(D, E, K, state=P)
    with pytest.raises(OptionError, match="cell=gru, asked is lstm"):
        rmoe(D, E, K, state=P, cell="lstm", follow=first)
    with pytest.raises(OptionError, match="state=6, asked is 5"):
        rmoe(D, E, K, state=5, follow=first)
    with pytest.raises(OptionError, match="cannot follow"):
        rmoe(D, E, K, follow=top_k(D, E, K))
    for option in ("cell", "projector", "carry", "readout"):
        with pytest.raises(OptionError, match=f"{option}='other'"):
            rmoe(D, E, K, **{option: "other"})
    with pytest.raises(OptionError, match="state=0"):
        rmoe(D, E, K, state=0)
    with pytest.raises(OptionError, match="1 to 8"):
        rmoe(D, E, E + 1)
    with pytest.raises(RoutingError, match=r"\(20, 6\).*\(20, 5\)"):
        first(torch.randn(T, D), RouteContext(carry=torch.zeros(T, 5)))
    with pytest.raises(RoutingError, match="D=16"):
        first(torch.randn(T, D + 1))


def test_a_shared_projector_wants_equal_widths():
    first: Router = rmoe(D, E, K, state=P, projector="shared")
    with pytest.raises(OptionError, match="shared projector=16, asked is 12"):
        rmoe(12, E, K, state=P, projector="shared", follow=first)
    second = rmoe(12, E, K, state=P, follow=rmoe(D, E, K, state=P))
    assert second(torch.randn(2, 12)).carry.shape == (2, P)
