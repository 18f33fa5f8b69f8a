"""The contestants, as data. Their models are built in `worker`, each in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """One way to run the model.

    Attributes:
        kind: "coterie", "mapped" or "accelerated".
        options: of `coterie.load`, for that kind.
        limited: runs inside the memory group.
        overlap: compute resident experts while others are read (Coterie's own way); False to see what it is worth.
        rehearse: run the whole text once before it is timed (only to measure without any loading).
        repeats: at most so many, for arms too slow to repeat.
    """

    name: str
    kind: str
    title: str
    options: dict[str, str] = field(default_factory=dict)
    overlap: bool = True
    limited: bool = True
    rehearse: bool = False
    repeats: int | None = None


# what `coterie.load` does when nothing is asked: the arm that is judged
JUDGED = "coterie"
PEER = "mmap"
RESIDENT = "resident"

ARMS = {
    arm.name: arm
    for arm in (
        Arm(RESIDENT, "coterie", "Coterie, everything resident", limited=False, rehearse=True),
        Arm(PEER, "mapped", "transformers on mapped safetensors"),
        Arm(JUDGED, "coterie", "Coterie, stale-first (default)"),
        Arm("lru", "coterie", "Coterie, LRU", {"policy": "lru"}),
        Arm("lfu", "coterie", "Coterie, LFU", {"policy": "lfu"}),
        Arm("previous-step", "coterie", "Coterie, prefetch previous-step", {"prefetch": "previous-step"}),
        Arm("next-gate", "coterie", "Coterie, prefetch next-gate", {"prefetch": "next-gate"}),
        Arm("synchronous", "coterie", "Coterie, readers block", overlap=False),
        Arm("accelerate", "accelerated", "accelerate disk offload", repeats=1),
    )
}
