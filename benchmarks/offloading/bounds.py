"""What no policy can beat: the loads of one that knows the future."""

from __future__ import annotations

from coterie.store.simulate import belady_loads
from offloading.routes import RouteTable
from offloading.scales import Scale


def belady_bytes(routes: RouteTable, scale: Scale, prompt: int, slots: int) -> float:
    """Bytes per decode token that Belady's policy reads on these routes with so many slots, the prompt behind it."""
    trace = [[tuple(sorted(experts)) for experts in step] for step in routes.sets(prompt)]
    # in the first forward every use is a load, whatever the policy
    first = sum(len(experts) for experts in trace[0])
    return (belady_loads(trace, slots) - first) * scale.expert_bytes / (len(trace) - 1)
