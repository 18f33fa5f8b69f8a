"""One memory budget, split: dense weights, KV cache, workspace, and expert slots from what is left."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from coterie.errors import BudgetError
from coterie.models.checkpoint import Checkpoint
from coterie.models.footprint import Footprint
from coterie.store.machine import available_memory, machine_memory
from coterie.units import format_bytes, parse_bytes

# what allocators keep in half-used blocks and thread heaps: 2.4 MiB were measured on a small model
_ALLOCATORS = 4 * 1024**2
# without --memory, what other programs may want before we are done
_LEAVE_FREE = 0.1


@dataclass(frozen=True)
class Budget:
    """Bytes: what was given and where it goes. The interpreter and its libraries are not in it.

    ``total`` >= ``used`` = ``dense`` + ``cache`` + ``workspace`` + ``slots`` * ``slot_bytes``.
    """

    total: int
    dense: int
    cache: int
    workspace: int
    slot_bytes: int
    slots: int
    experts: int
    expert_bytes: int

    @property
    def fixed(self) -> int:
        """What is needed before the first expert."""
        return self.dense + self.cache + self.workspace

    @property
    def floor(self) -> int:
        """The smallest budget that works: one expert at a time."""
        return self.fixed + self.slot_bytes

    @property
    def used(self) -> int:
        return self.fixed + self.slots * self.slot_bytes

    @property
    def everything(self) -> int:
        """What it takes to keep every expert resident."""
        return self.fixed + self.experts * self.slot_bytes

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"floor": self.floor, "used": self.used, "everything": self.everything}

    def describe(self) -> str:
        """One line a person can check."""
        return (
            f"{format_bytes(self.total)}: {format_bytes(self.dense)} dense weights, {format_bytes(self.cache)} KV "
            f"cache, {format_bytes(self.workspace)} workspace, {self.slots} of {self.experts} experts "
            f"({format_bytes(self.slots * self.slot_bytes)} of {format_bytes(self.experts * self.slot_bytes)})"
        )


def split_budget(checkpoint: Checkpoint, footprint: Footprint, memory: str | int | None, slot_bytes: int) -> Budget:
    """Decide how many experts stay resident. Allocates nothing.

    Raises:
        BudgetError: ``memory`` is no size, is below the floor, or is more than the machine has.
    """
    need = planned_budget(checkpoint, footprint, memory, slot_bytes)
    if memory is not None and need.total > machine_memory():
        raise BudgetError(
            f"--memory {format_bytes(need.total)} is more than this machine gives the process "
            f"({format_bytes(machine_memory())}). Give less, or leave --memory out to use what is free."
        )
    if need.total < need.floor:
        raise BudgetError(_below_floor(need, memory))
    return need


def planned_budget(checkpoint: Checkpoint, footprint: Footprint, memory: str | int | None, slot_bytes: int) -> Budget:
    """As `split_budget`, but what this machine has is no matter, and below the floor there are no slots.

    Raises:
        BudgetError: ``memory`` is no size.
    """
    total = default_memory() if memory is None else parse_bytes(memory)
    experts = sum(site.num_experts for site in checkpoint.sites)
    workspace = footprint.workspace + _ALLOCATORS
    need = Budget(total, footprint.dense, footprint.cache, workspace, slot_bytes, 0, experts, checkpoint.expert_bytes)
    return replace(need, slots=max(0, min(experts, (total - need.fixed) // slot_bytes)))


def default_memory() -> int:
    """Bytes a budget has when nothing is asked: most of what is free."""
    return int(min(available_memory(), machine_memory()) * (1 - _LEAVE_FREE))


def _below_floor(need: Budget, memory: str | int | None) -> str:
    asked = "The memory that is free" if memory is None else f"--memory {memory}"
    return (
        f"{asked} ({format_bytes(need.total)}) is below this model's floor of {format_bytes(need.floor)} "
        f"({need.floor} bytes): {format_bytes(need.dense)} dense weights, {format_bytes(need.cache)} KV cache, "
        f"{format_bytes(need.workspace)} workspace and one expert of {format_bytes(need.slot_bytes)}. "
        f"Give at least {_rounded_up(need.floor)}, or a shorter context."
    )


def _rounded_up(count: int) -> str:
    mib = -(-count // 1024**2)
    return f"{mib}MiB"
