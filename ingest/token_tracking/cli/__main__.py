"""`python -m token_tracking.cli`: runs the command line without its script."""

from .app import main

main()
