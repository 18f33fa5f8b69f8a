"""What is learned besides the next token: the routing losses and their coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.balance import Norm, Nulls, entropy, switch_balance, z_loss
from coterie.routing import Routing
from coterie.training.consistency import Consistency
from coterie.training.schedules import Schedule

Layers = Literal["mean", "sum"]


@dataclass(frozen=True)
class Objective:
    """Coefficients of what is added to the cross entropy, which is in nats per token. Formulas: `coterie.ops`.

    They concern learned routers only: what is frozen or drawn cannot follow them, and the items would instead.

    Attributes:
        balance, entropy, z: numbers, or schedules of them. 0 leaves a loss out.
        balance_norm: slots (1 at balance) or tokens (the mean number of choices at balance).
        nulls: how null routes are balanced. None: averaged, where there are any.
        layers: mean or sum of the layers' losses.
        consistency: put every batch through twice and draw the predictions together.
    """

    balance: float | Schedule = 0.01
    entropy: float | Schedule = 0.0
    z: float | Schedule = 0.0
    balance_norm: Norm = "slots"
    nulls: Nulls | None = None
    layers: Layers = "mean"
    consistency: Consistency | None = None

    def __post_init__(self) -> None:
        for what, word, kind in (("balance_norm", self.balance_norm, Norm), ("layers", self.layers, Layers)):
            if word not in get_args(kind):
                raise OptionError(f"{what}={word!r} is not known. Write {' or '.join(map(repr, get_args(kind)))}.")
        if self.nulls is not None and self.nulls not in get_args(Nulls):
            raise OptionError(f"nulls={self.nulls!r} is not known. Write 'averaged' or 'individual'.")

    def coefficients(self, step: int, total: int) -> dict[str, float]:
        """Those that are not 0 at a step."""
        named = {"balance": self.balance, "entropy": self.entropy, "z": self.z}
        values = {name: each.value(step, total) if isinstance(each, Schedule) else each for name, each in named.items()}
        return {name: value for name, value in values.items() if value}

    def term(self, name: str, routing: Routing, mask: Tensor | None, num_nulls: int) -> Tensor:
        """One layer's loss of a name, without its coefficient."""
        if name == "balance":
            return switch_balance(
                routing, mask, norm=self.balance_norm, num_nulls=num_nulls,
                nulls=self.nulls or "averaged" if num_nulls else "individual",
            )  # fmt: skip
        return entropy(routing, mask) if name == "entropy" else z_loss(routing, mask)

    def routing_loss(
        self, names: Mapping[str, float], routings: Mapping[str, tuple[Routing, int]], mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Name -> loss over the layers, with its coefficient.

        Args:
            names: coefficients.
            routings: site -> its routing and how many of its routes are null.
            mask: [T] bool, of the items of every site.
        """
        losses = {}
        for name, coefficient in names.items():
            terms = [self.term(name, routing, mask, num_nulls) for routing, num_nulls in routings.values()]
            if terms:
                total = sum(terms[1:], start=terms[0])
                losses[name] = coefficient * (total / len(terms) if self.layers == "mean" else total)
        return losses
