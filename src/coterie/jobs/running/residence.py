"""Where a loaded model lives, and what it must not be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coterie.errors import PromptError
from coterie.jobs.running.budget import Budget
from coterie.models.checkpoint import Checkpoint
from coterie.store import Store, StoreStats
from coterie.store.machine import anonymous_memory

__all__ = ["Residence", "guard"]


@dataclass
class Residence:
    """Where a loaded model lives: ``model.coterie``. Reading is thread-safe; `close` ends the model's use.

    Attributes:
        context, batch, prefill: tokens and sequences the budget made room for, and most tokens at once of each.
        compiled: single tokens are computed with the kernel the machine made.
        most_experts: per token, that the budget made room for; None where it is the family's own number.
        warm_bytes: of the experts that were read before the first request, as statistics told.
    """

    checkpoint: Checkpoint
    budget: Budget
    store: Store
    context: int
    batch: int
    prefill: int
    compiled: bool = False
    most_experts: int | None = None
    warm_bytes: int = 0

    def stats(self) -> StoreStats:
        """Hits, misses, bytes and seconds since loading or the last ``store.reset_stats()``."""
        return self.store.stats()

    @property
    def resident_bytes(self) -> int:
        """Bytes of experts in memory now."""
        return self.store.resident * self.checkpoint.bytes_per_expert

    @property
    def libraries(self) -> int:
        """Bytes of the process now that the budget does not count: interpreter, libraries and their kernels."""
        return max(0, anonymous_memory() - self.budget.fixed - self.resident_bytes)

    def describe(self) -> str:
        """The budget and the store's numbers, for people."""
        return f"{self.budget.describe()}\n{self.stats().describe()}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Residence:
        """Copies of a model live where the model does."""
        return self

    def close(self) -> None:
        """Stop the readers and give the arena back. The model cannot run afterwards."""
        self.store.close()


def guard(host: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a forward that would outgrow the KV cache the budget made room for, before it allocates."""
    residence: Residence = host.coterie
    inputs = kwargs.get("input_ids", args[0] if args else None)
    for name in ("inputs_embeds", "decoder_input_ids"):  # a decoder with an encoder beside it has a text of its own
        inputs = kwargs.get(name) if inputs is None else inputs
    if inputs is None:
        return
    if inputs.shape[1] > residence.prefill:
        raise PromptError(
            f"{inputs.shape[1]} tokens at once are more than the budget made room for: {residence.prefill}. "
            f"Load with prefill={inputs.shape[1]}, or use generate, which reads a prompt in pieces."
        )
    cache = kwargs.get("past_key_values")
    length = inputs.shape[1] + (cache.get_seq_length() if cache is not None else 0)
    if length > residence.context or inputs.shape[0] > residence.batch:
        raise PromptError(
            f"{inputs.shape[0]} sequences of {length} tokens are more than the budget made room for: {residence.batch} "
            f"of {residence.context}. Load with context={length} and batch={inputs.shape[0]}, or more."
        )
