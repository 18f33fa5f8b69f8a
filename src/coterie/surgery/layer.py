"""One layer's experts in one form, whatever the disk has: what every edit takes, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from coterie.errors import CheckpointError, OptionError
from coterie.experts import ExpertKind, FFNShape
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.tensors import read_tensor
from coterie.surgery.finite import is_finite
from coterie.surgery.orientation import canonical_shape
from coterie.surgery.pages import empty
from coterie.surgery.reading import ExpertReader
from coterie.surgery.routing_tensors import RouterTensor, router_tensors

__all__ = ["LayerExperts", "NewLayer", "read_layer"]


@dataclass(frozen=True, eq=False)
class LayerExperts:
    """The experts of one layer and the rows of their gate, read from a checkpoint.

    Attributes:
        site: where they lie; ``site.layer`` is the layer's number, ``site.top_k`` the choices per item.
        weights: up_proj [E, F, D], down_proj [E, D, F], gate_proj [E, F, D] where they are gated; up_proj_bias and
            gate_proj_bias [E, F], down_proj_bias [E, D] where there are biases. Floats in ``site.dtype``; memory of
            the caller's own.
        router: weight [R, D]; bias [R] (on the logits), correction [R] (for the choice alone), scale [R] (on the
            weights) where the family has them; others by their own names. R is E but where routes share experts.
        shape: of one expert, in this orientation.
        experts_of: expert of each route, where several routes lead to one expert; None: route r is expert r.
        kept: what the gate has that no edit may change the rows of, by name; empty where rows may come and go.
    """

    site: ExpertSite
    weights: Mapping[str, Tensor]
    router: Mapping[str, Tensor]
    shape: FFNShape
    experts_of: tuple[int, ...] | None = None
    kept: str = ""

    @property
    def num_experts(self) -> int:
        """E."""
        return self.site.num_experts

    @property
    def num_routes(self) -> int:
        """R."""
        return self.site.num_routes

    def expert(self, number: int) -> dict[str, Tensor]:
        """Views of one expert's weights."""
        return {name: weight[number] for name, weight in self.weights.items()}

    def unchanged(self) -> NewLayer:
        """This layer as the result of an edit that does nothing."""
        return NewLayer(self.weights, self.router, self.experts_of)


@dataclass(frozen=True, eq=False)
class NewLayer:
    """What a layer becomes.

    Attributes:
        weights: named and oriented as in `LayerExperts`, [E', ...]; F may differ from before, alike for all. Cast to
            the dtype of the checkpoint when they are written. Empty where there is a ``kind``.
        router: rows as they shall be stored, [R', ...]; the names of `LayerExperts.router`.
        experts_of: expert of each of the R' routes; None: route r is expert r, and R' is E'.
        about: numbers and words of this layer for the report, as JSON can hold them.
        kind: what the experts are, where they are no plain feed-forward experts.
        parts: of a ``kind``, every expert's tensors, by the names of `coterie.experts.ExpertKind.parts`.
    """

    weights: Mapping[str, Tensor]
    router: Mapping[str, Tensor]
    experts_of: tuple[int, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    kind: ExpertKind | None = None
    parts: Sequence[Mapping[str, Tensor]] = ()

    @property
    def num_experts(self) -> int:
        """E'."""
        return self.kind.num_experts if self.kind is not None else self.weights["down_proj"].shape[0]

    @property
    def num_routes(self) -> int:
        """R'."""
        if self.experts_of is not None:
            return len(self.experts_of)
        return self.num_experts

    @property
    def inner(self) -> int:
        """F'."""
        return self.kind.shape.inner if self.kind is not None else self.weights["down_proj"].shape[2]

    @property
    def aliased(self) -> bool:
        """Whether some expert has several routes, or another number than its route."""
        return self.experts_of is not None and self.experts_of != tuple(range(self.num_experts))

    def checked(self, layer: LayerExperts) -> NewLayer:
        """This, if it can take the place of ``layer``.

        Raises:
            OptionError: a tensor is missing, of another shape than the others say, not finite, or rows of the gate do
                not fit the experts.
        """
        where = f"layer {layer.site.layer}"
        if self.kind is None:
            _check_weights(self, layer, where)
        elif len(self.parts) != self.kind.num_experts:
            raise OptionError(f"{where}: {self.kind.num_experts} experts were said, {len(self.parts)} were given.")
        _check_routes(self, layer, where)
        return self


def read_layer(checkpoint: Checkpoint, site: ExpertSite) -> LayerExperts:
    """Read one layer into memory of its own, as floats where it is stored in another way. Blocks; thread-safe.

    Raises:
        CheckpointError: a file is gone or truncated, or a tensor holds NaN or infinity; says which.
    """
    tensors = router_tensors(checkpoint)[site.name]
    router = {tensor.role: _read_router(checkpoint, tensor) for tensor in tensors if tensor.rows}
    kept = "" if "weight" in router else next((tensor.disk for tensor in tensors if not tensor.rows), "its gate")
    shape = canonical_shape(site.shape)
    if site.shape.post_norm:
        shape = replace(shape, post_norm=True)
    return LayerExperts(site, _read_weights(checkpoint, site), router, shape, site.experts_of, kept)


def _read_weights(checkpoint: Checkpoint, site: ExpertSite) -> dict[str, Tensor]:
    stacks: dict[str, Tensor] = {}
    reader = ExpertReader(site)
    for expert in range(site.num_experts):
        if expert and reader.plain:
            reader.into(expert, {name: stack[expert] for name, stack in stacks.items()})
            continue
        for name, weight in reader.weights(reader.parts(expert)).items():
            if name not in stacks:
                stacks[name] = empty((site.num_experts, *weight.shape), site.dtype)
            stacks[name][expert] = weight
    for name, stack in stacks.items():
        if not is_finite(stack):
            expert = next(number for number, weight in enumerate(stack) if not is_finite(weight))
            raise CheckpointError(
                f"{checkpoint.path}: {_disk_name(site, expert, name)} holds NaN or infinity (layer {site.layer}, "
                f"expert {expert}, {name}). Nothing can be made of it: copy or download the checkpoint again."
            )
    return stacks


def _disk_name(site: ExpertSite, expert: int, weight: str) -> str:
    """What the tensor is called on disk that an expert's ``weight`` was read from."""
    fused = weight.replace("gate_proj", "gate_up_proj").replace("up_proj", "gate_up_proj")
    parts = sorted(site.names, key=lambda part: (not part.startswith(weight), not part.startswith(fused)))
    names = site.names[parts[0]] if parts else site.name
    return repr(names if isinstance(names, str) else names[expert])


def _read_router(checkpoint: Checkpoint, tensor: RouterTensor) -> Tensor:
    encoded = checkpoint.encoded.get(tensor.disk)
    read = encoded.read() if encoded is not None else read_tensor(checkpoint.ranges[tensor.disk])
    if not is_finite(read):
        raise CheckpointError(
            f"{checkpoint.path}: {tensor.disk!r} holds NaN or infinity. Copy or download the checkpoint again."
        )
    return read.reshape(tensor.shape)


def _check_weights(new: NewLayer, layer: LayerExperts, where: str) -> None:
    if new.weights.keys() != layer.weights.keys():
        raise OptionError(f"{where}: an expert has {sorted(layer.weights)}, the new ones {sorted(new.weights)}.")
    shape = replace(layer.shape, inner=new.inner, post_norm=False)
    for name, size in shape.weight_shapes().items():
        found = tuple(new.weights[name].shape)
        if found != (new.num_experts, *size):
            raise OptionError(f"{where}: {name} must be {[new.num_experts, *size]}, found {list(found)}.")
        if not is_finite(new.weights[name]):
            raise OptionError(f"{where}: the new {name} holds NaN or infinity. Nothing is written.")


def _check_routes(new: NewLayer, layer: LayerExperts, where: str) -> None:
    if new.router.keys() != layer.router.keys():
        raise OptionError(f"{where}: the gate has {sorted(layer.router)}, the new one {sorted(new.router)}.")
    if new.experts_of is not None and set(new.experts_of) != set(range(new.num_experts)):
        raise OptionError(
            f"{where}: every one of the {new.num_experts} experts needs a route, and every route one of them; the map "
            f"is {list(new.experts_of)}."
        )
    rows = {name: tensor.shape[0] for name, tensor in new.router.items()}
    wrong = {name: count for name, count in rows.items() if count != new.num_routes}
    if wrong:
        raise OptionError(f"{where}: the gate must have {new.num_routes} rows, found {wrong}.")
    if layer.kept and new.num_routes != layer.num_routes:
        raise OptionError(
            f"{where}: the gate has {layer.kept!r}, whose rows cannot be chosen by expert: it must keep its "
            f"{layer.num_routes} routes. Merge with an expert map instead (container alias)."
        )
