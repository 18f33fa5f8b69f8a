"""What the README and the docs say is true: their commands and programs run, their links lead somewhere.

A fenced block runs unless the line above it says ``<!-- not run: the reason -->``. In a ``console`` block
the lines after ``$`` are commands, the others are their output, compared in shape: numbers and sizes may
differ, ``...`` stands for anything. Commands that set up or build are checked for what they name instead.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
GENERATED = ROOT / "docs" / "cli.md"
FENCE = re.compile(r"^(?P<above>[^\n]*)\n+```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d[\d.,]*(?:e-?\d+)?(?: ?(?:[KMGT]i?B|B)\b)?")
LIMIT = 120  # seconds for one command


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str


def runnable(*languages):
    """The blocks that are not excused, as parameters with readable ids."""
    blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if found["language"] in languages and "<!-- not run:" not in found["above"] and page != GENERATED:
                line = text.count("\n", 0, found.start("text")) + 1
                blocks.append(
                    pytest.param(Block(page, line, found["language"], found["text"]), id=f"{page.name}:{line}")
                )
    return blocks


def commands_of(block):
    """[(command, shown output lines)]; a bash block is commands alone."""
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "bash" and line.strip() and not line.startswith("#"):
            commands.append((line, []))
        elif line.startswith("$ "):
            commands.append((line[2:], []))
        elif line.strip() and commands:
            commands[-1][1].append(line)
    return commands


def shape(line):
    """A line without what differs from machine to machine."""
    return re.sub(r"\s+", " ", NUMBER.sub("#", line)).strip()


def is_shown(printed, shown):
    """Whether a shown line, in which ``...`` is anything, stands for a printed one."""
    pattern = ".*".join(re.escape(shape(part)) for part in shown.split("..."))
    return re.fullmatch(pattern, shape(printed)) is not None


# ---- commands that are not run: what they name must exist


def check_make(words):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [word for word in words if "=" not in word]
    assert set(named) <= set(targets), named


def check_pip(words):
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    named = {extra for word in words for group in re.findall(r"\[([\w,]+)\]", word) for extra in group.split(",")}
    assert named <= extras, named
    assert all((ROOT / words[at + 1]).exists() for at, word in enumerate(words) if word == "-c")


def check_paths(words):
    named = [word.split("::")[0] for word in words if "/" in word and not word.startswith("-")]
    assert all((ROOT / name).exists() for name in named), named


def check_nothing(words):
    """A command of the system."""


NOT_RUN = {
    "make": check_make, "pip": check_pip, "pytest": check_paths, "git": check_nothing, "cd": check_nothing,
    ".": check_nothing, "python3": check_nothing, "pre-commit": check_nothing, ".ci/run": check_nothing,
}  # fmt: skip


@pytest.mark.parametrize("block", runnable("console", "bash"))
def test_commands(block, pocket, tmp_path):
    for command, shown in commands_of(block):
        words = shlex.split(command, comments=True)
        if (check := NOT_RUN.get(words[0].removeprefix(".venv/bin/"))) is not None:
            check(words[1:])
        else:
            run_and_compare(command, shown, tmp_path)


def run_and_compare(command, shown, cwd):
    """What goes to stderr must be shown; what is shown must be printed, but for the words of a model."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if not shown:
        return
    status = [line for line in done.stderr.splitlines() if line.strip()]
    for line in status:
        assert any(is_shown(line, candidate) for candidate in shown if candidate != "..."), f"not shown: {line}"
    if command.startswith("coterie run") and "--json" not in command:
        assert done.stdout
        return
    printed = status + done.stdout.splitlines()
    for line in shown:
        assert any(is_shown(candidate, line) for candidate in printed), f"not printed: {line}\nprinted: {printed}"


@pytest.mark.parametrize("block", runnable("python"))
def test_programs(block, pocket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n" * (block.line - 1) + block.text
    exec(compile(code, str(block.page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", text)
    for link in links:
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {anchor(text) for text in headings}, link


def anchor(heading):
    """The name that a heading has in links."""
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")


def test_the_readme_has_no_gaps():
    assert "TODO" not in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("5 tokens · 7.1 tokens/s · read 3.20 MiB", "60 tokens · 41.0 tokens/s · read 950 KiB", True),
        ("5 tokens · hits 80%", "5 tokens · misses 80%", False),
        ("budget bit-identical: 32768 logits against everything resident", "budget ... against ...", True),
        ("error 1.2e-07 of the largest", "error 3.4e-3 of the largest", True),
        ("one two three", "one two", False),
    ],
)
def test_the_comparison_itself(printed, shown, same):
    assert is_shown(printed, shown) is same
