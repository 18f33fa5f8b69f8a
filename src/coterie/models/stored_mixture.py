"""What coterie.json says of a mixture in a family that has none of its own: where it stands, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coterie.errors import CheckpointError, OptionError
from coterie.experts import FFNShape

__all__ = ["StoredMixture"]


@dataclass(frozen=True)
class StoredMixture:
    """Mixtures in the place of a dense family's feed-forwards, alike in all their layers.

    Attributes:
        blocks: module paths whose place they take, in order.
        experts, top_k: E, and how many of them an item goes to.
        width, inner: D, and the inner width of an expert.
        shared: inner width of an expert that every item passes with weight one; 0: there is none.
        gated, bias, activation: as of `coterie.experts.FFNShape`.
        empty: further module paths that are to hand on what they are given: where the rest of a feed-forward lay that
            was no module of its own (OPT).
    """

    blocks: tuple[str, ...]
    experts: int
    top_k: int
    width: int
    inner: int
    shared: int = 0
    gated: bool = True
    bias: bool = False
    activation: str = "silu"
    empty: tuple[str, ...] = ()

    def shape(self, inner: int | None = None) -> FFNShape:
        """Of one expert, gate and up in one matrix as transformers keeps them; or of one of another inner width.

        Raises:
            OptionError: sizes or an activation that no expert has.
        """
        return FFNShape(
            self.width, self.inner if inner is None else inner, gated=self.gated, bias=self.bias,
            activation=self.activation,
        )  # fmt: skip

    def site(self, block: str) -> str:
        """Module path of the experts in ``block``: the site's name."""
        return f"{block}.experts"

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> StoredMixture:
        """What `as_record` made, checked.

        Raises:
            CheckpointError: a field is missing or of another kind, or contradicts another.
        """
        try:
            lists = {name: tuple(map(str, record[name])) for name in ("blocks", "empty")}
            made = cls(**{**record, **lists})
            numbers = (made.experts, made.top_k, made.width, made.inner, made.shared)
            if not made.blocks or not all(type(number) is int and number >= 0 for number in numbers):
                raise OptionError("its numbers are none")
            if not 1 <= made.top_k <= made.experts:
                raise OptionError(f"a token goes to {made.top_k} of {made.experts} experts")
            made.shape()
        except (TypeError, KeyError, OptionError) as error:
            raise CheckpointError(
                f"{where} describes a mixture that cannot be made: {error}. Copy the file again, or write the model "
                "again."
            ) from error
        return made
