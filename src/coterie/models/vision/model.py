"""A convolutional network, dense or of experts, as something to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.errors import OptionError, RoutingError
from coterie.experts import ConvExperts
from coterie.experts.conv import Backend
from coterie.models.vision.densenet import DenseNet
from coterie.models.vision.gates import image_router
from coterie.models.vision.resnet import ResNet18
from coterie.models.vision.small import SmallNet
from coterie.models.vision.spec import VisionSpec
from coterie.models.vision.steps import Steps
from coterie.models.vision.trip import Site, Trip
from coterie.models.vision.vgg import VGG16
from coterie.models.vision.wide_resnet import WideResNet
from coterie.ops.sections import sections_of
from coterie.routers import ImagePlanner
from coterie.routing import RouteContext, RoutePlan, Routing

__all__ = ["NETWORKS", "Seen", "VisionModel"]

NETWORKS: Mapping[str, Callable[[Steps], nn.Module]] = {
    "resnet18": ResNet18, "wrn28_10": WideResNet, "vgg16": VGG16, "densenet40": DenseNet, "small": SmallNet,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Seen:
    """What a network says of B images.

    Attributes:
        logits: [B, classes].
        plan: the routing of the B images at every site, router logits and gradient inside; None of a dense network.
    """

    logits: Tensor
    plan: RoutePlan | None


class VisionModel(nn.Module):
    """Images [B, channels, H, W] in [0, 1] to logits [B, classes]. Normalises inside.

    Keeps nothing between calls but the running statistics of batch norms, in training mode. In eval mode the answer to
    an image does not depend on the others of its batch, and it may be called from several threads.

    Args:
        spec: what network. Weights are drawn as torch does; `build_vision` draws them as the papers do.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = NETWORKS[spec.architecture](Steps(spec))
        self.sites = self._named_sites()
        image = spec.routed and spec.placement == "image"
        self.planner = ImagePlanner(image_router(spec), self.sites) if image else None
        for name in ("mean", "std"):  # on the processor also where the rest is made on the meta device, to be loaded
            values = torch.tensor(getattr(spec, name), device="cpu")
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)
        self._grouped = True

    @property
    def num_experts(self) -> int:
        """E of every routed step; 0 of a dense network."""
        return self.spec.experts

    def forward(self, images: Tensor, ctx: RouteContext | None = None) -> Tensor:
        """[B, channels, H, W] in [0, 1] -> logits [B, classes]; see `classify`."""
        return self.classify(images, ctx).logits

    def classify(self, images: Tensor, ctx: RouteContext | None = None) -> Seen:
        """Logits, and by which routes they came about.

        Args:
            images: [B, channels, H, W] in [0, 1], floating.
            ctx: with a ``plan``, its routes are followed, weights and all, and no router runs.

        Raises:
            OptionError: images of another number of channels, another size, or whole numbers.
            RoutingError: the plan does not send every image to one expert at every site.
        """
        ctx = RouteContext() if ctx is None else ctx
        x = self._normalised(images)
        plan = self._planned(x, ctx)
        if plan is not None:
            return Seen(self._followed(x, plan), plan)
        trip = Trip(ctx)
        logits = self.network(x, trip)
        return Seen(logits, RoutePlan(trip.taken) if self.sites else None)

    def decide(self, images: Tensor, ctx: RouteContext | None = None) -> RoutePlan | None:
        """The plan that `classify` would follow, by the router alone; None of a dense network.

        Where each layer decides there is no plan without a forward: it runs one.
        """
        if self.planner is None:
            return self.classify(images, ctx).plan
        return self._planned(self._normalised(images), RouteContext() if ctx is None else ctx)

    def backend(self, backend: Backend) -> VisionModel:
        """Compute by "grouped" narrow convolutions, or by the "masked" wide one, the reference. Returns self."""
        convs = [module for module in self.modules() if isinstance(module, ConvExperts)]
        if backend not in ("grouped", "masked"):
            raise OptionError(f"backend {backend!r} is unknown; choose one of: grouped, masked.")
        for conv in convs:
            conv.backend = backend
        self._grouped = backend == "grouped"
        return self

    def router_modules(self) -> list[nn.Module]:
        """What decides: one router, or one per routed step; empty of a dense network."""
        if self.planner is not None:
            return [cast(nn.Module, self.planner.router)]
        sites = (module for module in self.network.modules() if isinstance(module, Site))
        return [site.router for site in sites if site.router is not None]

    def router_parameters(self) -> list[nn.Parameter]:
        """Those of what decides."""
        return [parameter for module in self.router_modules() for parameter in module.parameters()]

    def expert_parameters(self) -> list[nn.Parameter]:
        """All the others: experts, and what they share."""
        routers = {id(parameter) for parameter in self.router_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in routers]

    def _named_sites(self) -> tuple[str, ...]:
        sites = {f"network.{path}": part for path, part in self.network.named_modules() if isinstance(part, Site)}
        for name, site in sites.items():
            site.name = name.removesuffix(".site")
        return tuple(site.name for site in sites.values())

    def _normalised(self, images: Tensor) -> Tensor:
        size, channels = self.spec.image_size, self.spec.channels
        if images.dim() != 4 or tuple(images.shape[1:]) != (channels, size, size):
            raise OptionError(
                f"this model takes images [B, {channels}, {size}, {size}], found {list(images.shape)}: resize them, or "
                "build a model for theirs."
            )
        if not images.is_floating_point():
            raise OptionError(
                f"images are {images.dtype}; the model takes floats in [0, 1]. Type: images.float() / 255"
            )
        return (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)

    def _planned(self, x: Tensor, ctx: RouteContext) -> RoutePlan | None:
        """What is to be followed; None where there is nothing, or the steps decide."""
        if not self.sites or (ctx.plan is None and self.planner is None):
            return None
        plan = ctx.plan
        if plan is None:
            assert self.planner is not None
            plan = self.planner.plan(self.seen_by_router(x), ctx)
        for routing in {id(plan[site]): plan[site] for site in self.sites}.values():
            if routing.num_experts != self.num_experts:
                raise RoutingError(f"the plan is over {routing.num_experts} experts, the model has {self.num_experts}.")
            if routing.num_items != len(x) or not sections_of(routing).each_once:
                raise RoutingError(
                    f"{routing.num_assignments} assignments of {routing.num_items} items were planned for {len(x)} "
                    "images: every image needs one expert at every site, and no mask."
                )
        return plan

    def seen_by_router(self, x: Tensor) -> Tensor:
        """Normalised images as the image router gets them: averaged down where they are large."""
        size = self.spec.seen_size
        return x if size == self.spec.image_size else F.adaptive_avg_pool2d(x, size)

    def _followed(self, x: Tensor, plan: RoutePlan) -> Tensor:
        routings = [plan[site] for site in self.sites]
        if not self._grouped or any(routing is not routings[0] for routing in routings):
            return self._run(x, dict(zip(self.sites, routings, strict=True)))
        return self._by_expert(x, routings[0]) if self.training else self._by_pathway(x, routings[0])

    def _by_pathway(self, x: Tensor, routing: Routing) -> Tensor:
        """Each expert's images through its own pathway, one after the other: whole narrow networks.

        Where statistics are not of the batch; elsewhere shared norms would see a batch in pieces.
        """
        sections = sections_of(routing)
        if sections.only is not None:
            return self._run(x, dict.fromkeys(self.sites, routing))
        order = torch.argsort(routing.expert, stable=True)
        parts = [
            self._run(x[index], dict.fromkeys(self.sites, routing.expand(index)))
            for index in order.split(list(sections.counts)) if len(index)
        ]  # fmt: skip
        return torch.cat(parts)[torch.argsort(order)]

    def _by_expert(self, x: Tensor, routing: Routing) -> Tensor:
        """The batch sorted by expert once, so that no layer has to gather its rows."""
        if sections_of(routing).groups is None:
            return self._run(x, dict.fromkeys(self.sites, routing))
        order = torch.argsort(routing.expert, stable=True)
        return self._run(x[order], dict.fromkeys(self.sites, routing.expand(order)))[torch.argsort(order)]

    def _run(self, x: Tensor, routings: dict[str, Routing]) -> Tensor:
        return self.network(x, Trip(planned=routings))
