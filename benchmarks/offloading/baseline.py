"""What the interpreter and its libraries hold before any model: `python -m offloading.baseline SPEC RESULT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from offloading.counters import anonymous_bytes
from offloading.worker import import_peers


def main(result_path: str) -> None:
    """Import what a Coterie arm does, load nothing, and say what that holds."""
    import_peers()
    import coterie.jobs.running.load  # noqa: F401

    Path(result_path).write_text(json.dumps({"baseline_bytes": anonymous_bytes()}))


if __name__ == "__main__":
    main(sys.argv[2])
