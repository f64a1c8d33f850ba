"""`python -m cai`: the same as `cai`, for launchers that start a module."""

from cai.cli import main

main()
