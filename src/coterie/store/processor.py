"""Which processor this is and how much of it this process may use. Reads /proc and cgroup files; changes nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# the kernel's name -> the usual one, best last; x86 first, then ARM
_FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512_BF16", "amx_bf16": "AMX", "asimd": "NEON",
    "sve": "SVE", "bf16": "BF16",
}  # fmt: skip
_NATIVE_BF16 = frozenset({"AVX512_BF16", "AMX", "BF16"})
_VECTORS = frozenset({"AVX2", "AVX512", "NEON", "SVE"})


@dataclass(frozen=True)
class Processor:
    """What there is, and what of it may be used.

    Attributes:
        features: vector units that matter for products, by their usual names.
        cores: of the machine, threads of a core counted each.
        affinity: cores this process may run on.
        quota: cores' worth of time its cgroup gives it; None without a limit.
    """

    name: str
    features: tuple[str, ...]
    cores: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that can run at once."""
        return max(1, min(self.affinity, int(self.quota) if self.quota is not None else self.affinity))

    @property
    def has_vectors(self) -> bool:
        """Products need not go number by number."""
        return bool(_VECTORS & set(self.features))

    @property
    def has_bfloat16(self) -> bool:
        """bfloat16 is multiplied as it is, not widened first."""
        return bool(_NATIVE_BF16 & set(self.features))


def processor() -> Processor:
    """Of this machine and process."""
    facts = _cpuinfo()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    cores = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    return Processor(
        name, tuple(usual for flag, usual in _FEATURES.items() if flag in flags), cores, affinity, _quota()
    )


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines."""
    facts: dict[str, str] = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            facts.setdefault(name.strip(), value.strip())
    return facts


def _quota() -> float | None:
    """The least that the cgroups of this process allow, in cores; None where none of them has a limit."""
    quotas = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            places = [Path(f"/sys/fs/cgroup{path}"), Path("/sys/fs/cgroup")]
            quotas += [_read(place / "cpu.max").split() for place in places]
        elif "cpu" in controllers.split(","):
            places = [Path(f"/sys/fs/cgroup/{controllers}{path}"), Path(f"/sys/fs/cgroup/cpu{path}")]
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quotas += [[_read(place / name).strip() for name in names] for place in places]
    # "max" and -1 say that there is no limit
    limits = [int(pair[0]) / int(pair[1]) for pair in quotas if len(pair) == 2 and all(n.isdigit() for n in pair)]
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
