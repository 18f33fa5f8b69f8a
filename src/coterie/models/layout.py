"""Which tensors on disk are experts, which are the dense rest, and whether all of both are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from coterie.errors import CheckpointError, UnsupportedError
from coterie.experts import ExpertKind, FFNShape, Part, Storage, method_of, split_name
from coterie.experts.encoding import Plain, Turned
from coterie.models.compat import DiskNames, Place, beside_text, ffn_shape, tied_names
from coterie.models.dense import Dense, Encoded, check_shape, check_type
from coterie.models.find import MoESite, find_sites
from coterie.models.requests import most_experts
from coterie.models.site import ExpertSite, Stored
from coterie.models.tensors import FLOATS
from coterie.ranges import TensorRange

KIND_PREFIX = "coterie."
"""Begins the names on disk of tensors of experts that are no plain feed-forward experts."""

# a parameter in memory -> the weights whose matrices lie in it below each other
_SPLIT = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "gate_up_proj_bias": ("gate_proj_bias", "up_proj_bias"),
}
# a module of the experts that all of a layer's experts pass -> the name its weight has as one expert's
_COMMON = {"post_expert_norm.weight": "post_norm"}


@dataclass(frozen=True)
class Layout:
    """The checkpoint sorted: expert sites in order, and disk name -> range of what else the text side has.

    Of that, ``encoded`` says how several tensors make one weight, by the weight's name.

    Tensors of which the model knows nothing (such as heads that predict further tokens) and those of its pictures
    and sounds (modules in ``beside``) are left out.
    """

    sites: tuple[ExpertSite, ...]
    dense: Mapping[str, TensorRange]
    encoded: Mapping[str, Encoded]
    beside: tuple[str, ...] = ()


def sort_tensors(
    model: Any, ranges: Mapping[str, TensorRange], where: str, quantization: Mapping[str, Any] | None = None
) -> Layout:
    """Sort ``ranges`` (names on disk) by what they are in ``model``, which may be a skeleton.

    Args:
        quantization: ``quantization_config`` of config.json.

    Raises:
        CheckpointError: a tensor is missing, of the wrong shape, or of an expert the config does not have.
        UnsupportedError: a tensor is stored in a type or layout that is not served.
    """
    names, state, beside = DiskNames(model), model.state_dict(), beside_text(model)
    method = method_of(quantization, where)
    found = {site.name: _Found(site) for site in find_sites(model)}
    outside = tuple(f"{name}." for name in beside)
    dense = Dense(state, outside, quantization, where)
    for name, part in ranges.items():
        if name.startswith(KIND_PREFIX):
            _add_kind(name, part, found, where)
            continue
        place, base, role = names.place(name), name, ""
        if method is not None and not set(place.fills) & state.keys():
            base, role = split_name(name, method)
            place = names.place(base)
        site, weight = _of_site(place.name, found)
        if site is not None and place.name in state:
            site.add(weight, role, place, name, part)
        else:
            dense.add(base, role, place, name, part)
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.startswith(outside) and _of_site(name, found)[0] is None
    }
    dense.check(expected, tied_names(model))
    sites = tuple(each.site(where, quantization, model.dtype) for each in found.values())
    return Layout(sites, dense.ranges, dense.encoded, beside)


def _of_site(name: str, found: Mapping[str, _Found]) -> tuple[_Found | None, str]:
    """The site a parameter belongs to, and its name there."""
    for depth in (1, 2, 3):
        module, weight = ".".join(name.split(".")[:-depth]), ".".join(name.split(".")[-depth:])
        if module in found and found[module].has(weight):
            return found[module], weight
    return None, name


def _add_kind(name: str, part: TensorRange, found: Mapping[str, _Found], where: str) -> None:
    """A tensor of experts of a kind, by the name `kind_name` gives it."""
    number, expert, weight = [*name.removeprefix(KIND_PREFIX).split(".", 2), "", ""][:3]
    if not (number + expert).isdecimal() or int(number) >= len(found):
        raise CheckpointError(f"{where} has {name!r}, which is no expert of its model. Copy or download it again.")
    list(found.values())[int(number)].each[int(expert)][weight] = part


def kind_name(site: int, expert: int, part: str) -> str:
    """Name on disk of a part of an expert of a kind: the site by its number, since families rename module paths."""
    return f"{KIND_PREFIX}{site}.{expert}.{part}"


class _Found:
    """What of one site has turned up: part -> expert (None: stacked) -> disk name and range."""

    def __init__(self, live: MoESite) -> None:
        self.live = live
        self.parts: dict[str, dict[int | None, tuple[str, TensorRange]]] = defaultdict(dict)
        self.each: dict[int, dict[str, TensorRange]] = defaultdict(dict)
        self.orders: set[str] = set()
        self.fused = self.encoded = False

    def has(self, name: str) -> bool:
        """Whether a parameter in the experts module is of experts."""
        own = self.live.own
        return name.count(".") < 2 if own is None else own.find(name) is not None

    def add(self, weight: str, role: str, place: Place, name: str, part: TensorRange) -> None:
        if weight in _COMMON:
            self.parts[_COMMON[weight]] = dict.fromkeys(range(self.live.num_stored), (name, part))
            return
        if place.converted and place.order == "same":
            raise UnsupportedError(
                f"{name!r} is stored in a layout that Coterie does not read yet. Load and save the checkpoint with "
                "transformers, save_original_format=False."
            )
        if len(part.shape) > 1:  # a bias has no order of rows and columns
            self.orders.add(place.order)
        weight = weight if place.parts == 1 else _SPLIT[weight][place.part]
        self.fused |= weight in _SPLIT
        self.encoded |= role != ""
        expert = place.expert
        if (own := self.live.own) is not None:
            spares = own.spares(self.live.experts)
            weight, number = own.find(weight) or (weight, None)
            expert = number if expert is None else expert
            if expert is None:
                part = own.stacked(part, self.live.num_stored, spares)
            elif self.live.num_experts <= expert < self.live.num_experts + spares:
                return
        self.parts[weight + role][expert] = (name, part)

    def site(self, where: str, quantization: Mapping[str, Any] | None, compute: torch.dtype) -> ExpertSite:
        """Everything checked and put in order."""
        live = self.live
        kind: ExpertKind | None = getattr(live.experts, "kind", None)
        storage = self._storage(where, quantization) if kind is None else Storage(kind.shape, {})
        stored = {name: self._stored(name, part, where) for name, part in storage.parts().items()}
        each = () if kind is None else self._each(kind, where)
        dtype = compute if storage.quantised or kind is not None else FLOATS[storage.parts()["down_proj"].dtype]
        if not 0 < live.top_k <= live.num_experts:
            raise CheckpointError(
                f"{where} contradicts itself: config.json sends a token to {live.top_k} of {live.num_experts} experts. "
                "Copy config.json again."
            )
        router = getattr(live.gate, "inner", None)
        most = 0 if router is None else most_experts(router, live.top_k)
        names = {name: self._names(name) for name in storage.parts()}
        return ExpertSite(
            live.name, live.layer, live.num_stored, min(live.top_k, live.num_stored), storage, stored, dtype, most,
            names, live.num_experts, live.experts_of, kind, each,
        )  # fmt: skip

    def _names(self, name: str) -> str | tuple[str, ...]:
        """What a part is called on disk: its stack, or each expert's tensor."""
        found = self.parts[name]
        return found[None][0] if None in found else tuple(found[e][0] for e in range(self.live.num_stored))

    def _each(self, kind: ExpertKind, where: str) -> tuple[Mapping[str, TensorRange], ...]:
        """The parts of every expert of a kind."""
        each = []
        for expert in range(self.live.num_stored):
            found = self.each.get(expert, {})
            for name, wanted in kind.parts(expert).items():
                if name not in found:
                    raise CheckpointError(
                        f"{where} is incomplete: layer {self.live.layer} lacks {name} of expert {expert}. Copy or "
                        "download it again."
                    )
                if Part(found[name].dtype, found[name].shape) != wanted:
                    raise CheckpointError(
                        f"{where} contradicts itself: {name} of expert {expert} in layer {self.live.layer} is "
                        f"{found[name].dtype} {list(found[name].shape)}, coterie.json makes it {wanted.dtype} "
                        f"{list(wanted.shape)}. Copy both again."
                    )
            each.append({name: found[name] for name in kind.parts(expert)})
        return tuple(each)

    def _storage(self, where: str, quantization: Mapping[str, Any] | None) -> Storage:
        shape, first = self._shape(), {}
        for name, each in self.parts.items():
            if (found := each.get(None) or each.get(0)) is not None:
                _, part = found
                first[name] = Part(part.dtype, part.shape[1:] if None in each else part.shape)
        turned = frozenset() if self.live.own is None else self.live.own.turned
        if self.encoded and turned:
            raise UnsupportedError(
                f"{where} is quantised, and its family keeps some matrices turned, which is not served together. "
                "Choose the checkpoint in bfloat16, float16 or float32."
            )
        if self.encoded:
            return Storage.of(quantization, shape, first, f"{where}: layer {self.live.layer}")
        plain = {
            name: (Turned if name in turned else Plain)(size, self._float(name, first, where))
            for name, size in shape.weight_shapes().items()
        }
        return Storage(shape, plain)

    def _float(self, weight: str, first: Mapping[str, Part], where: str) -> str:
        """The type of a weight that is not quantised; one that is missing is reported with its expert."""
        if weight not in first:
            return "BF16"
        name, part = next(iter(self.parts[weight].values()))
        check_type(name, part, where)
        return first[weight].dtype

    def _shape(self) -> FFNShape:
        here = ffn_shape(self.live.experts, fused=self.fused)
        if "transposed" in self.orders and self._fits(turned := replace(here, transposed=not here.transposed)):
            return turned
        return replace(here, interleaved=True) if "interleaved" in self.orders else here

    def _fits(self, shape: FFNShape) -> bool:
        """Whether what is stacked has this shape: converters that transpose look before they do it."""
        return all(
            each[None][1].shape[1:] == shape.weight_shapes()[name]
            for name, each in self.parts.items()
            if None in each and name in shape.weight_shapes()
        )

    def _stored(self, name: str, wanted: Part, where: str) -> Stored:
        found, count = self.parts.get(name, {}), self.live.num_stored
        if None in found:
            return _checked(found[None], Part(wanted.dtype, (count, *wanted.shape)), where)
        missing = [expert for expert in range(count) if expert not in found]
        if missing:
            raise CheckpointError(
                f"{where} is incomplete: layer {self.live.layer} lacks {name} of expert {missing[0]} "
                f"({len(missing)} of {count} experts lack it). Copy or download it again."
            )
        beyond = [expert for expert in found if expert is not None and expert >= count]
        if beyond:
            raise CheckpointError(
                f"{where} contradicts itself: layer {self.live.layer} has expert {max(beyond)}, config.json says there "
                f"are {count}. Config and weights are of different models: copy or download both again."
            )
        return tuple(_checked(found[expert], wanted, where) for expert in range(count))


def _checked(found: tuple[str, TensorRange], wanted: Part, where: str) -> TensorRange:
    name, part = found
    if part.dtype != wanted.dtype:
        check_type(name, part, where)
        raise UnsupportedError(
            f"{where}: {name!r} is stored as {part.dtype}, the same weight of other experts as {wanted.dtype}. Load "
            "and save the checkpoint with transformers in one dtype."
        )
    check_shape(name, part.shape, wanted.shape, where)
    return part
