"""A study: arms, how one of them is run, and the claims about what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coterie.errors import OptionError
from coterie.studies.claims import Claim, Metrics
from coterie.studies.corpus import Corpus, plain_text

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Arm:
    """One way of doing it, run once for each seed.

    Attributes:
        name: as tables have it.
        what: in a few words.
        steps: updates of the full run; progress is counted in them.
        options: whatever the study's ``run`` wants to know; simple values, for they are printed and travel.
        after: arms whose run of the same seed must be there first, such as the checkpoint this one starts from.
        shown: whether it has a row in the table of arms; a stage before the comparison has none.
    """

    name: str
    what: str
    steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    shown: bool = True


@dataclass
class Bench:
    """What one run is given. Lives in the process of the run.

    Attributes:
        arm, seed: which run.
        place: a directory of this run, to be kept for arms that come after it.
        text: the directory of the study's text.
        earlier: the places of the runs named in ``arm.after``.
        scale: the share of the full length that is run.
        tell: called with the number of steps done; `progress` has the form that training calls.
    """

    arm: Arm
    seed: int
    place: Path
    text: Path
    earlier: Mapping[str, Path] = field(default_factory=dict)
    scale: float = 1.0
    tell: Callable[[int], None] = lambda step: None

    @property
    def steps(self) -> int:
        """Updates of this run."""
        return self.scaled(self.arm.steps)

    def scaled(self, full: int, least: int = 2) -> int:
        """What ``full`` of anything (steps, windows of a sample) becomes in a shortened run."""
        return max(least, round(full * self.scale))

    def progress(self, step: int, steps: int, loss: float) -> None:
        """A ``progress`` for `coterie.training.fit`."""
        self.tell(step)

    @cached_property
    def corpus(self) -> Corpus:
        """The study's text, read when first asked for."""
        return Corpus.load(self.text)


@dataclass(frozen=True)
class Column:
    """A metric in the table of arms: where it is found, its head, and how a number is written."""

    metric: str
    head: str
    form: str = ".3f"


@dataclass(frozen=True)
class Study:
    """One paper's claims and how they are put to the test.

    Attributes:
        name: what ``coterie reproduce`` calls it.
        paper: title and arXiv number.
        question: what the paper claims, in a sentence.
        setting: how it is done here: model, text, lengths.
        arms: in the order in which they are run.
        claims: with their thresholds, stated before anything is run.
        columns: metrics for the table of arms, as means over the seeds.
        run: one arm with one seed -> its metrics, JSON values. A function of a module, since it is sent to a process.
        gather: from what the user gave for ``--text`` to the study's text.
        seeds: of the full study.
    """

    name: str
    paper: str
    question: str
    setting: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    columns: tuple[Column, ...]
    run: Callable[[Bench], Metrics]
    gather: Callable[[Path | None], Corpus] = plain_text
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        assert len(set(names)) == len(names), names
        for number, arm in enumerate(self.arms):
            assert set(arm.after) <= set(names[:number]), f"{arm.name} comes after what comes after it"

    def arm(self, name: str) -> Arm:
        """The arm called ``name``."""
        return next(arm for arm in self.arms if arm.name == name)


def check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """``seeds`` if they can be used.

    Raises:
        OptionError: none, one twice, or one that is no seed.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError(f"The seeds {', '.join(map(str, seeds)) or '(none)'} must be different, and at least one.")
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise OptionError(f"A seed is a whole number from 0 to 4294967295, not {wrong[0]}.")
    return seeds
