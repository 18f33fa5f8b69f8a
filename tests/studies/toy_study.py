"""A study of nothing, in milliseconds: what the frame is tried on. Importable in the processes of the runs."""

from __future__ import annotations

import os
import time

from coterie.errors import TrainingError
from coterie.studies import Arm, Claim, Column, Corpus, Study, each


def run(bench):
    base = 0.0
    if bench.arm.after:
        base = float((bench.earlier["slow"] / "result").read_text())
    if (flag := bench.arm.options.get("fails")) and bench.seed in flag:
        raise TrainingError("The loss became nan.")
    if bench.arm.options.get("breaks"):
        raise ZeroDivisionError("a fault of ours")
    if bench.arm.options.get("dies"):
        os._exit(3)
    if bench.arm.options.get("waits"):
        time.sleep(600)
    for step in range(bench.steps):
        bench.tell(step + 1)
    value = base + bench.arm.options["value"] + bench.seed / 10
    (bench.place / "result").write_text(str(value))
    return {"value": value, "steps": bench.steps, "bytes": len(bench.corpus.parts["train"]), "nothing": float("nan")}


def gather(given):
    return Corpus("toy", {"train": b"abc"} if given is None else {"train": given.read_bytes()})


def claims():
    return (
        Claim(
            "a", "fast is above slow by 1 or more, 3 of 3 seeds",
            lambda arms: {"fast - slow": arms["fast"]["value"] - arms["slow"]["value"]},
            each(lambda n: n["fast - slow"] >= 1),
        ),
        Claim("b", "slow is above 5", lambda arms: {"slow": arms["slow"]["value"]}, each(lambda n: n["slow"] > 5)),
    )  # fmt: skip


def study(**options):
    arms = (
        Arm("slow", "the plain one", 10, {"value": 1.0}),
        Arm("fast", "on top of slow", 20, {"value": 2.0, **options}, after=("slow",)),
    )
    columns = (Column("value", "value", ".2f"), Column("steps", "steps", ".0f"))
    return Study("toy", "Toys, 2024", "fast beats slow", "no model", arms, claims(), columns, run, gather)
