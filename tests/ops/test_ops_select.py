"""The selection rules: against torch.topk, against plain Python, and on ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.ops import group_limited_top_k, hash_choice, top_k

INF = float("inf")
steady = settings(derandomize=True, max_examples=60, deadline=None)


def plain_top_k(row: list[float], k: int, allowed: list[bool]) -> list[int]:
    """The definition: sort by (score down, id up), drop what may not be, fill with R."""
    alive = [r for r, score in enumerate(row) if allowed[r] and score != -INF]
    best = sorted(alive, key=lambda r: (-row[r], r))[:k]
    return best + [len(row)] * (k - len(best))


def plain_groups(row: list[float], k: int, allowed: list[bool], groups: int, keep: int, best: int) -> list[int]:
    """Groups by the sum of their best scores, then top-k among the members of the kept ones."""
    size = len(row) // groups
    score = {}
    for g in range(groups):
        members = [row[r] for r in range(g * size, (g + 1) * size) if allowed[r] and row[r] != -INF]
        if members:
            score[g] = sum(sorted(members, reverse=True)[:best])
    kept = sorted(score, key=lambda g: (-score[g], g))[:keep]
    return plain_top_k(row, k, [ok and r // size in kept for r, ok in enumerate(allowed)])


@st.composite
def tables(draw: st.DrawFn, multiple: int = 1) -> tuple[Tensor, Tensor, int]:
    """Scores with many ties and some -inf, which routes are allowed, and k."""
    num_routes = multiple * draw(st.integers(1, 4))
    score = st.sampled_from([-INF, -1.5, -0.5, 0.0, 0.25, 0.5, 2.0])
    rows = draw(st.lists(st.lists(score, min_size=num_routes, max_size=num_routes), max_size=5))
    flags = draw(st.lists(st.lists(st.booleans(), min_size=num_routes, max_size=num_routes), min_size=5, max_size=5))
    scores = torch.tensor(rows).view(len(rows), num_routes)
    return scores, torch.tensor(flags)[: len(rows)], draw(st.integers(1, num_routes))


@steady
@given(tables())
def test_top_k_is_its_definition(case: tuple[Tensor, Tensor, int]) -> None:
    scores, allowed, k = case
    chosen = top_k(scores, k, allowed)
    expected = [plain_top_k(s, k, a) for s, a in zip(scores.tolist(), allowed.tolist(), strict=True)]
    assert chosen.dtype == torch.int64
    assert chosen.shape == (len(scores), k)
    assert chosen.tolist() == expected


@steady
@given(tables(multiple=4), st.data())
def test_group_limited_top_k_is_its_definition(case: tuple[Tensor, Tensor, int], data: st.DataObject) -> None:
    scores, allowed, _ = case
    num_groups = data.draw(st.sampled_from([1, 2, 4]))
    keep, best = data.draw(st.integers(1, num_groups)), data.draw(st.integers(1, 3))
    k = data.draw(st.integers(1, keep * scores.shape[1] // num_groups))
    chosen = group_limited_top_k(scores, k, num_groups=num_groups, keep_groups=keep, best=best, allowed=allowed)
    expected = [
        plain_groups(s, k, a, num_groups, keep, best) for s, a in zip(scores.tolist(), allowed.tolist(), strict=True)
    ]
    assert chosen.shape == (len(scores), k)
    assert chosen.tolist() == expected


@pytest.mark.parametrize("k", [1, 4, 64])
def test_top_k_is_torch_topk_without_ties(k: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(50, 64)
    assert torch.equal(top_k(scores, k), torch.topk(scores, k).indices)


def test_ties_go_to_the_lowest_id() -> None:
    assert top_k(torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]]), 4).tolist() == [[1, 2, 4, 0]]
    assert top_k(torch.zeros(1, 300, dtype=torch.bfloat16), 5).tolist() == [[0, 1, 2, 3, 4]]


def test_a_broken_score_is_refused_not_hidden() -> None:
    broken = torch.tensor([[3.0, float("nan"), 5.0], [1.0, 2.0, 3.0]])
    with pytest.raises(RoutingError, match=r"NaN\) for 1 of 2 items.*lower rate"):
        top_k(broken, 1)
    with pytest.raises(RoutingError, match="NaN"):
        group_limited_top_k(torch.tensor([[3.0, float("nan"), 5.0, 1.0]]), 1, num_groups=2, keep_groups=1)
    assert top_k(broken, 1, torch.tensor([True, False, True])).tolist() == [[2], [2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_tables_go_the_same_way_as_small_ones(dtype: torch.dtype) -> None:
    values = torch.tensor([-INF, -2.0, -0.0, 0.0, 1e-30, 0.5, 3.0, INF])
    scores = torch.cat([values[torch.randint(8, (500, 40))], torch.randn(500, 40)]).to(dtype)
    for k in (1, 3, 39):
        whole = top_k(scores, k)  # packed
        rows = torch.cat([top_k(row, k) for row in scores.split(10)])  # sorted
        assert torch.equal(whole, rows)


def test_one_row_of_allowed_serves_all_items() -> None:
    allowed = torch.tensor([False, True, True])
    assert top_k(torch.tensor([[3.0, 2.0, 1.0], [9.0, 1.0, 2.0]]), 2, allowed).tolist() == [[1, 2], [2, 1]]


def test_no_items() -> None:
    assert top_k(torch.empty(0, 4), 2).shape == (0, 2)
    assert group_limited_top_k(torch.empty(0, 4), 2, num_groups=2, keep_groups=1).shape == (0, 2)
    assert hash_choice(torch.empty(0, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64)).shape == (0, 2)


def test_all_groups_kept_is_top_k() -> None:
    torch.manual_seed(1)
    scores = torch.randn(20, 12)
    assert torch.equal(group_limited_top_k(scores, 5, num_groups=3, keep_groups=3), top_k(scores, 5))


def test_two_good_routes_beat_one_excellent() -> None:
    scores = torch.tensor([[5.0, 0.0, 3.0, 3.0]])
    assert group_limited_top_k(scores, 2, num_groups=2, keep_groups=1).tolist() == [[2, 3]]
    assert group_limited_top_k(scores, 2, num_groups=2, keep_groups=1, best=1).tolist() == [[0, 1]]


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(OptionError, match="1 to 4"):
        top_k(torch.zeros(2, 4), k)


@pytest.mark.parametrize(
    ("k", "groups", "keep", "text"),
    [
        (1, 3, 1, "divisor"),
        (1, 0, 1, "divisor"),
        (1, 2, 3, "keep_groups=3"),
        (1, 2, 0, "keep_groups=0"),
        (3, 2, 1, "k=3"),
    ],
)
def test_groups_that_do_not_fit(k: int, groups: int, keep: int, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        group_limited_top_k(torch.zeros(2, 4), k, num_groups=groups, keep_groups=keep)


def test_hash_choice_reads_the_table() -> None:
    table = torch.tensor([[4, 1], [0, 2], [3, 3]])
    assert hash_choice(torch.tensor([2, 0, 0]), table).tolist() == [[3, 3], [4, 1], [4, 1]]


@pytest.mark.parametrize("ids", [[0, 3], [-1, 0]])
def test_hash_choice_of_a_foreign_token(ids: list[int]) -> None:
    with pytest.raises(RoutingError, match="token ids 0 to 2"):
        hash_choice(torch.tensor(ids), torch.zeros(3, 1, dtype=torch.int64))
