"""`bptt bench`: speed beside torch.nn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bptt.tools.bench.problems import Problem
    from bptt.tools.bench.results import Result


def refuse(message: object) -> NoReturn:
    """A bad argument: say so and end with 2."""
    typer.secho(f"bptt bench: {message}", err=True, fg="red")
    raise typer.Exit(2)


def bench(
    grid: Annotated[
        str, typer.Argument(help="quick, standard, hard-case, short, bf16, cells, full")
    ] = "quick",
    layers: Annotated[str, typer.Option(help="RNN,GRU,LSTM,SRU,...: a grid of your own")] = "",
    shapes: Annotated[str, typer.Option(help="TxBxH or TxBxIxH, e.g. 100x32x128,50x1x64")] = "",
    precision: Annotated[str, typer.Option(help="fp32,tf32,fp16,bf16")] = "",
    directions: Annotated[str, typer.Option(help="1 or 2, or 1,2")] = "",
    depth: Annotated[str, typer.Option(help="layers of a stack, e.g. 1,2,4")] = "",
    passes: Annotated[str, typer.Option(help="inference,forward,backward,step")] = "",
    provider: Annotated[
        list[str] | None, typer.Option(help="only these, beside torch.nn; repeat it for more")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; what is here by default")] = "",
    threads: Annotated[int, typer.Option(min=0, help="torch's threads on a CPU; 0: all")] = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="for the rounds of one problem")] = 2.0,
    minutes: Annotated[float, typer.Option(min=0, help="begin no problem after; 0: no end")] = 0.0,
    output: Annotated[Path | None, typer.Option(help="the result file, .json")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="do not go on with a file")] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="two result files, and measure nothing")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="also write what BPTT_MEASURED takes: which backend is best")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="show the problems, measure none")] = False,
) -> None:
    """Speed of recurrent layers beside torch.nn.

    Providers are torch.nn, every backend of bptt, and other libraries that are installed. Each is
    held against float64 before it is timed. --shapes makes a grid of your own; without it, layers,
    precisions, directions, depths and passes narrow the named grid.

    Rows are kept as they come in: the same command goes on where it was interrupted.

    Exit code 1: something was wrong, failed, or became slower (--compare). 2: a bad argument.
    """
    from rich.console import Console

    console = Console()
    if compare is not None:
        _compare(console, *compare)
        return
    place = _device(device)
    problems = _problems(grid, place, layers, shapes, precision, directions, depth, passes)
    if list_:
        for problem in problems:
            console.print(str(problem), highlight=False)
        console.print(f"{len(problems)} problems")
        return
    named = grid if not shapes else "custom"
    narrowed = any((layers, precision, directions, depth, passes))
    _measure(
        console, problems, named if not narrowed else f"{named}-part", place, provider or [],
        threads, seconds, minutes, output, fresh, table,
    )  # fmt: skip


def _device(name: str) -> str:
    import torch

    here = torch.cuda.is_available()
    if name not in ("", "cpu", "cuda"):
        refuse(f"--device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not here:
        refuse("--device cuda: this torch finds no GPU")
    return name or ("cuda" if here else "cpu")


def _problems(
    grid: str, device: str, layers: str, shapes: str, precision: str, directions: str, depth: str,
    passes: str,
) -> list[Problem]:  # fmt: skip
    from bptt.tools.bench import problems as known
    from bptt.tools.bench.layers import LAYERS

    def split(text: str) -> list[str]:
        return [word for word in re.split(r"[,\s]+", text) if word]

    def numbers(name: str, text: str) -> list[int]:
        try:
            return [int(word) for word in split(text)]
        except ValueError:
            refuse(f"--{name} must be whole numbers, got {text!r}")

    try:
        if shapes:
            usual = ["bf16", "tf32"] if device == "cuda" else ["fp32"]
            return known.product(
                split(layers) or LAYERS, split(precision) or usual,
                [_shape(word) for word in split(shapes)], numbers("directions", directions) or [1],
                split(passes) or known.PASSES, numbers("depth", depth) or [1],
            )  # fmt: skip
        wanted: dict[str, list[Any]] = {
            "layer": split(layers), "precision": split(precision), "which": split(passes),
            "directions": numbers("directions", directions), "layers": numbers("depth", depth),
        }  # fmt: skip
        for name, values in wanted.items():
            for value in values:  # the same words of complaint as for a problem
                known.Problem(**{**_ANY, name: value})
        found = [
            problem
            for problem in known.grid(grid, device)
            if all(getattr(problem, k) in v for k, v in wanted.items() if v)
        ]
    except ValueError as error:
        refuse(error)
    if not found:
        refuse(f"no problem of the grid {grid!r} is like that; --shapes makes a grid of your own")
    return found


_ANY: dict[str, Any] = {
    "layer": "RNN",
    "precision": "fp32",
    "steps": 1,
    "batch": 1,
    "input": 1,
    "hidden": 1,
}


def _shape(word: str) -> list[int]:
    parts = word.split("x")
    if len(parts) not in (3, 4) or not all(part.isdecimal() for part in parts):
        refuse(f"--shapes must be TxBxH or TxBxIxH, got {word!r}")
    return [int(part) for part in parts]


def _measure(
    console: Console, problems: list[Problem], grid: str, device: str, names: list[str],
    threads: int, seconds: float, minutes: float, output: Path | None, fresh: bool,
    table: Path | None,
) -> None:  # fmt: skip
    import torch

    from bptt.tools.bench import choice, machine, providers, report, results
    from bptt.tools.bench.layers import baseline_of
    from bptt.tools.bench.run import Run

    if threads:
        torch.set_num_threads(threads)
    facts = machine.facts(device)
    path = output or _usual_folder() / machine.folder_of(facts) / f"{grid}.json"
    if path.suffix != ".json":
        refuse(f"--output must end in .json, got {path}")
    try:
        baselines = {baseline_of(problem.layer) for problem in problems}
        chosen = providers.named(names, device, baselines)
        result = results.Result.begin(path, grid, facts, fresh)
    except ValueError as error:
        refuse(error)
    run = Run(result, chosen, device, seconds, lambda line: console.print(f"[red]{line}"))
    todo = run.todo(problems)
    console.print(
        f"{len(problems)} problems, {len(problems) - len(todo)} measured before; "
        f"{', '.join(p.name for p in chosen)}; into {path}"
    )
    load = machine.OtherLoad()
    interrupted = _go(console, run, todo, minutes)
    if device == "cpu" and todo:
        before = result.content.get("other_load") or 0.0
        result.content["other_load"] = max(before, load.share())
        result.write()
    written = report.write(result)
    if table is not None:
        table.write_text(json.dumps(choice.table(result), indent=1) + "\n", encoding="utf-8")
        written.append(table)
    _show(console, result)
    console.print("written:", *(str(each) for each in (path, *written)), sep="\n  ")
    if interrupted:
        console.print(f"[yellow]{interrupted}: {len(run.todo(problems))} problems are left; "
                      "the same command goes on.")  # fmt: skip
    if run.bad:
        console.print(f"[red]{run.bad} measurements are wrong or failed: see the report.")
        raise typer.Exit(1)
    if interrupted == "interrupted":
        raise typer.Exit(130)


def _usual_folder() -> Path:
    """benchmarks/results of a checkout of this repository, else a folder here."""
    checkout = Path("benchmarks/results")
    return checkout if checkout.is_dir() else Path("bptt-results")


def _go(console: Console, run: object, todo: list[Problem], minutes: float) -> str:
    """Measure with a bar; returns why it ended early, or ""."""
    import time

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from bptt.tools.bench.run import Run

    assert isinstance(run, Run)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("speed of product and copy", total=len(todo))
        try:
            run.measure_figures(todo)
            for problem in todo:
                if time.monotonic() > deadline:
                    return "out of time"
                progress.update(task, description=str(problem))
                run.measure(problem)
                progress.advance(task)
        except KeyboardInterrupt:
            return "interrupted"
    return ""


def _show(console: Console, result: Result) -> None:
    """A table for each problem, a line for each provider."""
    from rich import box
    from rich.table import Table

    from bptt.tools.bench.report import name_of

    for row in result.content["rows"]:
        kind = f", {row['cudnn_class']}" if row["cudnn_class"] else ""
        floor = f"floor {1e3 * row['floor_ms'] / row['steps']:.2f} us/step"
        table = Table(
            title=f"[bold]{name_of(row)}[/]{kind}, {floor}", title_justify="left",
            title_style="default", box=box.SIMPLE_HEAD, pad_edge=False,
        )  # fmt: skip
        table.add_column("provider", no_wrap=True, min_width=22)
        for name in ("us/step", "ratio", "q1 to q3", "of floor", "saved MB"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, entry in row["providers"].items():
            if entry["status"] != "absent":
                table.add_row(name, *_cells(entry))
        console.print(table)
    console.print(
        "us/step: median. ratio: torch.nn / provider, above 1 the provider is faster; of layers "
        "that torch.nn lacks, bptt reference / provider."
    )


def _cells(entry: dict[str, Any]) -> list[str]:
    if entry["status"] != "timed":
        return [f"[red]{entry['status']}"]
    ratio = spread = ""
    if "ratio" in entry:
        value = entry["ratio"]["median"]
        color = "green" if value > 1.05 else "red" if value < 0.95 else "default"
        ratio = f"[{color}]{value:.2f}[/]"
        spread = f"{entry['ratio']['q1']:.2f} to {entry['ratio']['q3']:.2f}"
    share = f"{entry['share_of_floor']:.0%}"
    saved = f"{entry['saved_bytes'] / 1e6:.2f}"
    return [f"{entry['us_per_step']:.1f}", ratio, spread, share, saved]


def _compare(console: Console, first: Path, second: Path) -> None:
    from rich import box
    from rich.table import Table

    from bptt.tools.bench.compare import changes
    from bptt.tools.bench.results import BadResult, Result

    try:
        found = changes(Result.read(first), Result.read(second))
    except BadResult as error:
        refuse(error)
    table = Table("problem", "provider", "before ms", "after ms", "before / after", "verdict",
                  box=box.SIMPLE_HEAD, title=f"{first} and {second}")  # fmt: skip
    colors = {"slower": "red", "broken": "red", "faster": "green", "gone": "yellow"}
    for change in found:
        if change.verdict == "same":
            continue
        times = [f"{ms:.3f}" if ms else "" for ms in (change.before, change.after)]
        ratio = f"{change.ratio:.2f}" if change.ratio else ""
        color = colors.get(change.verdict, "default")
        table.add_row(
            str(change.problem), change.provider, *times, ratio, f"[{color}]{change.verdict}"
        )
    console.print(table)
    counts = {
        v: sum(c.verdict == v for c in found) for v in dict.fromkeys(c.verdict for c in found)
    }
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no rows")
    if any(change.verdict in ("slower", "broken") for change in found):
        raise typer.Exit(1)
