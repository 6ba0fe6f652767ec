"""The subcommands."""

from __future__ import annotations

import typer

from .gradflow import gradflow

app = typer.Typer(
    name="bptt",
    help="Fused recurrent kernels for PyTorch: their speed, their accuracy, their gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _several() -> None:
    """Makes typer ask for a subcommand even while there is one alone."""


app.command("gradflow")(gradflow)
