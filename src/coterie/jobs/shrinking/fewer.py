"""What merging and pruning begin and end with: what is known of the model, the new checkpoint, what it cost."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coterie.jobs.finishing.surgery_report import SurgeryReport, surgery_report
from coterie.jobs.finishing.surgery_result import SurgeryResult
from coterie.jobs.sheet import Sheet
from coterie.jobs.shrinking.calibrated import Calibrated, calibrated
from coterie.jobs.shrinking.shrink_sheet import errors_sheet, redundancy_sheet
from coterie.models.checkpoint import Checkpoint
from coterie.models.statistics import SiteStatistics
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.method import Method
from coterie.surgery.redundancy import LayerRedundancy, layer_redundancy
from coterie.surgery.rewrite import Container, rewrite

__all__ = ["Course", "Fewer", "Say", "Show", "Texts"]

Say = Callable[[str], None]
Show = Callable[[Sheet], None]
Texts = Sequence[str | Path] | Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Fewer(SurgeryResult, ABC):
    """A checkpoint with fewer experts, and what was known of them.

    Attributes:
        report: the new checkpoint, sizes before and after, perplexity, what was measured in each layer.
        redundancy: of the layers that were changed, before.
        sites: statistics of those layers.
    """

    report: SurgeryReport
    redundancy: Sequence[LayerRedundancy]
    sites: Sequence[SiteStatistics] = field(repr=False)

    def _facts(self) -> Mapping[str, Any]:
        return {"redundancy": [asdict(each) for each in self.redundancy]}


@dataclass(frozen=True)
class Course:
    """One run of a verb that leaves fewer experts, from what is known to what it cost.

    Attributes:
        verb: such as "merging".
        out, container, resume: as of `coterie.surgery.rewrite`.
        texts, memory: as of `coterie.jobs.merge`.
        say, show: told what is being done; given sheets for people.
    """

    verb: str
    out: str | Path
    container: Container
    resume: bool
    texts: Texts
    memory: str | int | None
    say: Say
    show: Show

    def begin(
        self, model: str | Path | Checkpoint, experts: int, **asked: Any
    ) -> tuple[Calibrated, list[LayerRedundancy]]:
        """What is known of ``model``, and how much of it is there twice, shown. Blocks.

        Args:
            experts: that each layer is to have.
            asked: statistics, layers to skip and revision, as of `calibrated`.

        Raises:
            OptionError: not fewer experts than there are.
            CoterieError: as of `calibrated`.
        """
        found = calibrated(
            model, self.out, texts=self.texts, memory=self.memory, resume=self.resume, container=self.container,
            say=self.say, **asked,
        )  # fmt: skip
        found.refuse_target(experts, self.verb)
        redundancy = [layer_redundancy(site) for site in found.sites]
        self.show(redundancy_sheet(found.checkpoint.path.name, found.statistics.tokens, redundancy))
        return found, redundancy

    def end(self, found: Calibrated, edit: Callable[[LayerExperts], NewLayer], about: Method) -> SurgeryReport:
        """Write the checkpoint, and show what it cost. Blocks.

        Raises:
            CoterieError: as of `coterie.surgery.rewrite`.
        """
        made = rewrite(
            found.checkpoint, self.out, edit, about=about, container=self.container, resume=self.resume,
            progress=lambda what, done, of: self.say(f"{what}: {done} of {of} layers"),
        )  # fmt: skip
        if (errors := errors_sheet(made.layers, self.verb)) is not None:
            self.show(errors)
        report = surgery_report(found.checkpoint, made, about, texts=self.texts, memory=self.memory, say=self.say)
        self.show(report.sheet())
        return report
