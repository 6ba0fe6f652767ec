"""`bptt transcribe`: what is said in sound files, by a trained recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .answers import Output, check_kind, tell
from .refuse import refusing


def transcribe(
    run: Annotated[Path, typer.Argument(help="A finished run of the task digits.", metavar="RUN")],
    files: Annotated[list[Path], typer.Argument(help="Sound files; any rate, mono or stereo.")],
    stream: Annotated[
        bool, typer.Option(help="Listen chunk by chunk, and tell digits as they are heard.")
    ] = False,
    output: Output = None,
) -> None:
    """Tell which digits are said in sound files."""
    with refusing("transcribe"):
        import torch

        from bptt.data.errors import BadInput
        from bptt.data.speech import read_sound
        from bptt.tasks.digits import text_of
        from bptt.tasks.runs import of_task

        check_kind(output)
        model: Any
        _, model, _ = of_task(run, None, "digits")
        rows = []
        for path in files:
            sound = read_sound(path)
            if model.features.frames(len(sound)) == 0:
                least = model.features.width
                raise BadInput(f"{path} holds {len(sound)} samples: {least} or more are needed")
            if stream:
                heard = _streamed(model, sound, path)
            else:
                features = model.features(sound)[None]
                heard = text_of(model.hear(features, torch.tensor([features.shape[1]]))[0])
            rows.append({"file": str(path), "digits": heard})
        tell(rows, output)


def _streamed(model: Any, sound: Any, path: Path) -> str:
    """By chunks of a tenth of a second."""
    from bptt.data.errors import BadInput
    from bptt.data.speech import RATE
    from bptt.models.recogniser import Listening
    from bptt.tasks.digits import text_of

    try:
        listening = Listening(model)
    except ValueError as error:
        raise BadInput(f"--stream: {error}") from None
    heard = ""
    for number, chunk in enumerate(sound.split(RATE // 10), start=1):
        new = text_of(listening.feed(chunk))
        if new:
            typer.echo(f"{path}, {number / 10:.1f} s: {new}", err=True)
        heard += new
    return heard
