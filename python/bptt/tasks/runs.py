"""Runs that are finished: their task, and their model with the trained weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bptt.data.errors import BadInput
from bptt.train.folder import Run, read_settings
from bptt.train.task import Task

from . import NAMES, task_class


def finished(path: Path, data: Path | None = None) -> tuple[Task, nn.Module, Run]:
    """The task of a run, its data loaded, its model in evaluation mode, and the run.

    Args:
        path: the run's folder.
        data: other data than the run's.

    Raises:
        BadInput: it is no finished run, or the data cannot be used.
    """
    task, run = _task_of(path, data)
    task.prepare()
    return task, _model_of(task, run), run


def ready(path: Path, data: Path | None = None) -> tuple[Task, nn.Module, Run]:
    """As `finished`; without reading the data where the run holds what it needs of them."""
    task, run = _task_of(path, data)
    if data is not None or not run.vocabularies.is_file():
        task.prepare()
    else:
        task.use(run.read_vocabularies())
    return task, _model_of(task, run), run


def able(path: Path, data: Path | None, what: str) -> tuple[Task, nn.Module, Run]:
    """As `ready`, of a task that can do `what`; found out before the data are read."""
    name, _ = Run(path).read_options()
    if name in NAMES and not task_class(name).can(what):
        others = ", ".join(other for other in NAMES if task_class(other).can(what))
        raise BadInput(f"{path} is a run of {name}, which cannot {what}; these can: {others}")
    return ready(path, data)


def of_task(path: Path, data: Path | None, *names: str) -> tuple[Task, nn.Module, Run]:
    """As `ready`, of one of these tasks; found out before the data are read."""
    name, _ = Run(path).read_options()
    if name not in names:
        makers = " or ".join(f"`bptt train {one}`" for one in names)
        raise BadInput(f"{path} is a run of {name}: {makers} makes one for this")
    return ready(path, data)


def _model_of(task: Task, run: Run) -> nn.Module:
    model = task.build().model
    run.load_weights(model)
    return model.eval()


def _task_of(path: Path, data: Path | None) -> tuple[Task, Run]:
    run = Run(path)
    name, saved = run.read_options()
    if name not in NAMES:
        raise BadInput(f"{run.options} names a task {name!r} that is not here: {', '.join(NAMES)}")
    if data is not None:
        saved["data"] = str(data)
    kind = task_class(name)
    return kind(read_settings(kind.Settings, saved, str(run.options))), run
