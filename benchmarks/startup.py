"""How long does `coterie --help` take, and what does it import?

    python benchmarks/startup.py

The report goes to stdout and to benchmarks/results/. Required: less than half a second, without torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

from offloading.facts import all_facts, hardware_name

RUNS = 10
REQUIRED_SECONDS = 0.5
HEAVY = ("torch", "transformers", "numpy", "safetensors", "huggingface_hub")
RESULTS = Path(__file__).resolve().parent / "results"
# what the console script does, and then which modules are there
_LISTING = """
import json, sys
from coterie.cli import main
sys.argv = ["coterie", "--help"]
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def main() -> None:
    """Measure, print, write."""
    seconds, modules = help_seconds(RUNS), imported_modules()
    facts = all_facts(RESULTS)
    stem = f"startup_{hardware_name(facts['hardware'])}_{date.today().isoformat()}"
    text = render(seconds, modules, facts)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.md").write_text(text)
    print(text)


def help_seconds(runs: int) -> list[float]:
    """Wall seconds of `coterie --help`, as a user starts it; one run before them warms the page cache."""
    command = [str(Path(sys.executable).with_name("coterie")), "--help"]
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def imported_modules() -> list[str]:
    """Every module that is loaded when `coterie --help` ends."""
    done = subprocess.run([sys.executable, "-c", _LISTING], check=True, capture_output=True, text=True)
    return json.loads(done.stderr.splitlines()[-1])


def render(seconds: list[float], modules: list[str], facts: dict[str, dict[str, object]]) -> str:
    """The report, with a plain pass or fail per required line."""
    heavy = [name for name in HEAVY if name in modules]
    tops = sorted({name.split(".")[0] for name in modules} - sys.stdlib_module_names)
    middle, hardware = median(seconds), facts["hardware"]
    quick, light = middle < REQUIRED_SECONDS, "torch" not in modules
    return "\n".join(
        [
            "# Start-up: coterie --help",
            "",
            f"- Machine: {hardware['processor']}, {hardware['cores']} cores, Linux {hardware['kernel']}",
            f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}",
            f"- Commit {facts['repository']['commit']}, working tree "
            f"{'clean' if facts['repository']['clean'] else 'NOT clean'}",
            "",
            f"- {_word(quick)}: median of {len(seconds)} runs {middle:.3f} s, required less than {REQUIRED_SECONDS} s "
            f"(from {min(seconds):.3f} to {max(seconds):.3f})",
            f"- {_word(light)}: torch is {'not ' if light else ''}imported, required not to be",
            f"- {len(modules)} modules; heavy ones: {', '.join(heavy) or 'none'}",
            f"- packages besides the standard library: {', '.join(tops)}",
            "",
        ]
    )


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"


if __name__ == "__main__":
    main()
