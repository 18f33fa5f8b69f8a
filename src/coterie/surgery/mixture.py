"""The families that a dense model can become a mixture of, and what of it goes where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError, UnsupportedError
from coterie.surgery.dense import DenseCheckpoint
from coterie.surgery.finite import is_finite

__all__ = ["FAMILY_NAMES", "MixtureFamily", "NewMixture", "mixture_family"]

# fields of a config that a mixture takes over from its dense model, where its own config has them
_CARRIED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "rope_parameters",
    "tie_word_embeddings", "attention_dropout", "attention_bias", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class NewMixture:
    """What a dense feed-forward becomes: ``shared(x) + sum over the chosen of w_e expert_e(x)``, weights summing to 1.

    Attributes:
        experts: gate_proj and up_proj [E, F', D], down_proj [E, D, F'].
        router: [E, D], whose softmax over the largest K are the weights.
        shared: the same names without the E, of what every item passes with weight one; None without.
        about: numbers and words of this layer for the report.
    """

    experts: Mapping[str, Tensor]
    router: Tensor
    shared: Mapping[str, Tensor] | None = None
    about: Mapping[str, Any] | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """E, F', and the inner width of the shared expert (0 without)."""
        experts, _, inner = self.experts["down_proj"].shape
        return experts, inner, 0 if self.shared is None else self.shared["down_proj"].shape[1]

    def checked(self, width: int, where: str) -> NewMixture:
        """This, if it is what it should be.

        Raises:
            OptionError: biases, a shape that does not fit, or NaN.
        """
        experts, inner, beside = self.sizes
        wanted = {"gate_proj": (experts, inner, width), "up_proj": (experts, inner, width),
                  "down_proj": (experts, width, inner), "router": (experts, width)}  # fmt: skip
        given = {**self.experts, "router": self.router}
        if self.shared is not None:
            wanted |= {"shared gate_proj": (beside, width), "shared up_proj": (beside, width),
                       "shared down_proj": (width, beside)}  # fmt: skip
            given |= {f"shared {name}": weight for name, weight in self.shared.items()}
        found = {name: tuple(weight.shape) for name, weight in given.items()}
        if found != wanted:
            raise OptionError(f"{where}: experts must have {wanted}, found {found}.")
        bad = [name for name, weight in given.items() if not is_finite(weight)]
        if bad:
            raise OptionError(f"{where}: {bad[0]} holds NaN or infinity. Nothing is written.")
        return self


@dataclass(frozen=True)
class MixtureFamily:
    """A native family that experts can be written in.

    Attributes:
        name: its model_type.
        takes: dense families whose attention it has.
        block: module of the mixture in a layer, on disk.
        names: of an expert's gate, up and down.
        fields: (experts, top k, inner, inner of the shared) -> fields of its config.
        shares: whether it has a shared expert.
    """

    name: str
    takes: tuple[str, ...]
    block: str
    names: tuple[str, str, str]
    fields: Callable[[int, int, int, int], dict[str, Any]]
    shares: bool = False

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

    def tensors(
        self, layer: int, new: NewMixture, dtype: torch.dtype, shared_inner: int
    ) -> Iterator[tuple[str, Tensor]]:
        """Name on disk -> tensor of one layer, expert after expert."""
        prefix = f"model.layers.{layer}.{self.block}"
        roles = ("gate_proj", "up_proj", "down_proj")
        for expert in range(new.sizes[0]):
            for role, name in zip(roles, self.names, strict=True):
                yield f"{prefix}.experts.{expert}.{name}.weight", new.experts[role][expert].to(dtype)
        yield f"{prefix}.gate.weight", new.router.to(dtype)
        if self.shares:
            yield from self._shared(prefix, new, dtype, shared_inner)

    def _shared(self, prefix: str, new: NewMixture, dtype: torch.dtype, inner: int) -> Iterator[tuple[str, Tensor]]:
        """Its gate is a sigmoid, which is one half of a zero row: the projection down is doubled, which is exact."""
        width = new.router.shape[1]
        given = new.shared or {
            "gate_proj": torch.zeros(inner, width), "up_proj": torch.zeros(inner, width),
            "down_proj": torch.zeros(width, inner),
        }  # fmt: skip
        for role, name in zip(("gate_proj", "up_proj", "down_proj"), self.names, strict=True):
            factor = 2 if role == "down_proj" else 1
            yield f"{prefix}.shared_expert.{name}.weight", given[role].to(dtype) * factor
        yield f"{prefix}.shared_expert_gate.weight", torch.zeros(1, width, dtype=dtype)


def _mixtral(experts: int, k: int, inner: int, shared: int) -> dict[str, Any]:
    return {"num_local_experts": experts, "num_experts_per_tok": k, "intermediate_size": inner}


def _qwen(experts: int, k: int, inner: int, shared: int) -> dict[str, Any]:
    return {
        "num_experts": experts, "num_experts_per_tok": k, "moe_intermediate_size": inner, "intermediate_size": inner,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _qwen2(experts: int, k: int, inner: int, shared: int) -> dict[str, Any]:
    return {**_qwen(experts, k, inner, shared), "shared_expert_intermediate_size": shared or EMPTY}


EMPTY = 8
"""Inner width of a shared expert of zeros, where a family must have one and the mixture has none."""
_CLASSES = {"mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe"}
_USUAL = ("gate_proj", "up_proj", "down_proj")
_FAMILIES = (
    MixtureFamily("mixtral", ("llama", "mistral"), "block_sparse_moe", ("w1", "w3", "w2"), _mixtral),
    MixtureFamily("qwen2_moe", ("qwen2", "llama", "mistral"), "mlp", _USUAL, _qwen2, shares=True),
    MixtureFamily("qwen3_moe", ("qwen3",), "mlp", _USUAL, _qwen),
)
FAMILY_NAMES = tuple(family.name for family in _FAMILIES)
"""Families that a dense model can be written as."""


def mixture_family(dense: DenseCheckpoint, name: str = "auto", *, shared: bool = False) -> MixtureFamily:
    """The family that holds the dense model's attention as it is.

    Args:
        name: one of `FAMILY_NAMES`, or "auto": by what the dense model is and whether there is a shared expert.

    Raises:
        OptionError: an unknown name, or a family that has not what the mixture needs.
        UnsupportedError: no native family has this model's attention or feed-forward.
    """
    kind = dense.config.model_type
    if name != "auto" and name not in FAMILY_NAMES:
        raise OptionError(f"There is no family {name!r} to write in. There are: {', '.join(FAMILY_NAMES)}.")
    _check_dense(dense)
    fitting = [family for family in _FAMILIES if kind in family.takes and (family.shares or not shared)]
    if name == "auto":
        if not fitting:
            raise UnsupportedError(_no_family(dense, shared))
        return fitting[0]
    chosen = next(family for family in _FAMILIES if family.name == name)
    if chosen not in fitting:
        allowed = ", ".join(family.name for family in fitting) or "none"
        raise OptionError(
            f"A {kind} model{' with a shared expert' if shared else ''} cannot be written as {name}: its attention or "
            f"its shared expert has no place there. Families that can: {allowed}."
        )
    return chosen


def _check_dense(dense: DenseCheckpoint) -> None:
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
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found is not None:
        raise UnsupportedError(f"{dense.path} cannot become one of {', '.join(FAMILY_NAMES)}: {found}.")


def _has_bias(dense: DenseCheckpoint, projection: str) -> bool:
    return any(name.endswith(f"{projection}.bias") for name in dense.ranges)


def _no_family(dense: DenseCheckpoint, shared: bool) -> str:
    kind = dense.config.model_type
    if shared and any(kind in family.takes for family in _FAMILIES):
        return f"No native family has {kind}'s attention and a shared expert. Make experts without a shared one."
    known = sorted({one for family in _FAMILIES for one in family.takes})
    return (
        f"{dense.path} is of the family {kind!r}; no native mixture has its attention. Models of {', '.join(known)} "
        "can be written as a mixture."
    )
