"""How one expert lies on disk, and its weights from those bytes.

The store moves the checkpoint's own bytes; what is quantised becomes floats only to be computed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from coterie.experts.encoding import Encoding, Mxfp4, Part
from coterie.experts.shape import FFNShape
from coterie.ops.quantize import PASSING_BYTES

__all__ = ["Storage"]

_ROLES = ("", "_scale_inv", "_blocks", "_scales")


@dataclass(frozen=True)
class Storage:
    """How one expert is stored. Frozen; thread-safe.

    Attributes:
        shape: of the expert `weights` returns, for `expert_forward`. GPT-OSS holds its matrices [in, out] in
            memory and [out, in] in MXFP4: here they stay as they lie, ``transposed`` is False.
        encodings: weight name of `FFNShape.weight_shapes` -> how it lies on disk.
    """

    shape: FFNShape
    encodings: Mapping[str, Encoding]

    @staticmethod
    def of(
        quantization: Mapping[str, Any] | None,
        shape: FFNShape,
        found: Mapping[str, Part] | None = None,
        where: str = "the checkpoint",
    ) -> Storage:
        """The storage of an expert of ``shape``.

        Args:
            quantization: ``quantization_config`` of config.json, None if there is none.
            shape: as the family holds it in memory, ``fused`` as on disk.
            found: part name (see `parts`) -> what lies on disk for one expert; each weight may be stored in a way
                of its own. Roles that are not weights are ignored. None: as the method's makers store it.
            where: what to call the checkpoint in errors.

        Raises:
            UnsupportedError: the method is not served.
            CheckpointError: what was found is no such expert.
        """
        if found is None:
            packed = bool(quantization) and isinstance(Encoding.of(quantization, (32, 32), None, where), Mxfp4)
        else:
            packed = any(name.endswith("_blocks") for name in found)
        shape = replace(shape, transposed=False) if packed else shape
        encodings = {}
        for name, size in shape.weight_shapes().items():
            roles = None if found is None else {r: found[name + r] for r in _ROLES if name + r in found}
            encodings[name] = Encoding.of(quantization, size, roles, f"{where}: {name}" if found else where)
        return Storage(shape, encodings)

    @property
    def quantised(self) -> bool:
        """Whether any weight is more than floats."""
        return any(encoding.quantised for encoding in self.encodings.values())

    def parts(self) -> dict[str, Part]:
        """Part name -> the tensor that must lie on disk for each expert, in the order it is computed with.

        A part's name is the weight's with the role behind it: ``gate_proj_scale_inv``, ``down_proj_blocks``.
        """
        return {
            name + role: part for name, encoding in self.encodings.items() for role, part in encoding.parts().items()
        }

    def weights(
        self, parts: Mapping[str, Tensor], dtype: torch.dtype, scratch: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What `expert_forward` takes, from the tensors of one expert.

        What is not quantised is passed on as it is, without a copy.

        Args:
            parts: part name -> tensor.
            dtype: to compute in.
            scratch: of `scratch`, to write into; the weights are then overwritten by the next call. New memory if
                None.
        """
        weights = {}
        for name, encoding in self.encodings.items():
            if encoding.quantised:
                mine = {role: parts[name + role] for role in encoding.parts()}
                weights[name] = encoding.decode(mine, dtype, None if scratch is None else scratch[name])
            else:
                weights[name] = parts[name]
        return weights

    def scratch(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Memory for the floats of one expert, for whoever computes one after another."""
        return {
            name: torch.empty(encoding.shape, dtype=dtype)
            for name, encoding in self.encodings.items()
            if encoding.quantised
        }

    def scratch_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of `scratch`, and of what decoding needs besides."""
        held = sum(prod(e.shape) * dtype.itemsize for e in self.encodings.values() if e.quantised)
        return held + (PASSING_BYTES if held else 0)
