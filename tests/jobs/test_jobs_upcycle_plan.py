"""What a mixture is to be made of, from options or a file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coterie.errors import OptionError
from coterie.jobs.growing.upcycle_plan import ExpertSource, UpcyclePlan, copies_of, read_plan

FILE = """
base_model: base
gate_mode: hidden
dtype: bfloat16
experts_per_token: 1
experts:
  - source_model: code
    positive_prompts: ["def main():", "import os"]
    negative_prompts: ["Once upon a time"]
  - source_model: org/prose
    positive_prompts: ["Once upon a time"]
    noise_scale: 1e-2
shared_experts:
  - source_model: base
    positive_prompts: ["The"]
    residual_scale: 0.1
"""


def written(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    return tmp_path / "plan.yaml"


def test_a_file_of_mergekits_form(tmp_path):
    (tmp_path / "code").mkdir()
    plan = read_plan(written(tmp_path, FILE))
    assert plan == UpcyclePlan(
        base="base", k=1, gates="hidden", dtype="bfloat16",
        experts=(
            # what lies beside the file is meant from there
            ExpertSource(str(tmp_path / "code"), ("def main():", "import os"), ("Once upon a time",)),
            ExpertSource("org/prose", ("Once upon a time",), noise=0.01),
        ),
        shared=ExpertSource("base", ("The",), scale=0.1),
    )  # fmt: skip
    assert plan.needs_prompts
    assert not plan.one_model


@pytest.mark.parametrize(("theirs", "ours"), [("hidden_avg", "hidden"), ("uniform_random", "random"), ("zero", "zero")])
def test_other_names_of_the_same(tmp_path, theirs, ours):
    assert read_plan(written(tmp_path, FILE.replace("gate_mode: hidden", f"gate_mode: {theirs}"))).gates == ours


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("base_model: base", "", "base_model is missing"),
        ("gate_mode: hidden", "gate_mod: hidden", "Did you mean 'gate_mode'"),
        ("gate_mode: hidden", "gate_mode: hiden", "no start 'hiden'"),
        ("experts_per_token: 1", "experts_per_token: 3", "k is 3, and there are 2"),
        ("experts_per_token: 1", "experts_per_token: many", "must be a number"),
        ("dtype: bfloat16", "dtype: int8", "float32"),
        ("    positive_prompts: [\"Once upon a time\"]\n", "", "Expert 1 .* has no prompts"),
        ("source_model: org/prose", "source_model: org/prose+lora", "Merge it into its base"),
        ("noise_scale: 1e-2", "noise_scale: -1", "0 or more"),
        ("positive_prompts: [\"The\"]", "positive_prompt: [\"The\"]", "Did you mean 'positive_prompts'"),
        ("experts:\n", "expert:\n", "Did you mean 'experts'"),
        ("gate_mode: hidden", "gate_mode: [", "line 5 is not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, old, new, what):
    assert old in FILE
    with pytest.raises(OptionError, match=what):
        read_plan(written(tmp_path, FILE.replace(old, new, 1)))


def test_files_that_are_none(tmp_path):
    with pytest.raises(OptionError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="UTF-8"):
        read_plan(tmp_path / "binary.yaml")
    with pytest.raises(OptionError, match="'name: value' lines"):
        read_plan(written(tmp_path, "- a\n- b\n"))


def test_the_same_prompts_for_all_tell_nobody_apart():
    with pytest.raises(OptionError, match="Give each its own"):
        UpcyclePlan("base", (ExpertSource("a", ("x",)), ExpertSource("b", ("x",))), gates="hidden")


def test_copies_of_one_model():
    plan = copies_of("base", 4, 2, noise=0.1)
    assert len(plan.experts) == 4
    assert plan.one_model
    assert plan.experts[0] == ExpertSource("base", noise=0.1)
    assert replace(plan, k=3).k == 3
    with pytest.raises(OptionError, match="k is 5"):
        replace(plan, k=5)
