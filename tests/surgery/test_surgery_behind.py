"""Work in another thread: in order, bounded, and its errors come out where the next is given."""

from __future__ import annotations

import threading

import pytest
import torch

from coterie.surgery.behind import Behind
from coterie.surgery.threads import computing


@pytest.fixture
def behind():
    made = Behind(100)
    yield made
    made.stop()


def test_work_is_done_in_order(behind):
    done = []
    for number in range(50):
        behind.do(lambda number=number: done.append(number), 10)
    behind.finish()
    assert done == list(range(50))


def test_no_more_waits_than_is_allowed_but_one_that_is_larger(behind):
    done = []
    behind.do(lambda: done.append(1), 60, 60)
    behind.do(lambda: done.append(2), 60, 60)  # does not fit beside the first, so that one is over
    assert done[0] == 1
    behind.do(lambda: done.append(3), 500, 500)
    assert done[:2] == [1, 2]
    behind.finish()
    assert done == [1, 2, 3]
    assert behind.held == 500


def test_an_error_comes_out_and_nothing_more_is_done(behind):
    done = []

    def fail():
        raise ValueError("no luck")

    behind.do(fail)
    with pytest.raises(ValueError, match="no luck"):
        behind.finish()
    with pytest.raises(ValueError, match="no luck"):
        behind.do(lambda: done.append(1))
    with pytest.raises(ValueError, match="no luck"):
        behind.finish()
    assert not done


def test_what_waits_is_dropped_when_it_ends():
    behind, gate, done = Behind(100), threading.Event(), []
    behind.do(gate.wait)
    behind.do(lambda: done.append(1))
    gate.set()
    behind.stop()
    assert len(done) <= 1
    behind.stop()


def test_threads_are_as_many_as_before():
    before = torch.get_num_threads()
    with computing(0) as found:
        assert found == before
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), computing(1):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before
