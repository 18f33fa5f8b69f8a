"""A `Plan` as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coterie.jobs.running.forecast import Forecast
from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.jobs.running.planned import Largest, Plan

_WHY = {
    "disk": "the disk, which brings the experts that are not resident",
    "memory": "memory bandwidth, which brings the active weights of every token",
    "interpreter": "the interpreter: the model is so small that Python takes longer than its weights do",
}


def described(plan: Plan) -> str:
    """Everything, for people."""
    parts = [_head(plan), _where(plan)]
    if plan.forecasts:
        parts += [_policies(plan), _bound(plan)]
    return "\n\n".join([*parts, _steps(plan), _largest(plan.largest), _how(plan)])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first to the left and the others to the right, the first row being the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _head(plan: Plan) -> str:
    model = plan.model
    return (
        f"{model.name}: {model.family}, {model.layers} layers of {model.experts} experts, {model.top_k} per token, "
        f"{model.dtype}, {format_bytes(model.bytes)} on disk"
    )


def _where(plan: Plan) -> str:
    budget = plan.budget
    rows = [
        ("dense weights", format_bytes(budget.dense), "used by every token"),
        ("KV cache", format_bytes(budget.cache), f"{plan.context} tokens, batch {plan.batch}"),
        ("workspace", format_bytes(budget.workspace), "of the largest forward pass"),
    ]
    if budget.slots:
        shown = f"{budget.slots} of {budget.experts}, {format_bytes(budget.slot_bytes)} each"
        rows.append(("experts", format_bytes(budget.slots * budget.slot_bytes), shown))
        rows.append(("left over", format_bytes(budget.total - budget.used), ""))
    else:
        rows.append(("one expert", format_bytes(budget.slot_bytes), f"of {budget.experts}"))
    rows.append(("floor", format_bytes(budget.floor), "the smallest budget that works"))
    rows.append(("everything", format_bytes(budget.everything), "keeps every expert resident"))
    title = f"Where {format_bytes(budget.total)} go" if budget.slots else "What is needed"
    return "\n".join([title, *(f"  {name:14}  {size:>9}  {note}".rstrip() for name, size, note in rows)])


def _policies(plan: Plan) -> str:
    head = ("policy", "prompt reads", "a token reads", "hits", "tokens/s")
    rows = [
        (
            one.policy, format_bytes(one.prefill_bytes), format_bytes(one.bytes_per_token), f"{one.hit_rate:.0%}",
            _rate(one.tokens_per_second),
        )
        for one in plan.forecasts
    ]  # fmt: skip
    routes = plan.routes
    batch = f", {routes.batch} sequences" if routes.batch > 1 else ""
    text = f"What is read: a prompt of {routes.prompt} tokens, then {len(routes.decode)} more{batch}; {_source(plan)}"
    lines = [text, _indented(table([head, *rows]))]
    if routes.source == "uniform":
        lines.append(
            "  Real routes repeat more: record some with coterie trace, then plan with --trace or --statistics."
        )
    return "\n".join(lines)


def _source(plan: Plan) -> str:
    if plan.routes.source == "uniform":
        return "uniform routes"
    return f"routes {'by' if plan.routes.source.startswith('measured') else 'as'} {plan.routes.source}"


def _bound(plan: Plan) -> str:
    one = plan.forecasts[0]
    return (
        f"What binds is {_WHY[one.bound]}.\n"
        f"  Of a token with {one.policy}: {_time(one.disk_seconds)} disk, {_time(one.memory_seconds)} memory, "
        f"{_time(one.call_seconds)} interpreter; reads and computing overlap.\n"
        f"  With every expert resident it would be {_rate(plan.steps[-1].forecast.tokens_per_second)} tokens/s."
    )


def _steps(plan: Plan) -> str:
    rows = [("memory", "experts resident", "a token reads", "hits", "tokens/s", "")]
    for step in plan.steps:
        one = step.forecast
        mark = "<- this budget" if plan.budget.slots and one.slots == plan.budget.slots else ""
        if step.memory > plan.machine:
            mark = "more than this machine has"
        resident = f"{one.slots} ({one.slots / plan.budget.experts:.0%})"
        rows.append((format_bytes(step.memory), resident, *_numbers(one), mark))
    return "\n".join(["What memory buys", _indented(table(rows))])


def _numbers(one: Forecast) -> tuple[str, str, str]:
    return format_bytes(one.bytes_per_token), f"{one.hit_rate:.0%}", _rate(one.tokens_per_second)


def _largest(largest: Largest) -> str:
    speed, memory = f"{largest.tokens_per_second:g} tokens/s", format_bytes(largest.memory)
    if not largest.experts:
        what = "none, however few its experts"
    else:
        why = f"{largest.share:.0%} of its experts must be resident" if largest.share else "the disk holds no more"
        what = f"{format_bytes(largest.bytes)} of weights, {largest.experts} experts per layer; {why}"
    return (
        f"The largest model of this kind at {speed}, in the {memory} that are free here\n  {what}\n"
        f"  (at that speed memory brings at most {format_bytes(largest.active_bytes)} per token)"
    )


def _how(plan: Plan) -> str:
    speeds = plan.speeds
    return (
        f"disk    {speeds.disk.describe()}\nmemory  {speeds.memory.describe()}\n"
        "Bytes are the store's own decisions, replayed; speeds are an estimate from these two figures."
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:#.2g}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
