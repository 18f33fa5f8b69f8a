"""A process from start to end: how long, and how much memory at its peak."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY = 0.02  # seconds between two looks


class ArmFailed(RuntimeError):
    """It did not end well; the text is the end of what it said."""


@dataclass(frozen=True)
class Spent:
    """Attributes:
    seconds: of wall time, start of the interpreter included.
    peak: bytes resident, mapped files included, as the kernel kept it.
    anonymous: the most bytes resident that are no file's, looked at fifty times a second.
    """

    seconds: float
    peak: int
    anonymous: int


def spent(command: Sequence[str], log: Path, folder: Path, more: Mapping[str, str]) -> Spent:
    """Run ``command`` in ``folder`` to its end. Blocks.

    Args:
        command: as `subprocess.Popen` takes it.
        log: where what it says goes.
        folder: to be in.
        more: environment beside the present one.

    Raises:
        ArmFailed: it ended with another code than 0.
    """
    with log.open("wb") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=os.environ | dict(more), stdout=said, stderr=said)
        anonymous = 0
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            anonymous = max(anonymous, _anonymous(process.pid))
            time.sleep(_EVERY)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ArmFailed(log.read_text(errors="replace")[-2000:])
    return Spent(seconds, usage.ru_maxrss * 1024, anonymous)


def _anonymous(pid: int) -> int:
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
