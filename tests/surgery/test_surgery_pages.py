"""Memory that is used again belongs to one tensor at a time."""

from __future__ import annotations

import gc

import pytest
import torch

from coterie.surgery import pages
from coterie.surgery.pages import empty, forget, stacked


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pages, "_LARGE", 4096)
    forget()
    yield
    forget()


def kept():
    return sum(len(spare) for spare in pages._SPARE.values())


def test_memory_comes_back_when_the_last_view_of_it_is_forgotten():
    first = empty((4, 1024), torch.float32)
    address, row = first.data_ptr(), first[2]
    row.fill_(7)
    del first
    gc.collect()
    assert kept() == 0
    other = empty((4, 1024), torch.float32)
    other.zero_()
    assert other.data_ptr() != address
    assert row.eq(7).all()
    del row
    gc.collect()
    if not pages._CAN:
        pytest.skip("the system has no large pages to ask for")
    assert kept() == 1
    again = empty((2, 2048), torch.float32)
    assert again.data_ptr() == address
    assert kept() == 0
    del again, other
    gc.collect()
    assert kept() == 2
    forget()
    assert kept() == 0


def test_no_more_is_kept_than_is_allowed(monkeypatch):
    monkeypatch.setattr(pages, "_MOST", 10_000)
    held = [empty((2048,), torch.float32) for _ in range(3)]
    del held
    gc.collect()
    assert kept() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_stacks_are_those_of_torch(dtype):
    tensors = [torch.randn(64, 33).to(dtype) for _ in range(3)]
    assert torch.equal(stacked(tensors), torch.stack(tensors))
