"""The subcommands."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="bptt",
    help="Fused recurrent kernels for PyTorch: their speed, their accuracy, their gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
