"""A finished run as one file to look at, and as one to read by machine."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jinja2
import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from bptt.tools.bench import machine

from . import pictures
from .files import write_text
from .fit import Fitted
from .folder import Run
from .task import Judgement, Task


def conclude(task: Task, run: Run, fitted: Fitted) -> dict[str, Any]:
    """All that comes after training: weights, judgement, report; the result, which is written last.

    Raises:
        OSError: a file cannot be written.
    """
    model = fitted.module.model
    task.finish(model)
    run.save_weights(model)
    run.save_vocabularies(task.vocabularies())
    result = result_of(task, fitted, task.judge(model))
    tables = {**task.tables(model), **glimpses_table(fitted.glimpses)}
    write_report(run, result, task.figures(model), tables)
    write_text(run.result, json.dumps(result, indent=1) + "\n")
    return result


def result_of(task: Task, fitted: Fitted, judgement: Judgement) -> dict[str, Any]:
    """What `result.json` holds."""
    settings = task.settings
    known = machine.facts("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "task": task.name,
        "model": task.model,
        "data": task.data_name(),
        "metrics": judgement.metrics,
        "anchors": [
            {**dataclasses.asdict(anchor), "met": anchor.met(judgement.metrics)}
            for anchor in judgement.anchors
        ],
        "notes": judgement.notes,
        "minutes": round(fitted.seconds / 60, 3),
        "epochs": len(fitted.history),
        "seed": settings.seed,
        "reduced": f"{settings.examples} examples" if settings.examples else "",
        "date": known["date"],
        "commit": known["commit"],
        "machine": known["device"],
        "versions": {**known["versions"], "lightning": version("lightning")},
        "options": {k: v for k, v in settings.model_dump(mode="json").items() if k != "data"},
        "history": fitted.history,
    }


def glimpses_table(glimpses: list[dict[str, str]]) -> dict[str, list[list[str]]]:
    """What the model said to a few examples, epoch by epoch."""
    if not glimpses or not glimpses[0]:
        return {}
    rows = [[str(i), *said.values()] for i, said in enumerate(glimpses, start=1)]
    return {"What it said after each epoch": [["epoch", *glimpses[0]], *rows]}


def write_report(
    run: Run,
    result: Mapping[str, Any],
    figures: Mapping[str, Figure],
    tables: Mapping[str, list[list[str]]],
) -> None:
    """report.html: options, machine, curves, pictures, anchors."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bptt.train", "."), autoescape=True, trim_blocks=True
    )
    text = environment.get_template("report.html.jinja").render(
        result=result,
        facts={**result["machine"], **result["versions"]},
        curves=_embedded(pictures.curves(result["history"])),
        tables=tables,
        figures={title: _embedded(figure) for title, figure in figures.items()},
    )
    write_text(run.report, text)


def table(result: Mapping[str, Any]) -> Table:
    """Metrics beside their anchors, for a terminal."""
    made = Table("metric", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("value", justify="right")
    made.add_column("anchor")
    made.add_column("")
    for name, value in result["metrics"].items():
        anchors = [anchor for anchor in result["anchors"] if anchor["metric"] == name]
        bounds = [f"{a['better']} {a['bound']:.5g} ({a['source']})" for a in anchors]
        marks = ["[green]met[/]" if a["met"] else "[red]missed[/]" for a in anchors]
        made.add_row(name, f"{value:.5g}", "\n".join(bounds), "\n".join(marks))
    return made


def _embedded(figure: Figure) -> str:
    """A figure as the address of a picture within the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
