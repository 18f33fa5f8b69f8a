"""Which tensors on disk are experts, which are the dense rest, and whether all of both are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.errors import CheckpointError, UnsupportedError
from coterie.models.compat import DiskNames, ffn_shape, tied_names
from coterie.models.find import MoESite, find_sites
from coterie.models.site import ExpertSite, Stored
from coterie.models.tensors import FLOATS
from coterie.ranges import TensorRange

# a parameter in memory -> the weights whose matrices lie in it below each other
_SPLIT = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "gate_up_proj_bias": ("gate_proj_bias", "up_proj_bias"),
}


@dataclass(frozen=True)
class Layout:
    """The checkpoint sorted: expert sites in layer order, and disk name -> range of what else the model has.

    Tensors of which the model knows nothing (such as heads that predict further tokens) are left out.
    """

    sites: tuple[ExpertSite, ...]
    dense: Mapping[str, TensorRange]


def sort_tensors(model: Any, ranges: Mapping[str, TensorRange], where: str) -> Layout:
    """Sort ``ranges`` (names on disk) by what they are in ``model``, which may be a skeleton.

    Raises:
        CheckpointError: a tensor is missing, of the wrong shape, or of an expert the config does not have.
        UnsupportedError: a tensor is stored in a type or layout that is not served.
    """
    names, state = DiskNames(model), model.state_dict()
    found = {site.name: _Found(site) for site in find_sites(model)}
    dense: dict[str, TensorRange] = {}
    filled: dict[str, TensorRange] = {}
    for name, part in ranges.items():
        place = names.place(name)
        if place.name not in state:
            continue
        module, _, weight = place.name.rpartition(".")
        if module in found:
            weight = weight if place.parts == 1 else _SPLIT[weight][place.part]
            found[module].add(weight, place.expert, name, part)
        else:
            _check_type(name, part, where)
            dense[name] = filled[place.name] = part
    expected = {name: tuple(t.shape) for name, t in state.items() if name.rpartition(".")[0] not in found}
    _check_dense(model, filled, expected, where)
    return Layout(tuple(each.site(where) for each in found.values()), dense)


class _Found:
    """What of one site has turned up: weight -> expert (None: stacked) -> disk name and range."""

    def __init__(self, live: MoESite) -> None:
        self.live = live
        self.weights: dict[str, dict[int | None, tuple[str, TensorRange]]] = defaultdict(dict)

    def add(self, weight: str, expert: int | None, name: str, part: TensorRange) -> None:
        self.weights[weight][expert] = (name, part)

    def site(self, where: str) -> ExpertSite:
        """Everything checked and put in order."""
        fused = any(weight in self.weights for weight in _SPLIT)
        shape = ffn_shape(self.live.experts, fused=fused)
        stored = {weight: self._stored(weight, size, where) for weight, size in shape.weight_shapes().items()}
        return ExpertSite(self.live.name, self.live.layer, self.live.num_experts, self.live.top_k, shape, stored)

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
    model: Any, filled: Mapping[str, TensorRange], expected: Mapping[str, tuple[int, ...]], where: str
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
        _check_shape(name, part.shape, expected[name], where)


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if found != expected:
        raise CheckpointError(
            f"{where} contradicts itself: {name!r} is {list(found)}, config.json makes it {list(expected)}. "
            "Config and weights are of different models: copy or download both again."
        )


def _check_type(name: str, part: TensorRange, where: str) -> None:
    if part.dtype not in FLOATS:
        raise UnsupportedError(
            f"{where} is quantised: {name!r} is stored as {part.dtype}, which Coterie does not serve yet. Choose the "
            "checkpoint in bfloat16, float16 or float32."
        )
