"""What a network costs: multiply-accumulates of one image, layer by layer, and parameters. Nothing is computed.

Counted as papers do: convolutions and linear layers; norms, activations and sums are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts import ConvExperts
from coterie.models.vision.gates import image_router
from coterie.models.vision.model import NETWORKS, VisionModel
from coterie.models.vision.spec import ImageRouter, VisionSpec
from coterie.models.vision.steps import Steps
from coterie.models.vision.trip import Site, Trip
from coterie.routers import Router, Score
from coterie.routing import RouteContext

__all__ = ["LayerCost", "VisionCost", "smaller_routers", "vision_cost"]

Part = Literal["shared", "routed", "router"]


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer.

    Attributes:
        name: module path.
        part: "routed": of experts, "shared": met by all images, "router": decides.
        inputs, outputs, kernel: channels of one expert, and the side of the kernel; 1 of a linear layer.
        size: pixels of the side of what comes out; 1 of a linear layer.
        macs: multiply-accumulates of one image: of one expert where there are several.
        parameters: of all experts.
    """

    name: str
    part: Part
    inputs: int
    outputs: int
    kernel: int
    size: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class VisionCost:
    """A network's cost for one image.

    Attributes:
        spec: of the network.
        layers: in the order they run; those of the router last.
        parameters: of network and router; running statistics are none.
        router_parameters: of the router, or routers.
        active_parameters: those that one image meets: shared ones, one expert of each step, and the router.
    """

    spec: VisionSpec
    layers: tuple[LayerCost, ...]
    parameters: int
    router_parameters: int
    active_parameters: int

    @property
    def pathway(self) -> int:
        """Multiply-accumulates of the network for one image, without the router."""
        return sum(layer.macs for layer in self.layers if layer.part != "router")

    @property
    def router(self) -> int:
        """Multiply-accumulates of the router, or routers."""
        return sum(layer.macs for layer in self.layers if layer.part == "router")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, router included."""
        return self.pathway + self.router

    @property
    def dense(self) -> VisionCost:
        """Of the dense network that the experts are cut from."""
        return self if not self.spec.routed and self.spec.ratio == 1 else vision_cost(_without_experts(self.spec, 1.0))

    @property
    def small(self) -> VisionCost:
        """Of the dense network that is as narrow as one expert."""
        return self if not self.spec.routed else vision_cost(_without_experts(self.spec, self.spec.ratio))

    @property
    def saving(self) -> float:
        """Share of the dense network's multiply-accumulates that is not needed; below 0 where it costs more."""
        return 1 - self.macs / self.dense.macs

    def as_record(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "macs": self.macs, "pathway_macs": self.pathway, "router_macs": self.router,
            "dense_macs": self.dense.macs, "small_macs": self.small.macs, "saving": self.saving,
            "parameters": self.parameters, "router_parameters": self.router_parameters,
            "active_parameters": self.active_parameters, "dense_parameters": self.dense.parameters,
            "small_parameters": self.small.parameters,
            "layers": [vars(layer) for layer in self.layers],
        }  # fmt: skip


@lru_cache(maxsize=64)  # a dense network is asked for again by everything that is compared with it
def vision_cost(spec: VisionSpec) -> VisionCost:
    """Count what ``spec`` costs, at any size: the networks stand on the meta device, without memory or arithmetic."""
    with torch.device("meta"):
        model = VisionModel(spec).eval()
        pathway = NETWORKS[spec.architecture](Steps(spec, pathway=True)).eval()
        images = torch.empty(1, spec.channels, spec.image_size, spec.image_size)
        of_network = _watched(pathway, lambda: pathway(images, Trip()))
        layers = [*(_of_network(model, *seen) for seen in of_network), *_of_routers(model, images)]
    router = sum(parameter.numel() for parameter in model.router_parameters())
    everything = sum(parameter.numel() for parameter in model.parameters())
    active = sum(parameter.numel() for parameter in pathway.parameters()) + router
    return VisionCost(spec, tuple(layers), everything, router, active)


def smaller_routers(spec: VisionSpec, widths: Iterable[int] = (16, 8)) -> list[VisionCost]:
    """The costs of a network with each image router there is, dearest first.

    Raises:
        OptionError: the network has none.
    """
    if not spec.routed or spec.placement != "image":
        raise OptionError("only a network with experts and placement='image' has a router that could be smaller.")
    residual = [(router, width) for router in get_args(ImageRouter) if router != "small" for width in widths]
    specs = [replace(spec, router=router, router_width=width) for router, width in [*residual, ("small", 16)]]
    cost = vision_cost(spec)
    return sorted((_with_router(cost, each) for each in specs), key=lambda each: -each.router)


def _without_experts(spec: VisionSpec, ratio: float) -> VisionSpec:
    """Fields of experts and router as they are by default, so that equal networks are equal specs."""
    plain = VisionSpec()
    fields = ("norm", "router", "router_width", "router_size", "router_bound", "placement", "gate")
    return replace(spec, experts=0, ratio=ratio, **{name: getattr(plain, name) for name in fields})


def _with_router(cost: VisionCost, spec: VisionSpec) -> VisionCost:
    """``cost`` of the same network with the image router of ``spec``."""
    with torch.device("meta"):
        score = image_router(spec).score.eval()
        images = torch.empty(1, spec.channels, spec.seen_size, spec.seen_size)
        layers = list(_of_router("planner.router", score, images))
    parameters = sum(parameter.numel() for parameter in score.parameters())
    more = parameters - cost.router_parameters
    network = [layer for layer in cost.layers if layer.part != "router"]
    return VisionCost(
        spec, (*network, *layers), cost.parameters + more, parameters, cost.active_parameters + more
    )  # fmt: skip


def _of_network(model: VisionModel, name: str, module: nn.Module, y: Tensor) -> LayerCost:
    """A layer of the pathway, with the parameters that the same place has in the model."""
    path = f"network.{name}"
    place = model.get_submodule(path)
    return _cost(path, "routed" if isinstance(place, ConvExperts) else "shared", module, y, place)


def _of_routers(model: VisionModel, images: Tensor) -> Iterator[LayerCost]:
    for path, part in model.named_modules():
        if isinstance(part, Router):
            x = model.seen_by_router(images) if model.planner is not None else _input_of(model, path)
            yield from _of_router(path, part.score, x)


def _of_router(path: str, score: Score, x: Tensor) -> Iterator[LayerCost]:
    for name, module, y in _watched(score, partial(score, x, RouteContext())):
        yield _cost(f"{path}.score.{name}", "router", module, y, module)


def _input_of(model: VisionModel, path: str) -> Tensor:
    """What the router of a step looks at is pooled first: a pixel will do."""
    site = cast(Site, model.get_submodule(path.removesuffix(".router")))
    return torch.empty(1, cast(Any, site.router).score.channels, 1, 1)


def _cost(path: str, part: Part, module: nn.Module, y: Tensor, place: nn.Module) -> LayerCost:
    weight = cast(Tensor, module.weight)  # [O, I] or [O, I, k, k]
    side = y.shape[-1] if y.dim() == 4 else 1
    kernel = weight.shape[-1] if weight.dim() == 4 else 1
    parameters = sum(parameter.numel() for parameter in place.parameters(recurse=False))
    pixels = y.shape[2:].numel() if y.dim() == 4 else 1
    return LayerCost(
        path, part, weight.shape[1], weight.shape[0], kernel, side, weight.numel() * pixels, parameters
    )  # fmt: skip


def _watched(network: nn.Module, forward: Callable[[], Any]) -> list[tuple[str, nn.Module, Tensor]]:
    """(module path, module, what came out) of the convolutions and linear layers, in the order they run."""
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str, module: nn.Module, _: Any, y: Tensor) -> None:
        seen.append((name, module, y))

    hooks = [
        module.register_forward_hook(partial(note, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()
    return seen
