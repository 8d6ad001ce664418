"""`python -m token_tracking.cli`: runs the command line without its script."""

from .command_line import main

main()
