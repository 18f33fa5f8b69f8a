"""Use counted under a budget is the use that transformers' own model shows; pages and pictures hold it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch

from coterie.errors import BudgetError, MissingExtraError, OptionError, PromptError
from coterie.jobs.tracing.usage import usage
from coterie.jobs.tracing.usage_sheet import bars
from coterie.models.prompts import Prompts
from coterie.pictures.heatmap import STEPS, step_of
from coterie.testing.checkpoints import save_tiny

FIRST = "the experts meet in the morning and the router says who speaks. " * 12
SECOND = "0123456789 +-*/ {}[]() <tag> \n\t" * 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("usage") / "tiny", "olmoe", experts=8, k=2, layers=3)


@pytest.fixture(scope="module")
def used(tiny):
    return usage(tiny, {"first <&>": FIRST, "second": SECOND}, tokens=96, context=32)


def stock(path, text, window):
    """Loads [L, E] and perplexity by transformers itself, window by window."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    ids = Prompts.of(path, None).tokenizer(text, return_tensors="pt")["input_ids"][0, :96]
    load, surprise, foretold = torch.zeros(3, 8, dtype=torch.int64), 0.0, 0
    for part in ids.split(window):
        with torch.no_grad():
            out = model(part[None], output_router_logits=True)
        for layer, logits in enumerate(out.router_logits):
            load[layer] += torch.bincount(logits.topk(2).indices.reshape(-1), minlength=8)
        surprise += float(torch.nn.functional.cross_entropy(out.logits[0, :-1], part[1:], reduction="sum"))
        foretold += len(part) - 1
    return load, math.exp(surprise / foretold)


@pytest.mark.parametrize(("number", "text"), [(0, FIRST), (1, SECOND)])
def test_use_and_perplexity_are_those_of_transformers(number, text, used, tiny):
    load, perplexity = stock(tiny, text, 32)
    found = used.texts[number]
    assert [site.load.tolist() for site in found.sites] == load.tolist()
    assert found.perplexity == pytest.approx(perplexity, rel=1e-4)
    assert [site.layer for site in found.sites] == [0, 1, 2]


def test_the_budget_changes_no_number(used, tiny):
    floor = used.budget.floor
    small = usage(tiny, {"first <&>": FIRST, "second": SECOND}, floor, tokens=96, context=32)
    assert small.budget.slots == 1
    for name in ("texts", "sites", "differences", "difference_within"):
        assert small.as_record()[name] == used.as_record()[name]
    with pytest.raises(BudgetError, match="shorter context"):
        usage(tiny, {"first": FIRST}, floor - 1, tokens=96, context=32)


def test_texts_add_up(used):
    assert used.tokens == 192
    for site, first, second in zip(used.sites, *(text.sites for text in used.texts), strict=True):
        assert torch.equal(site.load, first.load + second.load)
    [(a, b, value)] = used.differences()
    assert (a, b) == ("first <&>", "second")
    assert value > used.difference_within() > 0, (value, used.difference_within())
    assert json.loads(json.dumps(used.as_record()))["tokens"] == 192


def test_files_are_read_up_to_the_limit(tiny, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(FIRST * 200)
    [text] = usage(tiny, [file], tokens=50).texts
    assert (text.tokens, text.text.cut, text.text.nbytes) == (50, True, file.stat().st_size)
    assert text.text.describe() == "notes.txt: the first 50 tokens"
    file.write_text("\N{LATIN SMALL LETTER E WITH ACUTE}" * 40)
    [text] = usage(tiny, [file], tokens=4096).texts
    assert (text.tokens, text.text.cut) == (80, False)


def test_a_letter_cut_in_half_at_the_end_of_what_is_read_is_no_binary(tiny, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("a" + "\N{LATIN SMALL LETTER E WITH ACUTE}" * 10_000)
    assert usage(tiny, [file], tokens=8).tokens == 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"PK\x03\x04\xff\xfe\x80", "no plain text"),
        (b"text\0with zeros", "zero bytes"),
        ("h\u00e9".encode("latin1"), "iconv"),
        (b"a", "longer text"),
    ],
)
def test_what_is_no_text_is_refused(content, words, tiny, tmp_path):
    file = tmp_path / "bad"
    file.write_bytes(content)
    with pytest.raises(PromptError, match=words):
        usage(tiny, [file])


def test_no_text_no_file_and_a_directory(tiny, tmp_path):
    with pytest.raises(PromptError, match="--text"):
        usage(tiny, [])
    with pytest.raises(PromptError, match="cannot be read"):
        usage(tiny, [tmp_path / "nowhere.txt"])
    with pytest.raises(PromptError, match="directory"):
        usage(tiny, [tmp_path])
    with pytest.raises(OptionError, match="tokens"):
        usage(tiny, {"a": FIRST}, tokens=1)
    with pytest.raises(OptionError, match="512"):
        usage(tiny, {"a": FIRST * 20}, tokens=2000, context=600)


class Checked(HTMLParser):
    """Every tag is closed in order; collects what matters."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.titled = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "title" and self.open and self.open[-1] == "svg":
            self.titled += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def test_the_page_is_whole_and_needs_nothing_else(used):
    text = used.html()
    page = Checked(text)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe"}
    assert len(text) < 40_000
    assert not re.search(r"https?:|url\(|@import|\bsrc=", text)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert page.titled == len(drawings)
    assert all(drawing["role"] == "img" for drawing in drawings)
    assert "prefers-color-scheme:dark" in text
    assert "first &lt;&amp;&gt;" in text
    assert "first <&>" not in text


def test_every_cell_of_the_page_tells_its_value(used):
    text = used.html()
    for site in used.sites:
        for expert, ratio in enumerate(site.relative.tolist()):
            shown = "never used" if ratio == 0 else f"{ratio:.2f}×"
            assert f"layer {site.layer}, expert {expert}: {shown}<" in text


def test_one_text_has_no_comparison(tiny):
    assert "How different" not in usage(tiny, {"one": FIRST}, tokens=40).html()


def test_colours():
    assert [step_of(ratio) for ratio in (0, 0.01, 0.25, 1, 4, 99)] == [0, 0, 0, STEPS, 2 * STEPS, 2 * STEPS]
    assert step_of(1.5) > STEPS > step_of(0.7)


def test_bars():
    assert bars([2, 1, 0]) == "█▄·"
    assert len(bars([1.0] * 100)) <= 16


def test_png(used, tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "use.png"
    used.write_png(target)
    data = target.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_png_without_matplotlib(used, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"coterie\[report\]"):
        used.write_png(tmp_path / "use.png")
    assert list(tmp_path.iterdir()) == []


def test_the_sheet(used):
    text = used.describe()
    for word in ("perplexity", "effective", "by chance", "kept", "of 24 experts"):
        assert word in text
