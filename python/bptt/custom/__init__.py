"""A user's own cell as a compiled loop: `bptt.compile_cell`."""
