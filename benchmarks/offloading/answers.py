"""Whether the arms computed the same thing. A wrong answer has no speed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offloading.arms import ARMS

# worst relative error (L2, over the steps) that bf16 rounding in another order may cause; one wrong expert
# of one token in one layer exceeds it in the small model
TOLERANCE = 0.02


def digest(path: Path) -> str:
    """Of the logits of all steps, bit for bit."""
    return hashlib.sha256(np.load(path).tobytes()).hexdigest()


def error(path: Path, reference: Path) -> float:
    """The worst step's |a - b| / |b|; infinite if anything is not finite."""
    a, b = np.load(path).astype(np.float64), np.load(reference).astype(np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def complaints(records: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with the answers of finished runs; empty if nothing is."""
    found = []
    done = [r for r in records if r["status"] == "ok"]
    for routes in sorted({r["routes"] for r in done}):
        ours = {r["digest"] for r in done if r["routes"] == routes and ARMS[r["arm"]].kind == "coterie"}
        if len(ours) > 1:
            found.append(f"on {routes} routes the Coterie arms gave {len(ours)} different answers, bit for bit")
    for r in done:
        if not r["error"] <= TOLERANCE:
            found.append(
                f"{r['arm']} on {r['routes']} routes, repeat {r['repeat']}, differs from the reference "
                f"by {r['error']:.2%} where rounding explains {TOLERANCE:.0%}"
            )
    return found
