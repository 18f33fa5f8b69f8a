"""Training one expert after the other: the plain reference's outputs and every gradient."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
from test_experts_battery import SHAPES
from torch import Tensor

from coterie.experts import FFN, FFNShape
from coterie.routing import Routing

module = import_module("coterie.experts.one_by_one")  # the package may have a function of that name
NUM_EXPERTS = 5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """However few the rows."""
    monkeypatch.setattr(module, "_ROWS", 0)


def ragged(dtype: torch.dtype) -> Routing:
    """11 items, 0 to 4 experts each, expert 3 without any, weights that want a gradient."""
    torch.manual_seed(1)
    experts_of = [[0, 1], [2], [], [0, 1, 2, 4], [4], [1, 2], [0], [0, 4], [1], [1, 4], [0, 1, 2, 4]]
    item = torch.tensor([t for t, row in enumerate(experts_of) for _ in row])
    expert = torch.tensor([e for row in experts_of for e in row])
    wide = torch.promote_types(dtype, torch.float32)
    return Routing(item, expert, torch.rand(len(item), dtype=wide).requires_grad_(), 11, NUM_EXPERTS)


def gradients(ffn: FFN, x: Tensor, routing: Routing) -> list[Tensor]:
    """Of items, shares and parameters, behind the output."""
    x = x.clone().requires_grad_()
    y = ffn(x, routing)
    mix = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, routing.weight, *ffn.parameters()], mix, materialize_grads=True)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_and_gradients_are_those_of_the_reference(shape, dtype):
    ffn, routing = FFN(NUM_EXPERTS, shape).to(dtype), ragged(dtype)
    plain = copy.deepcopy(ffn)
    plain.method = "reference"
    x = torch.randn(11, shape.width).to(dtype)
    names = ["y", "x", "weight", *(name for name, _ in ffn.named_parameters())]
    for name, mine, theirs in zip(names, gradients(ffn, x, routing), gradients(plain, x, routing), strict=True):
        assert mine.dtype == theirs.dtype, name
        assert mine.shape == theirs.shape, name
        difference = (mine - theirs).float().norm()
        assert difference <= TOLERANCE[dtype] * max(1e-3, theirs.float().norm()), (name, difference)


def test_it_is_the_way_taken(monkeypatch):
    """And not where a norm follows, nor below the number of rows."""
    calls = []
    original = module._OneByOne.apply
    monkeypatch.setattr(module._OneByOne, "apply", lambda *inputs: calls.append(1) or original(*inputs))
    routing = ragged(torch.float32)
    for shape, wanted in ((FFNShape(16, 8), 1), (FFNShape(16, 8, post_norm=True), 0)):
        calls.clear()
        FFN(NUM_EXPERTS, shape)(torch.randn(11, 16), routing)
        assert len(calls) == wanted
    monkeypatch.setattr(module, "_ROWS", 100)
    FFN(NUM_EXPERTS, FFNShape(16, 8))(torch.randn(11, 16), routing)
    assert not calls


def test_gradients_are_the_derivative_twice():
    shape = FFNShape(3, 2, bias=True, activation="tanh")
    ffn = FFN(NUM_EXPERTS, shape).double()
    routing, x = ragged(torch.float64), torch.randn(11, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor, *stacks: Tensor) -> Tensor:
        own = Routing(routing.item, routing.expert, weight, 11, NUM_EXPERTS)
        named = dict(zip(shape.weight_shapes(), stacks, strict=True))
        return torch.func.functional_call(ffn, named, (x, own))

    inputs = (x, routing.weight, *(p.detach().requires_grad_() for p in ffn.parameters()))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("frozen", ["x", "weight", "gate_up_proj", "down_proj"])
def test_what_needs_no_gradient_gets_none(frozen):
    ffn, routing = FFN(NUM_EXPERTS, FFNShape(16, 8)), ragged(torch.float32)
    x = torch.randn(11, 16, requires_grad=True)
    inputs = {"x": x, "weight": routing.weight, **dict(ffn.named_parameters())}
    inputs[frozen].requires_grad_(False)
    ffn(x, routing).sum().backward()
    assert inputs[frozen].grad is None
    assert all(tensor.grad is not None for name, tensor in inputs.items() if name != frozen)


def test_experts_without_items_have_zero_gradients():
    ffn, routing = FFN(NUM_EXPERTS, FFNShape(16, 8, bias=True)), ragged(torch.float32)
    ffn(torch.randn(11, 16), routing).sum().backward()
    for parameter in ffn.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[3].any()
        assert parameter.grad[0].any()


def test_under_autocast_it_computes_in_the_dtype_of_the_items():
    ffn, routing, x = FFN(NUM_EXPERTS, FFNShape(16, 8)), ragged(torch.float32), torch.randn(11, 16)
    expected = gradients(ffn, x, routing)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(ffn, x, routing)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_few_numbers_of_rows_meet_the_library(monkeypatch):
    """In bfloat16 every number of rows costs a kernel: all products have a multiple of 32."""
    seen = set()
    original = module._linear
    monkeypatch.setattr(module, "_linear", lambda rows, *rest: seen.add(len(rows)) or original(rows, *rest))
    ffn, routing = FFN(NUM_EXPERTS, FFNShape(16, 8)).bfloat16(), ragged(torch.bfloat16)
    ffn(torch.randn(11, 16).bfloat16(), routing)
    assert seen == {32}
