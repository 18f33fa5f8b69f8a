"""One architecture as the arms of a contest: dense, as experts in two ways, and as narrow as one expert."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.models.vision import VisionModel, VisionSpec, build_vision
from coterie.models.vision.cost import VisionCost, vision_cost
from coterie.models.vision.spec import Architecture, ImageRouter

DENSE, NARROW, GROUPED, MASKED = "dense", "narrow", "grouped", "masked"
ARMS = (DENSE, NARROW, MASKED, GROUPED)
MODES = ("inference", "training")
ARCHITECTURES: tuple[Architecture, ...] = ("resnet18", "vgg16", "wrn28_10", "densenet40")
CLASSES = 10


@dataclass(frozen=True)
class Contest:
    """The networks of one architecture. The two arms of experts have equal weights.

    Attributes:
        experts: E; one expert has 1/E of the dense network's channels, and so has the narrow network.
        width: factor on all channels of all arms.
        router: who looks at the images.
    """

    architecture: Architecture
    experts: int
    width: float
    seed: int
    router: ImageRouter = "resnet20"

    @cached_property
    def spec(self) -> VisionSpec:
        """Of the network of experts."""
        return VisionSpec(
            self.architecture, CLASSES, experts=self.experts, ratio=1 / self.experts, width=self.width,
            router=self.router,
        )  # fmt: skip

    @cached_property
    def cost(self) -> VisionCost:
        """Multiply-accumulates, with those of the dense and the narrow network."""
        return vision_cost(self.spec)

    @cached_property
    def models(self) -> dict[str, VisionModel]:
        """By arm."""
        dense = VisionSpec(self.architecture, CLASSES, width=self.width)
        narrow = VisionSpec(self.architecture, CLASSES, ratio=1 / self.experts, width=self.width)
        specs = {DENSE: dense, NARROW: narrow, MASKED: self.spec, GROUPED: self.spec}
        models = {arm: build_vision(spec, self.seed) for arm, spec in specs.items()}
        models[MASKED].backend("masked")
        return models

    @cached_property
    def steppers(self) -> dict[str, torch.optim.SGD]:
        """By arm: momentum and weight decay as in the paper, at a rate of 0: every repeat meets the same weights."""
        return {
            arm: torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4)
            for arm, model in self.models.items()
        }

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images [B, 3, 32, 32] and labels [B]."""
        generator = torch.Generator().manual_seed(self.seed)
        spec = self.spec
        images = torch.rand(size, spec.channels, spec.image_size, spec.image_size, generator=generator)
        return images, torch.randint(CLASSES, (size,), generator=generator)

    def prepare(self, mode: str, images: Tensor) -> list[int]:
        """Set modes, and spread the images evenly over the experts; returns how many each has.

        A fresh router often sends all images one way. Training mode has routes of its own, as it has statistics.
        """
        for model in self.models.values():
            model.train(mode == "training")
        biases = _even_biases(self.models[GROUPED], images, self.experts)
        for arm in (MASKED, GROUPED):
            with torch.no_grad():
                _head(self.models[arm]).add_(biases)
        plan = self.models[GROUPED].decide(images)
        assert plan is not None
        return plan[self.models[GROUPED].sites[0]].items_per_expert().tolist()

    def forward(self, arm: str, images: Tensor) -> Tensor:
        """Logits, without gradient."""
        with torch.no_grad():
            return self.models[arm](images)

    def forget(self) -> None:
        """Drop all gradients."""
        for model in self.models.values():
            model.zero_grad(set_to_none=True)

    def train(self, arm: str, images: Tensor, labels: Tensor) -> Tensor:
        """Forward, cross entropy, backward, a step of SGD; returns the logits."""
        logits: Tensor = self.models[arm](images)
        F.cross_entropy(logits, labels).backward()
        self.steppers[arm].step()
        return logits.detach()


def _head(model: VisionModel) -> Tensor:
    assert model.planner is not None
    bias = model.planner.router.score.head.bias
    assert isinstance(bias, Tensor)
    return bias


@torch.no_grad()
def _even_biases(model: VisionModel, images: Tensor, experts: int) -> Tensor:
    """[E] to add to the logits, raised for experts with too few images and lowered for others, less and less."""
    plan = model.decide(images)
    assert plan is not None
    logits = plan[model.sites[0]].logits
    assert logits is not None
    biases = -logits.median(0).values
    scale = float(logits.std(0).max()) if len(images) > 1 else 0.0
    for step in range(300):
        load = torch.bincount((logits + biases).argmax(1), minlength=experts) / len(images)
        biases += scale * (1 / experts - load) / (1 + step / 10)
    return biases
