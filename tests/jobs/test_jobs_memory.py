"""The budget is a bound: generation under RLIMIT_DATA, with a quarter of the experts' bytes for experts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from coterie.testing.checkpoints import save_tiny

SHAPE = {"layers": 3, "experts": 32, "k": 4, "width": 512, "inner": 1024}

# What a process does, with argv: mode, model, a smaller model, bytes. It runs the smaller one first; what it holds
# then is the baseline.
PROGRAM = """
import ctypes, gc, json, resource, sys
import torch
from coterie.jobs.running.load import load
from coterie.store.machine import data_size

mode, model, warm, budget = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(2)
ids = torch.arange(2, 26)[None]

def generate(host):
    tokens = host.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return tokens[0, ids.shape[1]:].tolist()

warming = load(warm, context=64)
generate(warming)
warming.coterie.close()
del warming
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
if mode != "free":
    limit = data_size() + budget
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    if mode == "transformers":
        from transformers import AutoModelForCausalLM
        print(json.dumps(generate(AutoModelForCausalLM.from_pretrained(model))))
    else:
        host = load(model, budget or None, context=64)
        print(json.dumps([generate(host), host.coterie.budget.as_record()]))
except (MemoryError, RuntimeError) as error:
    exhausted = isinstance(error, MemoryError) or "memory" in str(error).lower()
    print(json.dumps("out of memory" if exhausted else repr(error)))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    big = save_tiny(folder / "big", "olmoe", dtype=torch.bfloat16, tokenizer=False, **SHAPE)
    # the same shapes, so that libraries have made their kernels, threads and buffers before the limit is set
    warm = {**SHAPE, "layers": 1}
    return big, save_tiny(folder / "warm", "olmoe", dtype=torch.bfloat16, tokenizer=False, **warm)


def run(mode, models, budget=0):
    command = [sys.executable, "-c", PROGRAM, mode, *map(str, models), str(budget)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_quarter_of_the_experts_under_a_hard_limit_gives_the_same_tokens(models):
    expected, record = run("free", models)
    budget = record["dense"] + record["cache"] + record["workspace"] + record["expert_bytes"] // 4
    tokens, bounded = run("limited", models, budget)
    assert bounded["slots"] * bounded["slot_bytes"] <= record["expert_bytes"] // 4
    assert tokens == expected
    # the limit is real: with all experts in memory the same process does not get through
    assert run("transformers", models, budget) == "out of memory"
