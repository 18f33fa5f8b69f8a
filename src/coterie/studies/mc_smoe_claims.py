"""The claims of MC-SMoE and of this project about it, as numbers of arms and what they must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from coterie.studies.claims import Arms, Claim, Numbers, each
from coterie.studies.mc_smoe_arms import (
    C_GROUPS,
    C_PRUNED,
    C_RANDOM,
    C_REAP,
    C_UNALIGNED,
    COVERAGE,
    FREQUENCY,
    FULL,
    KEEP,
    MERGED_SMALL,
    PRUNED,
    RANDOM,
    RANKS,
    SMALL,
    SMALL_ALIKE,
    SMALL_KEEP,
    UNALIGNED,
)
from coterie.studies.mc_smoe_models import INNER, WIDTH


def _pair(first: str, second: str, metric: str) -> Callable[[Arms], Numbers]:
    def numbers(arms: Arms) -> Numbers:
        one, other = float(arms[first][metric]), float(arms[second][metric])
        return {first: one, second: other, "difference": one - other}

    return numbers


def _against_others(arms: Arms) -> Numbers:
    others = {name: float(arms[name]["one-shot"]) for name in (UNALIGNED, RANDOM, PRUNED)}
    return {FREQUENCY: float(arms[FREQUENCY]["one-shot"]), **others, "best other": min(others.values())}


def _sizes(arms: Arms) -> Numbers:
    """Parameters found over those that the formulas give, less one."""
    expert = 3 * WIDTH * INNER
    off = {
        name: float(arms[name]["parameters"]) / (sum(arms[name]["experts"]) * expert) - 1
        for name in (COVERAGE, FREQUENCY, PRUNED)
    }
    factors = [arms[name] for name in (MERGED_SMALL, SMALL, SMALL_ALIKE)]
    off["factors"] = max(abs(one["parameters"] / one["by formula"] - 1) for one in factors)
    shares = {MERGED_SMALL: KEEP, SMALL: KEEP, SMALL_ALIKE: SMALL_KEEP}
    off["units"] = max(abs(arms[name]["units kept"] - share * arms[name]["units"]) for name, share in shares.items())
    return off


def _by_ranks(arms: Arms) -> Numbers:
    losses = arms[COVERAGE]["by rank"]
    rise = max(later - earlier for earlier, later in pairwise(losses))
    exact = abs(losses[-1] - arms[COVERAGE]["one-shot"])
    return {**{f"rank {rank}": loss for rank, loss in zip(RANKS, losses, strict=True)}, "rise": rise, "off": exact}


def _stable(arms: Arms) -> Numbers:
    before, after = (arms[COVERAGE][f"stable rank {when}"] for when in ("before", "after"))
    return {"before": sum(before) / len(before), "after": sum(after) / len(after)}


def _pruning(arms: Arms) -> Numbers:
    merged, pruned = float(arms[C_GROUPS]["after"]), min(float(arms[name]["after"]) for name in (C_PRUNED, C_REAP))
    return {"merged": merged, "better pruned": pruned, "difference": merged - pruned}


def _equal(arms: Arms) -> Numbers:
    found = dict(_pair(MERGED_SMALL, SMALL_ALIKE, "after")(arms))
    return {**found, "sizes": arms[MERGED_SMALL]["parameters"] / arms[SMALL_ALIKE]["parameters"]}


def _from(arm: str, *metrics: str) -> Callable[[Arms], Numbers]:
    return lambda arms: {name: float(arms[arm][name]) for name in metrics}


def _less(numbers: Mapping[str, float]) -> bool:
    return numbers["difference"] < 0


_ALL = "in 3 of 3 seeds"
CLAIMS = (
    Claim("a", f"The full model is better than M-SMoE with dominants by coverage, one-shot, {_ALL}.",
          _pair(FULL, COVERAGE, "one-shot"), each(_less)),
    Claim("b", f"Dominants by coverage are better than by frequency, one-shot, {_ALL} (not the paper's: this "
          "project's rule).", _pair(COVERAGE, FREQUENCY, "one-shot"), each(_less)),
    Claim("c", "M-SMoE by frequency is better than each of no alignment, random groups and pruning, one-shot, "
          f"{_ALL}.", _against_others, each(lambda n: n[FREQUENCY] < n["best other"])),
    Claim("d", "Parameters are what the formulas give, to the last one, and units of S that stay are the share asked "
          f"for, to one, {_ALL}.", _sizes,
          each(lambda n: n["units"] <= 1 and all(abs(v) < 1e-9 for name, v in n.items() if name != "units"))),
    Claim("e", "Cut to a rank without the rest, the merged model loses no less at a smaller rank (to 0.002 nats), and "
          f"nothing (1e-4) at full rank, {_ALL}.", _by_ranks, each(lambda n: n["rise"] <= 0.002 and n["off"] <= 1e-4)),
    Claim("f", "For the paper's own shapes (switch-base-32) sizes come out within 0.2 % of its 733, 381 and 570 "
          "million and round to its 2.0 billion; memory saved is about 80 % (78 to 82), operations are "
          "about 20 % (18 to 22) fewer.",
          _from(FULL, "full, millions", "memory saved", "operations saved", "largest difference"),
          each(lambda n: 0.78 <= n["memory saved"] <= 0.82 and 0.18 <= n["operations saved"] <= 0.22
               and n["largest difference"] <= 0.002 and round(n["full, millions"], -2) == 2000)),
    Claim("g", f"The nearest expert by router logits is of the same family for at least 95 % of experts, {_ALL}.",
          _from(FULL, "nearest is family"), each(lambda n: n["nearest is family"] >= 0.95), gated=False),
    Claim("h", f"Alignment is worth something after recovery too: M-SMoE by frequency is better than unaligned, {_ALL} "
          "(the paper's table 6).", _pair(FREQUENCY, UNALIGNED, "after"), each(_less), gated=False),
    Claim("i", f"M-SMoE by frequency is better than pruning after recovery, {_ALL} (the paper's table 2).",
          _pair(FREQUENCY, PRUNED, "after"), each(_less), gated=False),
    Claim("j", "Control, nothing planted: groups by router logits are better than random ones, one-shot, "
          f"{_ALL}.", _pair(C_GROUPS, C_RANDOM, "one-shot"), each(_less), gated=False),
    Claim("k", f"Control: the same after recovery, {_ALL}.", _pair(C_GROUPS, C_RANDOM, "after"), each(_less),
          gated=False),
    Claim("l", f"Control: alignment helps one-shot, {_ALL}.", _pair(C_GROUPS, C_UNALIGNED, "one-shot"), each(_less),
          gated=False),
    Claim("m", f"Control: merging is better than the better of two ways to prune after recovery, {_ALL}.", _pruning,
          each(_less), gated=False),
    Claim("n", "Merge, then compress is better than compress alone at equal rank and equal steps, with distillation, "
          f"{_ALL} (the paper's table 7; compress alone has four times the numbers here).",
          _pair(MERGED_SMALL, SMALL, "after"), each(_less), gated=False),
    Claim("o", "Merge, then compress is better than compress alone at equal parameters (to 2 %) and equal steps, with "
          f"distillation, {_ALL}.", _equal, each(lambda n: _less(n) and abs(n["sizes"] - 1) <= 0.02), gated=False),
    Claim("p", f"Merging lowers the mean stable rank of the gate matrices, {_ALL} (the paper's figure 4).", _stable,
          each(lambda n: n["after"] < n["before"]), gated=False),
)  # fmt: skip
