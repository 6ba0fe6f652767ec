"""`bptt tag`: parts of speech by a trained tagger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .answers import Output, check_kind, tell
from .refuse import refusing


def tag(
    run: Annotated[Path, typer.Argument(help="A finished run of the task tag.", metavar="RUN")],
    text: Annotated[str, typer.Argument(help="A sentence, or a file with one a line.")],
    output: Output = None,
) -> None:
    """Tell the part of speech of every word; Chinese without spaces is split by snownlp."""
    with refusing("tag"):
        from bptt.data.lines import lines_of
        from bptt.data.tagged import words_of
        from bptt.tasks.runs import of_task

        check_kind(output)
        task: Any
        task, model, _ = of_task(run, None, "tag")
        sentences = [words_of(line) for line in lines_of(text)]
        rows = [
            {"sentence": number, "word": word, "tag": tag, "probability": round(p, 4)}
            for number, (words, (tags, sure)) in enumerate(
                zip(sentences, task.weighed(model, sentences), strict=True), start=1
            )
            for word, tag, p in zip(words, tags, sure, strict=True)
        ]
        tell(rows, output)
