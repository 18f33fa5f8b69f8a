"""One arm, once: `python -m surgeries.child TASK ARM OUT SOURCE...`, in a process of its own.

What is merged with whom is said beforehand (neighbours), so that reading a calibration text is no part of any arm.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

OURS, PLAIN = "coterie", "everything in memory"
WEIGHTS = (0.25, 0.75)
"""Of the two models that are averaged."""


def main(task: str, arm: str, out: str, *sources: str) -> None:
    """Do it."""
    _ARMS[task, arm](Path(out), [Path(source) for source in sources])


def upcycle_plan(sources: list[Path], file: Path) -> Path:
    """The YAML file that both mergekit and Coterie read: an expert of each source, the first being the base."""
    experts = [{"source_model": str(source), "positive_prompts": [source.name]} for source in sources]
    plan = {"base_model": str(sources[0]), "gate_mode": "random", "dtype": "bfloat16", "experts_per_token": 1,
            "architecture": "mixtral", "experts": experts}  # fmt: skip
    file.write_text(json.dumps(plan))  # JSON is YAML
    return file


def linear_plan(sources: list[Path], file: Path) -> Path:
    """The YAML file of mergekit for the mean of ``sources``, in the type they are stored in."""
    models = [
        {"model": str(source), "parameters": {"weight": weight}}
        for source, weight in zip(sources, WEIGHTS, strict=True)
    ]
    file.write_text(json.dumps({"merge_method": "linear", "dtype": "bfloat16", "models": models}))
    return file


def _average(out: Path, sources: list[Path]) -> None:
    from coterie.jobs import average_models

    average_models(sources[0], {str(sources[1]): WEIGHTS[1]}, out, weight=WEIGHTS[0])


def _average_plainly(out: Path, sources: list[Path]) -> None:
    first, second = map(_loaded, sources)
    others = dict(second.named_parameters())
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            parameter.copy_(WEIGHTS[0] * parameter.float() + WEIGHTS[1] * others[name].float())
    first.save_pretrained(out)


def _upcycle(out: Path, sources: list[Path]) -> None:
    from coterie.jobs import read_plan, upcycle

    upcycle(read_plan(upcycle_plan(sources, out.with_suffix(".yaml"))), out)


def _upcycle_plainly(out: Path, sources: list[Path]) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    models = [AutoModelForCausalLM.from_pretrained(source, dtype="auto") for source in sources]
    base = models[0].config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
             "bos_token_id", "eos_token_id")  # fmt: skip
    config = MixtralConfig(
        **{name: base[name] for name in names}, num_local_experts=len(models), num_experts_per_tok=1
    )  # fmt: skip
    mixture = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    state = {name: value for name, value in models[0].state_dict().items() if ".mlp." not in name}
    mixture.load_state_dict(state, strict=False)
    with torch.no_grad():
        for number, layer in enumerate(mixture.model.layers):
            for expert, model in enumerate(models):
                dense = model.model.layers[number].mlp
                joined = torch.cat([dense.gate_proj.weight, dense.up_proj.weight])
                layer.mlp.experts.gate_up_proj[expert].copy_(joined)
                layer.mlp.experts.down_proj[expert].copy_(dense.down_proj.weight)
    mixture.save_pretrained(out)


def _prune(out: Path, sources: list[Path]) -> None:
    from coterie.surgery import NewLayer
    from coterie.surgery.prune import keep_rows

    def edit(layer: Any) -> NewLayer:
        keep = range(0, layer.num_experts, 2)
        return NewLayer(keep_rows(layer.weights, keep), keep_rows(layer.router, keep))

    _rewrite(out, sources[0], edit, "prune")


def _merge(out: Path, sources: list[Path]) -> None:
    from coterie.surgery import NewLayer
    from coterie.surgery.merge import match_experts, merge_experts
    from coterie.surgery.prune import keep_rows

    def edit(layer: Any) -> NewLayer:
        grouping = _pairs(layer.num_experts)
        orders = match_experts(layer.weights, grouping)
        weights = merge_experts(layer.weights, grouping, torch.ones(layer.num_experts), orders)
        return NewLayer(weights, keep_rows(layer.router, grouping.dominants))

    _rewrite(out, sources[0], edit, "merge")


def _rewrite(out: Path, source: Path, edit: Any, name: str) -> None:
    from coterie.models.checkpoint import open_checkpoint
    from coterie.surgery import Method, rewrite

    rewrite(open_checkpoint(source), out, edit, about=Method(name, "lossy", "Every other expert.", ""))


def _prune_plainly(out: Path, sources: list[Path]) -> None:
    model = _loaded(sources[0])
    for layer in model.model.layers:
        _halve(layer.mlp, layer.mlp.experts.gate_up_proj[::2].clone(), layer.mlp.experts.down_proj[::2].clone())
    _save_half(model, out)


def _merge_plainly(out: Path, sources: list[Path]) -> None:
    from coterie.surgery.merge import match_experts, merge_experts

    model = _loaded(sources[0])
    for layer in model.model.layers:
        experts = layer.mlp.experts
        gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
        weights = {"gate_proj": gate, "up_proj": up, "down_proj": experts.down_proj.detach()}
        grouping = _pairs(len(gate))
        merged = merge_experts(weights, grouping, torch.ones(len(gate)), match_experts(weights, grouping))
        _halve(layer.mlp, torch.cat([merged["gate_proj"], merged["up_proj"]], 1), merged["down_proj"])
    _save_half(model, out)


def _loaded(source: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype="auto")


def _halve(block: Any, gate_up: torch.Tensor, down: torch.Tensor) -> None:
    block.experts.gate_up_proj = torch.nn.Parameter(gate_up, requires_grad=False)
    block.experts.down_proj = torch.nn.Parameter(down, requires_grad=False)
    block.gate.weight = torch.nn.Parameter(block.gate.weight.detach()[::2].clone(), requires_grad=False)


def _save_half(model: Any, out: Path) -> None:
    model.config.num_experts //= 2
    model.save_pretrained(out)


def _pairs(experts: int) -> Any:
    from coterie.surgery.grouping import Grouping

    return Grouping.of([expert // 2 * 2 for expert in range(experts)], range(0, experts, 2))


_ARMS = {
    ("average", OURS): _average, ("average", PLAIN): _average_plainly,
    ("upcycle", OURS): _upcycle, ("upcycle", PLAIN): _upcycle_plainly,
    ("prune", OURS): _prune, ("prune", PLAIN): _prune_plainly,
    ("merge", OURS): _merge, ("merge", PLAIN): _merge_plainly,
}  # fmt: skip
TASKS = ("upcycle", "average", "prune", "merge")

if __name__ == "__main__":
    main(*sys.argv[1:])
