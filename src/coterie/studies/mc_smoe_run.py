"""Running an arm of the study of MC-SMoE: a model is trained or made smaller, measured, taught and measured again."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from coterie.experts import Factored, Factors, KindExperts
from coterie.ops.similarity import random_similarity
from coterie.studies import mc_smoe_models as models
from coterie.studies.claims import Metrics
from coterie.studies.learning import BATCH, BLOCK, RATE, train, windows_of
from coterie.studies.mc_smoe_accounting import accounting
from coterie.studies.mc_smoe_arms import AVERAGE, BALANCE, BASE, CALIBRATION, RANKS, RECOVERY_RATE, SCRATCH
from coterie.studies.mc_smoe_models import EXPERTS, FAMILIES, Observed
from coterie.studies.measures import sample
from coterie.studies.predictions import bits
from coterie.studies.study import Bench
from coterie.surgery.dominants import coverage_dominants, frequency_dominants
from coterie.surgery.factorize import LayerFactors
from coterie.surgery.grouping import nearest_dominant
from coterie.surgery.student import factorize_model, pack_model
from coterie.training import Objective, Options, distill
from coterie.training.sparsify import Sparsify


def run(bench: Bench) -> Metrics:
    """One arm: a model that is trained, or one that is made smaller, measured, taught by the full one, measured."""
    kind = bench.arm.options["kind"]
    return {"trained": _trained, "drifted": _drifted, "shrunk": _shrunk, "factored": _factored}[kind](bench)


def _trained(bench: Bench) -> Metrics:
    experts = bench.arm.options["experts"]
    model = models.made(bench.seed, experts)
    data = windows_of(bench.corpus.parts["train"], bench.steps * BATCH, bench.seed)
    train(bench, model, data, Objective(balance=BALANCE))
    models.save(model, bench.place)
    return {"one-shot": _loss(bench, model), **(_facts(bench, model) if experts == EXPERTS else {})}


def _drifted(bench: Bench) -> Metrics:
    """Clone the experts of the small model and let them grow apart a little."""
    model = models.cloned(models.load(bench.earlier[BASE], FAMILIES), bench.seed)
    before = _loss(bench, model)
    data = windows_of(bench.corpus.parts["train"], bench.steps * BATCH, bench.seed + 1)
    train(bench, model, data, Objective(balance=0.0), rate=RATE)
    models.save(model, bench.place)
    return {"one-shot": _loss(bench, model), "when cloned": before, **_facts(bench, model), **accounting()}


def _facts(bench: Bench, model: Any) -> Metrics:
    seen = _seen(bench, model)
    nearest = [each.similarity.clone().fill_diagonal_(-1).argmax(1) for each in seen.values()]
    family = torch.arange(EXPERTS) // models.CLONES
    return {
        "nearest is family": float(torch.stack([family[one] == family for one in nearest]).double().mean()),
        "idle": sum(int((each.usage == 0).sum()) for each in seen.values()),
    }


def _shrunk(bench: Bench) -> Metrics:
    model, teacher = _full(bench), _full(bench)
    metrics = _shrink(bench, model)
    metrics |= {"one-shot": _loss(bench, model), "parameters": _expert_numbers(model)}
    if bench.arm.options.get("ranks"):
        metrics |= _by_rank(bench, model)
    _recover(bench, model, teacher)
    return metrics | {"after": _loss(bench, model)}


def _shrink(bench: Bench, model: Any) -> dict[str, Any]:
    """Make ``model`` smaller as the arm says, in place; who was kept, and how many families have nobody left."""
    options, seen = bench.arm.options, _seen(bench, model)
    usage = [each.usage for each in seen.values()]
    alike = [each.similarity for each in seen.values()]
    if options.get("groups") == "random":
        generator = torch.Generator().manual_seed(bench.seed)
        alike = [random_similarity(EXPERTS, generator) for _ in alike]
    total = AVERAGE * len(seen)
    if options["dominants"] == "coverage":
        chosen = coverage_dominants(usage, alike, total)
    else:
        by = [each.reap for each in seen.values()] if options["dominants"] == "reap" else usage
        chosen = frequency_dominants(by, total)
    if options["way"] == "prune":
        models.prune(model, dict(zip(seen, chosen, strict=True)))
    else:
        groups = [nearest_dominant(one, kept) for one, kept in zip(alike, chosen, strict=True)]
        weights = [torch.ones_like(one) if options.get("uniform") else one for one in usage]
        models.merge(
            model, dict(zip(seen, groups, strict=True)), dict(zip(seen, weights, strict=True)),
            options.get("align", "weight"),
        )  # fmt: skip
    counts = {"experts": [len(kept) for kept in chosen]}
    if options["of"] == SCRATCH:
        return counts
    families = [len({one // models.CLONES for one in kept}) for kept in chosen]
    return counts | {"families lost": sum(FAMILIES - count for count in families)}


def _by_rank(bench: Bench, model: Any) -> Metrics:
    """One-shot losses when every matrix is cut to a rank; stable ranks before and after merging."""
    losses = []
    for rank in RANKS:
        cut = copy.deepcopy(model)
        models.cut_ranks(cut, rank)
        losses.append(_loss(bench, cut))
    before = models.stable_ranks(_full(bench))
    return {"by rank": losses, "stable rank before": before, "stable rank after": models.stable_ranks(model)}


def _factored(bench: Bench) -> Metrics:
    """The paper's table 7: factors of merged experts, or of all, learning from the full model while S is pruned."""
    options = bench.arm.options
    model, teacher = _full(bench), _full(bench)
    if options["merged"]:
        _shrink(bench, model)
    rank, keep = options["rank"], options["keep"]
    factorize_model(model, {site.name: _ranks(site, rank) for site in models.changed_sites(model)})
    sparsify = Sparsify(keep)
    units = sum(one.kept for _, one in _factors(model))
    _recover(bench, model, teacher, [sparsify])
    pack_model(model)
    factors = _factors(model)
    return {
        "after": _loss(bench, model), "parameters": _expert_numbers(model),
        "by formula": sum(one.numbers(*size) for size, one in factors),
        "units kept": sum(one.kept for _, one in factors), "units": units,
    }  # fmt: skip


def _ranks(site: Any, rank: int) -> LayerFactors:
    return LayerFactors(dict.fromkeys(("gate_proj", "up_proj", "down_proj"), [rank] * site.num_stored))


def _recover(bench: Bench, model: Any, teacher: Any, callbacks: Any = ()) -> None:
    data = windows_of(bench.corpus.parts["train"], bench.steps * BATCH, bench.seed + 2)
    options = Options(
        steps=bench.steps, batch=BATCH, rate=RECOVERY_RATE, warmup=bench.steps // 8, decay=1.0, weight_decay=0.01,
        betas=(0.9, 0.98), seed=bench.seed, save_every=0, log_every=max(1, bench.steps // 10),
    )  # fmt: skip
    distill(model, teacher, data, options, bench.place / "recovery", progress=bench.progress, callbacks=callbacks)
    model.eval()


def _full(bench: Bench) -> Any:
    return models.load(bench.earlier[bench.arm.options["of"]])


def _seen(bench: Bench, model: Any) -> dict[str, Observed]:
    """Of the layers that are compressed, on windows of the text that is learned from."""
    windows = sample(bench.corpus.parts["train"], bench.scaled(CALIBRATION, 16), BLOCK)
    seen = models.observe(model.eval(), windows)
    return {site.name: seen[site.name] for site in models.changed_sites(model)}


def _loss(bench: Bench, model: Any) -> float:
    """Nats per unseen byte."""
    return bits(model, _unseen(bench)) * math.log(2)


def _unseen(bench: Bench) -> Tensor:
    return sample(bench.corpus.parts["valid"], bench.scaled(512, 16), BLOCK)


def _expert_numbers(model: Any) -> int:
    """Numbers in the matrices of the compressed layers' experts."""
    return sum(
        part.numel() for site in models.changed_sites(model) for part in site.experts.parameters() if part.dim() > 1
    )


def _factors(model: Any) -> list[tuple[tuple[int, ...], Factors]]:
    """(rows and columns, how it is made up) of every matrix that is a product."""
    parts = [part for site in models.changed_sites(model) for part in site.experts.modules()]
    kinds = [part.kind for part in parts if isinstance(part, KindExperts) and isinstance(part.kind, Factored)]
    return [
        (kind.shape.weight_shapes()[name], one) for kind in kinds for name, some in kind.factors.items() for one in some
    ]
