"""One layer's experts as factors: U V + S, where S has a few rows, columns or hidden neurons (MC-SMoE, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError, UnsupportedError
from coterie.experts import Factored, Factors
from coterie.ops.lowrank import low_rank, residual
from coterie.ops.structure import UNITS, keep_units, neuron_scores, unit_scores
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.moments import InputMoments, heard
from coterie.surgery.ranks import whole_rank

__all__ = ["DTYPE_NAMES", "LayerFactors", "factorize_expert", "factorize_layer", "unit_of"]

DTYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """How the experts of one layer are taken apart.

    Attributes:
        ranks: matrix name -> rank for each expert.
        keep: share of the units of each S that stays; 0: none.
        unit: "row" (outputs), "col" (inputs) or "neuron" (hidden neurons, in all matrices of an expert together).
        masks: matrix name -> for each expert which units stay [u] bool, decided elsewhere; in place of ``keep``.
        whole: a matrix whose factors would be no smaller than itself stays as it is, exactly. False where the factors
            are to be trained.

    Raises:
        OptionError: a share outside 0 to 1, or another unit.
    """

    ranks: Mapping[str, Sequence[int]]
    keep: float = 0.0
    unit: str = "row"
    masks: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    whole: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise OptionError(f"The share of S that is kept lies between 0 and 1, not {self.keep}. Try 0.1.")
        if self.unit not in UNITS:
            raise OptionError(f"What is kept of S is one of: {', '.join(UNITS)}; not {self.unit!r}.")


def unit_of(name: str, unit: str) -> str:
    """Rows or columns of the matrix ``name``: a hidden neuron is a row of all but ``down_proj``."""
    return ("col" if name == "down_proj" else "row") if unit == "neuron" else unit


def factorize_layer(layer: LayerExperts, how: LayerFactors, moments: InputMoments) -> NewLayer:
    """``layer`` with every matrix as factors. Lossy, but for full ranks and where all of S is kept.

    Args:
        layer: as `coterie.surgery.read_layer` reads it.
        how: ranks, and what is kept of the rest.
        moments: by which errors are weighed, see `InputMoments`.

    Returns:
        the new layer, routes as they were; ``about`` has ``ranks`` and ``error``: matrix name -> mean rank, and root of
        the mean over experts of what is missed relative to what there is; and ``kept``, the share of units of S.

    Raises:
        UnsupportedError: the experts end in a norm.
    """
    if layer.shape.post_norm:
        raise UnsupportedError(f"The experts of layer {layer.site.layer} end in a norm, which factors do not have.")
    parts, factors, errors = [], [], []
    for expert in range(layer.num_experts):
        masks = {name: each[expert] for name, each in how.masks.items()}
        ranks = {name: each[expert] for name, each in how.ranks.items()}
        made, found, error = factorize_expert(layer.expert(expert), ranks, how, masks, moments.of(expert))
        parts.append(
            {name: part.to(layer.site.dtype) if part.is_floating_point() else part for name, part in made.items()}
        )
        factors.append(found)
        errors.append(error)
    names = list(how.ranks)
    kind = Factored(
        layer.shape, layer.num_experts, {name: tuple(one[name] for one in factors) for name in names},
        DTYPE_NAMES[layer.site.dtype],
    )  # fmt: skip
    about: dict[str, Any] = {
        "experts": layer.num_experts,
        "kept": _share_kept(factors, layer.shape.weight_shapes()),
        "ranks": {name: sum(one[name].rank for one in factors) / len(factors) for name in names},
        "error": {name: (sum(one[name] for one in errors) / len(errors)) ** 0.5 for name in names},
    }
    return NewLayer({}, layer.router, layer.experts_of, about, kind, parts)


def _share_kept(factors: Sequence[Mapping[str, Factors]], sizes: Mapping[str, tuple[int, ...]]) -> float:
    """Of all units of S of the matrices that are products, how many stayed."""
    units = [
        (one.kept, sizes[name][0 if one.unit == "row" else 1])
        for each in factors for name, one in each.items() if one.rank
    ]  # fmt: skip
    return sum(kept for kept, _ in units) / max(1, sum(of for _, of in units))


def factorize_expert(
    weights: Mapping[str, Tensor], ranks: Mapping[str, int], how: LayerFactors, masks: Mapping[str, Tensor],
    moments: Mapping[str, Tensor | None],
) -> tuple[dict[str, Tensor], dict[str, Factors], dict[str, float]]:  # fmt: skip
    """One expert: parts as `coterie.experts.Factored` names them (float32), factors, squared relative errors."""
    rest, made = {}, {}
    for name, rank in ranks.items():
        made[name] = _product(weights[name], rank, how, moments.get(name))
        up, down = made[name]
        rest[name] = weights[name].float() if up is None or down is None else residual(weights[name], up, down)
    kept = masks or _chosen(rest, how, moments)
    parts: dict[str, Tensor] = {}
    factors, errors = {}, {}
    for name in ranks:
        up, down = made[name]
        mask = torch.ones(rest[name].shape[0], dtype=torch.bool) if up is None else kept[name]
        unit = "row" if up is None else unit_of(name, how.unit)
        parts |= _named(name, up, down, rest[name], mask, unit)
        factors[name] = Factors(0 if up is None else up.shape[1], int(mask.sum()), unit)
        missed = rest[name] * ~(mask[:, None] if unit == "row" else mask)
        errors[name] = heard(missed, moments.get(name)) / max(heard(weights[name], moments.get(name)), 1e-30)
    parts |= {name: weight.clone() for name, weight in weights.items() if name not in ranks}
    return parts, factors, errors


def _product(
    weight: Tensor, rank: int, how: LayerFactors, moments: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """U and V, or nothing where the matrix stays whole."""
    m, n = weight.shape
    beside = round(how.keep * m) * n
    if how.whole and (rank >= whole_rank(m, n, beside) or how.keep == 1):
        return None, None
    return low_rank(weight, min(rank, m, n), moments)


def _chosen(
    rest: Mapping[str, Tensor], how: LayerFactors, moments: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:  # fmt: skip
    """Which units of each S stay: those whose loss would be heard most."""
    energy = {name: _energy(each, moments.get(name)) for name, each in rest.items()}
    if how.unit == "neuron":
        mask = keep_units([neuron_scores(energy)], how.keep)[0]
        return dict.fromkeys(rest, mask)
    return {name: keep_units([unit_scores(each, how.unit)], how.keep)[0] for name, each in energy.items()}


def _energy(rest: Tensor, moments: Tensor | None) -> Tensor:
    """[m, n] what each number of S adds to the mean square of the output; rows sum to theirs."""
    if moments is None:
        return rest.square()
    if moments.dim() == 1:
        return rest.square() * moments
    return rest * (rest @ moments)


def _named(
    name: str, up: Tensor | None, down: Tensor | None, rest: Tensor, mask: Tensor, unit: str
) -> dict[str, Tensor]:  # fmt: skip
    parts: dict[str, Tensor] = {}
    if up is not None and down is not None:
        parts |= {f"{name}_u": up, f"{name}_v": down}
    if bool(mask.any()):
        parts[f"{name}_s"] = (rest[mask] if unit == "row" else rest[:, mask]).contiguous()
        if not bool(mask.all()):
            parts[f"{name}_at"] = mask.nonzero()[:, 0].to(torch.int32)
    return parts
