"""`python -m venice`."""

from venice.cli import main

main()
