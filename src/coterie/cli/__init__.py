"""One command, `coterie`; each verb a thin shell over a public function.

Nothing here imports torch before a verb runs, so that `coterie --help` answers at once.
"""

from coterie.cli.app import app, main

__all__ = ["app", "main"]
