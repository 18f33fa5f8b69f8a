import gc

import pytest
import torch

from coterie.errors import BudgetError
from coterie.store.arena import Arena
from coterie.store.machine import anonymous_memory

MIB = 2**20


def test_slots_are_aligned_apart_and_rounded_up():
    arena = Arena(3, 5000)
    assert arena.slot_bytes == 8192
    for slot in range(3):
        arena.view(slot)[:] = bytes([slot + 1]) * 8192
    for slot in range(3):
        tensor = torch.frombuffer(arena.view(slot), dtype=torch.uint8)
        assert tensor.data_ptr() % 4096 == 0
        assert bool((tensor == slot + 1).all())


def test_growing_adds_slots_and_keeps_what_is_there():
    arena = Arena(1, 4096)
    arena.view(0)[0] = 7
    assert arena.grow(2) == range(1, 3)
    assert arena.slots == 3
    arena.view(2)[0] = 9
    assert arena.view(0)[0] == 7


def test_memory_is_held_only_between_first_touch_and_discard():
    gc.collect()
    start = anonymous_memory()
    arena = Arena(8, 8 * MIB)
    assert anonymous_memory() - start < 4 * MIB
    for slot in range(8):
        torch.frombuffer(arena.view(slot), dtype=torch.uint8).fill_(1)
    assert anonymous_memory() - start > 60 * MIB
    for slot in range(6):
        arena.discard(slot)
    assert anonymous_memory() - start < 20 * MIB
    assert arena.view(0)[0] == 0
    assert arena.view(7)[0] == 1
    arena.close()
    assert anonymous_memory() - start < 4 * MIB


@pytest.mark.parametrize(("slots", "size"), [(0, 4096), (-1, 4096), (1, 0), (1, 2**62)])
def test_impossible_sizes_are_refused(slots, size):
    with pytest.raises(BudgetError):
        Arena(slots, size)
