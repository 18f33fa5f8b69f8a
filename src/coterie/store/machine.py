"""What the machine and this process hold, in bytes. Reads /proc and the cgroup files; changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

# a cgroup without a limit says "max" (v2) or a number near 2**63 (v1)
_NO_LIMIT = 1 << 60


def machine_memory() -> int:
    """Bytes this process may use at most: the machine's memory, or its cgroup's limit where that is less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_cgroup_limits()])


def available_memory() -> int:
    """Bytes that can be had now without swapping, as the kernel estimates them."""
    return min(_field(Path("/proc/meminfo"), "MemAvailable", machine_memory()), machine_memory())


def memory_limit() -> int | None:
    """Bytes that the cgroups of this process allow it; None without a limit."""
    return min(_cgroup_limits(), default=None)


def swap_memory() -> tuple[int, int]:
    """Bytes of swap there are, and how many of them are used."""
    total = _field(Path("/proc/meminfo"), "SwapTotal", 0)
    return total, total - _field(Path("/proc/meminfo"), "SwapFree", total)


def page_cache() -> int:
    """Bytes of files that the kernel keeps in memory; it gives them up when memory is asked for."""
    return _field(Path("/proc/meminfo"), "Cached", 0)


def anonymous_memory() -> int:
    """Bytes of this process that no file backs (RssAnon): interpreter, libraries, heap, arenas."""
    return _field(Path("/proc/self/status"), "RssAnon", 0)


def data_size() -> int:
    """Bytes of private writable memory mapped (VmData), which RLIMIT_DATA bounds."""
    return _field(Path("/proc/self/status"), "VmData", 0)


def _field(path: Path, name: str, otherwise: int) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return otherwise


def _cgroup_limits() -> list[int]:
    limits = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files = [Path(f"/sys/fs/cgroup{path}/memory.max"), Path("/sys/fs/cgroup/memory.max")]
        elif "memory" in controllers.split(","):
            base = "/sys/fs/cgroup/memory"
            files = [Path(f"{base}{path}/memory.limit_in_bytes"), Path(f"{base}/memory.limit_in_bytes")]
        else:
            continue
        limits += [int(text) for file in files for text in _lines(file) if text.isdigit()]
    return [limit for limit in limits if limit < _NO_LIMIT]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")[:-1]
    except OSError:
        return []
