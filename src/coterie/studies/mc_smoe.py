"""MC-SMoE (arXiv 2310.01334): what is merging of experts worth, and compressing what was merged?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from coterie.experts import Factored, Factors, KindExperts
from coterie.ops.similarity import random_similarity
from coterie.studies import mc_smoe_models as models
from coterie.studies.claims import Arms, Claim, Metrics, Numbers, each
from coterie.studies.learning import BATCH, BLOCK, RATE, train, windows_of
from coterie.studies.mc_smoe_accounting import accounting
from coterie.studies.mc_smoe_models import EXPERTS, FAMILIES, INNER, WIDTH, Observed
from coterie.studies.mc_smoe_text import six_domains
from coterie.studies.measures import sample
from coterie.studies.predictions import bits
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.surgery.dominants import coverage_dominants, frequency_dominants
from coterie.surgery.factorize import LayerFactors
from coterie.surgery.grouping import nearest_dominant
from coterie.surgery.student import factorize_model, pack_model
from coterie.training import Objective, Options, distill
from coterie.training.sparsify import Sparsify

BASE_STEPS, DRIFT_STEPS, RECOVERY, CONTROL_RECOVERY, FACTOR_STEPS = 600, 80, 30, 60, 120
AVERAGE, CALIBRATION, BALANCE, RECOVERY_RATE = 4, 256, 0.01, 5e-4
RANK, KEEP = 32, 0.1
SMALL_RANK, SMALL_KEEP = RANK * AVERAGE // EXPERTS, KEEP * AVERAGE / EXPERTS  # of four times as many experts
RANKS = (8, 16, 32, 64, min(WIDTH, INNER))

BASE, FULL, SCRATCH = "4 experts", "full, 16 experts", "from scratch, 16 experts"
COVERAGE, FREQUENCY = "M-SMoE, coverage", "M-SMoE, frequency"
UNALIGNED, RANDOM, PRUNED, UNIFORM = "no alignment", "random groups", "prune", "uniform weights"
MERGED_SMALL, SMALL, SMALL_ALIKE = "merge, then compress", "compress, equal rank", "compress, equal size"
C_GROUPS, C_RANDOM, C_UNALIGNED, C_PRUNED, C_REAP = (
    "scratch: router logits", "scratch: random groups", "scratch: no alignment", "scratch: prune by frequency",
    "scratch: prune by REAP",
)  # fmt: skip


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


def _merging(of: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "shrunk", "of": of, "way": "merge", "dominants": "frequency", **changes}


_FACTORED = {"kind": "factored", "of": FULL, "dominants": "frequency", "way": "merge"}
ARMS = (
    Arm(BASE, "four experts of 128 in each of four layers, before cloning", BASE_STEPS,
        {"kind": "trained", "experts": FAMILIES}, shown=False),
    Arm(SCRATCH, f"sixteen experts from the start, balance {BALANCE}: nothing is planted", BASE_STEPS,
        {"kind": "trained", "experts": EXPERTS}),
    Arm(FULL, "each of the four cloned four times, then drifting", DRIFT_STEPS, {"kind": "drifted"}, (BASE,)),
    Arm(COVERAGE, "layers 1 to 3 merged to 4 on average; dominants cover the kinds of experts", RECOVERY,
        _merging(FULL, dominants="coverage", ranks=True), (FULL,)),
    Arm(FREQUENCY, "the same; dominants are the most used (the paper)", RECOVERY, _merging(FULL), (FULL,)),
    Arm(UNALIGNED, "as M-SMoE by frequency, neurons as they lie", RECOVERY, _merging(FULL, align="none"), (FULL,)),
    Arm(RANDOM, "as M-SMoE by frequency, groups by lot", RECOVERY, _merging(FULL, groups="random"), (FULL,)),
    Arm(PRUNED, "the most used stay, the others go", RECOVERY, _merging(FULL, way="prune"), (FULL,)),
    Arm(UNIFORM, "as M-SMoE by frequency, plain averages", RECOVERY, _merging(FULL, uniform=True), (FULL,)),
    Arm(MERGED_SMALL, f"M-SMoE by frequency, then rank {RANK} and {KEEP:.0%} of the rows of S", FACTOR_STEPS,
        {**_FACTORED, "merged": True, "rank": RANK, "keep": KEEP}, (FULL,)),
    Arm(SMALL, f"all 16 experts at rank {RANK} and {KEEP:.0%}: four times the numbers (the paper's table 7)",
        FACTOR_STEPS, {**_FACTORED, "merged": False, "rank": RANK, "keep": KEEP}, (FULL,)),
    Arm(SMALL_ALIKE, f"all 16 experts at rank {SMALL_RANK} and {SMALL_KEEP:.1%}: as many numbers", FACTOR_STEPS,
        {**_FACTORED, "merged": False, "rank": SMALL_RANK, "keep": SMALL_KEEP}, (FULL,)),
    Arm(C_GROUPS, "from scratch: M-SMoE by frequency", CONTROL_RECOVERY, _merging(SCRATCH), (SCRATCH,)),
    Arm(C_RANDOM, "from scratch: groups by lot", CONTROL_RECOVERY, _merging(SCRATCH, groups="random"), (SCRATCH,)),
    Arm(C_UNALIGNED, "from scratch: neurons as they lie", CONTROL_RECOVERY, _merging(SCRATCH, align="none"),
        (SCRATCH,)),
    Arm(C_PRUNED, "from scratch: the most used stay", CONTROL_RECOVERY, _merging(SCRATCH, way="prune"), (SCRATCH,)),
    Arm(C_REAP, "from scratch: those of the largest REAP stay", CONTROL_RECOVERY,
        _merging(SCRATCH, way="prune", dominants="reap"), (SCRATCH,)),
)  # fmt: skip


def _pair(first: str, second: str, metric: str) -> Callable[[Arms], Numbers]:
    def numbers(arms: Arms) -> Numbers:
        one, other = float(arms[first][metric]), float(arms[second][metric])
        return {first: one, second: other, "difference": one - other}

    return numbers


def _against_others(arms: Arms) -> Numbers:
    others = {name: float(arms[name]["one-shot"]) for name in (UNALIGNED, RANDOM, PRUNED)}
    return {FREQUENCY: float(arms[FREQUENCY]["one-shot"]), **others, "best other": min(others.values())}


def _sizes(arms: Arms) -> Numbers:
    """Parameters found over those that the formulas give, less one."""
    expert = 3 * WIDTH * INNER
    off = {
        name: float(arms[name]["parameters"]) / (sum(arms[name]["experts"]) * expert) - 1
        for name in (COVERAGE, FREQUENCY, PRUNED)
    }
    factors = [arms[name] for name in (MERGED_SMALL, SMALL, SMALL_ALIKE)]
    off["factors"] = max(abs(one["parameters"] / one["by formula"] - 1) for one in factors)
    shares = {MERGED_SMALL: KEEP, SMALL: KEEP, SMALL_ALIKE: SMALL_KEEP}
    off["units"] = max(abs(arms[name]["units kept"] - share * arms[name]["units"]) for name, share in shares.items())
    return off


def _by_ranks(arms: Arms) -> Numbers:
    losses = arms[COVERAGE]["by rank"]
    rise = max(later - earlier for earlier, later in pairwise(losses))
    exact = abs(losses[-1] - arms[COVERAGE]["one-shot"])
    return {**{f"rank {rank}": loss for rank, loss in zip(RANKS, losses, strict=True)}, "rise": rise, "off": exact}


def _stable(arms: Arms) -> Numbers:
    before, after = (arms[COVERAGE][f"stable rank {when}"] for when in ("before", "after"))
    return {"before": sum(before) / len(before), "after": sum(after) / len(after)}


def _pruning(arms: Arms) -> Numbers:
    merged, pruned = float(arms[C_GROUPS]["after"]), min(float(arms[name]["after"]) for name in (C_PRUNED, C_REAP))
    return {"merged": merged, "better pruned": pruned, "difference": merged - pruned}


def _equal(arms: Arms) -> Numbers:
    found = dict(_pair(MERGED_SMALL, SMALL_ALIKE, "after")(arms))
    return {**found, "sizes": arms[MERGED_SMALL]["parameters"] / arms[SMALL_ALIKE]["parameters"]}


def _from(arm: str, *metrics: str) -> Callable[[Arms], Numbers]:
    return lambda arms: {name: float(arms[arm][name]) for name in metrics}


def _less(numbers: Mapping[str, float]) -> bool:
    return numbers["difference"] < 0


_ALL = "in 3 of 3 seeds"
CLAIMS = (
    Claim("a", f"The full model is better than M-SMoE with dominants by coverage, one-shot, {_ALL}.",
          _pair(FULL, COVERAGE, "one-shot"), each(_less)),
    Claim("b", f"Dominants by coverage are better than by frequency, one-shot, {_ALL} (not the paper's: this "
          "project's rule).", _pair(COVERAGE, FREQUENCY, "one-shot"), each(_less)),
    Claim("c", "M-SMoE by frequency is better than each of no alignment, random groups and pruning, one-shot, "
          f"{_ALL}.", _against_others, each(lambda n: n[FREQUENCY] < n["best other"])),
    Claim("d", "Parameters are what the formulas give, to the last one, and units of S that stay are the share asked "
          f"for, to one, {_ALL}.", _sizes,
          each(lambda n: n["units"] <= 1 and all(abs(v) < 1e-9 for name, v in n.items() if name != "units"))),
    Claim("e", "Cut to a rank without the rest, the merged model loses no less at a smaller rank (to 0.002 nats), and "
          f"nothing (1e-4) at full rank, {_ALL}.", _by_ranks, each(lambda n: n["rise"] <= 0.002 and n["off"] <= 1e-4)),
    Claim("f", "For the paper's own shapes (switch-base-32) sizes come out within 0.2 % of its 733, 381 and 570 "
          "million and round to its 2.0 billion; memory saved is about 80 % (78 to 82), operations are "
          "about 20 % (18 to 22) fewer.",
          _from(FULL, "full, millions", "memory saved", "operations saved", "largest difference"),
          each(lambda n: 0.78 <= n["memory saved"] <= 0.82 and 0.18 <= n["operations saved"] <= 0.22
               and n["largest difference"] <= 0.002 and round(n["full, millions"], -2) == 2000)),
    Claim("g", f"The nearest expert by router logits is of the same family for at least 95 % of experts, {_ALL}.",
          _from(FULL, "nearest is family"), each(lambda n: n["nearest is family"] >= 0.95), gated=False),
    Claim("h", f"Alignment is worth something after recovery too: M-SMoE by frequency is better than unaligned, {_ALL} "
          "(the paper's table 6).", _pair(FREQUENCY, UNALIGNED, "after"), each(_less), gated=False),
    Claim("i", f"M-SMoE by frequency is better than pruning after recovery, {_ALL} (the paper's table 2).",
          _pair(FREQUENCY, PRUNED, "after"), each(_less), gated=False),
    Claim("j", "Control, nothing planted: groups by router logits are better than random ones, one-shot, "
          f"{_ALL}.", _pair(C_GROUPS, C_RANDOM, "one-shot"), each(_less), gated=False),
    Claim("k", f"Control: the same after recovery, {_ALL}.", _pair(C_GROUPS, C_RANDOM, "after"), each(_less),
          gated=False),
    Claim("l", f"Control: alignment helps one-shot, {_ALL}.", _pair(C_GROUPS, C_UNALIGNED, "one-shot"), each(_less),
          gated=False),
    Claim("m", f"Control: merging is better than the better of two ways to prune after recovery, {_ALL}.", _pruning,
          each(_less), gated=False),
    Claim("n", "Merge, then compress is better than compress alone at equal rank and equal steps, with distillation, "
          f"{_ALL} (the paper's table 7; compress alone has four times the numbers here).",
          _pair(MERGED_SMALL, SMALL, "after"), each(_less), gated=False),
    Claim("o", "Merge, then compress is better than compress alone at equal parameters (to 2 %) and equal steps, with "
          f"distillation, {_ALL}.", _equal, each(lambda n: _less(n) and abs(n["sizes"] - 1) <= 0.02), gated=False),
    Claim("p", f"Merging lowers the mean stable rank of the gate matrices, {_ALL} (the paper's figure 4).", _stable,
          each(lambda n: n["after"] < n["before"]), gated=False),
)  # fmt: skip

STUDY = Study(
    name="mc-smoe",
    paper="Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy (arXiv 2310.01334)",
    question="Experts that the router treats alike can be merged, and what was merged compresses better than what was "
    "not.",
    setting="Byte model, 4 layers of width 96, one of 4 or 16 gated experts of 128 for each byte (weight: sigmoid of "
    "the logit), six kinds of text, 1024 bytes a step: 600 steps with 4 experts, cloned four times each (neurons "
    "permuted, 2 % noise, rows of the router jittered), 80 steps of drift at the same rate without balance loss. "
    "Layers 1 to 3 go to 4 experts on average by 256 windows; then 30 steps (from scratch 60, factors 120) of learning "
    "from the full model, weight 0.2, temperature 2, routers frozen. Nats per byte on 512 windows of 64 unseen bytes.",
    arms=ARMS,
    claims=CLAIMS,
    columns=(
        Column("one-shot", "one-shot", ".4f"), Column("after", "after learning", ".4f"),
        Column("experts", "experts", ".1f"), Column("families lost", "families lost", ".1f"),
        Column("parameters", "numbers in experts", ",.0f"),
    ),
    run=run,
    gather=six_domains,
    seeds=(1, 2, 3),  # 0 was looked at when the drift's rate was chosen
)  # fmt: skip
