"""The memory experts are read into: slots of one size, allocated once."""

from __future__ import annotations

import contextlib
import mmap

from coterie.errors import BudgetError
from coterie.store.blob import ALIGNMENT
from coterie.units import format_bytes

# of every processor we know; a slot smaller than one would share it with its neighbours
_HUGE_PAGE = 2 * 1024**2


class Arena:
    """Page-aligned slots of one size in anonymous private memory, on huge pages where slots are large.

    Nothing is touched before it is used: a slot costs memory from its first read on (in steps of a page, which may
    reach into its neighbours), and none after `discard`. Not thread-safe; the store calls it where only one thread
    can know the slot.

    Args:
        slots: how many, at least one.
        slot_bytes: size of each, rounded up to a multiple of `ALIGNMENT`.

    Raises:
        BudgetError: no slot at all, or the machine refuses so much address space.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        if slots < 1 or slot_bytes < 1:
            raise BudgetError(f"A store needs at least one slot of one byte, asked for {slots} of {slot_bytes}.")
        self.slot_bytes = -(-slot_bytes // ALIGNMENT) * ALIGNMENT
        self._slots: list[tuple[mmap.mmap, int]] = []
        self.grow(slots)

    @property
    def slots(self) -> int:
        """Slots there are addresses for, used or not."""
        return len(self._slots)

    def grow(self, slots: int) -> range:
        """Add ``slots`` more in a mapping of their own; their numbers are returned."""
        try:
            # private: memory of a shared anonymous mapping would not come back by MADV_DONTNEED
            mapping = mmap.mmap(-1, slots * self.slot_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            size = format_bytes(slots * self.slot_bytes)
            raise BudgetError(f"The machine does not give {size} for experts: {error}. Ask for less.") from error
        if self.slot_bytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            # experts are read from end to end; a kernel built without huge pages says no
            with contextlib.suppress(OSError):
                mapping.madvise(mmap.MADV_HUGEPAGE)
        first = len(self._slots)
        self._slots += [(mapping, number * self.slot_bytes) for number in range(slots)]
        return range(first, len(self._slots))

    def view(self, slot: int) -> memoryview:
        """The slot's bytes, writable, for reads and tensor views."""
        mapping, offset = self._slots[slot]
        return memoryview(mapping)[offset : offset + self.slot_bytes]

    def discard(self, slot: int) -> None:
        """Give the slot's memory back to the machine now. Its bytes become zero; the addresses stay."""
        mapping, offset = self._slots[slot]
        mapping.madvise(mmap.MADV_DONTNEED, offset, self.slot_bytes)

    def close(self) -> None:
        """Let go of all memory; it is the machine's again when no view of it is left."""
        self._slots.clear()
