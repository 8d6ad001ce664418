"""`python -m token_tracking.cli`: the command line without its script."""

from .app import main

main()
