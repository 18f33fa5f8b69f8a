"""The routers of a whole model, from a preset's name and its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coterie.errors import OptionError
from coterie.registry import Registry, did_you_mean
from coterie.routers.base import Router
from coterie.routers.presets.capacity import with_capacity
from coterie.routers.presets.values import check_values

PRESETS: Registry[Callable[..., Router]] = Registry("router")

# what a site or the layer before gives, not the user
_GIVEN = ("width", "num_experts", "vocab_size", "follow")

# options of every preset: a limit to what one expert may be given, by `with_capacity`
_LIMITS: dict[str, Any] = {"capacity": None, "eval_capacity": None, "capacity_order": "probability"}
_KINDS: dict[str, Any] = dict.fromkeys(("capacity", "eval_capacity"), float | None) | {
    "capacity_order": Literal["probability", "position"]
}


@dataclass(frozen=True)
class SiteShape:
    """What one layer tells its router: D, E, the usual number of choices, and the vocabulary of the model."""

    width: int
    num_experts: int
    k: int
    vocab_size: int = 0


def build_routers(name: str, sites: Sequence[SiteShape], options: Mapping[str, Any]) -> list[Router]:
    """One router per site, in the order of the layers; those of one model share what the preset shares.

    Args:
        name: of a preset in `PRESETS`.
        sites: of the layers.
        options: the preset's own arguments, as a recipe has them; ``k`` defaults to that of the site. Every preset
            also takes ``capacity``, ``eval_capacity`` and ``capacity_order``, which `with_capacity` explains.

    Raises:
        OptionError: an unknown preset or option (the nearest is suggested), one that is missing, or a value that
            is not allowed.
    """
    preset = PRESETS.get(name)
    known = inspect.signature(preset).parameters
    _check_options(name, options)
    own = {key: value for key, value in options.items() if key not in _LIMITS}
    routers: list[Router] = []
    for site in sites:
        given: dict[str, Any] = {
            "width": site.width, "num_experts": site.num_experts, "k": site.k, "vocab_size": site.vocab_size,
            "follow": routers[-1] if routers else None,
        }  # fmt: skip
        routers.append(preset(**{**{key: value for key, value in given.items() if key in known}, **own}))
    return [_limited(router, {**_LIMITS, **options}) for router in routers]


def preset_options(name: str) -> dict[str, Any]:
    """The options a recipe may set, with their defaults; ``k`` is the site's where none is given.

    Raises:
        OptionError: an unknown preset.
    """
    parameters = inspect.signature(PRESETS.get(name)).parameters
    own = {
        key: None if parameter.default is parameter.empty else parameter.default
        for key, parameter in parameters.items()
        if key not in _GIVEN
    }
    return {**own, **_LIMITS}


def _limited(router: Router, options: Mapping[str, Any]) -> Router:
    factor, eval_factor = options["capacity"], options["eval_capacity"]
    if factor is None and eval_factor is None:
        return router
    return with_capacity(router, factor, eval_factor=eval_factor, order=options["capacity_order"])


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    allowed = preset_options(name)
    for option in options:
        if option not in allowed:
            hint = did_you_mean(option, allowed)
            raise OptionError(f"The router {name!r} has no option {option!r}.{hint} It has: {', '.join(allowed)}.")
    preset = PRESETS.get(name)
    for parameter in inspect.signature(preset).parameters.values():
        needed = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if needed and parameter.name not in options:
            raise OptionError(f"The router {name!r} needs the option {parameter.name!r}.")
    check_values(preset, options, _KINDS)
