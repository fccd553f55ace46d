"""`python -m dslm`."""

from dslm.cli.app import main

main()
