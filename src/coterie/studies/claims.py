"""Claims and verdicts: what a study says before it has measured, and what became of it.

A claim takes some numbers from the runs of each seed, and a test over all seeds. The thresholds stand in its text, so
that they are printed beside the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["holds", "does not hold", "not shown"]
Metrics = Mapping[str, Any]  # what one run measured: numbers, and lists and mappings of them, as JSON has them
Arms = Mapping[str, Metrics]  # the runs of one seed, by the name of the arm
Numbers = Mapping[str, float]
Test = Callable[[Sequence[Numbers]], bool]  # the numbers of every seed -> whether it is so


@dataclass(frozen=True)
class Claim:
    """One sentence that may turn out false.

    Attributes:
        key: what the claim is called in tables: "a".
        text: the sentence with its thresholds and how many seeds must agree.
        numbers: from the runs of one seed to the numbers that decide. A missing run or metric may be a KeyError.
        test: over the numbers of all seeds; see `each`, `at_least`, `on_average`, `together`.
        gated: whether the study stands or falls with it; otherwise it is reported.
        failure: what it is called when the test fails: "not shown" where too small an effect proves nothing.
        seeds: how many seeds it asks for; with fewer it is not shown.
    """

    key: str
    text: str
    numbers: Callable[[Arms], Numbers]
    test: Test
    gated: bool = True
    failure: Verdict = "does not hold"
    seeds: int = 3


@dataclass(frozen=True)
class Finding:
    """A claim judged.

    Attributes:
        claim: which.
        verdict: what became of it.
        why: the reason where it was not judged by its test, otherwise "".
        numbers: seed -> what decided; not a number where a run is missing.
    """

    claim: Claim
    verdict: Verdict
    why: str
    numbers: Mapping[int, Numbers]


def judge(claim: Claim, by_seed: Mapping[int, Arms], *, shortened: bool = False) -> Finding:
    """Whether ``claim`` holds for the runs of each seed.

    Args:
        claim: the claim.
        by_seed: seed -> arm -> metrics; a run that failed is left out.
        shortened: the runs were cut short, so nothing can be shown.
    """
    numbers = {seed: _numbers(claim, arms) for seed, arms in by_seed.items()}
    why = _hindrance(claim, numbers, shortened)
    if why:
        return Finding(claim, "not shown", why, numbers)
    return Finding(claim, "holds" if claim.test(list(numbers.values())) else claim.failure, "", numbers)


def each(test: Callable[[Numbers], bool]) -> Test:
    """Every seed passes."""
    return lambda seeds: all(test(numbers) for numbers in seeds)


def at_least(count: int, test: Callable[[Numbers], bool]) -> Test:
    """``count`` seeds pass, or more."""
    return lambda seeds: sum(test(numbers) for numbers in seeds) >= count


def on_average(test: Callable[[Numbers], bool]) -> Test:
    """The means over the seeds pass."""
    return lambda seeds: test({name: sum(one[name] for one in seeds) / len(seeds) for name in seeds[0]})


def together(*tests: Test) -> Test:
    """Every one of several tests passes."""
    return lambda seeds: all(test(seeds) for test in tests)


def _numbers(claim: Claim, arms: Arms) -> Numbers:
    try:
        return {name: float(value) for name, value in claim.numbers(_revived(arms)).items()}
    except KeyError as missing:
        return {f"{missing.args[0]}": math.nan}


def _revived(value: Any) -> Any:
    """JSON's null, which stood for no number, as no number."""
    if isinstance(value, Mapping):
        return {key: _revived(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_revived(inner) for inner in value]
    return math.nan if value is None else value


def _hindrance(claim: Claim, numbers: Mapping[int, Numbers], shortened: bool) -> str:
    if shortened:
        return "a shortened run shows nothing"
    if len(numbers) < claim.seeds:
        return f"{len(numbers)} of {claim.seeds} seeds were run"
    broken = {name for of_seed in numbers.values() for name, value in of_seed.items() if not math.isfinite(value)}
    return f"there is no {', no '.join(sorted(broken))}" if broken else ""
