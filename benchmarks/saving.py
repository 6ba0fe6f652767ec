"""What the scripts here share: where results go, and how their texts begin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from bptt.tools.bench import machine
from bptt.tools.bench.report import machine_line, source_line

RESULTS = Path(__file__).resolve().parent / "results"


def heading(title: str, content: dict[str, Any]) -> list[str]:
    """Lines that tell of a result's machine, source and quiet."""
    return [
        f"# {title}",
        "",
        machine_line(content["machine"]),
        "",
        source_line(content["machine"]),
        "",
        f"- other programs took {content['other_load']:.0%} of the processor",
        "",
    ]


def save(
    name: str,
    measured: dict[str, Any],
    load: machine.OtherLoad,
    text_of: Callable[[dict[str, Any]], str],
    output: Path,
) -> None:
    """Writes <machine>/<name>.json and .md, and prints the text.

    Args:
        name: of the files.
        measured: lists of rows by name.
        load: begun before the first of them.
        text_of: Markdown of the whole content.
        output: the folder of results.
    """
    content = {"machine": machine.facts("cpu"), "other_load": load.share(), **measured}
    folder = output / machine.folder_of(content["machine"])
    folder.mkdir(parents=True, exist_ok=True)
    text = text_of(content)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    typer.echo(text)
