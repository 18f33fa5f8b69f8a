"""Every kind of experts, every check: a new kind adds rows here and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from torch import Tensor

from coterie.experts import (
    FFN,
    ExpertKind,
    Experts,
    Factored,
    Factors,
    FFNShape,
    Identity,
    Integers,
    IntegerWidth,
    KindExperts,
    Mixed,
    Part,
)
from coterie.routing import Routing
from coterie.testing.experts import EXPERTS_CHECKS, ExpertsCase

NUM_EXPERTS = 5
METHODS = ("grouped", "loop", "reference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
IN_EVERY_DTYPE = ("gpt-oss", "post norm", "odd widths")  # between them they have every option; the rest is float32


def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=1.5), up.clamp(-1.5, 1.5)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


SHAPES = {
    "gated": FFNShape(16, 8),
    "separate": FFNShape(16, 8, fused=False, activation="gelu_pytorch_tanh"),
    "transposed": FFNShape(16, 8, transposed=True),
    "interleaved": FFNShape(16, 8, interleaved=True),
    "biased": FFNShape(16, 8, bias=True),
    "gpt-oss": FFNShape(16, 8, bias=True, transposed=True, interleaved=True, gate_fn=clamped_swiglu),
    "ungated": FFNShape(16, 24, gated=False, bias=True, activation="relu2"),
    "post norm": FFNShape(16, 8, post_norm=True),
    "odd widths": FFNShape(5, 7, bias=True),
}


def one_row(experts: Experts, expert: int, row: Tensor) -> Tensor:
    """The feed-forward in sums over single coordinates, straight from the stacked weights."""
    assert isinstance(experts, FFN)
    shape = experts.shape

    def affine(name: str, x: Tensor) -> Tensor:
        matrix = getattr(experts, name)[expert]
        y = torch.einsum("io,i->o" if shape.transposed else "oi,i->o", matrix, x)
        return y + getattr(experts, f"{name}_bias")[expert] if shape.bias else y

    act = {
        "linear": lambda z: z,
        "silu": lambda z: z * torch.sigmoid(z),
        "relu2": lambda z: torch.where(z > 0, z * z, 0 * z),
        "gelu_pytorch_tanh": lambda z: z / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))),
    }[shape.activation]
    if not shape.gated:
        hidden = act(affine("up_proj", row))
    else:
        if not shape.fused:
            gate, up = affine("gate_proj", row), affine("up_proj", row)
        elif shape.interleaved:
            gate, up = affine("gate_up_proj", row).view(-1, 2).unbind(1)
        else:
            gate, up = affine("gate_up_proj", row).view(2, -1).unbind(0)
        hidden = shape.gate_fn(gate, up) if shape.gate_fn else act(gate) * up
    y = affine("down_proj", hidden)
    if shape.post_norm:
        y = y * (1 + experts.post_norm[expert])
        y = y / (y.pow(2).sum() / shape.width + shape.post_norm_eps).sqrt()
    return y


ROWS = [
    ExpertsCase(
        f"{name}, {method}, {dtype}", partial(FFN, NUM_EXPERTS, shape, method), one_row,
        inputs=(shape.width,), outputs=(shape.width,), dtype=DTYPES[dtype],
    )
    for name, shape in SHAPES.items() for method in METHODS for dtype in DTYPES
    if dtype == "float32" or name in IN_EVERY_DTYPE
]  # fmt: skip


def one_row_of_many_kinds(experts: Experts, expert: int, row: Tensor) -> Tensor:
    """That of the part the id falls to."""
    assert isinstance(experts, Mixed)
    for part, first, end in experts.ranges():
        if first <= expert < end:
            return row * 1 if isinstance(part, Identity) else one_row(part, expert - first, row)
    raise AssertionError(expert)


def narrow_everywhere(experts: Experts) -> None:
    """The wide experts become the first narrow one and channels of nothing."""
    assert isinstance(experts, Mixed)
    narrow, wide = experts.parts
    for name in ("gate_proj", "up_proj", "down_proj"):
        first, weight = getattr(narrow, name)[0], getattr(wide, name)
        with torch.no_grad():
            getattr(narrow, name).copy_(first.expand_as(getattr(narrow, name)))
            weight.zero_()[:, : first.shape[0], : first.shape[1]] = first


def identity_everywhere(experts: Experts) -> None:
    """The feed-forwards, linear and as wide as their rows, become identities too."""
    assert isinstance(experts, Mixed)
    with torch.no_grad():
        for matrix in experts.parameters():
            matrix.copy_(torch.eye(matrix.shape[1]).expand_as(matrix))


LINEAR, NARROW, WIDE = (
    FFNShape(6, 6, gated=False, activation="linear"), FFNShape(6, 4, fused=False), FFNShape(6, 8, fused=False),
)  # fmt: skip
ROWS += [
    ExpertsCase(
        f"{name}, {dtype}", build, reference, inputs=(6,), outputs=(6,), dtype=DTYPES[dtype], equalise=equalise
    )
    for name, build, reference, equalise in (
        ("identity", partial(Identity, 5), lambda experts, expert, row: row * 1, None),
        (
            "linear and identity", lambda: Mixed([FFN(4, LINEAR), Identity()]), one_row_of_many_kinds,
            identity_everywhere,
        ),
        (
            "two widths", lambda: Mixed([FFN(2, NARROW), FFN(3, WIDE)]), one_row_of_many_kinds,
            narrow_everywhere,
        ),
    )
    for dtype in DTYPES
]  # fmt: skip


def dense_matrix(kind: ExpertKind, parts: Mapping[str, Tensor], name: str) -> Tensor:
    """What the parts of a matrix stand for, number by number."""
    m, n = FLAT.weight_shapes()[name]
    if isinstance(kind, Integers):
        codes, scales = parts[f"{name}_q"], parts[f"{name}_scale"]
        if codes.dtype == torch.uint8:
            halves = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1).long()[:, :n]
            codes = torch.where(halves < 8, halves, halves - 16)
        group = {1: n, 2: 8}[scales.shape[1]]
        return torch.stack([codes[:, column] * scales[:, column // group] for column in range(n)], dim=1)
    matrix = torch.zeros(m, n, dtype=parts["down_proj_bias"].dtype)
    if f"{name}_u" in parts:
        matrix = matrix + torch.einsum("mr,rn->mn", parts[f"{name}_u"], parts[f"{name}_v"])
    if f"{name}_s" in parts:
        kept = parts[f"{name}_s"]
        rows = kept.shape[1] == n and (kept.shape[0] < m or f"{name}_at" not in parts)
        at = parts.get(f"{name}_at", torch.arange(len(kept)))
        matrix = matrix.index_add(0, at, kept) if rows else matrix.index_add(1, at, kept)
    return matrix


def one_row_of_a_kind(experts: Experts, expert: int, row: Tensor) -> Tensor:
    """The feed-forward with the matrices put together again."""
    assert isinstance(experts, KindExperts)
    parts = experts.weights_of(expert)
    gate, up = (
        dense_matrix(experts.kind, parts, name) @ row + parts[f"{name}_bias"] for name in ("gate_proj", "up_proj")
    )
    hidden = gate * torch.sigmoid(gate) * up
    return dense_matrix(experts.kind, parts, "down_proj") @ hidden + parts["down_proj_bias"]


def of_a_kind(kind: ExpertKind) -> KindExperts:
    """Random parts."""
    torch_type = {"I8": torch.int8, "U8": torch.uint8}

    def drawn(name: str, part: Part) -> Tensor:
        if part.dtype == "I32":
            size = FLAT.weight_shapes()[name.removesuffix("_at")]
            return torch.randperm(min(size))[: part.shape[0]].sort().values.to(torch.int32)
        if part.dtype in torch_type:
            return torch.randint(-128 if part.dtype == "I8" else 0, 127, part.shape, dtype=torch_type[part.dtype])
        return torch.randn(part.shape) * (0.01 if name.endswith("_scale") else 0.5)

    return KindExperts(
        kind, [{name: drawn(name, part) for name, part in kind.parts(e).items()} for e in range(NUM_EXPERTS)]
    )


def silent(experts: Experts) -> None:
    """Experts whose parts differ in shape are equal where nothing but equal biases is left."""
    assert isinstance(experts, KindExperts)
    with torch.no_grad():
        for expert in range(NUM_EXPERTS):
            for name, part in experts.weights_of(expert).items():
                if name.endswith("_bias"):
                    part.copy_(experts.weights_of(0)[name])
                elif name.endswith(("_u", "_s", "_scale")):
                    part.zero_()


FLAT = FFNShape(9, 12, bias=True, fused=False)
UNEVEN = {
    "gate_proj": [Factors(r, kept, "row") for r, kept in ((1, 0), (3, 2), (9, 12), (0, 12), (2, 5))],
    "up_proj": [Factors(r, kept, "col") for r, kept in ((4, 1), (3, 9), (9, 0), (0, 4), (0, 0))],
    "down_proj": [Factors(2, 3, "col")] * 3 + [Factors(5, 1, "row"), Factors(0, 12, "col")],
}
WIDTHS = {
    "gate_proj": [IntegerWidth(8)] * 2 + [IntegerWidth(4), IntegerWidth(4, 8), IntegerWidth(8, 8)],
    "up_proj": [IntegerWidth(4, 8), IntegerWidth(8), IntegerWidth(8), IntegerWidth(4), IntegerWidth(8)],
    "down_proj": [IntegerWidth(8), IntegerWidth(4, 8), IntegerWidth(8), IntegerWidth(8), IntegerWidth(4, 8)],
}
ROWS += [
    ExpertsCase(
        f"{kind.name}, {dtype}", partial(of_a_kind, kind), one_row_of_a_kind, inputs=(9,), outputs=(9,),
        dtype=DTYPES[dtype], equalise=silent,
    )
    for kind in (Factored(FLAT, NUM_EXPERTS, UNEVEN), Integers(FLAT, NUM_EXPERTS, WIDTHS)) for dtype in DTYPES
]  # fmt: skip


@pytest.mark.parametrize("check", EXPERTS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_experts(case: ExpertsCase, check: Callable[[ExpertsCase], None]) -> None:
    check(case)


class SortedRows(Experts):
    """Broken: leaves its rows sorted by expert."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.scale = torch.nn.Parameter(torch.rand(3, 4))

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        order = torch.argsort(routing.expert, stable=True)
        return x[routing.item[order]] * self.scale[routing.expert[order]]


class UnwrittenRows(SortedRows):
    """Broken: skips the last expert and leaves its rows as the memory was."""

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        rows = torch.empty(routing.num_assignments, 4)
        done = routing.expert != 2
        rows[done] = x[routing.item[done]] * self.scale[routing.expert[done]]
        return rows


class FreshState(SortedRows):
    """Broken: what it computes with is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.rand(1)

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        return x[routing.item] * self.scale[routing.expert] * self.secret


class UnweightedForward(SortedRows):
    """Broken: forgets the routing's weights."""

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        return x[routing.item] * self.scale[routing.expert]

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        return torch.zeros_like(x).index_add(0, routing.item, self.rows(x, routing))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (SortedRows, "check_reference"),
        (UnwrittenRows, "check_poison"),
        (FreshState, "check_state_dict"),
        (UnweightedForward, "check_rows"),
        (UnweightedForward, "check_equal_experts"),
    ],
)
def test_battery_catches(broken: type[SortedRows], check: str) -> None:
    case = ExpertsCase("broken", broken, lambda experts, e, row: row * experts.scale[e], inputs=(4,), outputs=(4,))
    found = {function.__name__: function for function in EXPERTS_CHECKS}[check]
    with pytest.raises(AssertionError):
        found(case)
