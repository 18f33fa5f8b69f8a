"""What moves a router besides its gradient: after each step, from the load of that step."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from coterie.training.step_loss import StepLoss


class Steering(TrainerCallback):
    """Changes routers between steps. `coterie.training.fit` gives it the lesson, which has routers and loads."""

    lesson: StepLoss

    def join(self, lesson: StepLoss) -> None:
        """Told once, before training."""
        self.lesson = lesson

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steer(state.global_step, state.max_steps)

    @abstractmethod
    def steer(self, step: int, total: int) -> None:
        """Called after the weights moved; ``step`` counts from 1."""
