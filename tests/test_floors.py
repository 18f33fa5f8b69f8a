"""The house stands: a room imports lower floors only. Lazy and typing imports count like any other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "coterie"
FLOORS = {
    "errors": 0,
    "units": 1, "registry": 1, "ranges": 1, "routing": 1,
    "ops": 2, "pictures": 2,
    "routers": 3, "experts": 3,
    "layers": 4,
    "models": 5,
    "surgery": 6, "training": 6, "store": 6,
    "compose": 7, "jobs": 7,
    "serve": 8,
    "studies": 9, "testing": 9,
    "cli": 10,
}  # fmt: skip
FACE = {"__version__"}  # what a room may take from the package itself, which otherwise only looks downstairs


def imported_rooms(tree: ast.AST):
    """(line, room) of every import of the package in one file, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"coterie.(relative import of {node.module or '.'})"]
        elif isinstance(node, ast.ImportFrom) and node.module == "coterie":
            names = [f"coterie.{alias.name}" for alias in node.names if alias.name not in FACE]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("coterie."))


def violations(package: Path):
    """One sentence for each import that goes up or sideways, and for each room without a floor."""
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        room = place.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        if room not in FLOORS:
            yield f"{place}: the room {room!r} has no floor yet. Add it to FLOORS here and to docs/architecture.md."
            continue
        for line, other in imported_rooms(ast.parse(file.read_bytes())):
            if other != room and FLOORS.get(other, 99) >= FLOORS[room]:
                yield f"{place}:{line}: {room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS.get(other, '?')})"


def test_every_room_imports_lower_floors_only():
    assert not list(violations(PACKAGE))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("ops/a.py", "import coterie.routers.base"),
        ("ops/a.py", "from coterie import routers"),
        ("ops/a.py", "def late():\n    from coterie.cli.app import main"),
        ("ops/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from coterie.store import Store"),
        ("routers/a.py", "from coterie.experts import FFN"),
        ("units.py", "from coterie.routing import Routing"),
        ("cli/deep/a.py", "from .. import app"),
        ("jobs/a.py", "from coterie import load"),
        ("store/a.py", "from coterie.attic import box"),
        ("attic/a.py", "import json"),
    ],
)
def test_a_wall_that_is_broken_is_noticed(file, text, tmp_path):
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    assert len(list(violations(tmp_path))) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cli/a.py", "from coterie import __version__\nfrom coterie.store import Store"),
        ("store/a.py", "from coterie.store.b import B\nfrom coterie.errors import StoreError"),
        ("__init__.py", "from coterie.jobs import load"),
    ],
)
def test_what_is_allowed_is_allowed(file, text, tmp_path):
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    assert not list(violations(tmp_path))
