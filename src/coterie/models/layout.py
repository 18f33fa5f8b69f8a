"""Which tensors on disk are experts, which are the dense rest, and whether all of both are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from coterie.errors import CheckpointError, UnsupportedError
from coterie.experts import FFNShape
from coterie.models.compat import DiskNames, Place, beside_text, ffn_shape, tied_names
from coterie.models.find import MoESite, find_sites
from coterie.models.site import ExpertSite, Stored
from coterie.models.tensors import DENSE, FLOATS
from coterie.ranges import TensorRange

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

    Tensors of which the model knows nothing (such as heads that predict further tokens) and those of its pictures
    and sounds (modules in ``beside``) are left out.
    """

    sites: tuple[ExpertSite, ...]
    dense: Mapping[str, TensorRange]
    beside: tuple[str, ...] = ()


def sort_tensors(model: Any, ranges: Mapping[str, TensorRange], where: str) -> Layout:
    """Sort ``ranges`` (names on disk) by what they are in ``model``, which may be a skeleton.

    Raises:
        CheckpointError: a tensor is missing, of the wrong shape, or of an expert the config does not have.
        UnsupportedError: a tensor is stored in a type or layout that is not served.
    """
    names, state, beside = DiskNames(model), model.state_dict(), beside_text(model)
    found = {site.name: _Found(site) for site in find_sites(model)}
    outside = tuple(f"{name}." for name in beside)
    dense: dict[str, TensorRange] = {}
    filled: dict[str, TensorRange | None] = {}
    for name, part in ranges.items():
        place = names.place(name)
        site, weight = _of_site(place.name, found)
        if site is not None and place.name in state:
            site.add(weight, place, name, part)
        elif wanted := [one for one in place.fills if one in state and not one.startswith(outside)]:
            _check_type(name, part, where, DENSE if _whole_numbers(state, wanted) else FLOATS)
            dense[name] = part
            filled |= dict.fromkeys(wanted, None if place.converted else part)
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.startswith(outside) and _of_site(name, found)[0] is None
    }
    _check_dense(model, filled, expected, where)
    return Layout(tuple(each.site(where) for each in found.values()), dense, beside)


def _of_site(name: str, found: Mapping[str, _Found]) -> tuple[_Found | None, str]:
    """The site a parameter belongs to, and its name there."""
    for depth in (1, 2):
        module, weight = ".".join(name.split(".")[:-depth]), ".".join(name.split(".")[-depth:])
        if module in found:
            return found[module], weight
    return None, name


class _Found:
    """What of one site has turned up: weight -> expert (None: stacked) -> disk name and range."""

    def __init__(self, live: MoESite) -> None:
        self.live = live
        self.weights: dict[str, dict[int | None, tuple[str, TensorRange]]] = defaultdict(dict)
        self.orders: set[str] = set()

    def add(self, weight: str, place: Place, name: str, part: TensorRange) -> None:
        if weight in _COMMON:
            self.weights[_COMMON[weight]] = dict.fromkeys(range(self.live.num_experts), (name, part))
            return
        if place.converted and place.order == "same":
            raise UnsupportedError(
                f"{name!r} is stored in a layout that Coterie does not read yet. Load and save the checkpoint with "
                "transformers, save_original_format=False."
            )
        if len(part.shape) > 1:  # a bias has no order of rows and columns
            self.orders.add(place.order)
        weight = weight if place.parts == 1 else _SPLIT[weight][place.part]
        self.weights[weight][place.expert] = (name, part)

    def site(self, where: str) -> ExpertSite:
        """Everything checked and put in order."""
        live, shape = self.live, self._shape()
        stored = {weight: self._stored(weight, size, where) for weight, size in shape.weight_shapes().items()}
        return ExpertSite(live.name, live.layer, live.num_experts, live.top_k, shape, stored)

    def _shape(self) -> FFNShape:
        experts, fused = self.live.experts, any(weight in self.weights for weight in _SPLIT)
        here = ffn_shape(experts, fused=fused)
        if "transposed" in self.orders and self._fits(turned := replace(here, transposed=not here.transposed)):
            return turned
        return replace(here, interleaved=True) if "interleaved" in self.orders else here

    def _fits(self, shape: FFNShape) -> bool:
        """Whether what is stacked has this shape: converters that transpose look before they do it."""
        return all(
            each[None][1].shape[1:] == shape.weight_shapes()[name]
            for name, each in self.weights.items()
            if None in each and name in shape.weight_shapes()
        )

    def _stored(self, weight: str, size: tuple[int, ...], where: str) -> Stored:
        found, count = self.weights.get(weight, {}), self.live.num_experts
        if None in found:
            return self._checked(found[None], (count, *size), where)
        missing = [expert for expert in range(count) if expert not in found]
        if missing:
            raise CheckpointError(
                f"{where} is incomplete: layer {self.live.layer} lacks {weight} of expert {missing[0]} "
                f"({len(missing)} of {count} experts lack it). Copy or download it again."
            )
        beyond = [expert for expert in found if expert is not None and expert >= count]
        if beyond:
            raise CheckpointError(
                f"{where} contradicts itself: layer {self.live.layer} has expert {max(beyond)}, config.json says there "
                f"are {count}. Config and weights are of different models: copy or download both again."
            )
        return tuple(self._checked(found[expert], size, where) for expert in range(count))

    def _checked(self, found: tuple[str, TensorRange], size: tuple[int, ...], where: str) -> TensorRange:
        name, part = found
        _check_type(name, part, where)
        _check_shape(name, part.shape, size, where)
        return part


def _check_dense(
    model: Any, filled: Mapping[str, TensorRange | None], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    twins: dict[str, set[str]] = defaultdict(set)
    for target, source in tied_names(model).items():
        twins[target].add(source)
        twins[source].add(target)
    missing = [name for name in expected if name not in filled and not twins[name] & filled.keys()]
    if missing:
        raise CheckpointError(
            f"{where} is incomplete: it lacks {missing[0]!r} ({len(missing)} tensors of the model are missing). "
            "Copy or download it again."
        )
    for name, part in filled.items():
        if part is not None:
            _check_shape(name, part.shape, expected[name], where)


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if found != expected:
        raise CheckpointError(
            f"{where} contradicts itself: {name!r} is {list(found)}, config.json makes it {list(expected)}. "
            "Config and weights are of different models: copy or download both again."
        )


def _whole_numbers(state: Mapping[str, Any], names: list[str]) -> bool:
    return not any(state[name].is_floating_point() for name in names)


def _check_type(name: str, part: TensorRange, where: str, allowed: Mapping[str, Any] = FLOATS) -> None:
    if part.dtype not in allowed:
        raise UnsupportedError(
            f"{where} is quantised: {name!r} is stored as {part.dtype}, which Coterie does not serve yet. Choose the "
            "checkpoint in bfloat16, float16 or float32."
        )
