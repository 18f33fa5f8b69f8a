"""The battery of experts.

A row (`ExpertsCase`) names an experts module, builds it and says once more, plainly, what one expert
makes of one row. Every function in `EXPERTS_CHECKS` then runs over every row:

    @pytest.mark.parametrize("check", EXPERTS_CHECKS, ids=lambda c: c.__name__)
    @pytest.mark.parametrize("case", MY_ROWS, ids=lambda c: c.name)
    def test_experts(case, check):
        check(case)
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.experts.base import Experts
from coterie.ops.dispatch import combine, combine_reference
from coterie.routing import Routing

__all__ = ["EXPERTS_CHECKS", "ExpertsCase", "poisoned_memory"]

# of the largest value compared; what is computed in the dtype is compared with the reference in float64
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_NUM_ITEMS = 11


@dataclass(frozen=True)
class ExpertsCase:
    """A row of the table.

    Attributes:
        name: shown in the test's id.
        build: makes the module, of three experts or more; called after ``torch.manual_seed``.
        reference: ``(experts, expert id, row [*D_in]) -> [*D_out]``, differentiable, in plain words.
        inputs, outputs: D_in and D_out.
        dtype: of rows and parameters.
        equalise: gives every expert the weights of expert 0; default: parameters are stacked [E, ...].
    """

    name: str
    build: Callable[[], Experts]
    reference: Callable[[Experts, int, Tensor], Tensor]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    equalise: Callable[[Experts], None] | None = None

    def make(self) -> Experts:
        """The module, the same one every time, with no parameter left at zero."""
        torch.manual_seed(0)
        experts = self.build()
        with torch.no_grad():
            for parameter in experts.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return experts.to(self.dtype)

    def items(self, num_items: int = _NUM_ITEMS) -> Tensor:
        """Random rows [T, *D_in] that want a gradient."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(num_items, *self.inputs, generator=generator).to(self.dtype).requires_grad_()


def check_rows(case: ExpertsCase) -> None:
    """`rows` has one row per assignment, `forward` is their combination, both in the dtype of the items."""
    experts, x = case.make(), case.items()
    routing = ragged_routing(experts.num_experts)
    rows, y = experts.rows(x, routing), experts(x, routing)
    assert rows.shape == (routing.num_assignments, *case.outputs)
    assert y.shape == (_NUM_ITEMS, *case.outputs)
    assert rows.dtype == y.dtype == case.dtype
    _assert_near(case.dtype, y, combine(rows, routing), "forward and combined rows")


def check_reference(case: ExpertsCase) -> None:
    """Rows, outputs and every gradient agree with the row's reference, in float64, one assignment at a time."""
    found, expected = _everything(case, wide=False), _everything(case, wide=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        _assert_near(case.dtype, found[name], value, name)


def check_permutation(case: ExpertsCase) -> None:
    """Permuting the items permutes the outputs."""
    experts, x = case.make(), case.items()
    routing = ragged_routing(experts.num_experts)
    order = torch.randperm(_NUM_ITEMS, generator=torch.Generator().manual_seed(4))
    _assert_near(case.dtype, experts(x[order], routing.expand(order)), experts(x, routing)[order], "permuted outputs")


def check_equal_experts(case: ExpertsCase) -> None:
    """Where all experts are equal it does not matter who computes: the output is one expert's, times the weights."""
    experts, x = case.make(), case.items()
    (case.equalise or _equalise_stacked)(experts)
    routing = ragged_routing(experts.num_experts)
    total = routing.dense().double().sum(1, keepdim=True)
    everyone_to_0 = Routing.from_padded(total, torch.zeros_like(total).long(), experts.num_experts)
    _assert_near(case.dtype, experts(x, routing), experts(x, everyone_to_0), "equal experts")


def check_idle(case: ExpertsCase) -> None:
    """Items without experts give zero and get no gradient; where nobody has one, nothing gets any."""
    experts, x = case.make(), case.items()
    routing = ragged_routing(experts.num_experts)
    y = experts(x, routing)
    y.sum().backward()
    idle = routing.experts_per_item() == 0
    assert bool(idle.any())
    assert x.grad is not None
    assert not bool(y[idle].any())
    assert not bool(x.grad[idle].any())
    nobody = routing.masked(torch.zeros(_NUM_ITEMS, dtype=torch.bool))
    _assert_no_gradient(case, nobody, _NUM_ITEMS)


def check_empty(case: ExpertsCase) -> None:
    """No items at all: an empty output, and a gradient that is none or zero."""
    nothing = torch.zeros(0, 1)
    _assert_no_gradient(case, Routing.from_padded(nothing, nothing.long(), case.make().num_experts), 0)


def check_other_experts(case: ExpertsCase) -> None:
    """An item's bits do not depend on the number or ids of experts that others use."""
    experts, x = case.make(), case.items()
    routing = ragged_routing(experts.num_experts)
    with torch.no_grad():
        rows = experts.rows(x, routing)
        together = combine(rows, routing)
        for t in range(_NUM_ITEMS):
            own = routing.item == t
            alone = Routing(routing.item[own] * 0, routing.expert[own], routing.weight[own], 1, routing.num_experts)
            assert torch.equal(combine(rows[own], alone)[0], together[t])


def check_determinism(case: ExpertsCase) -> None:
    """Two runs give the same bits in outputs and gradients."""
    first, again = _everything(case, wide=False), _everything(case, wide=False)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name


def check_state_dict(case: ExpertsCase) -> None:
    """Saved and loaded into a module of another seed, it computes the same bits."""
    experts, x = case.make(), case.items()
    file = io.BytesIO()
    torch.save(experts.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    other = case.build().to(case.dtype)
    other.load_state_dict(torch.load(file))
    routing = ragged_routing(experts.num_experts)
    assert torch.equal(experts(x, routing), other(x, routing))


def check_poison(case: ExpertsCase) -> None:
    """No memory is read before it is written: outputs and gradients are finite where fresh memory holds NaN."""
    with poisoned_memory():
        found = _everything(case, wide=False)
    for name, value in found.items():
        assert bool(torch.isfinite(value).all()), name


EXPERTS_CHECKS: tuple[Callable[[ExpertsCase], None], ...] = (
    check_rows, check_reference, check_permutation, check_equal_experts, check_idle, check_empty,
    check_other_experts, check_determinism, check_state_dict, check_poison,
)  # fmt: skip


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` and its like return with NaN. Changes a setting of the process meanwhile."""
    memory: Any = torch.utils.deterministic  # its setting is a property that type checkers do not see
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]


def ragged_routing(num_experts: int, num_items: int = _NUM_ITEMS) -> Routing:
    """Expert 0 has no item, the last item 0 only; item 0 has all others, item 1 none, the rest one or two."""
    generator = torch.Generator().manual_seed(2)
    dense = torch.zeros(num_items, num_experts)
    for t in range(2, num_items):
        dense[t, 1 + torch.randperm(num_experts - 2, generator=generator)[: 1 + t % 2]] = 1
    dense[0, 1:] = 1
    dense *= 0.2 + torch.rand(dense.shape, generator=generator)
    item, expert = dense.nonzero().unbind(1)
    return Routing(item, expert, dense[item, expert].requires_grad_(), num_items, num_experts)


def _everything(case: ExpertsCase, *, wide: bool) -> dict[str, Tensor]:
    """Name -> rows, outputs and gradients; by the module, or ``wide`` by the reference in float64."""
    experts, x = case.make(), case.items()
    routing = ragged_routing(experts.num_experts)
    if wide:
        experts, x = deepcopy(experts).double(), x.detach().double().requires_grad_()
        pairs = zip(routing.item.tolist(), routing.expert.tolist(), strict=True)
        rows = torch.stack([case.reference(experts, expert, x[item]) for item, expert in pairs])
        y = combine_reference(rows, routing)
    else:
        rows, y = experts.rows(x, routing), experts(x, routing)
    mix = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    y.backward(mix)
    named = {f"gradient of {name}": _gradient(p) for name, p in experts.named_parameters()}
    return named | {
        "rows": rows.detach(), "outputs": y.detach(),
        "gradient of items": _gradient(x), "gradient of weights": _gradient(routing.weight),
    }  # fmt: skip


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _assert_no_gradient(case: ExpertsCase, routing: Routing, num_items: int) -> None:
    experts, x = case.make(), case.items(num_items)
    y = experts(x, routing)
    assert y.shape == (num_items, *case.outputs)
    assert not bool(y.any())
    if y.requires_grad:
        y.sum().backward()
    for leaf in (x, *experts.parameters()):
        assert not bool(_gradient(leaf).any())


def _assert_near(dtype: torch.dtype, found: Tensor, expected: Tensor, name: str) -> None:
    """Within the tolerance of the dtype computed in, of the largest value expected."""
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    tolerance = _TOLERANCE[dtype]
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance * scale, msg=lambda text: f"{name}: {text}"
    )


def _equalise_stacked(experts: Experts) -> None:
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
