"""The waist: who goes to which expert, with what weight.

Everything in Coterie exchanges one frozen value, `Routing`. Routers make it, experts read it, the
store loads by it, losses, merging and reports are functions of it. `RoutePlan` is a `Routing` per
site (a module path), `RouteContext` is what a router may know besides the items themselves.

Shape letters, for the whole package: T items, E experts, R routes (R >= E: nulls and aliases are
routes too), K choices, S assignments, D width, F inner width, L layers, B batch, N sequence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RoutingError


@dataclass(frozen=True, eq=False)
class Routing:
    """T items over E experts as S assignments, ragged: an item may have none, or all.

    Attributes:
        item: [S] int64, ascending.
        expert: [S] int64, ascending within an item, each expert at most once.
        weight: [S] float32 or wider; gradient flows through it.
        chosen: [T, K] int64 route ids in rank order, R where empty; nulls and aliases included.
        logits: [T, R]; probs: [T, R] float32.
        losses: terms the router alone can know; balance, entropy and z are functions in `ops`.
        carry: what the next layer's router may read.
        extra: a sequence-level decision's uncertainty and trace.

    Construction checks shapes and dtypes only; `check` reads the data.
    """

    item: Tensor
    expert: Tensor
    weight: Tensor
    num_items: int
    num_experts: int
    chosen: Tensor | None = None
    logits: Tensor | None = None
    probs: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    carry: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.item, self.expert, self.weight)}
        if len(shapes) != 1 or self.item.dim() != 1:
            raise RoutingError(f"item, expert and weight must be [S] alike, found {sorted(shapes)}.")
        if self.item.dtype != torch.int64 or self.expert.dtype != torch.int64:
            raise RoutingError(f"item and expert must be int64, found {self.item.dtype}, {self.expert.dtype}.")
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise RoutingError(f"weight must be float32 or float64, found {self.weight.dtype}: cast it with .float().")
        for name in ("chosen", "logits", "probs"):
            table = getattr(self, name)
            if table is not None and (table.dim() != 2 or table.shape[0] != self.num_items):
                raise RoutingError(f"{name} must be [T={self.num_items}, ...], found {tuple(table.shape)}.")

    @property
    def num_assignments(self) -> int:
        """S, the number of (item, expert) pairs."""
        return self.item.shape[0]

    @classmethod
    def from_padded(
        cls, weights: Tensor, indices: Tensor, num_experts: int, *, sentinel: int | None = None, **facts: Any
    ) -> Routing:
        """The bridge from transformers: ``weights [T, K]`` and ``indices [T, K]`` in any order.

        ``sentinel`` (default E) marks empty places. An expert named twice by one item is kept once
        with the sum of its weights. Gradient flows to ``weights``. ``facts`` are further fields.

        Raises:
            RoutingError: the tables differ in shape, or an index is neither an expert nor the sentinel.
        """
        if weights.shape != indices.shape or indices.dim() != 2:
            raise RoutingError(
                f"weights and indices must be [T, K] alike, found {tuple(weights.shape)}, {tuple(indices.shape)}."
            )
        num_items, num_choices = indices.shape
        item = torch.arange(num_items, device=indices.device).repeat_interleave(num_choices)
        expert, weight = indices.reshape(-1).long(), _wide(weights).reshape(-1)
        keep = expert != (num_experts if sentinel is None else sentinel)
        item, expert, weight = item[keep], expert[keep], weight[keep]
        if expert.numel() and _outside(expert, num_experts):
            raise RoutingError(
                f"expert ids must be in [0, {num_experts}), found {int(expert.min())} to {int(expert.max())}."
            )
        item, expert, weight = _sorted_once(item, expert, weight, num_experts)
        return cls(item, expert, weight, num_items, num_experts, **facts)

    def padded(self, k: int | None = None, sentinel: int | None = None) -> tuple[Tensor, Tensor]:
        """The bridge to transformers: ``weights [T, k]`` (0 where empty), ``indices [T, k]`` (sentinel, default E).

        ``k`` defaults to the most experts any item has. Columns ascend by expert id. Gradient flows.

        Raises:
            RoutingError: an item has more than ``k`` experts.
        """
        counts = self.experts_per_item()
        most = int(counts.max()) if self.num_items else 0
        k = most if k is None else k
        if most > k:
            raise RoutingError(f"an item has {most} experts, which do not fit {k} columns. Pass k={most} or more.")
        column = self.rank_in_item()
        weights = self.weight.new_zeros(self.num_items, k).index_put((self.item, column), self.weight)
        fill = self.num_experts if sentinel is None else sentinel
        indices = self.expert.new_full((self.num_items, k), fill)
        indices[self.item, column] = self.expert
        return weights, indices

    def dense(self) -> Tensor:
        """[T, E] of weights, 0 where an expert is not used. Gradient flows."""
        zeros = self.weight.new_zeros(self.num_items, self.num_experts)
        return zeros.index_put((self.item, self.expert), self.weight)

    def experts_per_item(self) -> Tensor:
        """[T] int64: how many experts each item has."""
        return torch.bincount(self.item, minlength=self.num_items)

    def items_per_expert(self) -> Tensor:
        """[E] int64: how many items each expert has (its load)."""
        return torch.bincount(self.expert, minlength=self.num_experts)

    def rank_in_item(self) -> Tensor:
        """[S] int64: 0, 1, 2... for the experts of an item in ascending id."""
        counts = self.experts_per_item()
        start = torch.cumsum(counts, 0) - counts
        return torch.arange(self.num_assignments, device=self.item.device) - start[self.item]

    def expand(self, index: Tensor) -> Routing:
        """A routing of ``len(index)`` items, the t-th being item ``index[t]`` of this one.

        Request -> sequence -> token: ``index`` says which request each token belongs to. Tables follow;
        the carry follows where it has one row per item.
        """
        counts = self.experts_per_item()
        start = torch.cumsum(counts, 0) - counts
        each = counts[index]
        item = torch.repeat_interleave(torch.arange(len(index), device=index.device), each)
        first = torch.cumsum(each, 0) - each
        source = start[index][item] + torch.arange(item.numel(), device=index.device) - first[item]
        return replace(
            self, item=item, expert=self.expert[source], weight=self.weight[source], num_items=len(index),
            **self._tables(index),
        )  # fmt: skip

    def masked(self, keep: Tensor) -> Routing:
        """Same items, but those with ``keep[t]`` false lose their assignments (padding computes nothing)."""
        if keep.shape != (self.num_items,):
            raise RoutingError(f"mask must be [T={self.num_items}], found {tuple(keep.shape)}.")
        keep = keep.bool()
        take = keep[self.item]
        chosen = self.chosen
        if chosen is not None:
            routes = self.num_routes
            chosen = chosen.masked_fill(~keep[:, None], routes)
        return replace(
            self, item=self.item[take], expert=self.expert[take], weight=self.weight[take], chosen=chosen
        )  # fmt: skip

    @property
    def num_routes(self) -> int:
        """R, from the tables; E where there are none."""
        table = self.logits if self.logits is not None else self.probs
        return self.num_experts if table is None else table.shape[1]

    def check(self) -> Routing:
        """Read the data and return self if the contract holds. Costs a few passes over S.

        Raises:
            RoutingError: an id out of range, an order broken, an expert twice, a weight not finite.
        """
        if self.num_assignments == 0:
            return self
        key = self.item * self.num_experts + self.expert
        problems = {
            f"items must be in [0, {self.num_items})": _outside(self.item, self.num_items),
            f"experts must be in [0, {self.num_experts})": _outside(self.expert, self.num_experts),
            "assignments must ascend by item, then expert, each pair once": bool((key.diff() <= 0).any()),
            "weights must be finite": not bool(torch.isfinite(self.weight).all()),
        }
        broken = [text for text, found in problems.items() if found]
        if broken:
            raise RoutingError("; ".join(broken) + ".")
        return self

    def detach(self) -> Routing:
        """The same decision without gradient, losses and carry: what traces keep."""
        tables = {n: t.detach() for n in ("chosen", "logits", "probs") if (t := getattr(self, n)) is not None}
        return replace(self, weight=self.weight.detach(), losses={}, carry=None, **tables)

    def _tables(self, index: Tensor) -> dict[str, Any]:
        tables: dict[str, Any] = {
            name: None if table is None else table[index]
            for name in ("chosen", "logits", "probs")
            for table in [getattr(self, name)]
        }
        per_item = self.carry is not None and self.carry.dim() > 0 and self.carry.shape[0] == self.num_items
        tables["carry"] = self.carry[index] if per_item and self.carry is not None else self.carry
        return tables


@dataclass(frozen=True, eq=False)
class RoutePlan:
    """Site (module path) -> its `Routing`, with what the items were.

    Pre-gates write it early, tracing records it, the store reads it ahead, losses, merging and
    reports read it afterwards. All sites route the same T items.

    Attributes:
        sites: module path -> routing.
        sequence, position, mask, ids: [T], of the items; None where unknown.
        model: hash of the model that routed, "" where unknown.
    """

    sites: Mapping[str, Routing]
    sequence: Tensor | None = None
    position: Tensor | None = None
    mask: Tensor | None = None
    ids: Tensor | None = None
    model: str = ""

    def __getitem__(self, site: str) -> Routing:
        if site not in self.sites:
            raise RoutingError(f"the plan has no site {site!r}; it has: {', '.join(self.sites) or 'none'}.")
        return self.sites[site]

    @property
    def num_items(self) -> int:
        return next((r.num_items for r in self.sites.values()), 0)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, under a temporary name first. Losses, carry and extra are not kept.

        Raises:
            RoutingError: the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {f"items.{n}": t for n in _ITEM_FIELDS if (t := getattr(self, n)) is not None}
        shapes = {}
        for number, (site, routing) in enumerate(self.sites.items()):
            shapes[site] = {"key": number, "items": routing.num_items, "experts": routing.num_experts}
            for name in _SAVED_FIELDS:
                if (value := getattr(routing, name)) is not None:
                    tensors[f"sites.{number}.{name}"] = value.detach()
        about = {"coterie": "RoutePlan", "version": "1", "model": self.model, "sites": json.dumps(shapes)}
        target = Path(path)
        part = target.with_name(target.name + ".part")
        try:
            save_file(_apart(tensors), part, metadata=about)
            part.replace(target)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                part.unlink()
            raise RoutingError(f"{path} cannot be written: {error}.") from error

    @classmethod
    def load(cls, path: str | Path) -> RoutePlan:
        """Read back what `save` wrote.

        Raises:
            RoutingError: the file is missing, damaged, no plan, or of a version this Coterie does not read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise RoutingError(f"{path} cannot be read as a route plan: {error}.") from error
        if about.get("coterie") != "RoutePlan" or about.get("version") != "1":
            raise RoutingError(f"{path} is no route plan of version 1. Record one with coterie.models.trace.")
        try:
            sites = {site: _site(entry, tensors) for site, entry in json.loads(about["sites"]).items()}
            return cls(sites, model=about["model"], **{n: tensors.get(f"items.{n}") for n in _ITEM_FIELDS})
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RoutingError(f"{path} is damaged ({error!r}). Record the plan again.") from error


@dataclass(frozen=True, eq=False)
class RouteContext:
    """What a router may know besides its items. Frozen: a layer hands on a changed copy.

    Attributes:
        site: module path of the asking layer.
        mask, sequence, position, ids: [T] of the items: real or padding, which sequence, absolute
            position in it, token id.
        step, micro_step, total_steps, training: where in training we are.
        pass_id: [T] int64 or one int: which forward pass an item belongs to (THOR doubles the batch).
        seed: of counter-based draws.
        overrides: request-time options: ``k``, ``p``, ``mean_experts``, ``draw``.
        chosen: [T, K] route ids decided earlier, R where empty: the selection is replayed, weights are computed.
        bias: [B or T, E], added to the logits before selection.
        allowed: [E] or [T, E] bool, experts an item may use.
        plan: decided earlier, for routers that follow one.
        cache: state over time of routers or layers that keep any.
        carry: the previous layer's `Routing.carry`.
    """

    site: str = ""
    mask: Tensor | None = None
    sequence: Tensor | None = None
    position: Tensor | None = None
    ids: Tensor | None = None
    step: int = 0
    micro_step: int = 0
    total_steps: int = 0
    training: bool = False
    pass_id: Tensor | int = 0
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    chosen: Tensor | None = None
    bias: Tensor | None = None
    allowed: Tensor | None = None
    plan: RoutePlan | None = None
    cache: Any = None
    carry: Tensor | None = None

    def at(self, site: str, carry: Tensor | None = None) -> RouteContext:
        """This context as the next layer sees it."""
        return replace(self, site=site, carry=carry)


_ITEM_FIELDS = ("sequence", "position", "mask", "ids")
_SAVED_FIELDS = ("item", "expert", "weight", "chosen", "logits", "probs")


def _site(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Routing:
    fields: dict[str, Any] = {n: tensors.get(f"sites.{entry['key']}.{n}") for n in _SAVED_FIELDS}
    return Routing(num_items=entry["items"], num_experts=entry["experts"], **fields).check()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own, which safetensors wants: sites may share a routing."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in seen else tensor.contiguous()
        seen.add(memory)
    return apart


def _wide(weights: Tensor) -> Tensor:
    return weights if weights.dtype in (torch.float32, torch.float64) else weights.float()


def _outside(ids: Tensor, bound: int) -> bool:
    return bool((ids < 0).any() or (ids >= bound).any())


def _sorted_once(item: Tensor, expert: Tensor, weight: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ascending by (item, expert); the weights of a repeated pair are summed."""
    key, order = torch.sort(item * num_experts + expert, stable=True)
    weight = weight[order]
    if key.numel() and bool((key.diff() == 0).any()):
        key, place = torch.unique_consecutive(key, return_inverse=True)
        weight = weight.new_zeros(key.numel()).index_add(0, place, weight)
    return key // max(num_experts, 1), key % max(num_experts, 1), weight
