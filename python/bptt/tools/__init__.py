"""The command `bptt` and what its subcommands do: bench, check, gradflow, demo."""
