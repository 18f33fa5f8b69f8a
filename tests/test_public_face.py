"""What the outside sees: exported names, their docs, versions, the command's help."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import coterie

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "coterie"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))])


def test_the_face_is_what_it_says():
    assert sorted(coterie.__all__) == coterie.__all__
    assert dir(coterie) == coterie.__all__
    for name in coterie.__all__:
        assert getattr(coterie, name) is not None
    with pytest.raises(AttributeError, match="Routing"):
        _ = coterie.rooting


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_what_it_exports(room):
    module = importlib.import_module(f"coterie.{room}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_is_in_the_docs(room):
    module = importlib.import_module(f"coterie.{room}".rstrip("."))
    missing = [name for name in module.__all__ if not re.search(rf"\b{re.escape(name)}\b", PAGES)]
    assert not missing, f"write a line in docs/ about: {', '.join(missing)}"


def test_every_room_is_on_the_plan_of_the_house():
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert not [room for room in ROOMS if f"{room}/" not in plan]


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changes, flags=re.MULTILINE)
    assert project["version"] == coterie.__version__ == released[0]


VERBS = (
    "run",
    "verify",
    "plan",
    "inspect",
    "doctor",
    "trace",
    "train",
    "reproduce",
    "split",
    "upcycle",
    "merge",
    "prune",
    "compress",
    "quantize",
    "export",
    "attack",
)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_answers_without_torch(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "coterie.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.stdout
    assert "coterie" in imported
    assert not imported & {"torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub"}


@pytest.mark.parametrize("name", ["generate_cli", "generate_families"])
def test_a_page_that_is_written_by_a_program_is_up_to_date(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), "type: make docs"
