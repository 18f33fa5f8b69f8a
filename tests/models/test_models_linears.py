"""The kernel in a whole model: experts and linear layers in place, prompts as before, and back again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import coterie
from coterie.experts import FFN, FFNShape, kernel_problem
from coterie.models.linears import FewRowsLinear, use_kernel
from coterie.testing import checkpoints

needs_kernel = pytest.mark.skipif(bool(kernel_problem()), reason="no C compiler on this machine")


@needs_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_layers_agree_to_rounding_and_leave_long_inputs_alone(bias, dtype):
    layer = nn.Linear(48, 40, bias=bias).to(dtype).requires_grad_(False)
    ours = copy.deepcopy(layer)
    use_kernel(ours)
    assert type(ours) is FewRowsLinear
    one, many = torch.randn(1, 1, 48).to(dtype), torch.randn(2, 30, 48).to(dtype)
    torch.testing.assert_close(ours(one), layer(one), rtol=1e-2, atol=1e-2 if dtype.itemsize == 2 else 1e-5)
    assert ours(one).shape == (1, 1, 40)
    assert torch.equal(ours(many), layer(many))
    assert ours.state_dict().keys() == layer.state_dict().keys()
    use_kernel(ours, False)
    assert type(ours) is nn.Linear
    assert torch.equal(ours(one), layer(one))


@needs_kernel
def test_training_goes_through_it_as_ever():
    layer = nn.Linear(8, 4)
    use_kernel(layer)
    x = torch.randn(1, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is not None


def test_only_linear_layers_of_torchs_own_class_and_experts_are_taken():
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict({"own": Own(4, 4), "plain": nn.Linear(4, 4), "experts": FFN(2, FFNShape(4, 4))})
    use_kernel(model)
    assert type(model["own"]) is Own
    assert type(model["plain"]) is FewRowsLinear
    assert model["experts"].compiled
    use_kernel(model, False)
    assert type(model["plain"]) is nn.Linear
    assert not model["experts"].compiled


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_slots(tmp_path, dtype):
    """With every expert resident, with one slot, in a copy: the same logits, and those of torch to rounding."""
    path = checkpoints.save_tiny(tmp_path / "tiny", "olmoe", dtype=dtype)
    ids = torch.tensor([[5, 9, 2, 7, 3]])
    logits = {}
    for name, slots in (("all", None), ("one", 1), ("plain", None)):
        model = coterie.load(path, slots=slots, context=16)
        use_kernel(model, name != "plain")
        with torch.no_grad():
            cache = model(ids[:, :4], use_cache=True)
            logits[name] = model(ids[:, 4:], past_key_values=cache.past_key_values).logits
        model.coterie.close()
    assert torch.equal(logits["all"], logits["one"])
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(logits["all"], logits["plain"], rtol=tolerance, atol=tolerance)
