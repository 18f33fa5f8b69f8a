"""What a config computes is what the built model has."""

from __future__ import annotations

import pytest
import torch

from coterie.models.compat import skeleton
from coterie.models.counts import PARTS, count_parameters, part_names
from coterie.models.find import find_sites
from coterie.testing.checkpoints import tiny_model
from coterie.testing.families import ROWS, tiny_config


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_config_computes_what_the_built_model_has(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied, layers=3, experts=8, k=2)
    counted = count_parameters(model.config)
    assert counted.num_total == sum(p.numel() for p in model.parameters())
    assert counted.total == count_parameters(model).total
    experts = sum(p.numel() for site in find_sites(model) for p in site.experts.parameters())
    assert counted.total["experts"] == experts
    assert counted.num_active == pytest.approx(counted.num_total - experts * (1 - 2 / 8))


@pytest.mark.parametrize("family", ROWS)
def test_every_parameter_of_every_family_has_a_part(family):
    model = skeleton(tiny_config(family), torch.float32)
    counted = count_parameters(model)
    assert set(counted.total) == set(counted.active) == set(PARTS)
    assert counted.num_total == sum(p.numel() for p in model.parameters())
    assert 0 < counted.active["experts"] < counted.total["experts"]
    assert counted.total["routers"] > 0
    assert counted.total["attention"] + counted.total["recurrent layers"] > 0
    assert counted.total["norms"] > 0


@pytest.mark.parametrize(
    ("family", "total", "active"),
    [("mixtral", 46_702_792_704, 12_879_925_248), ("deepseek_v3", 671_026_404_352, 37_552_282_624)],
)
def test_published_sizes(family, total, active):
    """Mixtral 8x7B is known as 46.7 B with 12.9 B active, DeepSeek-V3 as 671 B with 37 B."""
    from transformers import AutoConfig

    counted = count_parameters(AutoConfig.for_model(family))
    assert (counted.num_total, round(counted.num_active)) == (total, active)


def test_parts_of_a_model_with_everything():
    model = skeleton(tiny_config("qwen2_moe"), torch.float32)
    names = part_names(model, find_sites(model))
    at = "model.layers.0"
    assert names["model.embed_tokens.weight"] == "embeddings"
    assert names["lm_head.weight"] == "output head"
    assert names[f"{at}.self_attn.q_proj.weight"] == "attention"
    assert names[f"{at}.input_layernorm.weight"] == "norms"
    assert names[f"{at}.mlp.gate.weight"] == "routers"
    assert names[f"{at}.mlp.experts.down_proj"] == "experts"
    assert names[f"{at}.mlp.shared_expert.down_proj.weight"] == "shared experts"
    assert names[f"{at}.mlp.shared_expert_gate.weight"] == "shared experts"


def test_towers_for_pictures_are_counted_but_meet_no_token():
    counted = count_parameters(tiny_config("qwen3_vl_moe"))
    assert counted.total["pictures and sounds"] > 0
    assert counted.active["pictures and sounds"] == 0
