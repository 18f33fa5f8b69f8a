"""The pages of papers: what is measured there was written by a program."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import toy_study

from coterie.studies import STUDIES, open_study, run_study
from coterie.studies.page import BEGIN, END, markdown_of, overview_of, with_measured

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return run_study(toy_study.study(fails=[2]), tmp_path_factory.mktemp("page") / "toy.json")


def test_the_measured_part(record):
    text = markdown_of(record)
    assert "| (a) fast is above slow by 1 or more, 3 of 3 seeds | gated | **not shown (there is no fast)** |" in text
    assert "| (b) slow is above 5 | gated | **does not hold** | slow 1 | slow 1.1 | slow 1.2 |" in text
    assert text.startswith("0 of 2 gated claims hold, 1 does not, 1 not shown.")
    assert "| slow | the plain one | 1.10 | 10 |" in text
    assert "- fast seed 2: The loss became nan." in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1


def test_only_what_is_between_the_marks_is_written_anew(record):
    page = f"# Toy\n\nBefore.\n\n{BEGIN}\n\nyesterday\n\n{END}\n\nAfter.\n"
    written = with_measured(page, markdown_of(record))
    assert written.startswith("# Toy\n\nBefore.\n\n")
    assert written.endswith("\n\nAfter.\n")
    assert "yesterday" not in written
    assert with_measured(written, markdown_of(record)) == written
    with pytest.raises(ValueError, match="measured: begin"):
        with_measured("# Toy", "text")


def test_the_overview_counts_gated_claims(record):
    assert f"| [{record['study']}](papers/{record['study']}.md) | 0 | 1 | 1 |" in overview_of([record])


def test_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate_papers", DOCS / "generate_papers.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    for page, text in generator.pages().items():
        assert page.read_text(encoding="utf-8") == text, "type: python docs/generate_papers.py"


@pytest.mark.parametrize("name", [*STUDIES])
def test_every_study_has_a_page_and_is_whole(name):
    study = open_study(name)
    assert study.name == name
    page = (DOCS / "papers" / f"{name}.md").read_text(encoding="utf-8")
    assert BEGIN in page
    assert END in page
    assert f"coterie reproduce {name}" in page
    assert study.claims
    assert len({claim.key for claim in study.claims}) == len(study.claims)
    assert any(arm.shown for arm in study.arms)
    assert study.run.__module__.startswith("coterie.studies.")
