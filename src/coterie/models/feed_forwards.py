"""The dense feed-forwards of a live model, found by their shape, and statistics of their channels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError, UnsupportedError
from coterie.models.channel_statistics import FFNStatistics
from coterie.models.channel_sums import FFNSums
from coterie.models.collect import SAMPLE
from coterie.models.compat import text_config
from coterie.models.items import items_of

__all__ = ["ChannelCollection", "FFNSite", "collect_channels", "find_ffns"]

TOP_FRACTION = 0.1
# attributes of attentions; one whose queries, keys and values lie in one matrix may look like a feed-forward
_NOT_FFN = ("is_causal", "head_dim", "num_heads", "num_attention_heads")


@dataclass(frozen=True, eq=False)
class FFNSite:
    """One dense feed-forward of a live model.

    Attributes:
        name: module path of the block, such as "model.layers.0.mlp".
        layer: number of the decoder layer.
        inner: F.
        ups: names of the projections that read the hidden state, in the block, as it has them.
        down: name of the projection that reads the activations.
        block: the module.
        loose: the block has more than the feed-forward: it is the decoder layer, in which its matrices lie (OPT).
    """

    name: str
    layer: int
    inner: int
    ups: tuple[str, ...]
    down: str
    block: nn.Module = field(repr=False)
    loose: bool = False


def find_ffns(model: Any) -> list[FFNSite]:
    """The dense feed-forwards of ``model`` in order of their names' appearance, on any device; empty if none is found.

    A feed-forward is a module with two or three linear maps of its own: one or two from the model's width to F (or
    one to 2F, where a gate lies in it), and one from F back. State-space mixers and attentions are none. Matrices that
    lie in a decoder layer itself are taken for one where there is none in a module of its own.
    """
    width = getattr(text_config(model.config), "hidden_size", None)
    if not isinstance(width, int):
        return []
    found = [site for name, module in model.named_modules() if (site := _ffn(name, module, width)) is not None]
    names = [site.name for site in found]
    return [site for site in found if not site.loose or not any(name.startswith(f"{site.name}.") for name in names)]


def _ffn(name: str, module: nn.Module, width: int) -> FFNSite | None:
    sizes = {child: size for child, part in module.named_children() if (size := _linear(part)) is not None}
    if len(sizes) not in (2, 3) or next(module.parameters(recurse=False), None) is not None:
        return None
    if any(isinstance(part, nn.Conv1d) for part in module.children()) or any(hasattr(module, n) for n in _NOT_FFN):
        return None
    for down, (inner, out) in reversed(sizes.items()):
        ups = {child: size for child, size in sizes.items() if child != down}
        wanted = {inner, 2 * inner} if len(ups) == 1 else {inner}
        if out == width and all(size[0] == width and size[1] in wanted for size in ups.values()):
            number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
            loose = any(child not in sizes and _has_matrix(part) for child, part in module.named_children())
            return FFNSite(name, int(number[1]) if number else 0, inner, tuple(ups), down, module, loose)
    return None


def _has_matrix(module: nn.Module) -> bool:
    return any(tensor.dim() > 1 for tensor in module.parameters())


def _linear(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear map; transformers' Conv1D is one too."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":
        weight: Any = module.weight
        return int(weight.shape[0]), int(weight.shape[1])
    return None


class ChannelCollection:
    """What `collect_channels` has heard. Filled by one thread.

    Attributes:
        domain: of the text that is read now; empty where it has none. May be set between forwards.
        sites: name -> sums.
    """

    def __init__(self, sites: list[FFNSite], top_fraction: float, sample: int, seed: int) -> None:
        self.domain = ""
        self.sites = {
            site.name: FFNSums(site.name, site.layer, site.inner, top_fraction, sample) for site in sites
        }  # fmt: skip
        self._draw = torch.Generator().manual_seed(seed)
        self._mask, self._priority = torch.empty(0, dtype=torch.bool), torch.empty(0)
        self._inputs: dict[str, Tensor] = {}

    @property
    def mask(self) -> Tensor:
        """[T] bool: which tokens of the forward are real."""
        return self._mask

    def statistics(self) -> dict[str, FFNStatistics]:
        """Everything heard, by site.

        Raises:
            OptionError: nothing was heard.
            CheckpointError: the model computes NaN.
        """
        if not len(self._mask):
            raise OptionError("Nothing was heard: call the model inside collect_channels.")
        return {name: sums.frozen() for name, sums in self.sites.items()}

    def _begin(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask = items_of(body, args, kwargs).mask.cpu()
        self._priority = torch.rand(len(self._mask), generator=self._draw)

    def _read(self, site: FFNSite) -> Callable[..., None]:
        def listen(up: nn.Module, args: tuple[Any, ...]) -> None:
            self._inputs[site.name] = args[0].detach().reshape(-1, args[0].shape[-1])

        return listen

    def _activated(self, site: FFNSite) -> Callable[..., None]:
        def listen(down: nn.Module, args: tuple[Any, ...]) -> None:
            hidden = args[0].detach().reshape(-1, args[0].shape[-1])
            inputs, real = self._inputs.pop(site.name), self._mask.to(hidden.device)
            self.sites[site.name].add_activations(
                self.domain, hidden[real], inputs[real], self._priority[self._mask]
            )  # fmt: skip

        return listen


@contextmanager
def collect_channels(
    model: Any, *, top_fraction: float = TOP_FRACTION, sample: int = SAMPLE, seed: int = 0
) -> Iterator[ChannelCollection]:
    """Add up what the channels of dense feed-forwards do in every forward of ``model`` inside the ``with``.

    Padding (by the attention mask) is left out; nothing is computed twice, and nothing stays behind. One thread.

    Args:
        model: a live transformers model; it is called itself, not its body.
        top_fraction: of a layer's channels that count as active in a token.
        sample: hidden states of each layer that are kept.
        seed: of the choice of that sample.

    Raises:
        OptionError: a sample below one, or a fraction that is not above 0 and up to 1.
        UnsupportedError: the model has no feed-forward that can be recognised.
    """
    if sample < 1 or not 0 < top_fraction <= 1:
        raise OptionError(
            f"sample must be 1 or more and top_fraction above 0 and up to 1, not {sample} and {top_fraction}."
        )
    found = find_ffns(model)
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} has no feed-forward that can be recognised (two or three linear maps, up and down "
            "again), so its channels cannot be counted."
        )
    collection = ChannelCollection(found, top_fraction, sample, seed)
    handles = [model.register_forward_pre_hook(collection._begin, with_kwargs=True)]
    for site in found:
        handles.append(site.block.get_submodule(site.ups[0]).register_forward_pre_hook(collection._read(site)))
        handles.append(site.block.get_submodule(site.down).register_forward_pre_hook(collection._activated(site)))
    try:
        yield collection
    finally:
        for handle in handles:
            handle.remove()
