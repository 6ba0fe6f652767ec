"""`bptt train`, `eval`, `reconstruct`, `sample` and `tasks`: the reference models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .pictures import save
from .refuse import refusing
from .terminal import console

if TYPE_CHECKING:
    from torch import nn

    from bptt.train.task import Task

RunArgument = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]
DataOption = Annotated[
    Path | None, typer.Option(help="Other data than the run's.", show_default=False)
]


class Tasks(TyperGroup):
    """A subcommand for each task, made when it is asked for: tasks import Lightning."""

    def list_commands(self, ctx: Any) -> list[str]:
        from bptt.tasks import NAMES

        return list(NAMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from bptt.tasks import NAMES, task_class

        with refusing("train"):
            return _command(task_class(cmd_name)) if cmd_name in NAMES else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args[0] not in names:
            message = f"no task {args[0]!r}; there are {', '.join(names)}: see `bptt tasks`"
            typer.secho(f"bptt train: {message}", err=True, fg="red")
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)


train = typer.Typer(cls=Tasks, no_args_is_help=True, help="Train a reference model on real data.")


@train.callback()
def _train() -> None:
    """Train a reference model on real data; a run that was stopped goes on from its last epoch."""


def _command(task: type[Task]) -> Any:
    """The subcommand of a task: its settings are the options."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.get_default(call_default_factory=True),
            annotation=Annotated[field.annotation, typer.Option(help=field.description)],
        )
        for name, field in task.Settings.model_fields.items()
    ]
    folder = inspect.Parameter(
        "run",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None,
            typer.Option(help=f"The run's folder; runs/{task.name} if not given."),
        ],
    )

    def command(**options: Any) -> None:
        run = options.pop("run") or Path("runs") / task.name
        with refusing(f"train {task.name}"):
            _fit(task, run, options)

    signature = inspect.Signature([*parameters, folder])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    command.__doc__ = f"{task.model}.\n\nData: {task.data}."
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(task.name)(command)
    return typer.main.get_command(app)


def _fit(task_class: type[Task], path: Path, options: dict[str, Any]) -> None:
    from bptt.data.errors import BadInput
    from bptt.train import report
    from bptt.train.fit import fit, rank
    from bptt.train.folder import Run, read_settings

    try:
        settings = read_settings(task_class.Settings, options, "options")
    except BadInput as error:
        raise BadInput(str(error).removeprefix("options: ")) from None
    task = task_class(settings)
    run = Run(path)
    task.prepare()
    if rank() > 0:  # another process of this one run, started by the first
        fit(task, run, progress=False)
        return
    run.start(task.name, task.settings)
    with run.alone():
        if run.finished():
            typer.echo(f"{path} is finished: `bptt eval {path}` judges it, {run.report} shows it.")
            return
        result = report.conclude(task, run, fit(task, run))
    console().print(report.table(result))
    typer.echo(
        f"{result['epochs']} epochs in {result['minutes']:.1f} minutes. Look at {run.report}"
    )


def evaluate(run: RunArgument, data: DataOption = None) -> None:
    """Judge a finished run again, on its data or on others."""
    with refusing("eval"):
        from bptt.tasks.runs import finished
        from bptt.train import report

        task, model, _ = finished(run, data)
        judgement = task.judge(model)
        anchors = [
            {**vars(anchor), "met": anchor.met(judgement.metrics)} for anchor in judgement.anchors
        ]
        console().print(report.table({"metrics": judgement.metrics, "anchors": anchors}))


def reconstruct(
    run: RunArgument,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images, or .npy files; some of the test set if none is given."),
    ] = None,
    data: DataOption = None,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("reconstruct.png"),
) -> None:
    """Show inputs beside what a model makes of them, and each one's error: its anomaly score."""
    with refusing("reconstruct"):
        from bptt.tasks.runs import able

        task, model, _ = able(run, data, "reconstruct")
        figure, lines = task.reconstruct(model, files or [])
        typer.echo("\n".join(lines))
        save(figure, output)


def sample(
    run: RunArgument,
    count: Annotated[
        int, typer.Option(min=1, max=10000, help="How many; of a text, symbols.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Of what is drawn by chance.")] = 0,
    data: DataOption = None,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("sample.png"),
    prompt: Annotated[str, typer.Option(help="Of a text: what it begins with.")] = "",
    temperature: Annotated[
        float, typer.Option(help="Of a text: below 1 the likely becomes likelier.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Of a text: draw among so many; 0: all.")] = 0,
    nucleus: Annotated[
        float, typer.Option(help="Of a text: the likeliest symbols with so much probability.")
    ] = 1.0,
) -> None:
    """Draw new examples from a generative model: a picture, or a text."""
    with refusing("sample"):
        import torch

        from bptt.tasks.runs import able

        task, model, _ = able(run, data, "sample")
        torch.manual_seed(seed)
        how = {"temperature": temperature, "top_k": top_k, "nucleus": nucleus}
        drawn = _drawn(task, model, count, prompt, how)
        if isinstance(drawn, str):
            typer.echo(drawn)
        else:
            save(drawn, output)


def _drawn(task: Task, model: nn.Module, count: int, prompt: str, how: dict[str, Any]) -> Any:
    """A text or a figure; options for texts are refused for other tasks."""
    from bptt.data.errors import BadInput
    from bptt.tasks.lm import LmTask

    if isinstance(task, LmTask):
        return task.written(model, count, prompt or None, **how)
    if prompt or how != {"temperature": 1.0, "top_k": 0, "nucleus": 1.0}:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in ("prompt", *how))
        raise BadInput(f"{names} are for texts, and this is a run of {task.name}")
    return task.sample(model, count)


def tasks() -> None:
    """The tasks: model, data, metric, anchor, minutes on two cores."""
    from rich import box
    from rich.table import Table

    from bptt.tasks import NAMES, task_class

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "model", "data", "metric", "anchor"):
        table.add_column(column, overflow="fold")
    table.add_column("minutes", justify="right")
    for name in NAMES:
        task = task_class(name)
        table.add_row(
            name,
            task.model,
            task.data,
            task.metric,
            task.anchor,
            f"{task.minutes:g}",
            end_section=True,
        )
    console().print(table)
    typer.echo("`bptt train TASK --help` shows a task's options.")


COMMANDS: dict[str, Callable[..., None]] = {
    "eval": evaluate,
    "reconstruct": reconstruct,
    "sample": sample,
    "tasks": tasks,
}
