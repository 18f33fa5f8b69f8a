"""Whole feed-forwards as experts: copies of one, those of several models, one more beside what is there.

Where the weights of an item sum to one, experts that are equal are the dense layer, whatever the router says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.errors import OptionError
from coterie.surgery.pages import stacked

__all__ = ["added_row", "appended", "copies", "prompt_rows", "scaled_down", "side_by_side", "without"]

# cosine of two rows from which the router can hardly tell them apart
ALIKE = 0.98


def copies(weights: Mapping[str, Tensor], count: int, *, noise: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
    """``count`` copies of one feed-forward, stacked [E, ...].

    Args:
        weights: of one, any names.
        noise: added to each matrix of each copy, as a share of the matrix's own root mean square; biases have none.
        seed: of the noise; take another for each layer.

    Raises:
        OptionError: less than one copy, or negative noise.
    """
    if count < 1 or noise < 0:
        raise OptionError(f"Copies are 1 or more and noise is 0 or more, not {count} and {noise}.")
    generator = torch.Generator().manual_seed(seed)
    stacked = {}
    for name, weight in sorted(weights.items()):
        stack = weight.expand(count, *weight.shape).clone()
        if noise and weight.dim() > 1:
            size = float(weight.float().square().mean().sqrt()) * noise
            drawn = torch.randn(stack.shape, generator=generator) * size
            stack = (stack.float() + drawn).to(weight.dtype)
        stacked[name] = stack
    return stacked


def side_by_side(models: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The feed-forwards of several models, stacked [E, ...].

    Args:
        models: the weights of one layer in each.
        names: of the models, for errors.

    Raises:
        OptionError: they do not have the same matrices of the same sizes.
    """
    first = models[0]
    for name, weights in zip(names, models, strict=True):
        for each in sorted(first.keys() | weights.keys()):
            here, there = (tuple(one[each].shape) if each in one else "none" for one in (first, weights))
            if here != there:
                raise OptionError(
                    f"{names[0]} has {each} of {here}, {name} of {there}: experts must be of one shape. Take models "
                    "that were trained from the same base."
                )
    return {name: stacked([one[name].to(first[name].dtype) for one in models]) for name in first}


def scaled_down(weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The same feed-forward with its output times ``factor``."""
    if factor == 1:
        return dict(weights)
    return {
        name: (weight.float() * factor).to(weight.dtype) if name.startswith("down_proj") else weight
        for name, weight in weights.items()
    }


def appended(experts: Mapping[str, Tensor], new: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Experts [E, ...] and one more, [E + 1, ...].

    Raises:
        OptionError: it has other matrices or sizes than the experts.
    """
    for each in sorted(experts.keys() | new.keys()):
        here = tuple(experts[each].shape[1:]) if each in experts else "none"
        there = tuple(new[each].shape) if each in new else "none"
        if here != there:
            raise OptionError(
                f"An expert has {each} of {here}, {name} of {there}: a new expert must be of the size of the others. "
                "Take a dense model whose feed-forward is as wide as an expert."
            )
    return {key: torch.cat([stack, new[key][None].to(stack.dtype)]) for key, stack in experts.items()}


def prompt_rows(positive: Tensor, negative: Tensor | None = None, *, sharpness: float = 1.0) -> tuple[Tensor, float]:
    """Rows [E, D] of a router by what each expert's prompts look like in front of it.

    A row is the direction in which its prompts differ from what all have in common, or from its own negative prompts,
    at a right angle to what they have in common. Rows are so long that on the prompts themselves the logits vary by
    ``sharpness`` (their standard deviation) over experts.

    Args:
        positive: [E, D] mean inputs of the layer over each expert's prompts.
        negative: [E, D] the same of prompts that are not for it, NaN for experts without any; None: nobody has any.

    Returns:
        the rows, and the largest cosine between what two experts' rows were made of, less what all have in common.
    """
    positive = positive.float()
    common = positive.mean(0, keepdim=True)
    away = common.expand_as(positive)
    if negative is not None:
        away = torch.where(negative.isnan(), away, negative.float())
    # a gate has no bias: what all inputs have in common must not favour an expert
    rows = F.normalize(without(positive - away, common[0]), dim=1)
    logits = positive @ rows.T
    spread = (logits - logits.mean(1, keepdim=True)).square().mean().sqrt()
    cosines = F.normalize(positive, dim=1)
    alike = (cosines @ cosines.T).fill_diagonal_(-1).max() if len(rows) > 1 else torch.tensor(-1.0)
    return (rows * (sharpness / spread) if spread > 0 else rows), float(alike)


def without(rows: Tensor, direction: Tensor) -> Tensor:
    """``rows [E, D]`` less what they have of ``direction [D]``."""
    unit = F.normalize(direction, dim=0)
    return rows - (rows @ unit)[:, None] * unit


def added_row(rows: Tensor, positive: Tensor | None = None, negative: Tensor | None = None) -> Tensor:
    """[D] the row of one more expert beside ``rows [E, D]``.

    The mean of the rows, changed as little as possible so that on the prompts' mean input the new expert's logit is the
    best of the old ones' and a tenth of their spread more, and that on the negative prompts' it stays as it was.

    Args:
        positive: [D] mean input of the layer over prompts for the new expert; None leaves the mean of the rows.
        negative: [D] the same of prompts that are not for it.
    """
    wide = rows.double()
    row = wide.mean(0)
    if positive is None:
        return row.to(rows.dtype)
    states = [positive.double()] + ([] if negative is None else [negative.double()])
    logits = wide @ states[0]
    wanted = logits.max() + 0.1 * logits.std(correction=0) - row @ states[0]
    held = torch.stack(states)
    target = torch.tensor([float(wanted), *([0.0] * (len(states) - 1))], dtype=torch.float64)
    # the shortest change that has these products with the states
    return (row + torch.linalg.lstsq(held, target[:, None], driver="gelsd").solution[:, 0]).to(rows.dtype)
