"""The arms of the study of MC-SMoE: which models are trained, which are made of them, and by what numbers."""

from __future__ import annotations

from typing import Any

from coterie.studies.mc_smoe_models import EXPERTS, FAMILIES, INNER, WIDTH
from coterie.studies.study import Arm

BASE_STEPS, DRIFT_STEPS, RECOVERY, CONTROL_RECOVERY, FACTOR_STEPS = 600, 80, 30, 60, 120
AVERAGE, CALIBRATION, BALANCE, RECOVERY_RATE = 4, 256, 0.01, 5e-4
RANK, KEEP = 32, 0.1
SMALL_RANK, SMALL_KEEP = RANK * AVERAGE // EXPERTS, KEEP * AVERAGE / EXPERTS  # of four times as many experts
RANKS = (8, 16, 32, 64, min(WIDTH, INNER))

BASE, FULL, SCRATCH = "4 experts", "full, 16 experts", "from scratch, 16 experts"
COVERAGE, FREQUENCY = "M-SMoE, coverage", "M-SMoE, frequency"
UNALIGNED, RANDOM, PRUNED, UNIFORM = "no alignment", "random groups", "prune", "uniform weights"
MERGED_SMALL, SMALL, SMALL_ALIKE = "merge, then compress", "compress, equal rank", "compress, equal size"
C_GROUPS, C_RANDOM, C_UNALIGNED, C_PRUNED, C_REAP = (
    "scratch: router logits", "scratch: random groups", "scratch: no alignment", "scratch: prune by frequency",
    "scratch: prune by REAP",
)  # fmt: skip


def _merging(of: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "shrunk", "of": of, "way": "merge", "dominants": "frequency", **changes}


_FACTORED = {"kind": "factored", "of": FULL, "dominants": "frequency", "way": "merge"}
ARMS = (
    Arm(BASE, "four experts of 128 in each of four layers, before cloning", BASE_STEPS,
        {"kind": "trained", "experts": FAMILIES}, shown=False),
    Arm(SCRATCH, f"sixteen experts from the start, balance {BALANCE}: nothing is planted", BASE_STEPS,
        {"kind": "trained", "experts": EXPERTS}),
    Arm(FULL, "each of the four cloned four times, then drifting", DRIFT_STEPS, {"kind": "drifted"}, (BASE,)),
    Arm(COVERAGE, "layers 1 to 3 merged to 4 on average; dominants cover the kinds of experts", RECOVERY,
        _merging(FULL, dominants="coverage", ranks=True), (FULL,)),
    Arm(FREQUENCY, "the same; dominants are the most used (the paper)", RECOVERY, _merging(FULL), (FULL,)),
    Arm(UNALIGNED, "as M-SMoE by frequency, neurons as they lie", RECOVERY, _merging(FULL, align="none"), (FULL,)),
    Arm(RANDOM, "as M-SMoE by frequency, groups by lot", RECOVERY, _merging(FULL, groups="random"), (FULL,)),
    Arm(PRUNED, "the most used stay, the others go", RECOVERY, _merging(FULL, way="prune"), (FULL,)),
    Arm(UNIFORM, "as M-SMoE by frequency, plain averages", RECOVERY, _merging(FULL, uniform=True), (FULL,)),
    Arm(MERGED_SMALL, f"M-SMoE by frequency, then rank {RANK} and {KEEP:.0%} of the rows of S", FACTOR_STEPS,
        {**_FACTORED, "merged": True, "rank": RANK, "keep": KEEP}, (FULL,)),
    Arm(SMALL, f"all 16 experts at rank {RANK} and {KEEP:.0%}: four times the numbers (the paper's table 7)",
        FACTOR_STEPS, {**_FACTORED, "merged": False, "rank": RANK, "keep": KEEP}, (FULL,)),
    Arm(SMALL_ALIKE, f"all 16 experts at rank {SMALL_RANK} and {SMALL_KEEP:.1%}: as many numbers", FACTOR_STEPS,
        {**_FACTORED, "merged": False, "rank": SMALL_RANK, "keep": SMALL_KEEP}, (FULL,)),
    Arm(C_GROUPS, "from scratch: M-SMoE by frequency", CONTROL_RECOVERY, _merging(SCRATCH), (SCRATCH,)),
    Arm(C_RANDOM, "from scratch: groups by lot", CONTROL_RECOVERY, _merging(SCRATCH, groups="random"), (SCRATCH,)),
    Arm(C_UNALIGNED, "from scratch: neurons as they lie", CONTROL_RECOVERY, _merging(SCRATCH, align="none"),
        (SCRATCH,)),
    Arm(C_PRUNED, "from scratch: the most used stay", CONTROL_RECOVERY, _merging(SCRATCH, way="prune"), (SCRATCH,)),
    Arm(C_REAP, "from scratch: those of the largest REAP stay", CONTROL_RECOVERY,
        _merging(SCRATCH, way="prune", dominants="reap"), (SCRATCH,)),
)  # fmt: skip
