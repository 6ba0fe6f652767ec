"""The subcommands."""

from __future__ import annotations

import typer

from .bench import bench
from .check import check
from .complete import complete
from .detect import detect
from .doctor import doctor
from .forecast import forecast
from .gradflow import gradflow
from .tag import tag
from .train import COMMANDS, train
from .transcribe import transcribe
from .translate import pronounce, translate

app = typer.Typer(
    name="bptt",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Fused recurrent kernels for PyTorch: their speed, accuracy and gradients; models on them."""


app.command("bench")(bench)
app.command("check")(check)
app.command("detect")(detect)
app.command("doctor")(doctor)
app.command("gradflow")(gradflow)
app.add_typer(train, name="train")
app.command("complete")(complete)
app.command("forecast")(forecast)
app.command("tag")(tag)
app.command("transcribe")(transcribe)
app.command("translate")(translate)
app.command("pronounce")(pronounce)
for name, command in COMMANDS.items():
    app.command(name)(command)
