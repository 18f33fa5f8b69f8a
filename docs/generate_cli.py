"""Write docs/cli.md from what `coterie --help` says. `make docs` calls it; a test holds the page up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
<!-- Written by docs/generate_cli.py from the help texts. Change those, then type: make docs -->

"""


def page() -> str:
    """The reference of every verb and option, as Markdown."""
    command = [sys.executable, "-m", "typer", "coterie.cli.app", "utils", "docs", "--name", "coterie"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = re.sub(r'<span style="font-weight: bold">(.*?)</span>', r"**\1**", text)
    return HEAD + text.replace("&#x27;", "'").strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
