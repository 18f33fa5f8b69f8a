"""What kind of disk a file lies on. Reads /proc; changes nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from coterie.store.disk import DiskTier

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "afs", "fuse.sshfs", "virtiofs"}
)
_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


@dataclass(frozen=True)
class Place:
    """Where a directory lies.

    Attributes:
        kind: of file system, "unknown" where the system does not say.
        free, size: bytes of it.
    """

    kind: str
    free: int
    size: int

    @property
    def is_network(self) -> bool:
        """Reads go over a network, or through a host."""
        return self.kind in _NETWORK

    @property
    def is_memory(self) -> bool:
        """Files lie in memory."""
        return self.kind in _MEMORY


def place_of(directory: Path) -> Place:
    """Where ``directory`` lies.

    Raises:
        OSError: it does not exist.
    """
    usage = shutil.disk_usage(directory)
    return Place(_kind(directory.resolve()), usage.free, usage.total)


def reads_directly(file: Path) -> bool:
    """Whether the store's reads of ``file`` pass the page cache by.

    Raises:
        StoreError: it cannot be opened.
    """
    tier = DiskTier()
    try:
        return tier.is_direct(file)
    finally:
        tier.close()


def _kind(directory: Path) -> str:
    """Of the mount that is nearest above."""
    best = (-1, "unknown")
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return best[1]
    for line in lines:
        _, where, kind, *_ = line.split(" ")
        where = where.replace("\\040", " ")
        if directory.is_relative_to(where):
            best = max(best, (len(where), kind), key=lambda one: one[0])
    return best[1]
