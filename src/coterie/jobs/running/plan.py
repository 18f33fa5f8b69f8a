"""What would happen: where a budget goes, what is read per token, how fast that is. No weight is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from coterie.errors import BudgetError, OptionError
from coterie.experts import wants_kernel
from coterie.jobs.locate import locate
from coterie.jobs.running.budget import Budget, default_memory, planned_budget, split_budget
from coterie.jobs.running.forecast import Forecaster, smallest_share
from coterie.jobs.running.load import PREFILL, blobs_of, context_of
from coterie.jobs.running.planned import Largest, Model, Plan, Step
from coterie.jobs.running.routes import Routes, measured_routes, recorded_routes, uniform_routes
from coterie.jobs.running.warm import checked_statistics, rates
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.footprint import footprint
from coterie.models.statistics import Statistics
from coterie.routing import RoutePlan
from coterie.store import POLICIES
from coterie.store.machine import machine_memory
from coterie.store.measure import Speeds, measure_speeds

PROMPT = 128
TOKENS_PER_SECOND = 5.0
POLICY = "stale-first"
# of all experts: the budgets whose speed is shown, besides the one asked for and the floor
_SHARES = (0.25, 0.5, 0.75, 1.0)

Say = Callable[[str], None]


def plan(
    model: str | Path | Checkpoint,
    memory: str | int | None = None,
    *,
    context: int | None = None,
    batch: int = 1,
    prompt: int = PROMPT,
    trace: str | Path | RoutePlan | None = None,
    statistics: str | Path | Statistics | None = None,
    tokens_per_second: float = TOKENS_PER_SECOND,
    speeds: Speeds | None = None,
    revision: str | None = None,
    say: Say = lambda text: None,
) -> Plan:
    """Say what `load` and `generate` would do with ``memory``, without loading. Exact about bytes, rough about time.

    Reads headers, measures the machine for about a second and a half, and simulates a request with the store's
    own decisions. Blocks for seconds.

    Args:
        model, memory, context, batch, revision: as `load`.
        prompt: tokens of the request's prompt.
        trace: a recorded `RoutePlan` or its file; None draws routes without any locality.
        statistics: in place of it, of this model or their file: experts are drawn as often as they were used.
        tokens_per_second: that the largest model is asked for.
        speeds: of another machine; None measures this one.
        say: told what is being done.

    Raises:
        CheckpointError, UnsupportedError: the checkpoint cannot be served, and why; or the statistics are of another.
        BudgetError: ``memory`` is no size. Below the floor or above the machine is no error but `Plan.problem`.
        OptionError: a number out of range, a trace of another model, or a trace and statistics together.
        RoutingError: the trace cannot be read.
    """
    if batch < 1 or prompt < 1 or not tokens_per_second > 0:
        raise OptionError("batch, prompt and tokens_per_second must be more than 0.")
    if trace is not None and statistics is not None:
        raise OptionError("A trace has its own routes, statistics make some up: give one of the two.")
    say("Reading headers")
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    context = context_of(checkpoint, context)
    blobs = blobs_of(checkpoint)
    slot_bytes = max(blob.slot_bytes for blob in blobs.values())
    needs = footprint(checkpoint, batch, context, chunk=piece_of(checkpoint, context), all_logits=False)
    budget = planned_budget(checkpoint, needs, memory, slot_bytes)
    problem, exit_code = "", 0
    try:
        split_budget(checkpoint, needs, memory, slot_bytes)
    except BudgetError as error:
        problem, exit_code = str(error), error.exit_code
    request = {"prompt": min(prompt, context), "batch": batch, "chunk": piece_of(checkpoint, context)}
    routes = _routes(checkpoint, trace, statistics, request)
    say("Measuring disk and memory")
    speeds = speeds or measure_speeds(
        list(blobs.values()), checkpoint.compute_dtype, compiled=wants_kernel("auto", checkpoint.bytes_per_token)
    )
    say("Simulating")
    forecaster = Forecaster(checkpoint, blobs, routes, speeds, budget.cache)
    return Plan(
        model=_facts(checkpoint, str(model.path if isinstance(model, Checkpoint) else model)),
        budget=budget, problem=problem, exit_code=exit_code, context=context, batch=batch, routes=routes,
        speeds=speeds, machine=machine_memory(),
        forecasts=tuple(forecaster.forecast(policy, budget.slots) for policy in _policies()) if budget.slots else (),
        steps=_steps(forecaster, budget), largest=_largest(forecaster, checkpoint, budget, tokens_per_second, speeds),
    )  # fmt: skip


def _policies() -> list[str]:
    """The default first."""
    return sorted(POLICIES, key=lambda name: name != POLICY)


def piece_of(checkpoint: Checkpoint, context: int) -> int:
    """Tokens of a prompt that `load` makes room for at once."""
    return PREFILL if checkpoint.reads_in_pieces else context


def _routes(
    checkpoint: Checkpoint, trace: str | Path | RoutePlan | None, statistics: str | Path | Statistics | None,
    request: dict[str, int],
) -> Routes:  # fmt: skip
    if statistics is not None:
        found = checked_statistics(statistics, checkpoint)
        return measured_routes(checkpoint, rates(checkpoint, found), found.tokens, **request)
    if trace is None:
        return uniform_routes(checkpoint, **request)
    recorded = trace if isinstance(trace, RoutePlan) else RoutePlan.load(trace)
    return recorded_routes(checkpoint, recorded, **request)


def _facts(checkpoint: Checkpoint, name: str) -> Model:
    return Model(
        name=name, family=checkpoint.config.model_type, layers=len(checkpoint.sites),
        experts=max(site.num_experts for site in checkpoint.sites), top_k=max(site.top_k for site in checkpoint.sites),
        dtype=_dtype(checkpoint), bytes=_disk_bytes(checkpoint),
    )  # fmt: skip


def _dtype(checkpoint: Checkpoint) -> str:
    name = str(checkpoint.dtype).removeprefix("torch.")
    if checkpoint.quantization is None:
        return name
    return f"{name} from {checkpoint.quantization.get('quant_method', 'a quantised format')}"


def _disk_bytes(checkpoint: Checkpoint) -> int:
    return sum(part.nbytes for part in checkpoint.ranges.values())


def _steps(forecaster: Forecaster, budget: Budget) -> tuple[Step, ...]:
    slots = {1, *(max(1, round(share * budget.experts)) for share in _SHARES)}
    if budget.slots:
        slots.add(budget.slots)
    return tuple(
        Step(budget.fixed + count * budget.slot_bytes, forecaster.forecast(POLICY, count)) for count in sorted(slots)
    )


def _largest(
    forecaster: Forecaster, checkpoint: Checkpoint, budget: Budget, wanted: float, speeds: Speeds
) -> Largest:  # fmt: skip
    memory, layers = default_memory(), len(checkpoint.sites)
    share = smallest_share(forecaster, budget, wanted, POLICY)
    slots = max(0, memory - budget.fixed) // budget.slot_bytes
    expert_bytes = checkpoint.expert_bytes / checkpoint.num_experts
    room = _disk_bytes(checkpoint) + shutil.disk_usage(checkpoint.path).free if share == 0 else 0
    per_layer = 0
    if share is not None and slots:
        experts = slots / share if share else (room - checkpoint.dense_bytes) / expert_bytes
        per_layer = int(experts / layers)
    if per_layer < max(site.top_k for site in checkpoint.sites):
        share, per_layer = None, 0
    total = checkpoint.dense_bytes + per_layer * layers * expert_bytes if per_layer else 0
    return Largest(wanted, memory, share, per_layer, int(total), int(speeds.memory.bandwidth / wanted))
