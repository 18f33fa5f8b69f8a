"""What the kernel counted for this process: bytes read from the device, faults, memory, and foreign processor time."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from offloading.cold import drop

# fixed before any run: a run beside busier neighbours than this is repeated once
FOREIGN_LIMIT = 0.15


def device_bytes() -> int:
    """Bytes this process made the device read; page-cache hits do not count."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def anonymous_bytes() -> int:
    """Resident memory that no file backs, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds so far: of the clock, of all busy processors of the machine, of this process."""

    wall: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> ProcessorTime:
        fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle, waiting = fields[3], fields[4]
        used = os.times()
        busy = (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")
        return cls(time.monotonic(), busy, used.user + used.system)

    def foreign_share(self, before: ProcessorTime) -> float:
        """The share of the machine that others used since ``before`` (time stolen by the host included)."""
        wall = max(self.wall - before.wall, 1e-9) * (os.cpu_count() or 1)
        return max(0.0, (self.busy - before.busy) - (self.own - before.own)) / wall


def check_device_counter(folder: Path, size: int = 8 * 1024**2) -> dict[str, int]:
    """Read one file cold and then warm; the device counter must see the first and not the second.

    Raises:
        RuntimeError: it does not, so no figure of bytes from this folder would mean anything.
    """
    path = folder / "counter-check.bin"
    path.write_bytes(os.urandom(size))
    drop(path)
    counts = []
    for _ in ("cold", "warm"):
        before = device_bytes()
        path.read_bytes()
        counts.append(device_bytes() - before)
    path.unlink()
    if counts[0] < size or counts[1] != 0:
        raise RuntimeError(
            f"the device counter saw {counts[0]} bytes of a cold and {counts[1]} of a warm read of {size} bytes. "
            "Choose a folder on a real disk with --work."
        )
    return {"cold": counts[0], "warm": counts[1], "size": size}
