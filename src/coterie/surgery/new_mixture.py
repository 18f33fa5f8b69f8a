"""What a dense feed-forward becomes, and what a directory that it is written to must be able to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.experts import FFNShape
from coterie.models.stored import Stored
from coterie.surgery.dense import DenseCheckpoint, DenseFFN
from coterie.surgery.finite import is_finite
from coterie.surgery.method import Method
from coterie.surgery.orientation import canonical_shape

__all__ = ["MixtureTarget", "NewMixture"]


@dataclass(frozen=True, eq=False)
class NewMixture:
    """What a dense feed-forward becomes: ``shared(x) + sum over the chosen of w_e expert_e(x)``, weights summing to 1.

    Attributes:
        experts: up_proj [E, F', D], down_proj [E, D, F'], gate_proj [E, F', D] where they are gated; up_proj_bias and
            gate_proj_bias [E, F'], down_proj_bias [E, D] where they have biases.
        router: [E, D], whose softmax over the largest K are the weights.
        shared: the same names without the E, of what every item passes with weight one; None without.
        about: numbers and words of this layer for the report.
    """

    experts: Mapping[str, Tensor]
    router: Tensor
    shared: Mapping[str, Tensor] | None = None
    about: Mapping[str, Any] | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """E, F', and the inner width of the shared expert (0 without)."""
        experts, _, inner = self.experts["down_proj"].shape
        return experts, inner, 0 if self.shared is None else self.shared["down_proj"].shape[1]

    def checked(self, shape: FFNShape, where: str) -> NewMixture:
        """This, if its parts are such as ``shape`` has them, of any inner width.

        Raises:
            OptionError: matrices or biases that are missing or too many, a shape that does not fit, or NaN.
        """
        experts, inner, beside = self.sizes
        own = replace(canonical_shape(shape), inner=inner).weight_shapes()
        wanted = {name: (experts, *size) for name, size in own.items()} | {"router": (experts, shape.width)}
        given = {**self.experts, "router": self.router}
        if self.shared is not None:
            one = replace(canonical_shape(shape), inner=beside).weight_shapes()
            wanted |= {f"shared {name}": size for name, size in one.items()}
            given |= {f"shared {name}": weight for name, weight in self.shared.items()}
        found = {name: tuple(weight.shape) for name, weight in given.items()}
        if found != wanted:
            raise OptionError(f"{where}: experts must have {wanted}, found {found}.")
        bad = [name for name, weight in given.items() if not is_finite(weight)]
        if bad:
            raise OptionError(f"{where}: {bad[0]} holds NaN or infinity. Nothing is written.")
        return self


class MixtureTarget(ABC):
    """What a mixture can be written as. A subclass is final."""

    name: str
    """What a user calls it."""
    container: str
    """ "native" (plain transformers) or "coterie"."""

    @abstractmethod
    def written_config(self, dense: DenseCheckpoint, sizes: tuple[int, int, int], top_k: int) -> dict[str, Any]:
        """config.json; ``sizes`` as `NewMixture.sizes` has them."""

    @abstractmethod
    def stored(
        self, dense: DenseCheckpoint, sizes: tuple[int, int, int], top_k: int, about: Method
    ) -> Stored | None:  # fmt: skip
        """coterie.json; None where config.json says all."""

    @abstractmethod
    def tensors(
        self, number: int, ffn: DenseFFN, new: NewMixture, dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
        """Name on disk -> tensor of the ``number``-th layer."""
