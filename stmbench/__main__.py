"""``python -m stmbench`` is the command ``stmbench``."""

from stmbench.cli import main

main()
