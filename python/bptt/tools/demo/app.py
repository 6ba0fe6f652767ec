"""The demo's command line: which sections run, in which order, and the exit status."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from . import machine, parity, speed, train

SECTIONS = ("machine", "parity", "speed", "train")
_LEAST_WIDTH = 100  # columns for tables when the output is no terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _chosen(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise typer.BadParameter(
            f"expected some of {','.join(SECTIONS)}, got {only!r}", param_hint="--only"
        )
    return [name for name in SECTIONS if name in names]


@app.command()
def demo(
    only: Annotated[str, typer.Option(help="Sections to run, joined by commas.")] = ",".join(
        SECTIONS
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the words, in training.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for the speed table.")] = 35.0,
    seed: Annotated[int, typer.Option(help="Seed of split, weights and batches.")] = 0,
    cell: Annotated[str, typer.Option(help="gru, lstm or rnn, for the model.")] = "gru",
    hidden: Annotated[int, typer.Option(min=2, help="The model's hidden size.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Words in a batch.")] = 128,
    words: Annotated[
        int, typer.Option(min=0, help="Use so many words of the dictionary (0: all).")
    ] = 0,
    sample: Annotated[
        int, typer.Option(min=1, help="Held-out words to judge the model on, at most.")
    ] = 5000,
) -> None:
    """What bptt is and does, on this machine, in a few minutes."""
    chosen = _chosen(only)
    settings = {
        "epochs": epochs,
        "seed": seed,
        "cell": cell,
        "units": hidden,
        "batch": batch,
        "words": words,
        "judged": sample,
    }
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(_LEAST_WIDTH, console.width))
    run = {
        "machine": lambda: machine.section(console),
        "parity": lambda: parity.section(console, seed),
        "speed": lambda: speed.section(console, seconds),
        "train": lambda: train.section(console, settings),
    }
    started = time.perf_counter()
    failed = [name for name in chosen if not run[name]()]
    console.print(f"\nTotal: {time.perf_counter() - started:.0f} s")
    if failed:
        console.print(f"[bold red]Failed: {', '.join(failed)}")
        raise typer.Exit(1)
