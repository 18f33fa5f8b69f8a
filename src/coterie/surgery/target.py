"""How a new layer lies on disk: the names, the orientation and the type that the family's checkpoint has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.experts import FFNShape
from coterie.experts.encoding import Turned
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.compat import ffn_shape, skeleton
from coterie.models.find import find_sites
from coterie.models.layout import kind_name
from coterie.surgery.layer import NewLayer
from coterie.surgery.orientation import laid_out
from coterie.surgery.routing_tensors import router_tensors

__all__ = ["Target", "targets"]

_PACKED = "_blocks"


@dataclass(frozen=True)
class Target:
    """Where and how one site's tensors are written.

    Attributes:
        site: of the source.
        number: of the site among the sites.
        shape: of one expert on disk.
        names: weight -> name of its stack, or of each expert's tensor.
        spare, flat: rows of a stack beyond the experts; stacks folded into one matrix, by weight.
        turned: weights with rows and columns exchanged.
    """

    site: ExpertSite
    number: int
    shape: FFNShape
    names: Mapping[str, str | tuple[str, ...]]
    spare: Mapping[str, int]
    flat: frozenset[str]
    turned: frozenset[str]

    def replaced(self) -> set[str]:
        """Names on disk of the source that are not copied."""
        gone: set[str] = {
            kind_name(self.number, expert, part) for expert, parts in enumerate(self.site.each) for part in parts
        }
        for part, names in self.site.names.items():
            if part != "post_norm":
                gone |= {names} if isinstance(names, str) else set(names)
        return gone

    def tensors(self, new: NewLayer) -> Iterator[tuple[str, Tensor]]:
        """Name on disk -> tensor of every expert; one stack in memory at a time."""
        if new.kind is not None:
            for expert, parts in enumerate(new.parts):
                yield from ((kind_name(self.number, expert, name), tensor) for name, tensor in parts.items())
            return
        weights = {name: tensor.to(self.site.dtype) for name, tensor in new.weights.items()}
        for name, stack in laid_out(weights, self.shape).items():
            stack = stack.transpose(-1, -2).contiguous() if name in self.turned else stack
            names = self.names[name]
            if not isinstance(names, str):
                yield from ((numbered(names, expert), stack[expert]) for expert in range(len(stack)))
                continue
            if spare := self.spare.get(name, 0):
                stack = torch.cat([stack, stack.new_zeros(spare, *stack.shape[1:])])
            yield names, stack.flatten(0, 1) if name in self.flat else stack


def targets(checkpoint: Checkpoint) -> list[Target]:
    """One for every site, in order."""
    live = {site.name: site for site in find_sites(skeleton(checkpoint.config, checkpoint.compute_dtype))}
    return [
        _target(checkpoint, site, number, _in_memory(live[site.name].experts))
        for number, site in enumerate(checkpoint.sites)
    ]


def _in_memory(experts: Any) -> FFNShape:
    """The layout of a family's experts module; where it has none left, the usual one of today's families."""
    kind = getattr(experts, "kind", None)
    if kind is None:
        return ffn_shape(experts)
    transposed, beside = bool(experts.is_transposed), bool(experts.is_concatenated)
    return replace(kind.shape, fused=True, transposed=transposed, interleaved=kind.shape.gated and not beside)


def _target(checkpoint: Checkpoint, site: ExpertSite, number: int, in_memory: FFNShape) -> Target:
    packed = any(part.endswith(_PACKED) for part in site.names)
    names: dict[str, str | tuple[str, ...]] = {}
    if site.kind is not None:  # stacks as in memory, which every family reads
        names = {part: f"{site.name}.{part}" for part in in_memory.weight_shapes() if part != "post_norm"}
        return Target(site, number, in_memory, names, {}, frozenset(), frozenset())
    for part, found in site.names.items():
        if packed and part.endswith(_PACKED):
            names[part.removesuffix(_PACKED)] = _without(found)
        elif part in in_memory.weight_shapes() or part in site.shape.weight_shapes():
            names[part] = found
    spare, flat = {}, set()
    for part, found in names.items():
        if isinstance(found, str) and found in checkpoint.ranges:
            rows, depth = checkpoint.ranges[found].shape[0], len(checkpoint.ranges[found].shape)
            if depth < len(getattr(site.stored[part], "shape", ())):
                flat.add(part)
            elif rows > site.num_experts:
                spare[part] = rows - site.num_experts
    turned = frozenset(name for name, how in site.storage.encodings.items() if isinstance(how, Turned))
    return Target(site, number, in_memory if packed else site.shape, names, spare, frozenset(flat), turned)


def _without(found: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(found, str):
        return found.removesuffix(_PACKED)
    return tuple(name.removesuffix(_PACKED) for name in found)


def numbered(names: Sequence[str], expert: int) -> str:
    """The name of one expert's tensor; of those beyond the source's, by the place where its names count."""
    if expert < len(names):
        return names[expert]
    tokens = re.split(r"(\d+)", names[0])
    last = re.split(r"(\d+)", names[-1])
    places = [place for place, (a, b) in enumerate(zip(tokens, last, strict=True)) if a != b]
    if not places:  # one expert alone: its number is the first after the word
        places = [place for place in range(1, len(tokens), 2) if "expert" in tokens[place - 1]]
    tokens[places[0]] = str(expert)
    return "".join(tokens)


def router_names(checkpoint: Checkpoint, site: ExpertSite) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Role -> name on disk and shape there, of gate tensors with a row per expert."""
    return {each.role: (each.disk, each.stored) for each in router_tensors(checkpoint)[site.name] if each.rows}
