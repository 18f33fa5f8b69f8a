"""What a dense feed-forward computes, found by trying a small one of its kind.

Families name the same few formulas in many ways, and some do more than the names of their matrices tell: a norm between
them, a factor, a residual added at the end. So the block itself is made small, with matrices of a few numbers in place
of its own, and held against what we can compute.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import UnsupportedError
from coterie.experts import FFNShape
from coterie.experts.shape import ACTIVATIONS
from coterie.models.feed_forwards import FFNSite

__all__ = ["Form", "form_of"]

_WIDTH, _INNER = 6, 10
_NAMES = ("act_fn", "activation_fn", "act", "activation", "gelu_impl")


@dataclass(frozen=True)
class Form:
    """How a block computes ``down(act(gate(x)) * up(x))`` or ``down(act(up(x)))``.

    Attributes:
        roles: weight (``gate_proj``, ``up_proj`` or ``gate_up_proj``, ``down_proj``) -> child of the block.
        activation: a name of `coterie.experts.shape.ACTIVATIONS`.
        bias: every matrix has one.
        turned: matrices are [in, out].
        between: child of a block that is a whole layer, which activates; empty where the block is the feed-forward.
    """

    roles: Mapping[str, str]
    activation: str
    bias: bool
    turned: bool
    between: str = ""

    @property
    def fused(self) -> bool:
        """Whether gate and up lie in one matrix."""
        return "gate_up_proj" in self.roles

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self.fused or "gate_proj" in self.roles

    def shape(self, width: int, inner: int, fused: bool = False, transposed: bool = False) -> FFNShape:
        """Of a feed-forward of these sizes."""
        return FFNShape(
            width, inner, gated=self.gated, bias=self.bias, activation=self.activation, fused=fused,
            transposed=transposed,
        )  # fmt: skip


def form_of(site: FFNSite, where: str) -> Form:
    """What ``site`` computes. Mutates nothing; the model may be a skeleton.

    Raises:
        UnsupportedError: something else than a feed-forward of ours; says what was found.
    """
    parts: list[Any] = [site.block.get_submodule(child) for child in (*site.ups, site.down)]
    biases = {getattr(part, "bias", None) is not None for part in parts}
    if len(biases) > 1:
        raise UnsupportedError(
            f"{where}: some matrices of the feed-forward {site.name} have biases and others have none, which no "
            "expert has."
        )
    turned = type(parts[-1]).__name__ == "Conv1D"
    if site.loose:
        return _loose(site, where, biases.pop(), turned)
    if (more := _more(site)) is not None:
        raise UnsupportedError(_no_place(site, where, more))
    small = _small(site)
    x = torch.randn(1, 5, _WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    try:
        with torch.no_grad():
            wanted = small(x)
    except Exception as error:  # whatever a family's forward meets
        raise UnsupportedError(_no_place(site, where, "computes with more than its matrices")) from error
    for roles, activation in _candidates(site):
        form = Form(roles, activation, next(iter(biases)), turned)
        if torch.allclose(_computed(x, small, form), wanted, rtol=1e-5, atol=1e-7):
            return form
    raise UnsupportedError(
        _no_place(site, where, "computes something else than an activation and a gate that are known")
    )


def _no_place(site: FFNSite, where: str, reason: str) -> str:
    return (
        f"{where}: the feed-forward {site.name} ({type(site.block).__name__}) {reason}, so that no experts can "
        "take its place."
    )


def _more(site: FFNSite) -> str | None:
    """What a block is given or has beside its input and its matrices."""
    given = inspect.signature(site.block.forward).parameters.values()
    names = [each.name for each in given if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    if len(names) > 1:
        return f"is given more than its input ({', '.join(names[1:])})"
    own = (*site.ups, site.down)
    others = [name for name, _ in site.block.named_parameters() if not name.startswith(tuple(f"{c}." for c in own))]
    return f"has more weights than its matrices ({', '.join(others)})" if others else None


def _small(site: FFNSite) -> nn.Module:
    """The block with matrices of a few numbers, in float64 on the CPU."""
    small = copy.deepcopy(site.block).eval()
    generator = torch.Generator().manual_seed(1)
    for child in (*site.ups, site.down):
        part: Any = site.block.get_submodule(child)
        ins, outs = (_INNER, _WIDTH) if child == site.down else (_WIDTH, _outs(site, child))
        made: Any = nn.Linear(ins, outs, getattr(part, "bias", None) is not None)
        if type(part).__name__ == "Conv1D":
            made = type(part)(outs, ins)
        elif isinstance(part, nn.Linear) and type(part) is not nn.Linear:
            made = type(part)(ins, outs, bias=getattr(part, "bias", None) is not None)
        for tensor in made.double().parameters():
            tensor.data = torch.randn(tensor.shape, dtype=torch.float64, generator=generator) * 0.7
        small.set_submodule(child, made)
    return small


def _outs(site: FFNSite, child: str) -> int:
    part: Any = site.block.get_submodule(child)
    outs = part.weight.shape[1] if type(part).__name__ == "Conv1D" else part.out_features
    return _INNER * (outs // site.inner)


def _candidates(site: FFNSite) -> Iterator[tuple[dict[str, str], str]]:
    """Which child is what, by each activation; the order in which families have them first."""
    if len(site.ups) == 1:
        fused = _outs(site, site.ups[0]) == 2 * _INNER
        orders = [{"gate_up_proj" if fused else "up_proj": site.ups[0]}]
    else:
        orders = [dict(zip(("gate_proj", "up_proj"), order, strict=True)) for order in permutations(site.ups)]
    for activation in ACTIVATIONS:
        yield from ((order | {"down_proj": site.down}, activation) for order in orders)


@torch.no_grad()
def _computed(x: Tensor, small: nn.Module, form: Form) -> Tensor:
    out = {role: small.get_submodule(child) for role, child in form.roles.items()}
    first = out["gate_up_proj" if form.fused else "up_proj"](x)
    gate = out["gate_proj"](x) if "gate_proj" in out else None
    computed: Tensor = out["down_proj"](form.shape(_WIDTH, _INNER, fused=True).hidden(first, gate))
    return computed


def _loose(site: FFNSite, where: str, bias: bool, turned: bool) -> Form:
    """A feed-forward whose matrices lie in the decoder layer: what the layer calls between them tells."""
    children = [name for name in _NAMES if isinstance(getattr(site.block, name, None), nn.Module)]
    if len(site.ups) == 1 and len(children) == 1:
        up, between = site.ups[0], children[0]
        activation = _named(site.block.get_submodule(between))
        if activation is not None and _one_after_other(_calls(site.block), up, between, site.down):
            return Form({"up_proj": up, "down_proj": site.down}, activation, bias, turned, between)
    raise UnsupportedError(
        f"{where}: the feed-forward of {site.name} lies in the layer itself ({type(site.block).__name__}), and what "
        "the layer does between its matrices is of no form that is known, so that no experts can take its place."
    )


def _one_after_other(calls: list[str], up: str, between: str, down: str) -> bool:
    """Whether the three are called once each and nothing between them; ``between(up(x))`` names the outer one first."""
    if any(calls.count(name) != 1 for name in (up, between, down)):
        return False
    at = calls.index(down)
    return calls[at - 2 : at] in ([up, between], [between, up]) and at >= 2


def _calls(block: nn.Module) -> list[str]:
    """Children of a module in the order in which its forward calls them, by its source."""
    try:
        text = inspect.getsource(type(block).forward)
    except (OSError, TypeError):  # compiled, or typed in
        return []
    names = {name for name, _ in block.named_children()}
    return [name for name in re.findall(r"self\.(\w+)\(", text) if name in names]


def _named(activation: Any) -> str | None:
    line = torch.linspace(-8, 8, 97, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        return next((name for name, ours in ACTIVATIONS.items() if torch.allclose(ours(line), activation(line))), None)
