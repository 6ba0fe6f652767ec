"""`bptt translate` and `bptt pronounce`: what trained encoder-decoders answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .pictures import picture_kind, save
from .refuse import refusing
from .terminal import console

if TYPE_CHECKING:
    from bptt.tasks.pairs import Answer, PairTask

Beam = Annotated[int, typer.Option(min=1, help="Width of the search; 1 is greedy.")]
Best = Annotated[int, typer.Option(min=1, help="Answers to each, with scores if several.")]
Penalty = Annotated[
    float, typer.Option(min=0, help="Power of the length that scores are divided by.")
]
Attention = Annotated[
    str, typer.Option(help="Where it looks: a picture to write, or - for the terminal.")
]
_SHADES = " ░▒▓█"


def translate(
    run: Annotated[
        Path, typer.Argument(help="A finished run of translate or inflect.", metavar="RUN")
    ],
    text: Annotated[
        str, typer.Argument(help="A sentence, or a file with one a line; “walk V;PST” to inflect.")
    ],
    beam: Beam = 5,
    best: Best = 1,
    penalty: Penalty = 1.0,
    attention: Attention = "",
) -> None:
    """Translate a sentence, or each line of a file; inflect a word by a run of inflect."""
    with refusing("translate"):
        from bptt.data.lines import lines_of
        from bptt.tasks.inflect import InflectTask
        from bptt.tasks.runs import of_task

        task: Any
        task, model, _ = of_task(run, None, "translate", "inflect")
        lines = lines_of(text)
        _check_attention(attention, len(lines), "sentence")
        inputs: list[Any] = list(lines)
        if isinstance(task, InflectTask):
            inputs = [task.read(line) for line in lines]
        answers = task.answers(model, inputs, beam=max(beam, best), penalty=penalty)
        for line, found in zip(lines, answers, strict=True):
            _tell(task, line if best > 1 else "", found[:best])
        if attention:
            _show(task, model, inputs[0], answers[0][0], attention)


def pronounce(
    run: Annotated[Path, typer.Argument(help="A finished run of g2p.", metavar="RUN")],
    words: Annotated[list[str], typer.Argument(help="Words to pronounce.")],
    beam: Beam = 5,
    best: Best = 1,
    penalty: Penalty = 1.0,
    attention: Attention = "",
) -> None:
    """Say how words are pronounced."""
    with refusing("pronounce"):
        from bptt.tasks.runs import of_task

        task: Any
        task, model, _ = of_task(run, None, "g2p")
        _check_attention(attention, len(words), "word")
        words = [word.lower() for word in words]
        answers = task.answers(model, words, beam=max(beam, best), penalty=penalty)
        for word, found in zip(words, answers, strict=True):
            _tell(task, word, found[:best])
        if attention:
            _show(task, model, words[0], answers[0][0], attention)


def _check_attention(where: str, count: int, what: str) -> None:
    """That a map of attention can be shown there, for so many inputs."""
    from bptt.data.errors import BadInput

    if where and count > 1:
        raise BadInput(f"--attention is for one {what}, got {count}")
    if where not in ("", "-"):
        picture_kind(Path(where), "--attention")


def _tell(task: PairTask[Any], given: str, answers: Sequence[Answer]) -> None:
    for answer in answers:
        score = f"{answer.score:8.3f}  " if len(answers) > 1 else ""
        typer.echo(f"{score}{given}{'  ' if given else ''}{task.text(answer)}")


def _show(task: PairTask[Any], model: Any, given: Any, answer: Answer, where: str) -> None:
    """The map of attention as a picture, or in the terminal."""
    from rich.table import Table

    from bptt.data.errors import BadInput

    weights = task.attention(model, given, answer)
    if weights is None:
        raise BadInput("--attention: the run's model has none (it was trained with attention none)")
    if where != "-":
        picture = task.attention_figure(model, given, answer)
        assert picture is not None
        save(picture, Path(where))
        return
    table = Table("", *task.source_names(given), box=None, padding=(0, 1, 0, 0))
    names = [*task.target_names(answer.numbers), "end"]
    for name, row in zip(names, weights.tolist(), strict=True):
        table.add_row(name, *(2 * _SHADES[round(value * (len(_SHADES) - 1))] for value in row))
    console().print(table)
