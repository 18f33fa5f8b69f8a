"""What comes into an expert's matrices on a sample: by it an error is weighed where it is heard."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.surgery.layer import LayerExperts
from coterie.surgery.sample import expert_hidden

__all__ = ["InputMoments"]

# wider inputs have their mean squares looked at, not their products: those of 14336 would take 822 MB
_WIDEST = 4096


class InputMoments:
    """Second moments of what the matrices of one layer's experts read. Deterministic; one thread.

    Args:
        layer: whose experts compute on the sample.
        inputs: [n, D] a sample of what comes in, as statistics keep it; None: nothing is known, all inputs count alike.
    """

    def __init__(self, layer: LayerExperts, inputs: Tensor | None = None) -> None:
        self._layer = layer
        self._inputs = None if inputs is None or not len(inputs) else inputs.float()
        self._outer = None if self._inputs is None else _moments(self._inputs)

    def of(self, expert: int) -> Mapping[str, Tensor | None]:
        """Matrix name -> [n, n] mean products of two inputs, [n] mean squares where they are many, None if unknown."""
        names = [name for name, size in self._layer.shape.weight_shapes().items() if len(size) == 2]
        found: dict[str, Tensor | None] = dict.fromkeys(names, self._outer)
        if self._inputs is not None:
            own = {name: weight.float() for name, weight in self._layer.expert(expert).items()}
            found["down_proj"] = _moments(expert_hidden(self._inputs, own, self._layer.shape))
        return found


def _moments(rows: Tensor) -> Tensor:
    if rows.shape[1] > _WIDEST:
        return rows.square().mean(0)
    return (rows.T @ rows) / len(rows)


def heard(error: Tensor, moments: Tensor | None) -> float:
    """The sum of squares of ``error`` [m, n] times inputs with these moments; without, of ``error`` itself."""
    wide = error.float()
    if moments is None:
        return float(wide.square().sum(dtype=torch.float64))
    weighted = wide * moments if moments.dim() == 1 else wide @ moments
    return float((weighted * wide).sum(dtype=torch.float64).clamp(min=0))
