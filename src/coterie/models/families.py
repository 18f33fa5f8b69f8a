"""What is known of families by name: which are not served and why, and how the routers of some decide.

Which families are served is not written down anywhere: every one that transformers puts behind its
experts interface is, with the layout of its experts derived from transformers' own conversion table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coterie.errors import CheckpointError, UnsupportedError


@dataclass(frozen=True)
class Family:
    """How one family routes, for those whose router we can build as ours. Names are fields of its config.json.

    Attributes:
        scores: how logits become probabilities.
        renormalise: True, or the config field that says whether the chosen weights are scaled to sum to 1.
        groups: config fields of (number of groups, groups an item may use); None without groups.
        rounded: the weights are rounded to the dtype of the logits.
        scale: config field of a factor on all weights.
        bias: name of the gate's buffer that is added to probabilities for the choice alone.
        shared: the block adds experts that every item passes.
    """

    scores: Literal["softmax", "sigmoid"]
    renormalise: bool | str
    rounded: bool = False
    groups: tuple[str, str] | None = None
    scale: str | None = None
    bias: str | None = None
    shared: bool = False


FAMILIES: Mapping[str, Family] = {
    "mixtral": Family("softmax", True),
    "olmoe": Family("softmax", "norm_topk_prob", rounded=True),
    "qwen3_moe": Family("softmax", "norm_topk_prob", rounded=True),
    "deepseek_v3": Family(
        "sigmoid", "norm_topk_prob", groups=("n_group", "topk_group"), scale="routed_scaling_factor",
        bias="e_score_correction_bias", shared=True,
    ),
}  # fmt: skip

VISION = "coterie_vision"  # model_type of convolutional networks of ours, which have a way of their own

# families of transformers with experts that are not served, and why
EXCLUDED: Mapping[str, str] = {
    "diffusion_gemma": "it writes by diffusion, whole blocks of text at once, not token after token.",
    "jetmoe": "half of its experts are the projections of its attention, and its blocks hold none as a module apart.",
}

# families that the installed transformers computes wrongly, by model_type, and how; ours follow what was published
AT_ODDS: Mapping[str, str] = {
    "nllb-moe": "transformers takes the router's mask for expert numbers and sends every token to experts 0 and 1.",
}

# families whose prompt cannot be read in pieces, and why
WHOLE_PROMPT: Mapping[str, str] = {
    "jamba": "its state-space layers go on from their state for a single token only",
    "minimax": "it makes a cache of its own, which transformers' generate cannot fill piece by piece",
}

# dtypes of models in memory, as configs call them
_DTYPES = ("bfloat16", "float16", "float32", "float64", "auto")

# what mixtures of experts call their number of experts; a config without any of these is dense
_EXPERT_COUNTS = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "ffn_config",
)  # fmt: skip


def check_family(config: Mapping[str, Any], where: str) -> None:
    """Refuse by a parsed config.json alone what cannot be served.

    Raises:
        CheckpointError: it does not say what model this is, or names a dtype that weights cannot have.
        UnsupportedError: a family that transformers does not know, or one of `EXCLUDED`.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if kind is None:
        raise CheckpointError(f"{where} does not say what model it is: config.json has no model_type. Copy it again.")
    asked = config.get("dtype", config.get("torch_dtype"))
    if asked is not None and asked not in _DTYPES:
        raise CheckpointError(
            f"{where} has an unknown dtype in config.json: {asked!r}. Weights are {', '.join(_DTYPES)}: mend that "
            "line, or copy config.json again."
        )
    if kind == VISION:
        raise UnsupportedError(
            f"{where} is a network for images. Look at it with `coterie inspect {where}`, test it with `coterie attack "
            f"{where} IMAGES`, use it with coterie.models.vision.load_vision."
        )
    if kind in EXCLUDED:
        raise UnsupportedError(f"{where} is of the family {kind!r}, which is not served: {EXCLUDED[str(kind)]}")
    if kind not in CONFIG_MAPPING_NAMES:
        from transformers import __version__

        raise UnsupportedError(
            f"{where} is of the family {kind!r}, which transformers {__version__} does not know. For a newer family "
            "type: pip install -U transformers; else check model_type in config.json."
        )


def check_has_experts(config: Mapping[str, Any], where: str) -> None:
    """Refuse a dense model by a parsed config.json alone.

    Raises:
        UnsupportedError: nothing in it counts experts.
    """
    if not any(_anywhere(config, name) for name in _EXPERT_COUNTS):
        raise UnsupportedError(dense_text(where, str(config.get("model_type", ""))))


def dense_text(where: str, kind: str) -> str:
    """What to tell the owner of a model without experts."""
    return (
        f"{where} is a dense model ({kind or 'no model_type in config.json'}): it has no experts to keep on disk. "
        "Make experts of it with `coterie split` or `coterie upcycle`, or choose a mixture-of-experts checkpoint, "
        "such as one of Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V3 or gpt-oss."
    )


def _anywhere(config: Mapping[str, Any], name: str) -> Any:
    inner = [value for value in config.values() if isinstance(value, Mapping)]
    return config.get(name) or any(_anywhere(value, name) for value in inner)
