"""`python -m bptt`: the command `bptt`."""

from bptt.tools.cli import main

main()
