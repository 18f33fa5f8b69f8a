"""A dense family that no native mixture has the attention of: its own format, and coterie.json beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from coterie.errors import UnsupportedError
from coterie.models.shards import read_config_json
from coterie.models.stored import Stored
from coterie.models.stored_mixture import StoredMixture
from coterie.surgery.dense import DenseCheckpoint, DenseFFN
from coterie.surgery.method import Method
from coterie.surgery.new_config import as_coterie, without_quantisation
from coterie.surgery.new_mixture import MixtureTarget, NewMixture
from coterie.surgery.orientation import laid_out

__all__ = ["OwnFamily", "check_own"]


@final
class OwnFamily(MixtureTarget):
    """Every family whose feed-forwards are known, with or without biases and gate; a shared expert if there is one.

    Read by `coterie.load`, and by the Auto classes after ``import coterie.models``. Plain transformers refuses it.
    """

    name, container = "coterie", "coterie"

    def written_config(self, dense: DenseCheckpoint, sizes: tuple[int, int, int], top_k: int) -> dict[str, Any]:
        """The dense model's own, under a name that plain transformers refuses."""
        config: Mapping[str, Any] = read_config_json(dense.path)
        if dense.quantization is not None:
            config = without_quantisation(config, str(dense.compute_dtype).removeprefix("torch."))
        return as_coterie(config)

    def stored(self, dense: DenseCheckpoint, sizes: tuple[int, int, int], top_k: int, about: Method) -> Stored:
        """What stands where."""
        experts, inner, shared = sizes
        shape = dense.ffns[0].shape
        mixture = StoredMixture(
            tuple(ffn.block for ffn in dense.ffns), experts, top_k, shape.width, inner, shared, shape.gated,
            shape.bias, shape.activation, tuple(path for ffn in dense.ffns for path in ffn.empty),
        )  # fmt: skip
        return Stored(None, method=about.as_record(), mixture=mixture)

    def tensors(
        self, number: int, ffn: DenseFFN, new: NewMixture, dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
        """All experts of a layer in one stack for each matrix, gate and up in one, as transformers keeps them."""
        typed = {name: weight.to(dtype) for name, weight in new.experts.items()}
        shape = replace(ffn.shape, inner=new.sizes[1], fused=True)
        for name, stack in laid_out(typed, shape).items():
            yield f"{ffn.block}.experts.{name}", stack
        yield f"{ffn.block}.gate.weight", new.router.to(dtype)
        for name, weight in (new.shared or {}).items():
            child = name.removesuffix("_bias")
            kind = "weight" if child == name else "bias"
            yield f"{ffn.block}.shared_expert.{child}.{kind}", weight.to(dtype)


def check_own(dense: DenseCheckpoint) -> None:
    """Refuse what one record cannot say of all layers.

    Raises:
        UnsupportedError: feed-forwards that differ.
    """
    if len({ffn.shape for ffn in dense.ffns}) > 1:
        widths = sorted({ffn.shape.inner for ffn in dense.ffns})
        raise UnsupportedError(
            f"{dense.path} cannot become a mixture: its feed-forwards differ from layer to layer (inner widths "
            f"{', '.join(map(str, widths))}), and experts are alike in all of them."
        )
