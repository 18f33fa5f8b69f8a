"""The battery over convolutions and batch norms as experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from coterie.experts import BatchNormExperts, ConvExperts, Experts
from coterie.testing.experts import EXPERTS_CHECKS, ExpertsCase

E, IN, OUT = 4, 3, 2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def one_picture(experts: Experts, expert: int, row: Tensor) -> Tensor:
    """A convolution as a product with its patches, straight from the wide weight."""
    assert isinstance(experts, ConvExperts)
    size, channels = experts.kernel_size, slice(expert * OUT, (expert + 1) * OUT)
    padded = torch.nn.functional.pad(row, (experts.padding,) * 4)
    patches = padded.unfold(1, size, experts.stride).unfold(2, size, experts.stride)
    y = torch.einsum("oiab,ihwab->ohw", experts.weight[channels], patches)
    return y if experts.bias is None else y + experts.bias[channels, None, None]


def one_normalised(experts: Experts, expert: int, row: Tensor) -> Tensor:
    """By the running statistics of the expert, or of all."""
    assert isinstance(experts, BatchNormExperts)
    own = expert if experts.mode == "per_expert" else 0
    mean, var = experts.running_mean[own], experts.running_var[own]
    scale = experts.weight[own] / (var + experts.eps).sqrt()
    return (row - mean[:, None, None]) * scale[:, None, None] + experts.bias[own][:, None, None]


def equal_shares(experts: Experts) -> None:
    """Every expert has the channels of expert 0."""
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(parameter[:OUT].repeat(E, *[1] * (parameter.dim() - 1)))


def equal_norms(experts: Experts) -> None:
    with torch.no_grad():
        for tensor in (*experts.parameters(), *experts.buffers()):
            tensor.copy_(tensor[:1].expand_as(tensor))


def norms(mode: str) -> BatchNormExperts:
    experts = BatchNormExperts(IN, E, mode).eval()  # type: ignore[arg-type]
    experts.running_mean.normal_()
    experts.running_var.uniform_(0.5, 2)
    return experts


CONVS = {
    "3x3": partial(ConvExperts, IN, OUT, E, 3, padding=1),
    "1x1": partial(ConvExperts, IN, OUT, E, 1),
    "biased, strided": partial(ConvExperts, IN, OUT, E, 3, stride=2, padding=1, bias=True),
}
OUTPUTS = {"3x3": (OUT, 6, 5), "1x1": (OUT, 6, 5), "biased, strided": (OUT, 3, 3)}
ROWS = [
    ExpertsCase(
        f"{name}, {backend}, {dtype}", partial(CONVS[name], backend=backend), one_picture, inputs=(IN, 6, 5),
        outputs=OUTPUTS[name], dtype=DTYPES[dtype], equalise=equal_shares,
    )
    for name in CONVS for backend in ("grouped", "masked") for dtype in DTYPES
    if dtype == "float32" or name == "biased, strided"
] + [
    ExpertsCase(
        f"batch norm {mode}, {dtype}", partial(norms, mode), one_normalised, inputs=(IN, 4, 5), outputs=(IN, 4, 5),
        dtype=DTYPES[dtype], equalise=equal_norms,
    )
    for mode in ("per_expert", "shared") for dtype in DTYPES
]  # fmt: skip


@pytest.mark.parametrize("check", EXPERTS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_experts_of_images(case: ExpertsCase, check: Callable[[ExpertsCase], None]) -> None:
    check(case)
