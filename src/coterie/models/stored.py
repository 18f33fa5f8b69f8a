"""coterie.json: what a saved model has that plain transformers cannot express."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coterie import __version__
from coterie.errors import CheckpointError, OptionError
from coterie.models.compat import BASE, MODEL_TYPE, family_config_class, no_base
from coterie.models.shards import read_json
from coterie.models.stored_experts import SiteExperts, field_of
from coterie.models.stored_mixture import StoredMixture
from coterie.routers import PRESETS, SiteShape, build_routers

FILE, FORMAT = "coterie.json", 3

Curves = Mapping[str, Any]


@dataclass(frozen=True)
class RouterSpec:
    """A router preset by name, with its options: the same value in a recipe, in a call, and in coterie.json.

    Attributes:
        name: of a preset in `coterie.routers.PRESETS`.
        options: its own arguments; numbers, words and booleans.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"


@dataclass(frozen=True)
class Stored:
    """What coterie.json says, besides its format and who wrote it.

    Attributes:
        router: with all options in full, so that loading needs to know nothing of the model it was made from; None
            where the family's own gates decide.
        curves: option -> [[value, measure], ...], as measured; ``measure`` names the unit.
        base: how the gates of the model decided before, as `coterie.models.RouterFacts` has it.
        experts: module path of the experts -> what they are; empty where config.json says it.
        method: how the model was made of another, for people.
        mixture: what stands in the place of a dense family's feed-forwards; None where the family has its own.
    """

    router: RouterSpec | None
    curves: Curves = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, SiteExperts] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    mixture: StoredMixture | None = None

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        router = None if self.router is None else {"name": self.router.name, "options": dict(self.router.options)}
        record = {
            "format": 1, "coterie": __version__, "router": router, "curves": dict(self.curves), "base": dict(self.base)
        }  # fmt: skip
        if self.experts:
            experts = {site: each.as_record() for site, each in self.experts.items()}
            record |= {"format": 2, "experts": experts, "method": dict(self.method)}
        if self.mixture is not None:
            record |= {"format": FORMAT, "mixture": self.mixture.as_record(), "method": dict(self.method)}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Stored:
        """What `as_record` made, checked.

        Raises:
            CheckpointError: of a newer format, a field is missing or of another kind, or a router that is not known.
        """
        _check_format(record.get("format"), str(record.get("coterie", "another version")), where)
        experts = {
            str(site): SiteExperts.from_record(each, f"{where}: {site}")
            for site, each in (field_of(record, "experts", dict, where) if "experts" in record else {}).items()
        }
        method = record.get("method") if isinstance(record.get("method"), dict) else {}
        mixture, router = None, None
        if "mixture" in record:
            mixture = StoredMixture.from_record(field_of(record, "mixture", dict, where), where)
        if record.get("router") is not None or not (experts or mixture):
            router = field_of(record, "router", dict, where)
        spec = None if router is None else RouterSpec(
            field_of(router, "name", str, where), field_of(router, "options", dict, where)
        )  # fmt: skip
        curves, base = field_of(record, "curves", dict, where), field_of(record, "base", dict, where)
        if spec is not None and spec.name not in PRESETS:
            raise CheckpointError(
                f"{where} routes by {spec.name!r}, which Coterie {__version__} does not know; it has: "
                f"{', '.join(PRESETS)}. Type: pip install -U coterie"
            )
        try:
            check_curves(curves)
        except OptionError as error:
            raise CheckpointError(f"{where}: {error} Measure them again, or delete them from the file.") from error
        return cls(spec, curves, base, experts, method or {}, mixture)


def is_routed(config: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is of a model with routers of ours."""
    return config.get("model_type") == MODEL_TYPE


def as_base(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A parsed config.json as that of the family it is based on; others as they are.

    Raises:
        CheckpointError: it does not say which family, or one that is none.
    """
    if not is_routed(config):
        return config
    base = config.get(BASE)
    if not isinstance(base, str) or family_config_class(base) is None:
        raise CheckpointError(f"{where}: {no_base(base)}")
    return {**config, "model_type": base}


def read_stored(path: Path) -> Stored:
    """coterie.json of the directory ``path``.

    Raises:
        CheckpointError: there is none, or it is not valid.
    """
    file = path / FILE
    if not file.is_file():
        raise CheckpointError(
            f"{path} lacks {FILE}, which says how its model routes. Copy it from where the model was saved."
        )
    return Stored.from_record(read_json(file), str(file))


def write_stored(path: Path, stored: Stored) -> None:
    """Write coterie.json into the directory ``path``."""
    text = json.dumps(stored.as_record(), indent=2, default=_plain) + "\n"
    (path / FILE).write_text(text, encoding="utf-8")


def routers_for(spec: RouterSpec, sites: list[SiteShape], where: str, gate: nn.Module) -> list[Any]:
    """`coterie.routers.build_routers` for a saved model, where ``gate`` is: on the meta device nothing is drawn.

    Router tensors are float32 whatever the model is loaded in: they are few, and choices hang on them.

    Raises:
        CheckpointError: an option is not known here, or does not fit the model.
    """
    device = next((tensor.device for tensor in gate.state_dict().values()), torch.device("cpu"))
    try:
        # some read what they have drawn, which nobody can on the meta device
        with torch.random.fork_rng(devices=[], enabled=device.type == "meta"), torch.device("cpu"), _float32():
            return [router.to(device) for router in build_routers(spec.name, sites, spec.options)]
    except (OptionError, TypeError) as error:
        raise CheckpointError(f"{where} describes a router that cannot be built: {error}") from error


@contextmanager
def _float32() -> Iterator[None]:
    """What is made inside has this dtype: transformers makes models with that of their config as the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_curves(curves: Curves) -> None:
    """Whether curves are such as `Stored` has them.

    Raises:
        OptionError: they are not; says what they should be.
    """
    for name, points in curves.items():
        if name == "measure" and isinstance(points, str):
            continue
        if not isinstance(points, list | tuple) or not all(map(_is_point, points)):
            raise OptionError(f"the curve {name!r} must be pairs of numbers, such as [[1, 2.31], [2, 2.11]].")


def _is_point(point: Any) -> bool:
    return isinstance(point, list | tuple) and len(point) == 2 and all(isinstance(x, int | float) for x in point)


def _check_format(found: Any, writer: str, where: str) -> None:
    if not isinstance(found, int) or isinstance(found, bool):
        raise CheckpointError(f"{where} does not say its format. Copy it again from where the model was saved.")
    if found > FORMAT:
        raise CheckpointError(
            f"{where} has format {found}, written by Coterie {writer}; Coterie {__version__} reads up to {FORMAT}. "
            "Type: pip install -U coterie"
        )


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise OptionError(f"{value!r} cannot be stored in {FILE}: options are numbers, words and booleans.")
