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
_PIECE = 16 << 20


class ArmFailed(RuntimeError):
    """It did not end well; the text is the end of what it said."""


@dataclass(frozen=True)
class Spent:
    """Attributes:
    seconds: of wall time, start of the interpreter included.
    peak: the most bytes resident, mapped files included: the kernel's own high-water mark, read fifty times a second.
    anonymous: the most bytes resident that are no file's, looked at fifty times a second.
    cpu: seconds of processor time, the kernel's for it included.
    """

    seconds: float
    peak: int
    anonymous: int
    cpu: float = 0.0


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
        peak = anonymous = 0
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            now, most = _resident(process.pid)
            peak, anonymous = max(peak, most), max(anonymous, now)
            time.sleep(_EVERY)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ArmFailed(log.read_text(errors="replace")[-2000:])
    return Spent(seconds, peak, anonymous, usage.ru_utime + usage.ru_stime)


def same_footing(checkpoints: Sequence[Path]) -> None:
    """What is written goes to the disk, and the sources are in the page cache, whoever ran before."""
    os.sync()
    for checkpoint in checkpoints:
        for file in sorted(checkpoint.glob("*.safetensors")):
            with file.open("rb", buffering=0) as opened:
                while opened.read(_PIECE):
                    pass


def _resident(pid: int) -> tuple[int, int]:
    """Bytes: anonymous now, and the most of all so far.

    Not ``ru_maxrss``: that of a child begins with what its parent held when it was started.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("RssAnon", "VmHWM"))
    now, most = (int(one[1]) * 1024 if one else 0 for one in found)
    return now, most
