"""What a reader needs to place the numbers: machine, library versions, state of the repository."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[2]
_LIBRARIES = ("coterie", "torch", "transformers", "safetensors", "accelerate", "numpy")


def all_facts(folder: Path) -> dict[str, Any]:
    """Machine, versions and commit; ``folder`` is where the model lies."""
    return {"hardware": hardware(folder), "versions": versions(), "repository": repository()}


def hardware(folder: Path) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "file_system": file_system(folder),
        "read_ahead_kib": _read_ahead(folder),
        "accelerator": "none",
    }


def hardware_name(facts: dict[str, Any]) -> str:
    """Short and fit for a file name, such as amd-epyc-2-cores-23gib."""
    name = re.sub(r"[^a-z0-9]+", "-", str(facts["processor"]).lower()).strip("-")
    return f"{name[:32].rstrip('-')}-{facts['cores']}-cores-{facts['memory_bytes'] // 1024**3}gib"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def repository() -> dict[str, Any]:
    """Commit and whether the tree was clean (results of earlier benchmarks do not count as changes)."""
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return {"commit": _git("rev-parse", "HEAD") or "unknown", "clean": changes == ""}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=_REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def file_system(folder: Path) -> str:
    """Type of the file system that holds ``folder``."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    over = [line for line in lines if folder.resolve().is_relative_to(line[1])]
    return max(over, key=lambda line: len(line[1]))[2]


def _read_ahead(folder: Path) -> int | None:
    """KiB the kernel reads ahead on this device: it decides how much a mapped file over-reads."""
    device = os.stat(folder).st_dev
    base = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    # a partition has no queue of its own
    files = (place / "queue" / "read_ahead_kb" for place in (base, base.parent))
    return next((int(file.read_text()) for file in files if file.exists()), None)
