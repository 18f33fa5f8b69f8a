"""MC-SMoE (arXiv 2310.01334): what is merging of experts worth, and compressing what was merged?"""

from __future__ import annotations

from coterie.studies.mc_smoe_arms import ARMS
from coterie.studies.mc_smoe_claims import CLAIMS
from coterie.studies.mc_smoe_run import run
from coterie.studies.mc_smoe_text import six_domains
from coterie.studies.study import Column, Study

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
