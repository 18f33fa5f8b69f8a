"""Which tensors on disk are a layer's gate, and which of them have a row for every expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import DiskNames, skeleton
from coterie.models.facts import RouterFacts, router_facts
from coterie.models.find import MoESite, find_sites

__all__ = ["RouterTensor", "gate_facts", "router_tensors"]


@dataclass(frozen=True)
class RouterTensor:
    """One tensor of a gate.

    Attributes:
        disk: its name there.
        role: "weight", "bias" (added to the logits), "correction" (for the choice alone), "scale" (of the weights), or
            its own name in the gate.
        shape: [R, ...], as it is given to edits.
        stored: its shape on disk, which may have a dimension of one before.
        rows: it has a row for every expert, and nothing else.
        memory: its name in the model.
    """

    disk: str
    role: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]
    rows: bool = True
    memory: str = ""


_Found = tuple[RouterFacts, dict[str, tuple[RouterTensor, ...]]]
_MADE: WeakKeyDictionary[Checkpoint, _Found] = WeakKeyDictionary()


def router_tensors(checkpoint: Checkpoint) -> Mapping[str, tuple[RouterTensor, ...]]:
    """Module path of the experts -> the tensors of their gate; found once per checkpoint."""
    return _made(checkpoint)[1]


def gate_facts(checkpoint: Checkpoint) -> RouterFacts:
    """How the gate of the first layer with experts decides; found once per checkpoint."""
    return _made(checkpoint)[0]


def _made(checkpoint: Checkpoint) -> _Found:
    if checkpoint not in _MADE:
        _MADE[checkpoint] = _find(checkpoint)
    return _MADE[checkpoint]


def _find(checkpoint: Checkpoint) -> _Found:
    model = skeleton(checkpoint.config, checkpoint.compute_dtype)
    names, state = DiskNames(model), model.state_dict()
    sites = find_sites(model)
    facts = router_facts(model, sites[0])
    # tensors of a gate by their names in memory
    on_disk: dict[str, str] = {}
    for name in [*checkpoint.dense_readers()]:
        place = names.place(name)
        on_disk |= dict.fromkeys((each for each in place.fills if each in state), name)
    found = {
        site.name: tuple(
            _tensor(on_disk[name], name, tuple(state[name].shape), site, facts, model)
            for name in state
            if name in on_disk and _of_gate(name, tuple(state[name].shape), site)
        )
        for site in sites
    }
    return facts, found


def _of_gate(name: str, shape: tuple[int, ...], site: MoESite) -> bool:
    """Whether a tensor belongs to the gate: inside its module, or beside it in the block with a number per expert."""
    if name.startswith(f"{site.name}."):
        return False
    if site.gate_name == site.block_name or not name.startswith(f"{site.gate_name}."):
        beside = name.startswith(f"{site.block_name}.") and site.num_true in shape
        own = name.removeprefix(f"{site.block_name}.")
        return beside and ("." not in own or "statics" in own)
    return True


def _tensor(
    disk: str, name: str, stored: tuple[int, ...], site: MoESite, facts: RouterFacts, model: Any
) -> RouterTensor:  # fmt: skip
    own = name.removeprefix(f"{site.block_name}.")
    shape = tuple(size for size in stored if size != 1) or stored
    rows = bool(shape) and shape[0] == site.num_true
    roles = {facts.correction: "correction", facts.logit_bias: "bias", facts.expert_scale: "scale"}
    role = roles.get(own, "") if own else ""
    if not role:
        usual = "correction" if "correction" in own else "bias" if own.endswith("bias") else own
        role = "weight" if rows and len(shape) == 2 else usual
    return RouterTensor(disk, role, shape, stored, rows, name)
