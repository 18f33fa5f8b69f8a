"""Statistics as one safetensors file."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, OptionError
from coterie.models.channel_statistics import ChannelUse, FFNStatistics
from coterie.models.statistics import DomainUse, SiteStatistics, Statistics

_KIND, _VERSION = "Statistics", "1"
_AGAIN = "Collect them again: coterie trace MODEL --text FILE --statistics FILE"
# group -> what its members are, and what a domain of one is
_GROUPS: Mapping[str, tuple[Any, Any]] = {
    "sites": (SiteStatistics, DomainUse), "ffns": (FFNStatistics, ChannelUse),
}  # fmt: skip


def write(statistics: Statistics, path: Path) -> None:
    """As `Statistics.save`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    layers: dict[str, list[dict[str, Any]]] = {}
    for group in _GROUPS:
        members = getattr(statistics, group).values()
        layers[group] = [_taken_apart(one, f"{group}.{number}", tensors) for number, one in enumerate(members)]
    about = {
        "coterie": _KIND, "version": _VERSION, "model": statistics.model, "about": json.dumps(dict(statistics.about)),
        **{group: json.dumps(listed) for group, listed in layers.items()},
    }  # fmt: skip
    target = path.expanduser()
    part: str | None = None
    try:
        handle, part = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        save_file({name: _alone(tensor) for name, tensor in tensors.items()}, part, metadata=about)
        os.chmod(part, 0o644)
        os.replace(part, target)
    except (OSError, SafetensorError) as error:
        raise OptionError(f"{target} cannot be written ({error}). What was there is unchanged.") from error
    finally:
        if part is not None:
            with suppress(OSError):
                os.unlink(part)


def read(path: Path) -> Statistics:
    """As `Statistics.load`."""
    from safetensors import SafetensorError, safe_open

    target = path.expanduser()
    try:
        with safe_open(str(target), framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise CheckpointError(f"There are no statistics at {target}. {_AGAIN}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} cannot be read as statistics ({error}). {_AGAIN}") from error
    if about.get("coterie") != _KIND:
        kind = f" but a {about['coterie']}" if "coterie" in about else ""
        raise CheckpointError(f"{target} holds no statistics{kind}. {_AGAIN}")
    if about.get("version") != _VERSION:
        raise CheckpointError(
            f"{target} has statistics of version {about.get('version')}, this Coterie reads {_VERSION}. {_AGAIN}"
        )
    try:
        found = {group: _listed(json.loads(about[group]), group, tensors) for group in _GROUPS}
        return Statistics(found["sites"], found["ffns"], about["model"], json.loads(about["about"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{target} is damaged ({error!r}). {_AGAIN}") from error


def _taken_apart(value: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What is not a tensor; tensors go to ``tensors`` under their own names."""
    plain: dict[str, Any] = {}
    for each in dataclasses.fields(value):
        content = getattr(value, each.name)
        if isinstance(content, Tensor):
            tensors[f"{prefix}.{each.name}"] = content
        elif each.name == "domains":
            plain["domains"] = {
                name: _taken_apart(use, f"{prefix}.domains.{number}", tensors)
                for number, (name, use) in enumerate(content.items())
            }
        elif content is not None:
            plain[each.name] = content
    return plain


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without gaps and in memory of its own, as safetensors wants it."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _listed(records: list[dict[str, Any]], group: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    made = [_put_together(*_GROUPS[group], one, f"{group}.{number}", tensors) for number, one in enumerate(records)]
    return {one.name: one for one in made}


def _put_together(kind: Any, domain: Any, plain: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> Any:
    fields = {each.name for each in dataclasses.fields(kind)}
    given = {name: value for name, value in plain.items() if name in fields and name != "domains"}
    given |= {name: tensors[f"{prefix}.{name}"] for name in fields if f"{prefix}.{name}" in tensors}
    if "domains" in plain:
        given["domains"] = {
            name: _put_together(domain, None, one, f"{prefix}.domains.{number}", tensors)
            for number, (name, one) in enumerate(plain["domains"].items())
        }
    if given.get("experts_of") is not None:
        given["experts_of"] = tuple(given["experts_of"])
    for name, value in given.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{prefix}.{name} is not finite")
    return kind(**given)
