"""Layers as factors and as integers: identities, shares, errors, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_layers import made_layer

from coterie.errors import OptionError, UnsupportedError
from coterie.experts import Factored, IntegerWidth, expert_forward
from coterie.ops.lowrank import low_rank
from coterie.surgery.factorize import LayerFactors, factorize_layer
from coterie.surgery.moments import InputMoments
from coterie.surgery.quantize import quantize_layer, width_bytes, width_errors

NAMES = ("gate_proj", "up_proj", "down_proj")


def layer_of(**options):
    layer = made_layer(experts=3, width=8, inner=12, **options)
    layer.site.dtype = torch.float32
    return layer


def names_of(layer):
    return [name for name, size in layer.shape.weight_shapes().items() if len(size) == 2]


def as_factors(layer, rank, *, keep=0.0, unit="row", whole=True, inputs=None):
    how = LayerFactors({name: [rank] * 3 for name in names_of(layer)}, keep, unit, whole=whole)
    return factorize_layer(layer, how, InputMoments(layer, inputs))


def agrees(layer, new, tolerance=1e-5):
    x = torch.randn(7, 8, generator=torch.Generator().manual_seed(5))
    for expert in range(3):
        expected = expert_forward(x, layer.expert(expert), layer.shape)
        found = new.kind.forward(x, new.parts[expert])
        torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"gated": False, "bias": True}])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("unit", ["row", "col", "neuron"])
def test_full_rank_or_all_of_the_rest_is_the_layer(options, whole, unit):
    layer = layer_of(**options)
    agrees(layer, as_factors(layer, 99, whole=whole))
    kept = as_factors(layer, 2, keep=1, unit=unit, whole=whole)
    agrees(layer, kept)
    assert all(error <= 1e-6 for error in kept.about["error"].values())


def test_nothing_kept_is_the_plain_product():
    layer = layer_of()
    new = as_factors(layer, 2)
    for expert, parts in enumerate(new.parts):
        for name in NAMES:
            up, down = low_rank(layer.weights[name][expert], 2)
            assert torch.equal(parts[f"{name}_u"], up)
            assert torch.equal(parts[f"{name}_v"], down)
            assert f"{name}_s" not in parts


@given(keep=st.floats(0, 1), rank=st.integers(1, 4), unit=st.sampled_from(["row", "col", "neuron"]))
@settings(max_examples=30, deadline=None)
def test_parts_are_those_of_the_kind(keep, rank, unit):
    layer = layer_of(bias=True)
    new = as_factors(layer, rank, keep=keep, unit=unit, whole=False)
    assert isinstance(new.kind, Factored)
    for expert, parts in enumerate(new.parts):
        assert {n: tuple(t.shape) for n, t in parts.items()} == {n: p.shape for n, p in new.kind.parts(expert).items()}
    again = Factored.from_record(new.kind.as_record(), layer.shape, 3)
    assert again.as_record() == new.kind.as_record()
    units = {"row": (12, 12, 8), "col": (8, 8, 12), "neuron": (12, 12, 12)}[unit]
    kept = [new.kind.factors[name][0].kept for name in NAMES]
    assert kept == [round(keep * count) for count in units]


def test_the_error_is_that_of_the_outputs_on_the_sample():
    layer = layer_of()
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)
    new = as_factors(layer, 2, keep=0.25, inputs=x)
    errors = []
    for expert, parts in enumerate(new.parts):
        weight = layer.weights["up_proj"][expert]
        made = parts["up_proj_u"] @ parts["up_proj_v"]
        made[parts["up_proj_at"].long()] += parts["up_proj_s"]
        errors.append(float(((weight - made) @ x.T).square().sum() / (weight @ x.T).square().sum()))
    assert new.about["error"]["up_proj"] == pytest.approx((sum(errors) / 3) ** 0.5, rel=1e-3)
    assert new.about["kept"] == pytest.approx(0.25, abs=0.01)


def test_a_sample_helps_where_it_is_heard():
    layer = layer_of()
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9) ** 2
    blind, seeing = as_factors(layer, 2), as_factors(layer, 2, inputs=x)
    for name in ("gate_proj", "up_proj"):

        def missed(new, name=name):
            return sum(
                float(((layer.weights[name][e] - p[f"{name}_u"] @ p[f"{name}_v"]) @ x.T).square().sum())
                for e, p in enumerate(new.parts)
            )

        assert missed(seeing) < 0.8 * missed(blind)


def test_integers_of_a_layer():
    layer = layer_of(bias=True)
    widths = {name: [IntegerWidth(8), IntegerWidth(4, 8), IntegerWidth(4)] for name in NAMES}
    new = quantize_layer(layer, widths, InputMoments(layer))
    agrees(replace_first(layer), replace_parts(new, 0), tolerance=0.05)
    for expert, parts in enumerate(new.parts):
        assert sum(part.nbytes for part in parts.values()) == new.kind.nbytes(expert)
    measured = width_errors(layer, [IntegerWidth(8), IntegerWidth(4, 8), IntegerWidth(4)], InputMoments(layer))
    for name in NAMES:
        table = measured[name]
        expected = sum(float(table[e, 1 + e] / table[e, 0]) for e in range(3)) / 3
        assert new.about["error"][name] == pytest.approx(expected**0.5, rel=1e-4)
        assert bool((table[:, 1] < table[:, 2]).all())
    assert width_bytes(3, 5, IntegerWidth(4)) == 3 * (3 + 2)


def replace_first(layer):
    """Expert 0 three times."""
    return replace(layer, weights={name: weight[[0, 0, 0]] for name, weight in layer.weights.items()})


def replace_parts(new, expert):
    return replace(new, parts=[new.parts[expert]] * 3)


def test_refused():
    layer = layer_of()
    with pytest.raises(OptionError, match="between 0 and 1"):
        LayerFactors({}, 1.5)
    with pytest.raises(OptionError, match="row, col, neuron"):
        LayerFactors({}, 0.5, "diagonal")
    normed = replace(layer, shape=replace(layer.shape, post_norm=True))
    with pytest.raises(UnsupportedError, match="end in a norm"):
        factorize_layer(normed, LayerFactors({}), InputMoments(layer))
    with pytest.raises(UnsupportedError, match="end in a norm"):
        quantize_layer(normed, {}, InputMoments(layer))
