"""A process that trains keeps its memory, where its C library lets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from coterie.training.memory import keep_memory
kept = keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, min(faults() for _ in range(3)))
"""


def _run(**environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="wants glibc")
def test_freed_memory_is_used_again():
    kept, faults = _run()
    assert kept == "True"
    assert int(faults) < 16, "64 MiB are 16,384 small pages, or 32 huge ones"


def test_what_the_user_set_stands():
    assert _run(MALLOC_ARENA_MAX="2", THP_MEM_ALLOC_ENABLE="0")[0] == "False"
