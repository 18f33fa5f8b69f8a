"""What moves a router besides its gradient: after each step, from the load of that step."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from coterie.errors import OptionError
from coterie.ops.correction import corrected
from coterie.routers.controller import Controller
from coterie.routers.score import WithNulls
from coterie.training.settings import set_threshold, thresholds

if TYPE_CHECKING:
    from coterie.training.step_loss import StepLoss


_MOST = 0.9999  # of a share that is moved on the logit scale
_FAR = 20.0  # logits by which nulls are moved at most


class Steering(TrainerCallback):
    """Changes routers between steps. `coterie.training.fit` gives it the lesson, which has routers and loads.

    What is not in the model's own state goes through `state` and `restore` into checkpoints, so that a resumed run
    ends with the same bits.
    """

    lesson: StepLoss

    def join(self, lesson: StepLoss) -> None:
        """Told once, before training.

        Raises:
            OptionError: the routers have nothing to steer.
        """
        self.lesson = lesson

    @abstractmethod
    def steer(self, step: int, total: int) -> None:
        """Called after the weights moved; ``step`` counts from 1."""

    def state(self) -> dict[str, Any]:
        """Plain numbers to keep in a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steer(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if kept := self.state():
            self._file(args, state).write_text(json.dumps(kept), encoding="utf-8")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and (file := self._file(args, state)).is_file():
            self.restore(json.loads(file.read_text(encoding="utf-8")))

    def _file(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / f"{type(self).__name__}.json"


class BalanceBias(Steering):
    """Loss-free balancing (arXiv 2408.15664): routes under the mean load become ``rate`` more attractive. Final."""

    def __init__(self, rate: float = 1e-3) -> None:
        if not 0 < rate < math.inf:
            raise OptionError(f"balance_bias={rate} is no rate. Write a number above 0, such as 0.001.")
        self.rate = rate

    def join(self, lesson: StepLoss) -> None:
        super().join(lesson)
        if not any(True for _ in self._parts()):
            raise OptionError(
                "balance_bias moves a correction of the selection, and no router of the model has one. Use the router "
                "sigmoid_bias or group_limited, or the loss 'balance'."
            )

    def steer(self, step: int, total: int) -> None:
        for site, part in self._parts():
            if (load := self.lesson.watch.step_routes.get(site)) is not None:
                part.correction.copy_(corrected(part.correction, load, self.rate))

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """(site, the part of its selection that has a correction)."""
        for site, router in self.lesson.routers.items():
            for part in router.modules():
                if getattr(part, "correction", None) is not None:
                    yield site, part


class MeanExperts(Steering):
    """Holds the mean number of experts per token, over all layers, at ``target`` while the model learns. Final.

    A PI controller (`coterie.routers.Controller`) moves the threshold (p, or min-p's ratio) or the logits of nulls.

    Args:
        target: experts per token.
    """

    def __init__(self, target: float) -> None:
        if not 0 < target < math.inf:
            raise OptionError(f"mean_experts={target} cannot be held. Write a number above 0.")
        self.target = target

    def join(self, lesson: StepLoss) -> None:
        super().join(lesson)
        moved, self._nulls = thresholds(lesson.model), list(_of_kind(lesson, WithNulls))
        if not moved and not self._nulls:
            raise OptionError(
                "mean_experts needs a router whose number of experts can be moved, and the model has none. Use top_p, "
                "min_p or adamoe."
            )
        most = max(router.num_experts for router in lesson.routers.values())
        if self.target > most:
            raise OptionError(f"mean_experts={self.target} is more than the {most} experts there are. Ask for less.")
        if moved:
            self.controller = Controller(self.target, min(moved[0].value, _MOST), high=_MOST, rising=moved[0].rising)
        else:
            self.controller = Controller(self.target, 0.0, low=-_FAR, high=_FAR, share=False, rising=False)

    def steer(self, step: int, total: int) -> None:
        measured = self.lesson.watch.step_mean()
        if measured is None:
            return
        before, self.controller = self.controller, self.controller.update(measured)
        if self.controller.share:
            set_threshold(self.lesson.model, self.controller.value)
        for part in self._nulls if not self.controller.share else ():
            part.offset.add_(self.controller.value - before.value)

    def state(self) -> dict[str, Any]:
        return {"value": self.controller.value, "error": self.controller.error}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.controller = replace(self.controller, value=state["value"], error=state["error"])
        if self.controller.share:  # offsets are in the model's own state
            set_threshold(self.lesson.model, self.controller.value)


class NullOffset(Steering):
    """Lets pinned nulls come back: their offset is multiplied by ``factor`` after every step. Final.

    For the exact start of a top-k model with nulls (`coterie.routers.add_nulls`, ``start="pinned"``).
    """

    def __init__(self, factor: float = 0.99) -> None:
        if not 0 <= factor < 1:
            raise OptionError(f"null_offset={factor} does not let an offset fade. Write a factor from 0 up to 1.")
        self.factor = factor

    def join(self, lesson: StepLoss) -> None:
        super().join(lesson)
        self._nulls = list(_of_kind(lesson, WithNulls))
        if not self._nulls:
            raise OptionError("null_offset moves null routes, and no router of the model has any. Use adamoe.")

    def steer(self, step: int, total: int) -> None:
        for part in self._nulls:
            part.offset.mul_(self.factor)


def _of_kind(lesson: StepLoss, kind: type) -> Iterator[Any]:
    """Every part of a kind in every router of the lesson, those inside others too."""
    for router in lesson.routers.values():
        yield from (part for part in router.modules() if isinstance(part, kind))
