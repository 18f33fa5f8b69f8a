"""How one weight lies on disk: as floats, or as smaller numbers with scales beside them.

A quantised weight is several tensors, told apart by *role*: what follows the weight's name. Roles are
spelled as identifiers: ``""`` is the weight itself, ``"_scale_inv"`` its scales, and so on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coterie.errors import CheckpointError, OptionError
from coterie.experts.formats import method_of
from coterie.ops.quantize import block_size, dequantize_fp8_blocks, dequantize_mxfp4

__all__ = ["BlockScaled", "Encoding", "Mxfp4", "Part", "Plain", "Turned"]

_FLOATS = ("F64", "F32", "F16", "BF16")
_EIGHT_BIT = ("F8_E4M3", "F8_E5M2")
_FOUR_BIT = {"I8": 2, "F4": 1}  # values of E2M1 per element of the tensor as safetensors counts them
_SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


class Part(NamedTuple):
    """One tensor on disk: its type as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Encoding(ABC):
    """One weight of ``shape`` as it lies on disk."""

    shape: tuple[int, ...]

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """Role -> the tensor that must lie on disk."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The weight in ``dtype``: bit for bit what transformers' loader makes of it on a CPU.

        Decoding to float32 and casting gives the same bits. Pure but for ``out``.

        Args:
            parts: role -> tensor, as `parts` describes.
            dtype: floating.
            out: where to write, of the weight's shape and ``dtype``; new memory if None.
        """

    @property
    def quantised(self) -> bool:
        """Whether decoding is more than a cast."""
        return True

    @staticmethod
    def of(
        quantization: Mapping[str, Any] | None,
        shape: tuple[int, ...],
        found: Mapping[str, Part] | None = None,
        where: str = "the checkpoint",
    ) -> Encoding:
        """How a weight is stored.

        Args:
            quantization: ``quantization_config`` of config.json, None if there is none.
            shape: of the weight when it is floats, [out, in] for a matrix.
            found: role -> what lies on disk. Roles that are not weights (scales of activations) are ignored.
                None: as the method's makers store a matrix of this shape.
            where: what to call the checkpoint, or the weight, in errors.

        Raises:
            UnsupportedError: the method is not served.
            CheckpointError: what was found is not such a weight.
        """
        method = method_of(quantization, where)
        if found is None:
            return _USUAL[method](quantization or {}, shape)
        roles = set(found)
        if "_blocks" in roles or "_scales" in roles:
            return _checked(Mxfp4(shape), found, where)
        if "_scale_inv" in roles:
            return _block_scaled(quantization or {}, shape, found, where)
        if "" in roles and found[""].dtype in _FLOATS:
            return _checked(Plain(shape, found[""].dtype), found, where)
        raise CheckpointError(
            f"{where} {_story(found)}: neither floats nor {method or 'quantised'}. Download it again."
        )


@dataclass(frozen=True)
class Plain(Encoding):
    """Floats."""

    dtype: str = "BF16"

    def parts(self) -> dict[str, Part]:
        return {"": Part(self.dtype, self.shape)}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        return parts[""].to(dtype) if out is None else out.copy_(parts[""])

    @property
    def quantised(self) -> bool:
        return False


@dataclass(frozen=True)
class Turned(Encoding):
    """Floats of a matrix with rows and columns exchanged: [in, out] where others of the expert are [out, in].

    They are turned where they are computed with, by a copy: products of a turned view have other bits.
    """

    dtype: str = "BF16"

    def parts(self) -> dict[str, Part]:
        return {"": Part(self.dtype, self.shape[::-1])}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        turned = parts[""].t()
        return turned.to(dtype).contiguous() if out is None else out.copy_(turned)


@dataclass(frozen=True)
class BlockScaled(Encoding):
    """Numbers of eight (or four) bits; a block of them shares a scale. See `dequantize_fp8_blocks`.

    Attributes:
        grid: of scales; () or (1,) is one for the whole matrix.
        block: rows and columns that share a scale; None: equal blocks that fit the grid.
        dtype: of the numbers on disk.
        scale_dtype: of the scales on disk.
    """

    grid: tuple[int, ...] = ()
    block: tuple[int, int] | None = None
    dtype: str = "F8_E4M3"
    scale_dtype: str = "F32"

    def parts(self) -> dict[str, Part]:
        rows, columns = self.shape
        return {
            "": Part(self.dtype, (rows, columns // _FOUR_BIT.get(self.dtype, 1))),
            "_scale_inv": Part(self.scale_dtype, self.grid),
        }

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        return dequantize_fp8_blocks(parts[""], parts["_scale_inv"], self.block, dtype, out)


@dataclass(frozen=True)
class Mxfp4(Encoding):
    """Two values of E2M1 in a byte; 32 of them, side by side in a row, share a power of two."""

    def parts(self) -> dict[str, Part]:
        *lead, columns = self.shape
        return {"_blocks": Part("U8", (*lead, columns // 32, 16)), "_scales": Part("U8", (*lead, columns // 32))}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        return dequantize_mxfp4(parts["_blocks"], parts["_scales"], dtype, out)


def _configured_block(quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    """What config.json says; transformers takes 128 by 128 where it says nothing."""
    block = quantization.get("weight_block_size", (128, 128))
    return None if block is None else (int(block[0]), int(block[1]))


def _usual_fp8(quantization: Mapping[str, Any], shape: tuple[int, ...]) -> Encoding:
    if len(shape) != 2:
        return Plain(shape)
    block = _configured_block(quantization)
    grid = () if block is None else (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    return BlockScaled(shape, grid, block)


def _usual_mxfp8(quantization: Mapping[str, Any], shape: tuple[int, ...]) -> Encoding:
    if len(shape) != 2:
        return Plain(shape)
    return BlockScaled(shape, (shape[0], -(-shape[1] // 32)), (1, 32), scale_dtype="U8")


def _usual_mxfp4(quantization: Mapping[str, Any], shape: tuple[int, ...]) -> Encoding:
    return Mxfp4(shape) if len(shape) == 2 else Plain(shape)


def _usual_plain(quantization: Mapping[str, Any], shape: tuple[int, ...]) -> Encoding:
    return Plain(shape)


_USUAL: Mapping[str | None, Callable[[Mapping[str, Any], tuple[int, ...]], Encoding]] = {
    None: _usual_plain,
    "fp8": _usual_fp8,
    "mxfp8": _usual_mxfp8,
    "mxfp4": _usual_mxfp4,
}


def _block_scaled(
    quantization: Mapping[str, Any], shape: tuple[int, ...], found: Mapping[str, Part], where: str
) -> Encoding:
    numbers, scales = found.get(""), found["_scale_inv"]
    if numbers is None or numbers.dtype not in (*_EIGHT_BIT, *_FOUR_BIT) or scales.dtype not in _SCALES:
        raise CheckpointError(f"{where} {_story(found)}: no numbers of 8 or 4 bits with scales. Download it again.")
    encoding = BlockScaled(shape, scales.shape, _configured_block(quantization), numbers.dtype, scales.dtype)
    try:
        block_size((shape[0], shape[1]), scales.shape, encoding.block)
    except (OptionError, IndexError) as error:
        raise CheckpointError(f"{where} contradicts itself: {error} Copy or download it again.") from error
    return _checked(encoding, found, where)


def _checked(encoding: Encoding, found: Mapping[str, Part], where: str) -> Encoding:
    for role, part in encoding.parts().items():
        if found.get(role) != part:
            raise CheckpointError(
                f"{where} contradicts itself: it {_story(found)}, config.json makes {role or 'the weight'} "
                f"{part.dtype} {list(part.shape)}. Config and weights are of different models: copy or download "
                "both again."
            )
    return encoding


def _story(found: Mapping[str, Part]) -> str:
    if not found:
        return "lacks the weight"
    return "holds " + ", ".join(
        f"{role or 'the weight'} {part.dtype} {list(part.shape)}" for role, part in found.items()
    )
