"""`python -m bptt`: the command `bptt`."""

from bptt.cli import main

main()
