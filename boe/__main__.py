"""``python -m boe``."""

from boe.cli import main

main()
