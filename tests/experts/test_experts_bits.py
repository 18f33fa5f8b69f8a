"""An expert's bits do not depend on where in memory its weights lie: what the expert store promises.

Weights read from a file lie where the file has them, at multiples of 8 bytes or less; what is resident
lies at multiples of 64. In float32 the plain matrix product of one row differs between the two (on x86
with MKL, off multiples of 16), so `expert_forward` must not be the plain product there.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.experts import FFN, FFNShape, expert_forward
from coterie.testing.experts import ragged_routing

OFFSETS = (2, 4, 8, 12, 16, 24, 40, 48, 72, 4096 + 8, 4096 + 16)
ROWS = (1, 2, 3, 5, 8, 64)
SHAPES = {
    "gated": FFNShape(256, 96),
    "separate": FFNShape(128, 64, fused=False),
    "biased": FFNShape(64, 48, bias=True, transposed=True, interleaved=True),
    "odd": FFNShape(33, 17, gated=False),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def placed(tensor: Tensor, offset: int) -> Tensor:
    """A copy that lies ``offset`` bytes behind a page border, as a view of a buffer of bytes."""
    nbytes = tensor.numel() * tensor.element_size()
    buffer = torch.zeros(nbytes + offset + 4096, dtype=torch.uint8)
    start = -buffer.data_ptr() % 4096 + offset
    view = buffer[start : start + nbytes]
    view.copy_(tensor.contiguous().view(-1).view(torch.uint8))
    return view.view(tensor.dtype).view(tensor.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_same_bits_at_any_address(shape, dtype):
    weights = {name: placed(w[0].detach().to(dtype), 0) for name, w in FFN(1, shape).named_parameters()}
    for n in ROWS:
        x = placed(torch.randn(n, shape.width).to(dtype), 0)
        expected = expert_forward(x, weights, shape)
        for offset in OFFSETS:
            if offset % dtype.itemsize == 0:
                moved = {name: placed(w, offset) for name, w in weights.items()}
                assert torch.equal(expert_forward(x, moved, shape), expected), f"weights, n={n}, offset {offset}"
                assert torch.equal(expert_forward(placed(x, offset), weights, shape), expected), f"rows, n={n}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [1, 3, 7])
def test_bytes_off_the_element_size_serve_by_way_of_a_copy(dtype, offset):
    """torch refuses a view there; cloning the bytes before viewing them gives the same bits."""
    shape = SHAPES["gated"]
    weights = {name: w[0].detach().to(dtype) for name, w in FFN(1, shape).named_parameters()}
    x = torch.randn(1, shape.width).to(dtype)
    moved = {}
    for name, weight in weights.items():
        raw = placed(weight.view(-1).view(torch.uint8), offset)
        with pytest.raises(RuntimeError, match="divisible"):
            raw.view(dtype)
        moved[name] = raw.clone().view(dtype).view(weight.shape)
    assert torch.equal(expert_forward(x, moved, shape), expert_forward(x, weights, shape))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_stack_computes_the_bits_of_its_parts(shape, dtype):
    """In the stack of all experts a part may begin anywhere; each gives the bits it gives alone, and as `FFN` does."""
    ffn, routing = FFN(5, shape, "loop").to(dtype).requires_grad_(False), ragged_routing(5)
    x = torch.randn(routing.num_items, shape.width).to(dtype)
    rows = ffn.rows(x, routing)
    for expert in range(5):
        own = {name: placed(w, 8) for name, w in ffn.weights_of(expert).items()}
        sent = placed(x[routing.item[routing.expert == expert]], 8)
        assert torch.equal(rows[routing.expert == expert], expert_forward(sent, own, shape))
