"""What a family's gate hands to a router of ours: its matrix, its biases, and the options it already decides by."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.errors import UnsupportedError
from coterie.models.attach import RouterBridge
from coterie.models.facts import RouterFacts
from coterie.models.find import MoESite
from coterie.models.hypotheses import SCORES, chosen_as, same_choice
from coterie.models.stored import RouterSpec
from coterie.routers import Router, preset_options
from coterie.routers.score import LinearScore
from coterie.routers.select import correction_of

# score functions that presets can weigh by
_ACTIVATIONS = ("softmax", "sigmoid")


def linear_of(score: nn.Module) -> LinearScore | None:
    """The linear score of E experts in a score part: itself, or what nulls or a blend are put around."""
    seen: Any = score
    while seen is not None and not isinstance(seen, LinearScore):
        seen = next((inner for name in ("inner", "base") if (inner := getattr(seen, name, None)) is not None), None)
    return seen


def family_options(spec: RouterSpec, facts: RouterFacts, site: MoESite) -> dict[str, Any]:
    """How the family decides, in those options of the preset that ``spec`` does not set; what is not known is left out.

    Raises:
        UnsupportedError: the family weighs in a way that no preset has.
    """
    if facts.score is not None and facts.score not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{facts.router} weighs its experts by {facts.score}, which no router preset does. Train new gates: "
            "route(model, spec, keep_gate=False)."
        )
    if facts.expert_scale:
        raise UnsupportedError(
            f"{facts.router} scales every expert by a number of its own ({facts.expert_scale}), which no router preset "
            "does. Train new gates: route(model, spec, keep_gate=False)."
        )
    known: dict[str, Any] = {
        "activation": facts.score, "renormalise": facts.renormalised, "scale": _rounded(facts.scale),
        "bias": None if facts.logit_bias is None else bool(facts.logit_bias),
        "corrected": None if facts.correction is None else bool(facts.correction), **_dtypes(site.gate),
    }  # fmt: skip
    if facts.groups is not None:
        best = 2 if facts.groups.rule == "two best" else 1
        known |= {"num_groups": facts.groups.count, "keep_groups": facts.groups.kept, "best": best}
    allowed, asked = preset_options(spec.name), spec.options
    if "normalise" in allowed:
        known |= _normalised(facts)
    if "normalise" in asked:  # a factor belongs to a way to normalise
        known.pop("scale", None)
    if not _corrects(spec):
        known.pop("corrected", None)
    return {key: value for key, value in known.items() if value is not None and key in allowed and key not in asked}


def kept_options(spec: RouterSpec, site: MoESite) -> dict[str, Any]:
    """What a router of ours that stands at ``site`` hands on to the one that takes its place."""
    own = isinstance(site.gate, RouterBridge) and correction_of(site.gate.inner.select) is not None
    return {"corrected": True} if own and _corrects(spec) and "corrected" not in spec.options else {}


def _corrects(spec: RouterSpec) -> bool:
    """Whether the preset can choose by corrected scores, which nulls that are placed by their logits rule out."""
    asked = spec.options
    placed = asked.get("select") == "top_p" or asked.get("copied") or asked.get("pinned")
    return "corrected" in preset_options(spec.name) and not placed


def _normalised(facts: RouterFacts) -> dict[str, Any]:
    """The same two facts for presets that name three ways: none, sum, scale."""
    scale = _rounded(facts.scale)
    if facts.renormalised is None:
        return {"scale": None}
    if facts.renormalised or scale not in (None, 1.0):
        return {"normalise": "sum" if facts.renormalised else "scale", "scale": scale}
    return {"normalise": "none", "scale": None}


def take_gate(router: Router, site: MoESite, block: nn.Module, facts: RouterFacts, copied: bool = False) -> None:
    """Give the router the matrix of the gate at ``site``, its bias and its correction. Mutates ``router``.

    A float32 matrix is shared, another is copied as float32: the products are rounded to what they were. A router that
    scores otherwise takes nothing. Null routes begin with the experts' mean correction, at no advantage.

    Args:
        copied: its null routes start as copies of the experts' rows.

    Raises:
        UnsupportedError: the gate is no linear map of its input, or is corrected in a way the router has no place for.
    """
    score = linear_of(router.score)
    weight, bias = _linear_parts(site, block, facts)
    if score is not None:
        score.weight = _shared(weight)
        if score.bias is not None and bias is not None:
            score.bias = _shared(bias)
        if copied:
            router.score.copy_rows(score.weight, bias)  # type: ignore[operator]
        _take_correction(router, site, block, facts)


def _take_correction(router: Router, site: MoESite, block: nn.Module, facts: RouterFacts) -> None:
    """What the family adds to scores for the choice alone, such as DeepSeek-V3's ``e_score_correction_bias``."""
    before = site.gate.inner.select if isinstance(site.gate, RouterBridge) else None
    correction = _named(block, facts.correction) if before is None else correction_of(before)
    if correction is None:
        return
    own = correction_of(router.select)
    if own is None:
        if correction.is_meta or not bool(correction.any()):
            return
        raise UnsupportedError(
            f"{type(site.gate).__name__} chooses by its scores plus a correction of every expert, for which this "
            "router has no place: without it, items would go elsewhere. Choose top_k, sigmoid_bias, group_limited, "
            "rmoe or adamoe (with neither top_p nor copied nor pinned nulls), or train new gates: route(model, spec, "
            "keep_gate=False)."
        )
    if before is None and not _corrects_scores(site, block, facts):
        raise UnsupportedError(
            f"{type(site.gate).__name__} adds its correction to the logits, where router presets add it to the "
            "probabilities. Train new gates: route(model, spec, keep_gate=False)."
        )
    flat = correction.detach().flatten()
    own.copy_(flat.mean().expand_as(own))
    own[: min(len(own), len(flat))] = flat[: len(own)]


def _linear_parts(site: MoESite, block: nn.Module, facts: RouterFacts) -> tuple[Tensor, Tensor | None]:
    if isinstance(site.gate, RouterBridge):
        before = linear_of(site.gate.inner.score)
        if before is None:
            raise UnsupportedError("The model's present router has no linear gate to keep. Route with keep_gate=False.")
        return before.weight, before.bias
    matrices = [p for p in site.gate.parameters() if p.dim() == 2 and p.shape[0] == site.num_experts]
    bias = _named(block, facts.logit_bias)
    if len(matrices) == 1 and _is_linear(site, matrices[0], bias):
        return matrices[0], bias
    raise UnsupportedError(
        f"The gate {site.gate_name} ({type(site.gate).__name__}) is no linear map of its input, which is all that a "
        "router of ours can take over. Train new gates: route(model, spec, keep_gate=False)."
    )


@torch.no_grad()
def _is_linear(site: MoESite, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the gate's logits (or the probabilities it returns in their place) are those of one matrix."""
    if weight.is_meta:
        return True
    x = torch.randn(8, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    expected = F.linear(x, weight, None if bias is None else bias.to(weight.dtype).flatten()).float()
    try:
        found = site.logits(site.gate.forward(x)).float().reshape(expected.shape)
    except Exception:  # a family's own code may want anything that is not there
        return False
    near = 1e-4 if weight.dtype == torch.float32 else 5e-2
    return any(
        torch.allclose(found, each, rtol=near, atol=near)
        for each in (expected, expected.softmax(-1), expected.sigmoid())
    )


@torch.no_grad()
def _corrects_scores(site: MoESite, block: nn.Module, facts: RouterFacts) -> bool:
    """Whether the choice is by the activation plus the correction, seen with the correction drawn wide for once."""
    correction = _named(block, facts.correction)
    score = SCORES.get(facts.score or "")
    if correction is None or correction.is_meta or facts.groups is not None or score is None:
        return True
    kept = correction.clone()
    generator = torch.Generator().manual_seed(0)
    width = next(p.shape[1] for p in site.gate.parameters() if p.dim() == 2)
    x = torch.randn(64, width, generator=generator).to(next(site.gate.parameters()))
    try:
        correction.copy_(torch.rand(correction.shape, generator=generator))
        output = site.gate.forward(x)
        scores = score(site.logits(output).float()) + correction.float().flatten()
        return same_choice(output[2], chosen_as(scores, site.top_k))
    finally:
        correction.copy_(kept)


def _dtypes(gate: Any) -> dict[str, bool | None]:
    """Whether logits are float32 whatever the items, and whether weights are rounded to the logits' dtype."""
    if isinstance(gate, RouterBridge) or any(tensor.is_meta for tensor in gate.state_dict().values()):
        return {}
    try:
        twin = copy.deepcopy(gate).to(torch.bfloat16)
        width = next(p.shape[1] for p in twin.parameters() if p.dim() == 2)
        device = next(twin.parameters()).device
        logits, weights = twin.forward(torch.zeros(2, width, dtype=torch.bfloat16, device=device))[:2]
    except Exception:  # a family's own code may want anything that is not there; then nothing is known
        return {}
    wide = logits.dtype == torch.float32
    return {"float32": wide, "rounded": weights.dtype == torch.bfloat16}


def _named(block: nn.Module, name: str | None) -> Tensor | None:
    """A tensor of a block by its name; None where there is none."""
    if not name:
        return None
    owner, _, last = name.rpartition(".")
    found: Tensor | None = getattr(block.get_submodule(owner), last)
    return found


def _shared(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter) and tensor.dtype == torch.float32:
        return tensor
    return nn.Parameter(tensor.detach().float().clone())


def _rounded(scale: float | None) -> float | None:
    """A measured factor without the noise of its measuring."""
    return None if scale is None else float(f"{scale:.4g}")
