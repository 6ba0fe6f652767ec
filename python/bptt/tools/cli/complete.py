"""`bptt complete`: suggestions of a language model while one types."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .refuse import refusing


def complete(
    run: Annotated[Path, typer.Argument(help="A finished run of the task lm.", metavar="RUN")],
    text: Annotated[
        str | None, typer.Argument(help="What was typed; asked for if not given.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=50, help="Suggestions.")] = 5,
    data: Annotated[Path | None, typer.Option(help="Where the run's text lies now.")] = None,
) -> None:
    """Suggest how a text goes on, with probabilities: for a text, for lines, or while one types."""
    with refusing("complete"):
        from bptt.tasks.lm import Typing
        from bptt.tasks.runs import of_task

        task: Any
        task, model, _ = of_task(run, data, "lm")
        typing = Typing(task.symbols, model)
        if text is not None:
            typer.echo(lines_of(typing, text, count))
        elif sys.stdin.isatty():
            type_along(typing, count)
        else:
            for line in sys.stdin:
                typer.echo(lines_of(typing, line.rstrip("\n"), count))


def lines_of(typing: Any, text: str, count: int) -> str:
    """Suggestions for a text, one a line."""
    found = typing.suggestions(text, count)
    return "\n".join(f"{p:6.1%}  {text}{end}" for end, p in found)


def type_along(typing: Any, count: int) -> None:
    """A prompt with a menu of suggestions, made anew at each key; the tab key takes one."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    from bptt.data.errors import BadInput

    class Suggestions(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Any:
            try:
                found = typing.suggestions(document.text_before_cursor, count)
            except BadInput:  # nothing typed yet, or a character the model does not know
                return
            word = document.get_word_before_cursor()
            for end, p in found:
                yield Completion(end, display=word + end, display_meta=f"{p:.1%}")

    session: PromptSession[str] = PromptSession(completer=Suggestions(), complete_while_typing=True)
    typer.echo("Type; the tab key takes a suggestion, control-D ends.")
    while True:
        try:
            session.prompt("> ")
        except (EOFError, KeyboardInterrupt):
            return
