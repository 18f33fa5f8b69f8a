"""What single parts do that the battery, which sees whole routers, cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.routers import Router, RouteTable, Score, Scores, Select, Weigh
from coterie.routers.base import Scope
from coterie.routers.score import HashScore, LinearScore, random_table
from coterie.routers.select import GroupLimited, TopK
from coterie.routers.weigh import Raw, Selected
from coterie.routing import RouteContext


def test_linear_score_is_a_matrix_product() -> None:
    torch.manual_seed(0)
    score, x = LinearScore(3, 2, bias=True), torch.randn(4, 3)
    assert score.bias is not None
    with torch.no_grad():
        score.bias.copy_(torch.tensor([1.0, -1.0]))
    logits, carry = score(x, RouteContext())
    expected = [[sum(a * b for a, b in zip(row, w, strict=True)) for w in score.weight.tolist()] for row in x.tolist()]
    torch.testing.assert_close(logits, torch.tensor(expected) + torch.tensor([1.0, -1.0]))
    assert carry is None


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.bfloat16), (torch.float32, torch.float32)])
def test_linear_score_dtype(dtype: torch.dtype | None, expected: torch.dtype) -> None:
    assert LinearScore(3, 2, dtype=dtype)(torch.zeros(1, 3).bfloat16(), RouteContext())[0].dtype == expected


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.bfloat16), (torch.float32, torch.float32)])
def test_linear_score_under_autocast(dtype: torch.dtype | None, expected: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LinearScore(3, 2, dtype=dtype)(torch.zeros(1, 3), RouteContext())[0].dtype == expected


@pytest.mark.parametrize("shape", [(4, 5), (3,), (2, 2, 3)])
def test_linear_score_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(RoutingError, match=r"\[T, D=3\]"):
        LinearScore(3, 2)(torch.zeros(shape), RouteContext())


def test_hash_score_names_the_routes_of_the_table() -> None:
    logits, _ = HashScore(torch.tensor([[2, 0], [1, 2]]), 3)(torch.zeros(2, 1), RouteContext(ids=torch.tensor([1, 0])))
    assert (logits == 0).tolist() == [[False, True, True], [True, False, True]]
    assert bool((logits[logits != 0] == float("-inf")).all())


def test_hash_score_needs_ids() -> None:
    score = HashScore(torch.tensor([[0]]), 2)
    for ids in (None, torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(RoutingError, match="ids"):
            score(torch.zeros(2, 1), RouteContext(ids=ids))


@pytest.mark.parametrize("table", [[[2]], [[-1]], [], [0]])
def test_hash_table_must_fit(table: list[list[int]]) -> None:
    with pytest.raises(OptionError, match="hash table"):
        HashScore(torch.tensor(table), 2)


def test_random_table() -> None:
    table = random_table(500, 5, 3, seed=1)
    assert table.shape == (500, 3)
    assert all(len(set(row)) == 3 for row in table.tolist())
    assert torch.equal(table, random_table(500, 5, 3, seed=1))
    assert not torch.equal(table, random_table(500, 5, 3, seed=2))
    load = torch.bincount(table.flatten(), minlength=5)
    assert int(load.min()) > 200  # of 300 expected each
    with pytest.raises(OptionError, match="1 to 5"):
        random_table(10, 5, 6)


def scores(logits: list[list[float]], weigh: Weigh) -> Scores:
    table = torch.tensor(logits)
    return Scores(table, weigh.probs(table, None))


def test_correction_moves_the_choice_and_no_weight() -> None:
    weigh, select = Raw("sigmoid"), TopK(1, 3, corrected=True)
    table = scores([[0.0, 1.0, -1.0]], weigh)
    assert select(table, RouteContext()).tolist() == [[1]]
    assert select.correction is not None
    select.correction[2] = 5.0
    chosen = select(table, RouteContext())
    assert chosen.tolist() == [[2]]
    torch.testing.assert_close(weigh(table, chosen), torch.tensor([[-1.0]]).sigmoid())


def test_correction_moves_groups_too() -> None:
    select = GroupLimited(1, 4, num_groups=2, keep_groups=1)
    table = scores([[2.0, 2.0, 1.0, 0.0]], Raw("sigmoid"))
    assert select(table, RouteContext()).tolist() == [[0]]
    assert select.correction is not None
    select.correction[3] = 1.0
    assert select(table, RouteContext()).tolist() == [[3]]


def test_a_corrected_selection_saves_its_correction() -> None:
    assert "correction" in TopK(1, 2, corrected=True).state_dict()
    assert not TopK(1, 2).state_dict()


def test_softmax_after_is_softmax_before_renormalised() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 6, dtype=torch.float64).tolist()
    chosen = TopK(3, 6)(scores(logits, Selected()), RouteContext())
    before, after = Raw("softmax", renormalise=True), Selected()
    torch.testing.assert_close(before(scores(logits, before), chosen), after(scores(logits, after), chosen))


def test_softmax_after_keeps_what_softmax_before_loses() -> None:
    chosen = torch.tensor([[1, 2]])
    logits = [[500.0, 1.0, 0.0]]
    assert Raw("softmax", renormalise=True)(scores(logits, Raw()), chosen).tolist() == [[0.0, 0.0]]
    found = Selected()(scores(logits, Selected()), chosen)
    torch.testing.assert_close(found, torch.softmax(torch.tensor([[1.0, 0.0]]), 1))


def test_raw_scale_and_eps() -> None:
    chosen, weigh = torch.tensor([[0, 1]]), Raw("sigmoid", renormalise=True, eps=1.0, scale=3.0)
    found = weigh(scores([[0.0, 0.0]], weigh), chosen)
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.75]]))  # 3 * 0.5 / (0.5 + 0.5 + 1)


@pytest.mark.parametrize("weigh", [Raw("softmax", renormalise=True, rounded=True), Selected(rounded=True)])
def test_rounded_weights_fit_the_logits(weigh: Weigh) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 4).bfloat16()
    chosen = torch.randn(9, 4).topk(2).indices
    weights = weigh(Scores(logits, weigh.probs(logits, None)), chosen)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, weights.bfloat16().float())


def test_double_stays_double() -> None:
    torch.manual_seed(0)
    router = Router(LinearScore(3, 4), TopK(2, 4), Selected()).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert router(x).weight.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda rows: router(rows).weight, (x,))


def test_unknown_activation() -> None:
    with pytest.raises(OptionError, match="softmax, sigmoid"):
        Raw("tanh")  # type: ignore[arg-type]


def test_k_beyond_the_routes_is_refused_when_built() -> None:
    with pytest.raises(OptionError, match="1 to 4"):
        TopK(5, 4)
    with pytest.raises(OptionError, match=r"1\.\.2"):
        GroupLimited(3, 4, num_groups=2, keep_groups=1)


def test_score_and_table_must_agree() -> None:
    with pytest.raises(OptionError, match="2 routes, the table 3"):
        Router(LinearScore(3, 2), TopK(1, 2), Selected(), RouteTable.identity(3))


class Everybody(Select):
    causal, variable_k, stochastic = False, True, True
    scope: Scope = "image"

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        return torch.arange(scores.logits.shape[1]).expand(scores.logits.shape)


class Carrying(Score):
    carries = True
    num_routes = 2
    scope: Scope = "sequence"

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        return x, x + (0 if ctx.carry is None else ctx.carry)


def test_facts_come_from_the_parts() -> None:
    plain = Router(LinearScore(2, 2), TopK(1, 2), Selected())
    odd = Router(Carrying(), Everybody(), Selected())
    names = ("causal", "variable_k", "learned", "carries", "stochastic", "scope")
    assert [getattr(plain, n) for n in names] == [True, False, True, False, False, "token"]
    assert [getattr(odd, n) for n in names] == [False, True, False, True, True, "image"]


def test_frozen_parameters_are_not_learned() -> None:
    router = Router(LinearScore(2, 2), TopK(1, 2), Selected()).requires_grad_(False)
    assert not router.learned


def test_the_carry_passes_through() -> None:
    router, x = Router(Carrying(), Everybody(), Selected()), torch.ones(3, 2)
    first = router(x)
    assert torch.equal(router(x, RouteContext(carry=first.carry)).carry, 2 * x)


def test_aliases_chosen_together_are_one_expert() -> None:
    router = Router(LinearScore(2, 3), TopK(2, 3), Selected(), RouteTable.aliases([1, 1, 0]))
    with torch.no_grad():
        router.score.weight.copy_(torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    routing = router(torch.tensor([[2.0, 0.0]]))
    assert routing.chosen.tolist() == [[0, 1]]
    assert (routing.expert.tolist(), routing.weight.tolist()) == ([1], [1.0])


def test_an_item_of_nulls_computes_nothing() -> None:
    router = Router(LinearScore(1, 3), TopK(2, 3), Selected(), RouteTable.with_nulls(1, 2))
    with torch.no_grad():
        router.score.weight.copy_(torch.tensor([[-1.0], [1], [1]]))
    routing = router(torch.tensor([[1.0], [-1.0]]))
    assert routing.chosen.tolist() == [[1, 2], [0, 1]]
    assert routing.experts_per_item().tolist() == [0, 1]
