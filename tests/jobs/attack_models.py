"""Classifiers to attack: linear ones whose robust accuracy is known exactly, a trained one, and broken ones."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from coterie.models.vision import VisionSpec, build_vision
from coterie.routing import RoutePlan, Routing
from coterie.training.images import ImageData

SIDE, CLASSES = 8, 4
SPEC = VisionSpec(
    "small", classes=CLASSES, channels=1, image_size=SIDE, experts=2, ratio=0.5, width=0.5, router="small",
    router_width=4,
)  # fmt: skip


def patterns(count, seed=0):
    """Images of four patterns in two domains: every second one is inverted. Classes are easy, a small change is not."""
    draw = torch.Generator().manual_seed(seed)
    shapes = torch.rand(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    images = (0.15 + 0.5 * shapes[labels] + 0.1 * torch.rand(count, 1, SIDE, SIDE, generator=draw)).clamp(0, 1)
    images[1::2] = 1 - images[1::2]
    return ImageData(images, labels, tuple("abcd"), "patterns")


def trained(steps=80, spec=SPEC):
    """A network that tells the patterns apart, its router taught which domain is which."""
    torch.manual_seed(0)
    model, data = build_vision(spec, seed=0), patterns(512)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for step in range(steps):
        index = torch.arange(step * 64, step * 64 + 64) % len(data)
        images, labels = data.batch(index)
        seen = model.classify(images)
        loss = cross_entropy(seen.logits, labels)
        if seen.plan is not None:
            routing = next(iter(seen.plan.sites.values()))
            loss = loss + cross_entropy(routing.logits, index % model.num_experts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


class Linear(nn.Module):
    """Logits that are linear in the image: the best attack is known, epsilon times the sign of the weights."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


class RoutedLinear(nn.Module):
    """Two linear experts and a linear router."""

    sites = ("only",)

    def __init__(self, router, experts):
        super().__init__()
        self.router, self.experts = router, nn.ModuleList(experts)
        self.num_experts = len(experts)

    def forward(self, images, ctx=None):
        return self.classify(images, ctx).logits

    def decide(self, images, ctx=None):
        if ctx is not None and ctx.plan is not None:
            return ctx.plan
        logits = self.router(images)
        return RoutePlan({"only": routing_of(logits)})

    def classify(self, images, ctx=None):
        plan = self.decide(images, ctx)
        each = torch.stack([expert(images) for expert in self.experts], dim=1)
        logits = each[torch.arange(len(images)), plan["only"].expert]
        return SimpleNamespace(logits=logits, plan=plan)


def routing_of(logits):
    chosen = logits.argmax(1)
    weight = torch.ones(len(chosen))
    return Routing(
        torch.arange(len(chosen)), chosen, weight, len(chosen), logits.shape[1], chosen=chosen[:, None], logits=logits
    )


class Around(nn.Module):
    """A model with something done to its images or logits, routes and all."""

    def __init__(self, inner, images=lambda x: x, logits=lambda x: x):
        super().__init__()
        self.inner, self.before, self.after = inner, images, logits
        self.sites, self.num_experts = inner.sites, inner.num_experts

    def forward(self, images, ctx=None):
        return self.classify(images, ctx).logits

    def decide(self, images, ctx=None):
        return self.inner.decide(self.before(images), ctx)

    def classify(self, images, ctx=None):
        seen = self.inner.classify(self.before(images), ctx)
        return SimpleNamespace(logits=self.after(seen.logits), plan=seen.plan)
