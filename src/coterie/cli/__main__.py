"""``python -m coterie.cli`` is ``coterie``."""

from coterie.cli.app import main

main()
