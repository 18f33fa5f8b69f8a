"""Merging: identical experts, permuted experts, single experts, weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.experts import FFNShape, expert_forward
from coterie.ops.align import permute_neurons
from coterie.surgery.grouping import Grouping
from coterie.surgery.merge import match_experts, merge_experts, merge_group

SHAPES = st.builds(
    FFNShape, width=st.integers(2, 6), inner=st.integers(1, 8), gated=st.booleans(), bias=st.booleans(),
    fused=st.just(False),
)  # fmt: skip
SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def drawn(shape, experts, generator, dtype=torch.float32):
    sizes = shape.weight_shapes()
    return {name: torch.randn(experts, *size, generator=generator).to(dtype) for name, size in sizes.items()}


def one(weights, expert):
    return {name: weight[expert] for name, weight in weights.items()}


def merged_by(weights, grouping, usage, **options):
    return merge_experts(weights, grouping, usage, match_experts(weights, grouping, **options))


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@given(SHAPES, SEEDS, DTYPES)
@settings(max_examples=50, deadline=None)
def test_identical_experts_permuted_give_themselves_bit_for_bit(shape, seed, dtype):
    """Whatever their use, and in any order of neurons: three copies of one, two of another, one alone."""
    generator = torch.Generator().manual_seed(seed)
    origin = drawn(shape, 3, generator, dtype)
    families = [0, 1, 0, 2, 1, 0]
    orders = [torch.randperm(shape.inner, generator=generator) for _ in families]
    copies = [permute_neurons(one(origin, family), order) for family, order in zip(families, orders, strict=True)]
    weights = {name: torch.stack([copy[name] for copy in copies]) for name in origin}
    grouping = Grouping((1, 2, 3), ((1, 4), (0, 2, 5), (3,)))
    merged = merged_by(weights, grouping, torch.rand(6, generator=generator))
    for group, dominant in enumerate(grouping.dominants):
        assert same(one(merged, group), one(weights, dominant))
    assert all(merged[name].dtype == dtype for name in merged)


@given(SHAPES, SEEDS, st.sampled_from(["weight", "activation"]))
@settings(max_examples=50, deadline=None)
def test_the_order_of_neurons_does_not_matter(shape, seed, align):
    """Of a member: the same merged weights. Of the dominant: the same function."""
    generator = torch.Generator().manual_seed(seed)
    weights, x = drawn(shape, 2, generator), torch.randn(40, shape.width, generator=generator)
    usage, grouping = torch.tensor([1.0, 2.0]), Grouping((1,), ((0, 1),))

    def merged(weights):
        def features(expert):
            ups = [
                x @ weights[n][expert].T + weights.get(f"{n}_bias", torch.zeros(2, 1))[expert] for n in shape.up_names
            ]
            return shape.hidden(ups[-1], ups[0] if shape.gated else None)

        return one(merged_by(weights, grouping, usage, align=align, features=features), 0)

    order = torch.randperm(shape.inner, generator=generator)
    for expert, exact in ((0, True), (1, False)):
        moved = {name: weight.clone() for name, weight in weights.items()}
        for name, weight in permute_neurons(one(weights, expert), order).items():
            moved[name][expert] = weight
        before, after = merged(weights), merged(moved)
        if exact:
            assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
        torch.testing.assert_close(
            expert_forward(x, before, shape), expert_forward(x, after, shape), rtol=1e-4, atol=1e-5
        )


@given(SHAPES, SEEDS, DTYPES, st.sampled_from(["dominant", "first"]))
@settings(max_examples=30, deadline=None)
def test_single_experts_are_untouched(shape, seed, dtype, reference):
    weights = drawn(shape, 3, torch.Generator().manual_seed(seed), dtype)
    grouping = Grouping((0, 1, 2), ((0,), (1,), (2,)))
    assert same(merged_by(weights, grouping, torch.rand(3), reference=reference), weights)


def test_the_mean_is_weighted_by_use():
    weights = {"up_proj": torch.tensor([[[1.0]], [[4.0]]]), "down_proj": torch.tensor([[[2.0]], [[8.0]]])}
    merged = merge_experts(weights, Grouping((0,), ((0, 1),)), torch.tensor([2.0, 1.0]))
    assert merged["up_proj"].item() == pytest.approx(2.0)
    assert merged["down_proj"].item() == pytest.approx(4.0)


def test_experts_that_nobody_used_count_alike():
    weights = {"up_proj": torch.tensor([[[1.0]], [[4.0]]]), "down_proj": torch.tensor([[[2.0]], [[8.0]]])}
    merged = merge_experts(weights, Grouping((0,), ((0, 1),)), torch.zeros(2))
    assert merged["up_proj"].item() == 2.5
    assert merge_group([{"w": torch.ones(2)}, {"w": torch.zeros(2)}], torch.zeros(2))["w"].tolist() == [0.5, 0.5]


def test_the_paper_aligns_everything_to_the_first_expert():
    shape = FFNShape(4, 6, fused=False)
    weights = drawn(shape, 3, torch.Generator().manual_seed(1))
    grouping, usage, x = Grouping((0, 2), ((0,), (1, 2))), torch.ones(3), torch.randn(5, 4)
    ours = merged_by(weights, grouping, usage)
    papers = merged_by(weights, grouping, usage, reference="first")
    assert same(one(ours, 0), one(papers, 0))
    assert not torch.allclose(expert_forward(x, one(ours, 1), shape), expert_forward(x, one(papers, 1), shape))


def test_alignment_helps_where_copies_drifted_apart():
    shape = FFNShape(8, 16, fused=False)
    generator = torch.Generator().manual_seed(0)
    first = {name: w[0] for name, w in drawn(shape, 1, generator).items()}
    other = permute_neurons({n: w + 0.02 * torch.randn(w.shape) for n, w in first.items()}, torch.randperm(16))
    weights = {name: torch.stack([first[name], other[name]]) for name in first}
    x, grouping = torch.randn(20, 8), Grouping((0,), ((0, 1),))
    wanted = expert_forward(x, first, shape)

    def error(align):
        merged = merged_by(weights, grouping, torch.ones(2), align=align)
        return float((expert_forward(x, one(merged, 0), shape) - wanted).norm() / wanted.norm())

    assert error("weight") < 0.1 < error("none")


def test_unknown_ways_are_refused():
    weights = drawn(FFNShape(2, 2, fused=False), 2, torch.Generator())
    grouping = Grouping((0,), ((0, 1),))
    with pytest.raises(OptionError, match="not by 'wieght'"):
        match_experts(weights, grouping, align="wieght")
    with pytest.raises(OptionError, match="not 'last'"):
        match_experts(weights, grouping, reference="last")
    with pytest.raises(OptionError, match="Align by weight instead"):
        match_experts(weights, grouping, align="activation")
