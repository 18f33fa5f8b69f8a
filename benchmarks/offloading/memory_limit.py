"""A memory group: one limit on a process's memory, page cache included (control groups, version 1 or 2)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_NO_GROUP = (
    "No memory group can be made here: {why}. Run as root on Linux with the memory controller of cgroup v1 or v2 "
    "mounted under {root}, or pass --no-limit to run without one (then nothing is judged)."
)


class NoMemoryGroup(RuntimeError):
    """Neither version of control groups lets this process make a memory group."""


@dataclass(frozen=True)
class MemoryGroup:
    """An existing group. ``version`` decides the names of its files."""

    path: Path
    version: int

    @property
    def procs(self) -> Path:
        """Writing a process id here moves the process in."""
        return self.path / "cgroup.procs"

    def usage(self) -> dict[str, int]:
        """Bytes now (anonymous, page cache), the peak, how often the limit was hit, processes killed for memory."""
        stat = _table(self.path / "memory.stat")
        if self.version == 1:
            peak, hits = _number(self.path / "memory.max_usage_in_bytes"), _number(self.path / "memory.failcnt")
            kills = _table(self.path / "memory.oom_control").get("oom_kill", 0)
            return {"anonymous": stat["rss"], "cache": stat["cache"], "peak": peak, "limit_hits": hits, "kills": kills}
        events, peak_file = _table(self.path / "memory.events"), self.path / "memory.peak"
        peak = _number(peak_file) if peak_file.exists() else _number(self.path / "memory.current")
        return {
            "anonymous": stat["anon"], "cache": stat["file"], "peak": peak,
            "limit_hits": events.get("max", 0), "kills": events.get("oom_kill", 0),
        }  # fmt: skip


@contextlib.contextmanager
def memory_group(limit: int, root: Path = ROOT, membership: Path = Path("/proc/self/cgroup")) -> Iterator[MemoryGroup]:
    """A fresh group of ``limit`` bytes; removed at the end, when its processes are gone.

    Raises:
        NoMemoryGroup: neither version works here; the text says why and what to do.
    """
    version, parent = _parent(root, membership)
    path = parent / f"coterie-bench-{os.getpid()}"
    try:
        path.mkdir()
        _set_limit(path, version, limit)
    except OSError as error:
        _remove(path)
        raise NoMemoryGroup(_NO_GROUP.format(why=error, root=root)) from error
    try:
        yield MemoryGroup(path, version)
    finally:
        _remove(path)


def _parent(root: Path, membership: Path) -> tuple[int, Path]:
    """The version that has a memory controller, and the group under which a new one may be made."""
    places = {}
    for line in membership.read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        places[controllers] = place.lstrip("/")
    old = next((p for c, p in places.items() if "memory" in c.split(",")), None)
    if old is not None and (root / "memory" / "memory.limit_in_bytes").exists():
        own = root / "memory" / old
        return 1, own if own.is_dir() else root / "memory"
    for own in (root / places.get("", ""), *(root / places.get("", "")).parents):
        if own.is_relative_to(root) and _gives_memory(own):
            return 2, own
    raise NoMemoryGroup(_NO_GROUP.format(why="no memory controller is open to this process", root=root))


def _gives_memory(group: Path) -> bool:
    """Whether children of a version 2 group get the memory controller, switching it on if allowed."""
    try:
        if "memory" not in (group / "cgroup.controllers").read_text().split():
            return False
        switch = group / "cgroup.subtree_control"
        if "memory" not in switch.read_text().split():
            switch.write_text("+memory")
        return True
    except OSError:
        return False


def _set_limit(path: Path, version: int, limit: int) -> None:
    (path / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(limit))
    # no way out through swap, where there is any
    swap, amount = ("memory.memsw.limit_in_bytes", limit) if version == 1 else ("memory.swap.max", 0)
    with contextlib.suppress(OSError):
        if (path / swap).exists():
            (path / swap).write_text(str(amount))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        (path / "memory.force_empty").write_text("0")  # version 1: forget the pages charged to it
    with contextlib.suppress(OSError):
        path.rmdir()


def _number(path: Path) -> int:
    return int(path.read_text())


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
