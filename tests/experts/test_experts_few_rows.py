"""The compiled kernel: right, the same bits whatever lies or is computed beside, and never in the way."""

from __future__ import annotations

import copy
import logging
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_experts_battery import SHAPES as BATTERY
from test_experts_bits import OFFSETS, SHAPES, placed

from coterie.errors import OptionError
from coterie.experts import FFN, FFNShape, expert_forward, few_rows, has_few, kernel_problem, wants_kernel
from coterie.routing import Routing
from coterie.testing.experts import ragged_routing

module = import_module("coterie.experts.few_rows")  # the package has a function of that name
DTYPES = {"float32": (torch.float32,) * 2, "bfloat16": (torch.bfloat16,) * 2, "mixed": (torch.float32, torch.bfloat16)}

needs_kernel = pytest.mark.skipif(bool(kernel_problem()), reason="no C compiler on this machine")


def weights_of(shape: FFNShape, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: placed(w[0].detach().to(dtype), 0) for name, w in FFN(1, shape).named_parameters()}


@needs_kernel
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 140), st.integers(1, 140)),
    dtypes=st.sampled_from(sorted(DTYPES)),
    transposed=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_products_are_those_of_float64(sizes, dtypes, transposed, bias):
    (n, inputs, outputs), (x_dtype, dtype) = sizes, DTYPES[dtypes]
    x, matrix = torch.randn(n, inputs).to(x_dtype), torch.randn(outputs, inputs).to(dtype)
    offset = torch.randn(outputs).to(dtype) if bias else None
    given_matrix = matrix.t().contiguous() if transposed else matrix
    wanted = x.double() @ matrix.double().t() + (0 if offset is None else offset.double())
    found = few_rows(x, given_matrix, offset, transposed=transposed)
    assert found.dtype == x_dtype
    torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(x_dtype).eps, atol=2e-5)


@needs_kernel
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_same_bits_at_any_address_number_of_rows_and_threads(shape, dtypes):
    x_dtype, dtype = dtypes
    weights, x = weights_of(shape, dtype), torch.randn(4, shape.width).to(x_dtype)
    matrix, turned = weights[shape.up_names[0]], shape.transposed
    alone = torch.cat([few_rows(x[n : n + 1], matrix, transposed=turned) for n in range(4)])
    assert torch.equal(few_rows(x, matrix, transposed=turned), alone)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(few_rows(x[:3], matrix, transposed=turned), alone[:3])
    finally:
        torch.set_num_threads(before)
    for n in (1, 4):
        expected = expert_forward(x[:n], weights, shape, compiled=True)
        for offset in OFFSETS:
            if offset % x_dtype.itemsize == 0:
                moved = {name: placed(w, offset) for name, w in weights.items()}
                found = expert_forward(placed(x[:n], offset), moved, shape, compiled=True)
                assert torch.equal(found, expected), (n, offset)


@needs_kernel
@pytest.mark.parametrize("shape", BATTERY.values(), ids=BATTERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["grouped", "loop"])
def test_a_stack_computes_the_bits_of_its_parts(shape, dtype, method):
    """One call for all experts, or one for each as the store does it."""
    ffn = FFN(5, shape, method, compiled=True).to(dtype).requires_grad_(False)
    for routing in (ragged_routing(5), ragged_routing(5).expand(torch.tensor([1]))):
        x = torch.randn(routing.num_items, shape.width).to(dtype)
        rows = ffn.rows(x, routing)
        for expert in range(5):
            sent, own = x[routing.item[routing.expert == expert]], ffn.weights_of(expert)
            if len(sent):
                found = expert_forward(sent, own, shape, compiled=True)
                assert torch.equal(rows[routing.expert == expert], found), expert
        torch.testing.assert_close(rows, FFN.rows(_plain(ffn), x, routing), rtol=0.05 if dtype.itemsize == 2 else 1e-4,
                                   atol=0.02 if dtype.itemsize == 2 else 1e-5)  # fmt: skip


def _plain(ffn: FFN) -> FFN:
    plain = copy.deepcopy(ffn)
    plain.compiled, plain.method = False, "reference"
    return plain


@needs_kernel
def test_experts_with_many_rows_take_torchs_products_beside_those_with_few():
    shape, rows = FFNShape(32, 64), 40
    ffn = FFN(3, shape, "loop", compiled=True).requires_grad_(False)
    expert = torch.tensor([0] * (rows - 3) + [1, 2, 2])
    routing = Routing(torch.arange(rows), expert, torch.ones(rows), rows, 3)
    x = torch.randn(rows, 32)
    found, alone = ffn.rows(x, routing), expert_forward(x[:37], ffn.weights_of(0), shape)
    assert torch.equal(found[:37], alone)
    assert torch.equal(found[38:], expert_forward(x[38:], ffn.weights_of(2), shape, compiled=True))


@needs_kernel
def test_sixty_layouts_in_one_process_leave_the_bits_of_the_first():
    """Nothing is specialised on sizes, strides or addresses, so nothing can fall back silently."""
    shape = FFNShape(40, 24)
    weights, x = weights_of(shape, torch.float32), torch.randn(1, 40)
    first = expert_forward(x, weights, shape, compiled=True)
    for size in range(1, 61):
        other = FFNShape(size, 61 - size, transposed=bool(size % 2), bias=bool(size % 3))
        expert_forward(torch.randn(1 + size % 4, size), weights_of(other, torch.float32), other, compiled=True)
    assert torch.equal(expert_forward(x, weights, shape, compiled=True), first)


@needs_kernel
def test_what_is_not_for_it_takes_torchs_products():
    shape = FFNShape(16, 8)
    weights, x = weights_of(shape, torch.float32), torch.randn(2, 16)
    matrix = weights["down_proj"]
    row = torch.randn(1, 8)
    assert has_few(row, [matrix])
    assert not has_few(torch.randn(9, 8), [matrix])
    assert not has_few(row[:0], [matrix])
    assert not has_few(row.half(), [matrix.half()])
    assert not has_few(row.bfloat16(), [matrix])  # would have to be rounded first
    assert not has_few(row, [torch.randn(8, 16).t()])
    assert not has_few(row, [matrix, torch.zeros(16, dtype=torch.bfloat16)])
    assert not has_few(row.requires_grad_(), [matrix])
    with torch.no_grad():
        assert has_few(row, [matrix])
    many = torch.randn(9, 16)
    assert torch.equal(expert_forward(many, weights, shape, compiled=True), expert_forward(many, weights, shape))
    assert expert_forward(x[:0], weights, shape, compiled=True).shape == (0, 16)


@needs_kernel
def test_gradients_are_those_without_it():
    compiled, routing = FFN(5, FFNShape(16, 8), compiled=True), ragged_routing(5)
    plain = FFN(5, FFNShape(16, 8))
    plain.load_state_dict(compiled.state_dict())
    x = torch.randn(routing.num_items, 16)
    for ffn in (compiled, plain):
        ffn(x, routing).square().sum().backward()
    for a, b in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        assert torch.equal(a.grad, b.grad)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_special_values_come_out_as_torch_has_them(dtype):
    x = torch.tensor([[1.0, float("inf"), 2.0], [0.0, -0.0, 3e38], [float("nan"), 0.0, 1.0]]).to(dtype)
    matrix = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1e38], [0.0, 0.0, 0.0]]).to(dtype)
    wanted = torch.nn.functional.linear(x.float(), matrix.float()).to(dtype)
    for transposed in (False, True):
        found = few_rows(x, matrix.t().contiguous() if transposed else matrix, transposed=transposed)
        torch.testing.assert_close(found, wanted, equal_nan=True)


def test_auto_looks_at_the_model_alone(monkeypatch):
    monkeypatch.setattr(module, "_made", "none")
    assert not wants_kernel("auto", 10**12)
    monkeypatch.setattr(module, "_made", module._Kernel(lambda *_: 0))
    assert wants_kernel("auto", module.AUTO_BYTES)
    assert not wants_kernel("auto", module.AUTO_BYTES - 1)
    assert wants_kernel(True, 0)
    assert not wants_kernel(False, 10**12)
    with pytest.raises(OptionError, match="auto"):
        wants_kernel("yes", 0)


@pytest.mark.parametrize(
    ("compiler", "said"),
    [("", "install gcc or clang"), ("/nowhere/cc -x", "/nowhere/cc"), ("false", "did not make"), ("true", "did not")],
)
def test_without_a_working_compiler_torch_serves_and_the_log_says_so_once(monkeypatch, caplog, compiler, said):
    monkeypatch.setattr(module, "_made", None)
    monkeypatch.setenv("CC", compiler)
    if not compiler:
        monkeypatch.delenv("CC")
        monkeypatch.setattr(module.shutil, "which", lambda _: None)
    shape = FFNShape(16, 8)
    weights, x = weights_of(shape, torch.float32), torch.randn(1, 16)
    with caplog.at_level(logging.WARNING, "coterie"):
        for _attempt in range(2):
            plain = expert_forward(x, weights, shape)
            assert torch.equal(expert_forward(x, weights, shape, compiled=True), plain)
        assert not wants_kernel(True, 0)
    assert said in kernel_problem()
    assert len(caplog.records) == 1


def test_a_kernel_that_computes_wrong_is_not_used(monkeypatch):
    monkeypatch.setattr(module, "_made", None)
    monkeypatch.setattr(module, "_compile", lambda *_: None)
    monkeypatch.setattr(module, "_function", lambda _: lambda *_: 0)  # leaves y as it was
    assert "wrong" in kernel_problem()


@needs_kernel
def test_compiled_modules_copy_and_save_like_others(tmp_path):
    ffn, routing = FFN(5, FFNShape(16, 8), compiled=True).requires_grad_(False), ragged_routing(5)
    x = torch.randn(routing.num_items, 16)
    torch.save(ffn, tmp_path / "ffn.pt")
    for other in (copy.deepcopy(ffn), torch.load(tmp_path / "ffn.pt", weights_only=False)):
        assert torch.equal(other(x, routing), ffn(x, routing))
