"""What `coterie.jobs.plan` finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from coterie.jobs.running.budget import Budget
from coterie.jobs.running.forecast import Forecast
from coterie.jobs.running.routes import Routes
from coterie.store.measure import Speeds

__all__ = ["Largest", "Model", "Plan", "Step"]


@dataclass(frozen=True)
class Model:
    """What the checkpoint is, in numbers.

    Attributes:
        layers: with experts.
        experts, top_k: of one layer; the most of any.
        bytes: on disk, of all its tensors.
    """

    name: str
    family: str
    layers: int
    experts: int
    top_k: int
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Step:
    """What so much memory buys."""

    memory: int
    forecast: Forecast


@dataclass(frozen=True)
class Largest:
    """The largest model of this kind that this machine serves at ``tokens_per_second``.

    Of this kind: with layers, experts and choices per token like this one's, only with more or fewer experts to
    choose from.

    Attributes:
        memory: what it may take: what `run` takes when nothing is asked.
        share: of the experts that must be resident; 0 where one is enough, None where even all are too few or
            too many for the memory.
        experts: per layer; 0 where there is no such model.
        bytes: of its weights.
        active_bytes: no model that brings more than so many bytes per token from memory is that fast.
    """

    tokens_per_second: float
    memory: int
    share: float | None
    experts: int
    bytes: int
    active_bytes: int


@dataclass(frozen=True)
class Plan:
    """What `plan` found.

    Attributes:
        problem: why `run` would refuse the budget; empty where it would not.
        exit_code: what `run` would end with.
        forecasts: of each policy with the budget's slots; empty below the floor.
        steps: of the default policy, by memory.
        machine: bytes this process may have at most.
    """

    model: Model
    budget: Budget
    problem: str
    exit_code: int
    context: int
    batch: int
    routes: Routes
    speeds: Speeds
    forecasts: tuple[Forecast, ...]
    steps: tuple[Step, ...]
    largest: Largest
    machine: int

    def as_record(self) -> dict[str, Any]:
        """Everything, for machines."""
        routes = {
            "source": self.routes.source, "prompt": self.routes.prompt, "decode": len(self.routes.decode),
            "layers_simulated": len(self.routes.sites),
        }  # fmt: skip
        return {
            "model": asdict(self.model), "budget": self.budget.as_record(), "problem": self.problem,
            "exit_code": self.exit_code,
            "context": self.context, "batch": self.batch, "routes": routes, "speeds": self.speeds.as_record(),
            "forecasts": [forecast.as_record() for forecast in self.forecasts],
            "steps": [{"memory": step.memory, **step.forecast.as_record()} for step in self.steps],
            "largest": asdict(self.largest), "machine": self.machine,
        }  # fmt: skip

    def describe(self) -> str:
        """Tables for people."""
        from coterie.jobs.running.plan_text import described

        return described(self)
