"""What people and machines are shown: the sheet, the page, the record."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from attack_models import patterns, trained

from coterie.errors import OptionError
from coterie.jobs.attacking import Check, Threat, Verdict, attack
from coterie.jobs.attacking.words import learned_from, seen_before


@pytest.fixture(scope="module")
def report():
    return attack(trained(), patterns(120, seed=1), Threat(0.04, 8, images=60), released=True, name="<mine>")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_sheet_says_the_number_first_then_why(report):
    lines = report.describe().splitlines()
    assert lines[0] == "<mine> under attack: 60 of 120 images of patterns"
    assert lines[5].startswith("robust    ")
    assert "right under every attack, ±" in lines[5]
    assert "no reason for doubt" in lines[6]
    text = "\n".join(lines)
    for words in ("end to end", "router alone", "every route in turn", "without gradient", "released evaluation",
                  "unbounded attack", "sent away", "by expert"):  # fmt: skip
        assert words in text
    assert "expert 0 forced" not in text  # it is a column of the table of experts
    assert max(map(len, lines)) <= 160


def test_the_page_is_whole_and_shows_images_before_and_after(report):
    page = report.html()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<mine>" not in page
    assert 1 <= len(report.examples) <= 10
    assert len(tags.images) == 3 * len(report.examples)
    assert all(image["src"].startswith("data:image/png;base64,") for image in tags.images)
    assert page.count("<svg") == 2
    assert ", expert " in page


def test_examples_are_images_that_were_right_and_are_wrong(report):
    seen = []
    for one in report.examples:
        assert one.before == one.label != one.after
        change = (one.attacked - one.clean).abs().max()
        assert 0 < change <= 0.04 + 1e-6
        seen.append(one.clean.flatten().tolist())
        assert len(one.route_before) == len(one.route_after) == 1
    assert len({tuple(pixels) for pixels in seen}) == len(seen)
    assert len({one.attack for one in report.examples}) > 1


def test_the_record_is_json_and_complete(report):
    record = json.loads(json.dumps(report.as_record(), allow_nan=False))
    assert record["robust_accuracy"] == report.robust_accuracy
    assert record["trusted"] is True
    assert record["threat"]["norm"] == "inf"
    assert [one["attack"] for one in record["attacks"]] == [
        "end-to-end", "margin", "more-starts", "router", "rerouting", "experts", "expert-0", "expert-1", "worst-route",
        "gradient-free", "released",
    ]  # fmt: skip
    assert {one["kind"] for one in record["attacks"]} == {"attack", "diagnostic", "bound", "weak"}
    released = record["attacks"][-1]
    assert 0 <= released["router_accuracy_label_modulo_experts"] <= 1
    assert len(record["checks"]) == len(report.checks) == 12
    assert record["accuracy_over_epsilon"][0] == [0.0, record["accuracy_over_epsilon"][0][1]]
    assert record["loss_over_steps"][0][0] == 0
    assert 0 < record["standard_error"] < 0.07


def test_a_failure_is_said_everywhere(report):
    doubted = replace(report, checks=[*report.checks, Check("the moon", Verdict.FAILED, "it is <made> of cheese")])
    assert doubted.exit_code == 1
    assert not doubted.trusted
    assert "NOT TO BE TRUSTED: the moon" in doubted.describe()
    assert "not TO BE" not in doubted.html()
    assert "✗ failed" in doubted.html()
    assert "&lt;made&gt;" in doubted.html()
    assert doubted.as_record()["trusted"] is False


def test_images_that_were_learned_from_are_known_by_their_source(tmp_path):
    (tmp_path / "report.json").write_text('{"images": {"source": "digits:train"}}')
    assert learned_from(tmp_path) == "digits:train"
    for data in ("digits:train", "digits"):
        assert "learned from digits:train" in seen_before("digits:train", data)[0]
    assert seen_before("digits:train", "digits:test") == []
    assert seen_before("", "digits") == []
    assert seen_before(str(tmp_path), f"{tmp_path}/.")
    assert seen_before(str(tmp_path / "a.npz"), str(tmp_path)) == []
    for text in ("", "[]", '{"images": 3}', "{}", "\0"):
        (tmp_path / "report.json").write_text(text)
        assert learned_from(tmp_path) == ""
    assert learned_from(tmp_path / "none") == ""


def test_the_page_is_written_whole_or_not_at_all(report, tmp_path):
    report.write_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == report.html()
    with pytest.raises(OptionError, match="There is no directory"):
        report.write_html(tmp_path / "no" / "page.html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
