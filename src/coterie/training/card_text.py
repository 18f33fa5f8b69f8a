"""The words of the pocket model's card; every number comes from the measurements."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

Measures = Mapping[str, Any]


def card_text(measures: Measures, sources: Mapping[str, Mapping[str, str]], sampling: Measures, size: int) -> str:
    """The card in Markdown.

    Args:
        measures: as in measures.json.
        sources: domain -> what, licence, attribution.
        sampling: as in generation_config.json.
        size: bytes of weights and tokenizer.
    """
    parts = [
        _head(measures, size), _data(measures, sources), _training(measures), _perplexity(measures),
        _routing(measures), _writing(measures, sampling), _limits(measures),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _head(measures: Measures, size: int) -> str:
    shape = measures["recipe"]["shape"]
    what = _filled(
        f"""A small mixture of experts, as it ships with Coterie: {shape["num_hidden_layers"]} layers,
        {shape["num_experts"]} experts in each, {shape["num_experts_per_tok"]} chosen per token. It is there to show and
        test the machinery on a router that has really learned something, on any machine and without a download. It
        loads with plain transformers (`OlmoeForCausalLM`)."""
    )
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [mixture-of-experts, olmoe]
---

# The pocket model

{what}

| | |
|---|---|
| parameters | {measures["parameters"]:,}, of which {measures["active_parameters"]:,} work on a token |
| size | {size:,} bytes: bfloat16 weights and tokenizer |
| width, inner width of an expert | {shape["hidden_size"]}, {shape["intermediate_size"]} |
| attention heads, for keys and values | {shape["num_attention_heads"]}, {shape["num_key_value_heads"]} |
| tokenizer | byte-level BPE, {measures["recipe"]["vocabulary"]:,} entries, trained on the same text |
| trained on windows of | {measures["recipe"]["length"]} tokens |"""


def _data(measures: Measures, sources: Mapping[str, Mapping[str, str]]) -> str:
    rows = [
        f"| {domain} | {source.get('what', 'not stated')} | {source.get('licence', 'not stated')} "
        f"| {measures['tokens']['train'][domain]:,} | {measures['tokens']['test'][domain]:,} |"
        for domain, source in sources.items()
    ]
    credits = [f"- {domain}: {source['attribution']}" for domain, source in sources.items() if "attribution" in source]
    parts = [
        "## Data",
        _table("| domain | what | licence | train tokens | test tokens |", rows),
        _filled(
            """The first characters of each test text are in `samples.json`, the words of the train text in
            `words.txt.gz`; they serve the package's tests and are under the licences above."""
        ),
    ]
    return "\n\n".join([*parts, "Attribution:", "\n".join(credits)] if credits else parts)


def _training(measures: Measures) -> str:
    recipe, history = measures["recipe"], measures["history"]
    options, domains = recipe["options"], ",".join(measures["tokens"]["train"])
    every = max(1, len(history["train"]) // 12)
    rows = [f"| {step:,} | {loss:.3f} |" for step, loss in history["train"][every - 1 :: every]]
    last = history["valid"][-1] if history["valid"] else {}
    losses = ", ".join(f"{name.removeprefix('valid_')} {value:.3f}" for name, value in last.items() if name != "step")
    return f"""## Training

```bash
coterie train pocket --text TEXT --domains {domains} --sources sources.json \\
  --steps {options["steps"]} --seed {options["seed"]} --out OUT
```

{_how(recipe, history, measures["versions"])}{_plans(history)}

![Loss by step](loss.svg)

{_filled(f"Nats per token; training includes the balance loss. On unseen text at the end: {losses or 'not measured'}.")}

{_table("| step | training loss |", rows)}"""


def _how(recipe: Measures, history: Measures, versions: Mapping[str, str]) -> str:
    options = recipe["options"]
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    warmup = min(options["warmup"], options["steps"] // 4)
    return _filled(
        f"""Hugging Face's Trainer, AdamW with betas {options["betas"][0]} and {options["betas"][1]} and weight decay
        {options["weight_decay"]}; the rate rises to {options["rate"]} in {warmup} steps and falls to zero in the last
        {options["decay"]:.0%} of {options["steps"]:,} steps. A step sees {options["batch"]} windows of
        {recipe["length"]} tokens, each of one domain, a domain's share being its size to the power
        {recipe["evenness"]}: {history["tokens_seen"]:,} tokens in all. The balance loss
        ({recipe["shape"]["router_aux_loss_coef"]}) is over the whole batch, so a domain may have experts of its own.
        {history["hours"]} hours on {history["threads"]} CPU thread(s), finished {history["finished"]}; {named}."""
    )


def _plans(history: Measures) -> str:
    """What changed on the way, where something did: then the command above does not give the very same weights."""
    plans = [plan for at, plan in enumerate(history["plans"]) if not at or plan[1:] != history["plans"][at - 1][1:]]
    if len(plans) < 2:
        return ""
    told = "; ".join(f"from step {step:,} {steps:,} steps with {decay:,} of decay" for step, steps, decay in plans)
    return "\n\n" + _filled(
        f"""The plan was changed on the way: {told}. So the rate fell in pieces, and a run of the command above, which
        has the last plan from its start, gives another model of the same kind."""
    )


def _perplexity(measures: Measures) -> str:
    length = measures["recipe"]["length"]
    rows = [
        f"| {domain} | {numbers['model']:.2f} | {numbers['trigram']:.2f} | {numbers['trigram_all_text']:.2f} "
        f"| {numbers['trigram_own_text']:.2f} | {numbers['bits_per_byte']:.3f} | {_below(numbers)} |"
        for domain, numbers in measures["perplexity"].items()
    ]
    text = _filled(
        f"""Per token, on the whole test text of each domain, weights as shipped, with {length // 2} to {length} tokens
        of context. The yardstick is an interpolated modified Kneser-Ney trigram model over the same tokens, once of
        all the train text and once of the domain's own; the better of the two counts."""
    )
    head = "| domain | model | trigram | trigram, all text | trigram, own text | bits per byte | below trigram |"
    return f"## Perplexity\n\n{text}\n\n{_table(head, rows)}"


def _below(numbers: Mapping[str, float]) -> str:
    return "yes" if numbers["model"] < numbers["trigram"] else "NO"


def _routing(measures: Measures) -> str:
    layers = measures["routing"]["layers"]
    rows = [
        f"| {number} | {layer['chi_square']:,.0f} | {_p(layer['p'])} | {layer['p_windows']:.3f} |"
        for number, layer in enumerate(layers)
    ]
    text = _filled(
        f"""Do the domains use different experts? Pearson's chi-square on the counts of chosen experts by domain
        ({layers[0]["freedom"]} degrees of freedom), on test text. Since neighbouring tokens resemble each other, the
        last column shuffles whole windows of text among the domains instead; 0.001 is the smallest value it can
        take."""
    )
    return f"## Routing\n\n{text}\n\n{_table('| layer | chi-square | p, tokens | p, shuffled windows |', rows)}"


def _p(value: float) -> str:
    return "below 1e-300" if value < 1e-300 else f"{value:.1e}"


def _writing(measures: Measures, sampling: Measures) -> str:
    rows = [
        f"| {domain} | {one['words']} | {one['known']:.1%} | {one['most_repeated']} |"
        for domain, one in measures["writing"].items()
    ]
    texts = [
        f"**{domain}.** {_line(one['prompt'])} **|** {_line(one['text'])}"
        for domain, one in measures["writing"].items()
    ]
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size")
    how = ", ".join(f"{name} {sampling[name]}" for name in names if sampling.get(name))
    text = _filled(
        f"""Unless told otherwise it samples with {how}, as its generation config says. 200 tokens continue the first
        words of each test text, seed 0:"""
    )
    table = _table("| domain | words | found in the train text | most frequent run of four words |", rows)
    return "\n\n".join(["## Writing", text, table, *texts])


def _limits(measures: Measures) -> str:
    return "## Limits\n\n" + _filled(
        f"""It has read little, of a few kinds, and knows nothing of the world. What it writes is fluent here and there
        and true nowhere: do not act on it, on anything medical least of all. It follows no instructions, knows the
        language of its texts alone, never learned where a text ends, and was trained on
        {measures["recipe"]["length"]} tokens of context: beyond that it wanders."""
    )


def _line(text: str) -> str:
    """On one line, with nothing that Markdown would take for its own."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 110, break_long_words=False, break_on_hyphens=False)


def _table(head: str, rows: Sequence[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])
