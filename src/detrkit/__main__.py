"""`python -m detrkit`, the same as `detrkit`."""

from detrkit.cli import main

main()
