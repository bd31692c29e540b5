"""`python -m splitwiser`."""

from splitwiser.cli import main

main()
