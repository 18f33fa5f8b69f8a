"""The families that a dense model can become a mixture of, and what of it goes where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.surgery.dense import DenseCheckpoint, DenseFFN
from coterie.surgery.method import Method
from coterie.surgery.new_mixture import MixtureTarget, NewMixture
from coterie.surgery.own_family import OwnFamily, check_own

__all__ = ["FAMILY_NAMES", "MixtureFamily", "mixture_family"]

# fields of a config that a mixture takes over from its dense model, where its own config has them
_CARRIED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "rope_parameters",
    "tie_word_embeddings", "attention_dropout", "attention_bias", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "embedding_multiplier",
    "attention_multiplier", "residual_multiplier", "logits_scaling",
)  # fmt: skip


@dataclass(frozen=True)
class MixtureFamily(MixtureTarget):
    """A native family that experts can be written in.

    Attributes:
        name: its model_type.
        takes: dense families whose attention it has.
        block: module of the mixture in a layer, on disk.
        names: of an expert's gate, up and down; of two, gate and up in one and down, which have all experts stacked.
        fields: (experts, top k, inner, inner of the shared) -> fields of its config.
        shares: whether it has a shared expert.
        gate: name of the router in the block.
    """

    name: str
    takes: tuple[str, ...]
    block: str
    names: tuple[str, ...]
    fields: Callable[[int, int, int, int], dict[str, Any]]
    shares: bool = False
    gate: str = "gate"
    container = "native"

    def config(self, dense: DenseCheckpoint, sizes: tuple[int, int, int], top_k: int) -> Any:
        """A transformers config of the mixture, with everything carried over that both have."""
        from transformers import CONFIG_MAPPING

        kind = CONFIG_MAPPING[self.name]
        known = kind().to_dict().keys() | {"dtype", "rope_parameters", "head_dim"}
        source = dense.config.to_dict()
        carried = {name: source[name] for name in _CARRIED if name in source and name in known}
        if self.name == "qwen2_moe":
            carried["qkv_bias"] = _has_bias(dense, "q_proj")
            if dense.config.model_type == "mistral":  # its window is every layer's, and there is one if it is said
                windowed = source.get("sliding_window") is not None
                every = ["sliding_attention" if windowed else "full_attention"] * source["num_hidden_layers"]
                carried |= {"use_sliding_window": windowed, "layer_types": every}
        made = kind(**carried, **self.fields(sizes[0], top_k, sizes[1], sizes[2]))
        made.architectures = [f"{_CLASSES[self.name]}ForCausalLM"]
        return made

    def written_config(self, dense: DenseCheckpoint, sizes: tuple[int, int, int], top_k: int) -> dict[str, Any]:
        """config.json: every field, the defaults too."""
        written: dict[str, Any] = json.loads(self.config(dense, sizes, top_k).to_json_string(use_diff=False))
        return written

    def stored(self, dense: DenseCheckpoint, sizes: tuple[int, int, int], top_k: int, about: Method) -> None:
        """Nothing: config.json says all."""

    def tensors(
        self, number: int, ffn: DenseFFN, new: NewMixture, dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
        """Expert after expert."""
        prefix = f"model.layers.{number}.{self.block}"
        if len(self.names) == 2:
            pair = [new.experts[role].to(dtype) for role in ("gate_proj", "up_proj")]
            yield f"{prefix}.{self.names[0]}.weight", torch.cat(pair, dim=1)
            yield f"{prefix}.{self.names[1]}.weight", new.experts["down_proj"].to(dtype)
        for expert in range(new.sizes[0] if len(self.names) == 3 else 0):
            for role, name in zip(_USUAL, self.names, strict=True):
                yield f"{prefix}.experts.{expert}.{name}.weight", new.experts[role][expert].to(dtype)
        yield f"{prefix}.{self.gate}.weight", new.router.to(dtype)
        if self.shares:
            yield from self._shared(prefix, new, dtype)

    def _shared(self, prefix: str, new: NewMixture, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Its gate is a sigmoid, which is one half of a zero row: the projection down is doubled, which is exact."""
        width = new.router.shape[1]
        given = new.shared or {
            "gate_proj": torch.zeros(EMPTY, width), "up_proj": torch.zeros(EMPTY, width),
            "down_proj": torch.zeros(width, EMPTY),
        }  # fmt: skip
        for role, name in zip(("gate_proj", "up_proj", "down_proj"), self.names, strict=True):
            factor = 2 if role == "down_proj" else 1
            yield f"{prefix}.shared_expert.{name}.weight", given[role].to(dtype) * factor
        yield f"{prefix}.shared_expert_gate.weight", torch.zeros(1, width, dtype=dtype)


def _mixtral(experts: int, k: int, inner: int, shared: int) -> dict[str, Any]:
    return {"num_local_experts": experts, "num_experts_per_tok": k, "intermediate_size": inner}


def _olmo(experts: int, k: int, inner: int, shared: int) -> dict[str, Any]:
    return {"num_experts": experts, "num_experts_per_tok": k, "intermediate_size": inner, "norm_topk_prob": True}


def _qwen(experts: int, k: int, inner: int, shared: int) -> dict[str, Any]:
    return {
        "num_experts": experts, "num_experts_per_tok": k, "moe_intermediate_size": inner, "intermediate_size": inner,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _qwen2(experts: int, k: int, inner: int, shared: int) -> dict[str, Any]:
    return {**_qwen(experts, k, inner, shared), "shared_expert_intermediate_size": shared or EMPTY}


EMPTY = 8
"""Inner width of a shared expert of zeros, where a family must have one and the mixture has none."""
_CLASSES = {
    "mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "flex_olmo": "FlexOlmo",
    "granitemoe": "GraniteMoe",
}  # fmt: skip
_USUAL = ("gate_proj", "up_proj", "down_proj")
_FAMILIES = (
    MixtureFamily("mixtral", ("llama", "mistral"), "block_sparse_moe", ("w1", "w3", "w2"), _mixtral),
    MixtureFamily("qwen2_moe", ("qwen2", "llama", "mistral"), "mlp", _USUAL, _qwen2, shares=True),
    MixtureFamily("qwen3_moe", ("qwen3",), "mlp", _USUAL, _qwen),
    MixtureFamily("flex_olmo", ("olmo2",), "mlp", _USUAL, _olmo),
    MixtureFamily(
        "granitemoe", ("granite",), "block_sparse_moe", ("input_linear", "output_linear"), _mixtral,
        gate="router.layer",
    ),
)  # fmt: skip
FAMILY_NAMES = (*(family.name for family in _FAMILIES), OwnFamily.name)
"""What a dense model can be written as: native families, and "coterie", its own family with coterie.json."""


def mixture_family(dense: DenseCheckpoint, name: str = "auto", *, shared: bool = False) -> MixtureTarget:
    """What holds the dense model's attention as it is.

    Args:
        name: one of `FAMILY_NAMES`, or "auto": the native family that has its attention and feed-forwards and a shared
            expert if there is to be one, else its own family with coterie.json.

    Raises:
        OptionError: an unknown name, or a family that has not what the mixture needs; says why not.
        UnsupportedError: feed-forwards that differ from layer to layer.
    """
    kind = dense.config.model_type
    if name != "auto" and name not in FAMILY_NAMES:
        raise OptionError(f"There is no family {name!r} to write in. There are: {', '.join(FAMILY_NAMES)}.")
    fitting = [family for family in _FAMILIES if kind in family.takes and (family.shares or not shared)]
    reason = _foreign(dense)
    if name == OwnFamily.name or (name == "auto" and (not fitting or reason is not None)):
        check_own(dense)
        return OwnFamily()
    if name == "auto":
        return fitting[0]
    chosen = next(family for family in _FAMILIES if family.name == name)
    if chosen not in fitting or reason is not None:
        why = reason if chosen in fitting else "its attention or its shared expert has no place there"
        allowed = [*(family.name for family in fitting if reason is None), OwnFamily.name]
        raise OptionError(
            f"A model of the family {kind!r}{' with a shared expert' if shared else ''} cannot be written as {name}: "
            f"{why}. Families that can: {', '.join(allowed)}."
        )
    return chosen


def _foreign(dense: DenseCheckpoint) -> str | None:
    """What of the dense model no native family has."""
    layers = int(dense.config.num_hidden_layers) if hasattr(dense.config, "num_hidden_layers") else len(dense.ffns)
    ffn = dense.ffns[0]
    reasons = {
        "its feed-forwards have biases, which experts of those families have not": any(
            each.shape.bias for each in dense.ffns
        ),
        "its feed-forwards have no gate, which experts of those families have": not ffn.shape.gated,
        f"{len(dense.ffns)} of its {layers} layers have a feed-forward of a known form": len(dense.ffns) != layers,
        "its layers have feed-forwards of different widths": len({each.shape.inner for each in dense.ffns}) > 1,
        "its attention has a bias on the way out": _has_bias(dense, "o_proj"),
        "its attention has biases on queries, keys and values": dense.config.model_type in ("llama", "mistral")
        and _has_bias(dense, "q_proj"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _has_bias(dense: DenseCheckpoint, projection: str) -> bool:
    return any(name.endswith(f"{projection}.bias") for name in dense.ranges)
