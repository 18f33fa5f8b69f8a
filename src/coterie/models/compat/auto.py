"""Classes of routed models, made for each family on demand and known to transformers' Auto classes.

A routed config is its family's config in every respect, ``model_type`` included, so that whatever transformers looks
up by family (conversions of names, attention, generation) it finds; only what is written says "coterie".
"""

from __future__ import annotations

import functools
from typing import Any

from coterie.errors import CheckpointError

MODEL_TYPE, BASE, RECORD = "coterie", "base_model_type", "coterie"


@functools.cache
def routed_config_class(base: type) -> type:
    """A subclass of a family's config class that says so when it is written. Its ``coterie`` is not written."""

    def to_dict(self: Any) -> dict[str, Any]:
        written: dict[str, Any] = base.to_dict(self)  # type: ignore[attr-defined]
        written.pop(RECORD, None)
        return written | {"model_type": MODEL_TYPE, BASE: base.model_type}  # type: ignore[attr-defined]

    def from_dict(cls: Any, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        given = {key: value for key, value in config_dict.items() if key != BASE}
        return base.from_dict.__func__(cls, given | {"model_type": base.model_type}, **kwargs)  # type: ignore[attr-defined]

    members = {"__module__": base.__module__, "to_dict": to_dict, "from_dict": classmethod(from_dict)}
    return type(f"Routed{base.__name__}", (base,), members)


@functools.cache
def routed_model_class(base: type, mixin: type) -> type:
    """``mixin`` before a family's model class, in the family's module, where transformers looks for what it can do."""
    config = routed_config_class(base.config_class)  # type: ignore[attr-defined]
    unread = [*(getattr(base, "_keys_to_ignore_on_load_unexpected", None) or []), r"^coterie\."]  # read by us
    members = {
        "__module__": base.__module__, "config_class": config, "_keys_to_ignore_on_load_unexpected": unread,
        "__doc__": f"{base.__name__} with routers of Coterie, which it saves and loads.",
    }  # fmt: skip
    _convert_alike(base.__name__, name := f"Routed{base.__name__}")
    return type(name, (mixin, base), members)


def _convert_alike(base: str, routed: str) -> None:
    """Names on disk are converted by the class's name where a family has such conversions."""
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    if (conversions := get_checkpoint_conversion_mapping(base)) is not None:
        register_checkpoint_conversion_mapping(routed, conversions, overwrite=True)


def family_config_class(kind: str) -> Any:
    """The config class of a family; None where transformers does not know it."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else None  # noqa: SIM401 (its get makes the class)


def register_auto(mixin: type) -> None:
    """Make ``AutoConfig`` and the Auto classes of models know directories whose ``model_type`` is "coterie"."""
    from transformers import AutoConfig, PreTrainedConfig

    def from_dict(cls: Any, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        config_class = family_config_class(str(config_dict.get(BASE)))
        if config_class is None:
            raise CheckpointError(no_base(config_dict.get(BASE)))
        routed = routed_config_class(config_class)
        _register_models(config_class, routed, mixin)
        return routed.from_dict(dict(config_dict), **kwargs)  # type: ignore[attr-defined]

    members = {"model_type": MODEL_TYPE, "__module__": __name__, "from_dict": classmethod(from_dict)}
    AutoConfig.register(MODEL_TYPE, type("CoterieConfig", (PreTrainedConfig,), members), exist_ok=True)


def no_base(found: Any) -> str:
    """What to tell the owner of a config.json that does not say what its model is based on."""
    said = "has no base_model_type" if found is None else f"says base_model_type {found!r}, which is not known here"
    return f"config.json {said}: it names the family of the model, such as 'mixtral'. Copy config.json again."


def _register_models(base: type, config: type, mixin: type) -> None:
    import transformers as hf

    autos: tuple[Any, ...] = (
        hf.AutoModelForCausalLM, hf.AutoModelForImageTextToText, hf.AutoModelForTokenClassification,
    )  # fmt: skip
    for auto in autos:
        if config in auto._model_mapping._extra_content or base not in auto._model_mapping:
            continue
        found = auto._model_mapping[base]
        if isinstance(found, type):
            auto.register(config, routed_model_class(found, mixin), exist_ok=True)
