"""`bptt gradflow`: the norm of dL/dh_t over time, vanishing and exploding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..gradflow import Flow, Settings

FILES = ("gradflow.png", "gradflow.csv", "gradflow.json")
_LEAST_WIDTH = 112  # columns of a table where the output is no terminal
_REPORT_EVERY = 100  # steps of training, where there is no terminal for a progress bar


def gradflow(
    steps: Annotated[int, typer.Option(help="Steps of a sequence, 8 or more.")] = 100,
    hidden: Annotated[int, typer.Option(help="Hidden units of a layer.")] = 64,
    batch: Annotated[int, typer.Option(help="Sequences measured, and of a training batch.")] = 64,
    layers: Annotated[int, typer.Option(help="Recurrent layers.")] = 1,
    train: Annotated[
        int, typer.Option(help="Train so many steps and measure again; 0: as initialised only.")
    ] = 300,
    gain: Annotated[
        float, typer.Option(help="Multiplies the initial hidden-to-hidden weights: try 3.")
    ] = 1.0,
    forget_bias: Annotated[
        float, typer.Option(help="The LSTM's initial bias of the forget gate.")
    ] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 2e-3,
    truncate: Annotated[
        int, typer.Option(help="Also with gradients that stop every so many steps; 0: not.")
    ] = 0,
    clip: Annotated[
        float, typer.Option(help="Also with the norm of dL/dh_t bounded at each step; 0: not.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="Where all runs, such as cpu or cuda.")] = "cpu",
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for gradflow.png, .csv and .json.")
    ] = Path("gradflow"),
) -> None:
    """Measure and plot gradient norms through time: RNN (tanh, relu), GRU and LSTM.

    The task is the adding problem, the loss at the last step of each sequence; the norm is
    ||dL/dh_t||_2, taken down by the backward kernel.
    """
    from rich.console import Console

    from ..gradflow import Settings

    try:
        settings = Settings(
            steps=steps, hidden=hidden, batch=batch, layers=layers, train=train, gain=gain,
            forget_bias=forget_bias, learning_rate=learning_rate, truncate=truncate, clip=clip,
            seed=seed, dtype=dtype, device=device,
        )  # fmt: skip
        _check_device(settings)
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(_LEAST_WIDTH, console.width))
    try:
        flows = _run(settings, console)
    except FloatingPointError as error:
        console.print(f"[bold red]{error}")
        raise typer.Exit(1) from None
    _show(settings, flows, output, console)


def _check_device(settings: Settings) -> None:
    """Find out now rather than in the middle of a run.

    Raises:
        ValueError: no such device, or one that cannot hold the dtype.
    """
    import torch

    try:
        torch.zeros(1, dtype=getattr(torch, settings.dtype), device=settings.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {settings.device}: {reason}") from None


def _run(settings: Settings, console: Console) -> list[Flow]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from ..gradflow import NETWORKS, run

    text = TextColumn("{task.description:8}  loss {task.fields[loss]:.4f}")
    columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), text)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    total = settings.train * len(NETWORKS) * len(settings.treatments())
    task = bar.add_task("", total=total, loss=float("nan"), visible=total > 0)

    def progress(network: str, step: int, loss: float) -> None:
        bar.update(task, advance=1, description=network, loss=loss)
        if not console.is_terminal and step in (settings.train, *range(0, step + 1, _REPORT_EVERY)):
            console.print(f"training {network}: step {step} of {settings.train}, loss {loss:.4f}")

    with bar:
        return run(settings, progress)


def _show(settings: Settings, flows: list[Flow], output: Path, console: Console) -> None:
    from ..gradflow import report

    figure, curves, summary = (output / name for name in FILES)
    report.write_figure(settings, flows, figure)
    report.write_csv(flows, curves)
    report.write_json(settings, flows, summary)
    console.print(report.table(flows))
    console.print(
        "last, first step: median over the batch of the norm of dL/dh_t there; per step: its "
        "factor with each step away from the loss; half-life: steps in which it halves."
    )
    console.print(f"Written: {figure}, {curves.name}, {summary.name}", soft_wrap=True)
