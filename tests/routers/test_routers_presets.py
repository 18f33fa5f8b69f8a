"""The presets' own refusals; what they compute is the battery's matter."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from coterie.errors import OptionError
from coterie.routers import PRESETS, group_limited, hash_routing, preset_options, sigmoid_bias, top_k


def test_top_k_refusals() -> None:
    with pytest.raises(OptionError, match="'before' or 'after'"):
        top_k(4, 4, 2, softmax="during")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="leave renormalise=False out"):
        top_k(4, 4, 2, softmax="after", renormalise=False)
    with pytest.raises(OptionError, match="1 to 4"):
        top_k(4, 4, 5)


def test_the_others_refuse_too() -> None:
    with pytest.raises(OptionError, match="1 to 4"):
        sigmoid_bias(4, 4, 5)
    with pytest.raises(OptionError, match="divisor"):
        group_limited(4, 4, 2, num_groups=3, keep_groups=1)
    with pytest.raises(OptionError, match="1 to 4"):
        hash_routing(10, 4, 5)


def test_logits_dtype() -> None:
    x = torch.zeros(1, 4).bfloat16()
    assert top_k(4, 4, 2)(x).logits.dtype == torch.bfloat16
    assert top_k(4, 4, 2, float32=True)(x).logits.dtype == torch.float32
    assert sigmoid_bias(4, 4, 2)(x).logits.dtype == torch.float32


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_recipe_file_can_hold_every_argument(name: str) -> None:
    options = preset_options(name)
    assert json.loads(json.dumps(options)) == options
    hints = get_type_hints(PRESETS.get(name))
    kinds = {kind for option, hint in hints.items() if option in options for kind in _kinds(hint)}
    assert kinds <= {int, float, bool, str, type(None)}


def _kinds(hint: Any) -> set[Any]:
    if get_origin(hint) is Literal:
        return {type(word) for word in get_args(hint)}
    return {kind for part in get_args(hint) for kind in _kinds(part)} if get_args(hint) else {hint}
