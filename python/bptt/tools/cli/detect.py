"""`bptt detect`: faces in a picture by a trained detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .answers import Output, check_kind, tell
from .pictures import picture_kind, save
from .refuse import refusing


def detect(
    run: Annotated[Path, typer.Argument(help="A finished run of the task detect.", metavar="RUN")],
    file: Annotated[
        Path, typer.Argument(help="A picture, or an .npy file of one.", metavar="PICTURE")
    ],
    least: Annotated[
        float, typer.Option(min=0, max=1, help="Probability that a window must have.")
    ] = 0.9,
    step: Annotated[
        float, typer.Option(min=1.01, help="Each smaller copy of the picture is so much smaller.")
    ] = 1.2,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Of their union that two windows may share.")
    ] = 0.3,
    picture: Annotated[
        Path | None, typer.Option(help="A picture with boxes to write, such as shown.png.")
    ] = None,
    output: Output = None,
) -> None:
    """Tell where faces are in a picture: left and top edge, size, probability; in pixels."""
    with refusing("detect"):
        from bptt.data.errors import BadInput
        from bptt.data.images import read_pictures
        from bptt.models.detector import WINDOW, Found
        from bptt.tasks.detect import drawn
        from bptt.tasks.runs import of_task

        check_kind(output)
        if picture is not None:
            picture_kind(picture, "--picture")
        model: Any
        _, model, _ = of_task(run, None, "detect")
        images = read_pictures(file)
        if len(images) != 1 or min(images.shape[1:]) < WINDOW:
            shape = "x".join(str(length) for length in reversed(images.shape))
            raise BadInput(
                f"{file}: expected one picture of {WINDOW}x{WINDOW} or more, got {shape}"
            )
        found = model.find(images[0], least=least, step=step, overlap=overlap)
        if found or output is not None:
            tell([one._asdict() for one in found], output, Found._fields)
        else:
            typer.echo(f"no face of probability {least:g} or more")
        if picture is not None:
            save(drawn(images[0], found), picture)
