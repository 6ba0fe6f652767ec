"""`bptt forecast`: the next steps of a series by a trained forecaster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .answers import Output, check_kind, tell
from .pictures import picture_kind, save
from .refuse import refusing


def forecast(
    run: Annotated[
        Path, typer.Argument(help="A finished run of the task forecast.", metavar="RUN")
    ],
    series: Annotated[Path, typer.Argument(help="A .csv file; its last rows are gone on from.")],
    column: Annotated[
        str, typer.Option(help="Of the file (nothing: the run's, or its last one of numbers).")
    ] = "",
    picture: Annotated[
        Path | None, typer.Option(help="A picture to write, such as shown.png.")
    ] = None,
    output: Output = None,
) -> None:
    """Tell the next steps of a series: the middle, and an interval."""
    with refusing("forecast"):
        from bptt.data.timeline import load_timeline
        from bptt.tasks.runs import of_task

        check_kind(output)
        if picture is not None:
            picture_kind(picture, "--picture")
        task: Any
        task, model, _ = of_task(run, None, "forecast")
        timeline = load_timeline(series, column or task.settings.column)
        told = task.next_steps(model, timeline.values, str(series))
        if timeline.filled:
            typer.echo(f"{series}: {timeline.filled} missing numbers were filled in", err=True)
        names = ("low", "middle", "high")
        rows = [
            {"step": step, **dict(zip(names, values, strict=True))}
            for step, values in enumerate(told.tolist(), start=1)
        ]
        tell(rows, output)
        if picture is not None:
            save(task.drawn(timeline.values, told), picture)
