"""The presets' own refusals; what they compute is the battery's matter."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

from coterie.errors import OptionError
from coterie.routers import group_limited, hash_routing, sigmoid_bias, top_k


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


@pytest.mark.parametrize("preset", [top_k, sigmoid_bias, group_limited, hash_routing], ids=lambda f: f.__name__)
def test_a_recipe_file_can_hold_every_argument(preset: object) -> None:
    assert callable(preset)
    parameters = inspect.signature(preset).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert json.loads(json.dumps(defaults)) == defaults
    assert {str(p.annotation) for p in parameters} <= {"int", "float", "bool", "Literal['before', 'after']"}
