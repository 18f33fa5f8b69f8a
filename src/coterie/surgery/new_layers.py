"""The layers of a checkpoint edited and handed to the writer, each when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.stored import SiteExperts
from coterie.models.tensors import FLOATS
from coterie.surgery.container import refuse_early
from coterie.surgery.layer import LayerExperts, NewLayer, read_layer
from coterie.surgery.marks import Marks, marks_of, marks_of_parts
from coterie.surgery.new_config import check_gate
from coterie.surgery.target import Target, router_names, targets
from coterie.surgery.threads import computing, one_thread
from coterie.surgery.writer import CheckpointWriter

__all__ = ["NewLayers", "Say"]

Say = Callable[[str, int, int], None]
"""(what is done, layers done, layers in all)."""


class NewLayers:
    """Makes and writes the layers of one checkpoint; a context manager. While one is edited the next is read.

    Args:
        checkpoint: the source.
        edit: one layer to another.
        writer: what they are written by.
        container: that was asked for.
        say: told of each layer.
        mark: whether to remember what the experts were, for the check.

    Attributes:
        records: of the layers that are done, by module path of the experts: what coterie.json would say.
        about: what the edit said of them.
        marks: of their experts; there when the writer has completed its work.
    """

    def __init__(
        self, checkpoint: Checkpoint, edit: Callable[[LayerExperts], NewLayer], writer: CheckpointWriter,
        container: str, say: Say, *, mark: bool = True,
    ) -> None:  # fmt: skip
        self.checkpoint, self.edit, self.writer, self.container, self.say = checkpoint, edit, writer, container, say
        self.mark, self.threads = mark, torch.get_num_threads()
        self._reader = one_thread("coterie-reader")
        self._ahead: tuple[str, Future[LayerExperts]] | None = None
        self.targets = {target.site.name: target for target in targets(checkpoint)}
        self.records: dict[str, SiteExperts] = {}
        self.about: dict[str, Mapping[str, Any]] = {}
        self.marks: dict[str, Marks] = {}

    def __enter__(self) -> NewLayers:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._ahead = None

    def make(self, site: ExpertSite) -> NewLayer:
        """Read, edit, check and write one layer; tensors that an earlier writer has written stay. Blocks."""
        if site.name not in self.records:
            self.say(f"Layer {site.layer}", len(self.records), len(self.checkpoint.sites))
        layer = self._read(site)
        with computing(self.threads):  # what an edit computes may be much
            new = self.edit(layer)
        new = new.checked(layer)
        check_gate(self.checkpoint, new.num_routes, site.top_k, site.layer)
        record = self._record(site, new)
        refuse_early(self.checkpoint, [*self.records.values(), record], self.container, site.layer)
        names = _write_layer(self.checkpoint, self.targets[site.name], new, self.writer)
        about = json.loads(json.dumps(dict(new.about), default=_plain))
        self.writer.finish_unit(site.name, {"experts": record.as_record(), "about": about}, names)
        self.records[site.name], self.about[site.name] = record, about
        if self.mark:
            self.marks[site.name] = marks_of(new.weights, site.dtype) if new.kind is None else marks_of_parts(new.parts)
        return new

    def _read(self, site: ExpertSite) -> LayerExperts:
        name, ahead = (None, None) if self._ahead is None else self._ahead
        self._ahead = None
        layer = ahead.result() if ahead is not None and name == site.name else read_layer(self.checkpoint, site)
        order = [each.name for each in self.checkpoint.sites]
        for each in self.checkpoint.sites[order.index(site.name) + 1 :][:1]:
            self._ahead = each.name, self._reader.submit(read_layer, self.checkpoint, each)
        return layer

    def make_rest(self) -> None:
        """Those that were not asked for, but for what an earlier writer finished."""
        for site in self.checkpoint.sites:
            if site.name in self.records:
                continue
            if not self.mark and (kept := self.writer.unit(site.name)) is not None:
                self.records[site.name] = SiteExperts.from_record(kept["experts"], site.name)
                self.about[site.name] = kept["about"]
            else:
                self.make(site)

    def _record(self, site: ExpertSite, new: NewLayer) -> SiteExperts:
        return SiteExperts(
            new.num_experts, new.num_routes, new.experts_of if new.aliased else None,
            None if new.inner == site.shape.inner and not self._own_inner(site.name) else new.inner,
            None if new.kind is None else {"name": new.kind.name, **new.kind.as_record()},
        )  # fmt: skip

    def _own_inner(self, site: str) -> bool:
        """Whether the inner width of a site is said by coterie.json already, since config.json has another."""
        stored = {} if self.checkpoint.stored is None else self.checkpoint.stored.experts
        return site in stored and stored[site].inner is not None


def _write_layer(checkpoint: Checkpoint, target: Target, new: NewLayer, writer: CheckpointWriter) -> list[str]:
    names = []
    for name, tensor in target.tensors(new):
        writer.add(name, tensor)
        names.append(name)
    for role, (name, stored) in router_names(checkpoint, target.site).items():
        before = checkpoint.ranges[name] if name not in checkpoint.encoded else None
        writer.add(name, _gate_tensor(new.router[role], stored, before))
        names.append(name)
    return names


def _gate_tensor(rows: Tensor, stored: tuple[int, ...], before: Any) -> Tensor:
    """Rows of a gate in the type and the shape that the disk had."""
    typed = rows if before is None or before.dtype not in FLOATS else rows.to(FLOATS[before.dtype])
    lead = [1] * (len(stored) - rows.dim()) if len(stored) > rows.dim() else []
    return typed.reshape(*lead, *rows.shape)


def _plain(value: Any) -> Any:
    """Numbers of torch and numpy as Python's, tensors as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    return value.item() if hasattr(value, "item") else str(value)
