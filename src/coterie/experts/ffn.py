"""Feed-forward experts: one as a pure function, E of them as a module with three equal methods.

`expert_forward` is what everything else agrees with: the loop calls it, the expert store calls it on
views of its arena, the grouped method computes the same with all experts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts.base import Experts
from coterie.experts.buckets import bucketed
from coterie.experts.few_rows import few_rows, has_few
from coterie.experts.grouped import grouped_rows
from coterie.experts.one_by_one import one_by_one, suits_one_by_one
from coterie.experts.shape import FFNShape
from coterie.experts.together import rows_together
from coterie.ops.dispatch import Groups, combine, dispatch, group_by_expert
from coterie.routing import Routing

__all__ = ["FFN", "Method", "draw_weights", "expert_forward", "placed"]

Method = Literal["grouped", "loop", "reference"]

_ALIGNMENT = 64  # bytes: where torch's own allocator puts a tensor
_BITS_DEPEND_ON_ADDRESS = (torch.float32, torch.float64)


def expert_forward(
    x: Tensor,
    weights: Mapping[str, Tensor],
    shape: FFNShape,
    *,
    compiled: bool = False,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """One expert: [n, D] -> [n, D]. Pure; weights of another dtype are cast to that of ``x``.

    The bits do not depend on where in memory ``x`` and the weights lie. bfloat16 and float16 need
    nothing for it. In float32 and float64 the processor's matrix library takes another order of
    addition at some addresses (one row times a matrix that is off a multiple of 16 bytes, for one; it
    promises equal bits only at multiples of 64), so what is off such a multiple is copied first. Who
    places float32 weights himself should place them at multiples of 64 bytes, and saves that copy.

    Args:
        x: [n, D]; n may be 0.
        weights: the names and shapes of `FFNShape.weight_shapes`.
        shape: how they fit together.
        compiled: few rows go through the kernel of `few_rows`, where `has_few` allows it. Other bits than
            without, and about twice the speed; no copy for the sake of an address.
        watch: told the activations [n, F], what the projection down reads. Changes no bit.
    """
    few = compiled and has_few(x, _multiplied(weights))
    linear = _few_linear if few else _linear
    filled = x if few else bucketed(x)
    ups = [linear(filled, weights, name, shape.transposed) for name in shape.up_names]
    hidden = shape.hidden(ups[-1], ups[0] if len(ups) == 2 else None)
    if watch is not None:
        watch(hidden[: x.shape[0]])
    rows = linear(hidden, weights, "down_proj", shape.transposed)[: x.shape[0]]
    return shape.finish(rows, weights.get("post_norm"))


class FFN(Experts):
    """E feed-forward experts, their weights stacked [E, ...] under the names of `FFNShape.weight_shapes`.

    Args:
        num_experts: E.
        shape: of each.
        method: ``grouped`` (default) sorts the rows and multiplies with all experts at once; ``loop``
            calls `expert_forward` once per expert with items; ``reference`` once per assignment. They
            agree to rounding in outputs and gradients.
        compiled: experts with few rows go through the kernel of `few_rows` where nothing records gradients, by
            either of the first two methods: the bits that `expert_forward` gives. See `wants_kernel`.
    """

    def __init__(
        self, num_experts: int, shape: FFNShape, method: Method = "grouped", *, compiled: bool = False
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise OptionError(f"num_experts must be 1 or more, found {num_experts}.")
        if method not in get_args(Method):
            raise OptionError(f"method {method!r} is unknown; choose one of: {', '.join(get_args(Method))}.")
        self.num_experts = num_experts
        self.shape = shape
        self.method = method
        self.compiled = compiled
        for name, weight in draw_weights(shape, num_experts).items():
            self.register_parameter(name, nn.Parameter(weight))

    def weights_of(self, expert: int) -> dict[str, Tensor]:
        """Views of one expert's weights, under `expert_forward`'s names. For a loop over experts see `rows`."""
        return {name: getattr(self, name)[expert] for name in self.shape.weight_shapes()}

    def visit(
        self, experts: Sequence[int], dtype: torch.dtype | None = None
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Each of ``experts`` with its weights for `expert_forward`, one after another; ``dtype`` changes nothing."""
        for expert in experts:
            yield expert, self.weights_of(expert)

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        rows, groups = self._computed(x, routing)
        return rows if groups is None else rows.index_select(0, groups.place)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """As `Experts.forward`; the rows are added up from where the experts leave them."""
        one_after_other = self.method == "grouped" and suits_one_by_one(x, routing, self.shape)
        if one_after_other and not self._loops(x, routing):
            self._check(routing)
            return one_by_one(x, routing, group_by_expert(routing), self._stacked(), self.shape)
        rows, groups = self._computed(x, routing)
        return combine(rows, routing, groups)

    def _computed(self, x: Tensor, routing: Routing) -> tuple[Tensor, Groups | None]:
        """Every assignment's row, in the order of the groups; without groups in that of the routing."""
        self._check(routing)
        if self.method == "reference":
            return self._rows_reference(dispatch(x, routing), routing), None
        if routing.num_assignments == 0:
            return torch.zeros_like(dispatch(x, routing)), None
        if routing.num_items == 1 and self._loops(x, routing):  # its assignments ascend by expert already
            return self._rows_sorted(dispatch(x, routing), [(expert, 1) for expert in routing.expert.tolist()]), None
        groups = group_by_expert(routing)
        sent = dispatch(x, routing, groups)
        if not self._loops(x, routing):
            return grouped_rows(sent, groups.counts, self._stacked(), self.shape), groups
        hit = [(expert, n) for expert, n in enumerate(groups.counts.tolist()) if n]
        return self._rows_sorted(sent, hit), groups

    def _check(self, routing: Routing) -> None:
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} experts, this module has {self.num_experts}.")

    def _loops(self, x: Tensor, routing: Routing) -> bool:
        return self.method == "loop" or (self.compiled and self._mostly_few(x, routing))

    def _mostly_few(self, x: Tensor, routing: Routing) -> bool:
        """Whether experts get as few rows on average as `few_rows` is for."""
        return has_few(x, _multiplied(self._stacked()), -(-routing.num_assignments // self.num_experts))

    def _rows_reference(self, sent: Tensor, routing: Routing) -> Tensor:
        each = [
            expert_forward(sent[position : position + 1], self.weights_of(expert), self.shape)
            for position, expert in enumerate(routing.expert.tolist())
        ]
        return torch.cat(each) if each else torch.zeros_like(sent)

    def _rows_sorted(self, rows: Tensor, hit: list[tuple[int, int]]) -> Tensor:
        """One expert after the other; the rows come sorted by expert, with how many each has."""
        stacked = self._stacked()
        if self.compiled and has_few(rows, _multiplied(stacked), max(n for _, n in hit)):
            return rows_together(rows, hit, stacked, self.shape)
        # Unbound once: indexing a stacked parameter per expert makes a full-size gradient for each.
        weights = {name: stack.unbind(0) for name, stack in stacked.items()}
        sections = zip(hit, rows.split([n for _, n in hit]), strict=True)
        return torch.cat([
            expert_forward(
                own, {name: parts[expert] for name, parts in weights.items()}, self.shape, compiled=self.compiled
            )
            for (expert, _), own in sections
        ])  # fmt: skip

    def _stacked(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.shape.weight_shapes()}

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, {self.shape}, method={self.method!r}"


def _multiplied(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Those of an expert's weights that are matrices or their biases."""
    return [weight for name, weight in weights.items() if name != "post_norm"]


def draw_weights(shape: FFNShape, num_experts: int | None = None) -> dict[str, Tensor]:
    """Fresh weights from the global generator, stacked if ``num_experts`` is given.

    Matrices are uniform within 1/sqrt(inputs), as `torch.nn.Linear` draws them; biases and norms are zero.
    """
    weights = {}
    for name, size in shape.weight_shapes().items():
        weight = torch.zeros(size if num_experts is None else (num_experts, *size))
        if len(size) == 2:
            bound = size[0 if shape.transposed else 1] ** -0.5
            weight.uniform_(-bound, bound)
        weights[name] = weight
    return weights


def _linear(x: Tensor, weights: Mapping[str, Tensor], name: str, transposed: bool) -> Tensor:
    matrix, bias = placed(weights[name].to(x.dtype)), weights.get(f"{name}_bias")
    return F.linear(placed(x), matrix.t() if transposed else matrix, None if bias is None else bias.to(x.dtype))


def _few_linear(x: Tensor, weights: Mapping[str, Tensor], name: str, transposed: bool) -> Tensor:
    return few_rows(x, weights[name], weights.get(f"{name}_bias"), transposed=transposed)


def placed(tensor: Tensor) -> Tensor:
    """The tensor at an address where its products have the bits they have everywhere else."""
    if tensor.dtype not in _BITS_DEPEND_ON_ADDRESS or tensor.data_ptr() % _ALIGNMENT == 0:
        return tensor
    return tensor.clone()
