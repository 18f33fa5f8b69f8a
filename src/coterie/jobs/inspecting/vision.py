"""Looking at a convolutional network: its parts, what an image costs, what experts and which router would save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.errors import OptionError
from coterie.jobs.sheet import Sheet
from coterie.models.shards import SINGLE, read_json
from coterie.models.vision import (
    NETWORKS,
    VisionCost,
    VisionSpec,
    check_vision,
    is_vision,
    read_vision,
    smaller_routers,
    vision_cost,
)

_PUBLISHED = {"experts": 2, "ratio": 0.5}  # what an architecture is shown with where nothing else is asked for


@dataclass(frozen=True, eq=False)
class VisionInspection:
    """What a convolutional network is and costs. Nothing is computed, no weight is read.

    Attributes:
        model: what was asked for.
        path: where it lies, "" of an architecture.
        nbytes: of the weights on disk, 0 of an architecture.
        cost: layer by layer, with the dense network's and that of the dense one as narrow as an expert.
        routers: the same network with each image router there is, dearest first; empty where it has none.
    """

    model: str
    path: str
    nbytes: int
    cost: VisionCost
    routers: tuple[VisionCost, ...] = field(repr=False)

    @property
    def spec(self) -> VisionSpec:
        """The network in numbers and words."""
        return self.cost.spec

    def as_record(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        routers = [
            {"router": other.spec.router, "router_width": other.spec.router_width, "macs": other.router,
             "parameters": other.router_parameters, "saving": other.saving}
            for other in self.routers
        ]  # fmt: skip
        about = {"model": self.model, "path": self.path, "nbytes": self.nbytes}
        return {**about, "spec": self.spec.as_record(), **self.cost.as_record(), "routers": routers}

    def describe(self) -> str:
        """`sheet` as plain text."""
        return self.sheet().plain()

    def sheet(self) -> Sheet:
        """The same for people."""
        from coterie.jobs.inspecting.vision_sheet import sheet_of

        return sheet_of(self)


def is_network(model: str | Path) -> bool:
    """Whether ``model`` is a directory with a convolutional network of ours, or the name of an architecture."""
    path = Path(model).expanduser()
    if path.is_dir():
        return (path / "config.json").is_file() and is_vision(read_json(path / "config.json"))
    return str(model) in NETWORKS and not path.exists()


def inspect_vision(model: str | Path, options: Mapping[str, Any] | None = None) -> VisionInspection:
    """Look at a network that `is_network`.

    Args:
        model: a directory, or an architecture, which is shown with two experts of half the channels.
        options: fields of `VisionSpec` in place of those of an architecture.

    Raises:
        CheckpointError: what lies there is damaged.
        OptionError: an option that is not known or not allowed, or one for a network that is as it is.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if options:
            raise OptionError(
                f"{model} is a network as it is; options are for architectures: coterie inspect "
                f"{read_vision(path).architecture} {' '.join(f'--option {k}={v}' for k, v in options.items())}"
            )
        spec = check_vision(path).spec
        return _inspection(str(model), str(path), (path / SINGLE).stat().st_size, spec)
    spec = VisionSpec.from_record({"architecture": str(model), **_PUBLISHED, **(options or {})})
    return _inspection(str(model), "", 0, spec)


def _inspection(model: str, path: str, nbytes: int, spec: VisionSpec) -> VisionInspection:
    cost = vision_cost(spec)
    routers = smaller_routers(spec) if spec.routed and spec.placement == "image" else []
    return VisionInspection(model, path, nbytes, cost, tuple(routers))
