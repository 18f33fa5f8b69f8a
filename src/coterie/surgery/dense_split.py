"""From a dense feed-forward and what text showed of it to experts, first rows of a router, and how near they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.surgery.channels import LayerChannels
from coterie.surgery.choose import Cut, choose_channels
from coterie.surgery.feed_forward import FeedForward
from coterie.surgery.router_start import ROUTER_STARTS, agreement, contributions, first_rows
from coterie.surgery.split import expert_outputs, fitted_scale, picked_mean

__all__ = ["Decision", "Scale", "SplitOptions", "decide"]

Scale = Literal["fit", "sum", "mean"]
_SCALES = ("fit", "sum", "mean")
# of the sample, kept aside to measure on what was not fitted
_HELD = 4


@dataclass(frozen=True)
class SplitOptions:
    """How a dense model becomes a mixture.

    Attributes:
        cut: which channels go where.
        k: experts per token.
        router: a name of `coterie.surgery.ROUTER_STARTS`; "auto": ``zero`` where all experts are on, ``fit`` where
            there is text, else ``random``.
        sharpness: standard deviation of the first logits: how unequal weights are.
        scale: factor on the mean of the chosen experts: "sum" counts each as it is in the dense layer (k), "mean" takes
            them for a fair sample of all (E), "fit" is in between, nearest to the dense output on the text, and
            "mean" without text. With all experts on all of them are E. Experts that overlap have none (1).

    Raises:
        OptionError: a name that is not known, or a number out of its range.
    """

    cut: Cut
    k: int
    router: str = "auto"
    sharpness: float = 1e-3
    scale: Scale = "fit"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.cut.experts:
            raise OptionError(
                f"A token goes to 1 up to all of the experts: k is {self.k}, and there are {self.cut.experts} experts."
            )
        if self.router != "auto":
            ROUTER_STARTS.get(self.router)
        if not self.sharpness >= 0:
            raise OptionError(f"sharpness is 0 or more, not {self.sharpness}. Try 0.001.")
        if self.scale not in _SCALES:
            raise OptionError(f"There is no scale {self.scale!r}. There are: {', '.join(_SCALES)}.")

    @property
    def all_on(self) -> bool:
        """Whether every token goes to every expert."""
        return self.k == self.cut.experts

    @property
    def overlapping(self) -> bool:
        """Whether experts have channels in common, and lack some of the dense layer's."""
        return self.cut.density is not None

    def start(self, seen: bool) -> str:
        """The router start that "auto" stands for."""
        if self.router != "auto":
            return self.router
        return "zero" if self.all_on and not self.overlapping else "fit" if seen else "random"


@dataclass(frozen=True, eq=False)
class Decision:
    """What becomes of one layer.

    Attributes:
        channels: of each expert.
        rows: [E, D] float32, of the gate.
        scale: factor on the mean of the chosen experts' own outputs.
        about: numbers for reports: sizes, and on text that was held aside ``error`` (of the output with the router,
            relative to the dense output), ``best_error`` (with the k experts of most worth), ``agreement`` and
            ``chance`` (share of those experts that the router chooses).
    """

    channels: LayerChannels
    rows: Tensor
    scale: float
    about: Mapping[str, Any] = field(default_factory=dict)


@torch.no_grad()
def decide(layer: FeedForward, options: SplitOptions, channels: LayerChannels | None = None) -> Decision:
    """Choose channels, router rows and scale for one layer. Deterministic; mutates nothing.

    Args:
        channels: to take in place of choosing them, as saved by an earlier split.

    Raises:
        OptionError: see `choose_channels`; or the router start needs text.
    """
    if channels is None:
        channels = choose_channels(layer, options.cut)
    seen = layer.inputs is not None and len(layer.inputs) > 0
    start, seed = options.start(seen), options.cut.seed
    about: dict[str, Any] = {**channels.as_record(), "router": start}
    if not seen:
        rows = first_rows(start, layer, channels.own, None, sharpness=options.sharpness, seed=seed)
        scale = _scale(options, None, None)
        return Decision(channels, rows, scale, {**about, "scale": scale})
    own, shared = expert_outputs(layer, channels, layer.activity)
    worth = _worth(own, shared, layer, options)
    fitted, held = _halves(len(worth), seed)
    part = _only(layer, fitted)
    rows = first_rows(start, part, channels.own, worth[fitted], sharpness=options.sharpness, seed=seed)
    chosen = (layer.sample() @ rows.T).topk(options.k, dim=1).indices
    scale = _scale(options, own[:, fitted], chosen[fitted])
    best = worth.topk(options.k, dim=1).indices
    about |= {
        "scale": scale,
        "error": _error(own, shared, chosen, scale, layer, held),
        "best_error": _error(own, shared, best, scale, layer, held),
        "agreement": agreement(rows, layer.sample()[held], worth[held], options.k),
        "chance": options.k / options.cut.experts,
    }
    return Decision(channels, rows, scale, about)


def _worth(own: Tensor, shared: Tensor, layer: FeedForward, options: SplitOptions) -> Tensor:
    """[n, E] of each expert for each token: its part of the dense output; of those that overlap, how near it comes."""
    if not options.overlapping:
        return contributions(own, own.sum(0))
    target = layer.activity @ layer.weights["down_proj"].float().T
    return -(own + shared - target).norm(dim=2).T / target.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _scale(options: SplitOptions, own: Tensor | None, chosen: Tensor | None) -> float:
    if options.overlapping:
        return 1.0
    if options.all_on or options.scale == "mean":
        return float(options.cut.experts)
    if options.scale == "sum":
        return float(options.k)
    return float(options.cut.experts) if own is None or chosen is None else fitted_scale(own, chosen)


def _error(own: Tensor, shared: Tensor, chosen: Tensor, scale: float, layer: FeedForward, held: Tensor) -> float:
    """Of the output with equal weights on the chosen experts, relative to the dense one, over the tokens ``held``."""
    made = scale * picked_mean(own[:, held], chosen[held]) + shared[held]
    target = layer.activity[held] @ layer.weights["down_proj"].float().T
    return float((made - target).norm() / target.norm().clamp(min=1e-30))


def _halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens to fit on, and tokens to measure on; the same where there are few."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if count < 2 * _HELD:
        return order, order
    return order[count // _HELD :], order[: count // _HELD]


def _only(layer: FeedForward, tokens: Tensor) -> FeedForward:
    """The layer with a part of its sample."""
    return FeedForward(layer.weights, layer.hidden, layer.layer, layer.sample()[tokens])
