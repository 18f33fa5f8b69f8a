"""The start-up benchmark: what it lists, and that it says pass or fail plainly."""

from __future__ import annotations

from typing import Any

import startup


def facts() -> dict[str, Any]:
    return {
        "hardware": {"processor": "test", "cores": 2, "kernel": "6"},
        "versions": {"python": "3.11"},
        "repository": {"commit": "abc", "clean": True},
    }


def test_help_does_not_import_torch() -> None:
    modules = startup.imported_modules()
    assert "coterie.cli" in modules
    assert "torch" not in modules


def test_the_report_passes_and_fails() -> None:
    good = startup.render([0.2, 0.3, 0.4], ["coterie", "typer"], facts())
    assert "pass: median of 3 runs 0.300 s" in good
    assert "FAIL" not in good
    bad = startup.render([0.6, 0.7, 0.8], ["coterie", "torch"], facts())
    assert bad.count("FAIL") == 2
