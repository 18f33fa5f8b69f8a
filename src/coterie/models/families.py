"""The families Coterie serves: one row of facts each.

The layout of experts is not here: it is derived from transformers' own conversion table. A row says
how the family's router decides and what its config calls things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coterie.errors import UnsupportedError


@dataclass(frozen=True)
class Family:
    """How one family routes. Names are fields of its config.json.

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

# what mixtures of experts call their number of experts; a config without any of these is dense
_EXPERT_COUNTS = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "ffn_config",
)  # fmt: skip


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The row of a parsed config.json.

    Raises:
        UnsupportedError: the model is dense, or a mixture of a family that is not served.
    """
    kind = str(config.get("model_type", ""))
    if kind in FAMILIES:
        return FAMILIES[kind]
    served = ", ".join(FAMILIES)
    if any(_nested(config, name) for name in _EXPERT_COUNTS):
        raise UnsupportedError(
            f"{where} is a mixture of experts of the family {kind!r}, which Coterie does not serve yet. "
            f"Choose a checkpoint of one of: {served}."
        )
    raise UnsupportedError(dense_text(where, kind))


def dense_text(where: str, kind: str) -> str:
    """What to tell the owner of a model without experts."""
    return (
        f"{where} is a dense model ({kind or 'no model_type in config.json'}): it has no experts to keep on disk. "
        "Making experts of it will be `coterie upcycle` and `coterie split` (planned); until then choose a checkpoint "
        f"of one of: {', '.join(FAMILIES)}."
    )


def _nested(config: Mapping[str, Any], name: str) -> Any:
    inner = config.get("text_config")
    return config.get(name) or (inner.get(name) if isinstance(inner, Mapping) else None)
