"""Which inner channels of a dense feed-forward each expert gets: the index lists, and the file they are kept in.

The lists are the artefact of a split. With them and the dense model, any expert can be had by hiding the other
channels (`coterie.surgery.masked`), without a second copy of anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, OptionError

__all__ = ["Channels", "LayerChannels"]

_SHARED, _OWN = "shared", "own"
_FORMAT = "coterie channels 1"


@dataclass(frozen=True, eq=False)
class LayerChannels:
    """The channels of one layer. Expert e computes with ``shared`` and ``own[e]`` together.

    Attributes:
        shared: [P] int64, ascending: channels that every item passes.
        own: [E, m] int64, each row ascending: what expert e has beside them.
        inner: F, of the dense layer.

    Raises:
        OptionError: a channel that the layer does not have, or that an expert has twice.
    """

    shared: Tensor
    own: Tensor
    inner: int

    def __post_init__(self) -> None:
        if self.own.dim() != 2 or self.shared.dim() != 1 or not len(self.own):
            raise OptionError(
                f"Channels of a layer are shared [P] and own [E, m], found {list(self.shared.shape)} and "
                f"{list(self.own.shape)}."
            )
        for expert in range(self.num_experts):
            taken = self.of(expert)
            if taken.numel() and not 0 <= int(taken.min()) <= int(taken.max()) < self.inner:
                raise OptionError(f"Expert {expert} has a channel that is not in 0 to {self.inner - 1}.")
            if len(taken.unique()) != len(taken):
                raise OptionError(f"Expert {expert} has a channel twice: its own and the shared ones overlap.")

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.own)

    def of(self, expert: int) -> Tensor:
        """[P + m] int64, ascending: all channels that ``expert`` computes with."""
        return torch.cat([self.shared, self.own[expert]]).sort().values

    @property
    def disjoint(self) -> bool:
        """Whether no two experts own the same channel."""
        return len(self.own.unique()) == self.own.numel()

    @property
    def whole(self) -> bool:
        """Whether every channel belongs to exactly one expert, or to all: then all of them are the dense layer."""
        everyone = torch.cat([self.shared, self.own.flatten()]).sort().values
        return torch.equal(everyone, torch.arange(self.inner))

    @property
    def union(self) -> int:
        """How many of the channels any expert has."""
        return len(torch.cat([self.shared, self.own.flatten()]).unique())

    def overlaps(self) -> Tensor:
        """[E, E] float32: the share of expert i's channels that expert j has too."""
        hot = torch.zeros(self.num_experts, self.inner)
        for expert in range(self.num_experts):
            hot[expert, self.of(expert)] = 1
        return hot @ hot.T / hot.sum(1).clamp(min=1)[:, None]

    def fused(self) -> LayerChannels:
        """The same experts without shared channels: each carries them itself."""
        own = torch.stack([self.of(expert) for expert in range(self.num_experts)])
        return LayerChannels(self.shared[:0], own, self.inner)

    def as_record(self) -> dict[str, Any]:
        """How large the parts are, for reports."""
        overlaps = self.overlaps()
        others = ~torch.eye(self.num_experts, dtype=torch.bool)
        overlap = float(overlaps[others].mean()) if self.num_experts > 1 else 1.0
        return {
            "inner": self.inner, "shared": len(self.shared), "own": self.own.shape[1], "union": self.union,
            "overlap": overlap,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of every layer of a model that was cut.

    Attributes:
        layers: module path of the dense feed-forward, such as "model.layers.0.mlp" -> its channels.
        about: how they were chosen: method, seed, domains, ``model`` (its fingerprint); words, numbers, lists.
    """

    layers: Mapping[str, LayerChannels]
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file of indices. Blocks."""
        from safetensors.torch import save_file

        tensors, inner = {}, {}
        for name, layer in self.layers.items():
            tensors[f"{name}.{_SHARED}"] = layer.shared.to(torch.int32).contiguous()
            tensors[f"{name}.{_OWN}"] = layer.own.to(torch.int32).contiguous()
            inner[name] = layer.inner
        metadata = {"format": _FORMAT, "about": json.dumps(dict(self.about)), "inner": json.dumps(inner)}
        save_file(tensors, str(path), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Channels:
        """What `save` wrote. Blocks.

        Raises:
            CheckpointError: there is no such file, or it is of another kind or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise CheckpointError(f"{path} is no file of channels. coterie split makes one.")
                tensors = {name: file.get_tensor(name).long() for name in file.keys()}  # noqa: SIM118
            inner = json.loads(metadata["inner"])
            layers = {
                name: LayerChannels(tensors[f"{name}.{_SHARED}"], tensors[f"{name}.{_OWN}"], each)
                for name, each in inner.items()
            }
            return cls(layers, json.loads(metadata["about"]))
        except (OSError, SafetensorError, ValueError, KeyError, OptionError) as error:
            raise CheckpointError(f"{path} cannot be read as channels: {error}. Copy it again.") from error
