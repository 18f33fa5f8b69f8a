"""A checkpoint beside the model it makes: what each name on disk is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.experts import method_of, split_name
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.compat import DiskNames, skeleton
from coterie.models.counts import part_names
from coterie.models.find import MoESite, find_sites

__all__ = ["View", "bytes_of"]


@dataclass(frozen=True, eq=False)
class View:
    """A checkpoint beside the model it makes: the skeleton, its sites, and what each name is."""

    checkpoint: Checkpoint
    host: Any
    live: list[MoESite]
    parts: Mapping[str, str]
    disk: Mapping[str, int]  # name in memory -> bytes on disk, of what is no expert

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> View:
        host = skeleton(checkpoint.config, checkpoint.compute_dtype)
        live, names = find_sites(host), DiskNames(host)
        parts, method = part_names(host, live), method_of(checkpoint.quantization, str(checkpoint.path))
        disk: dict[str, int] = defaultdict(int)
        experts = {(part.path, part.start) for site in checkpoint.sites for part in site.ranges()}
        for name, part in checkpoint.ranges.items():
            if (part.path, part.start) not in experts:
                disk[_weight(name, names, parts, method)] += part.nbytes
        return cls(checkpoint, host, live, parts, disk)

    @property
    def config(self) -> Any:
        """Of the text model, where there are others beside it."""
        return self.checkpoint.text

    def sites_in(self, prefix: str) -> list[ExpertSite]:
        return [site for site in self.checkpoint.sites if site.name.startswith(prefix)]


def _weight(name: str, names: DiskNames, known: Mapping[str, str], method: Any) -> str:
    """Name in memory of the weight that a tensor on disk is, or where it is quantised, is a piece of."""
    place = names.place(name).name
    return place if place in known else names.place(split_name(name, method)[0]).name


def bytes_of(site: ExpertSite) -> int:
    """Of a site on disk; what its experts have in common, such as a norm behind them, once."""
    return sum({(part.path, part.start): part.nbytes for part in site.ranges()}.values())
