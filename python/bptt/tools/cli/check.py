"""`bptt check`: accuracy beside torch.nn and float64."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bptt.tools.bench.accuracy import Outcome
    from bptt.tools.bench.accuracy_cases import Check, Precision

_SHOWN = 10  # of the tensors in which bptt is less accurate; a file has them all
_HEAD = ("dtype", "backend", "pass")
_SIDE = ("bptt", "nn", "/nn", "≤nn")


def check(
    backend: Annotated[
        list[str] | None, typer.Option(help="only this one; repeat it for more")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, tf32, bfloat16, float16 or float64; repeat it for more"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; what is here by default")] = "",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="RNN, GRU, LSTM, CIFG, SLSTM or IndRNN; repeat it for more"),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="every combination of options, or a few")
    ] = False,
    cell: Annotated[
        str, typer.Option(help="a cell of your own, as file.py:name, in place of bptt's layers")
    ] = "",
    case: Annotated[str, typer.Option(help="one case by its name, of either set")] = "",
    seed: Annotated[int, typer.Option(min=0, help="of weights, inputs and lengths")] = 0,
    output: Annotated[Path | None, typer.Option(help="a file to write, .json or .md")] = None,
) -> None:
    """Hold every layer and option of bptt against torch.nn and float64.

    Errors are in units: the largest difference from float64, over eps of the dtype times the
    largest exact value. A case passes where bptt is as accurate as torch.nn, or within an allowance
    for roundings. A cell of one's own is held against the loop over its function in float64,
    and its derivative against finite differences. Exit code 1: a case failed; 2: a bad argument, or
    a backend that cannot run here.
    """
    from rich.console import Console

    if output is not None and output.suffix not in (".json", ".md"):
        refuse(f"--output must end in .json or .md, got {output}")
    place = _device(device)
    checks, precisions = _checks(full, layer or [], case, cell), _precisions(dtype or [], place)
    backends = _backends(backend or [], place, checks, precisions)
    console = Console()
    if cell:
        _show_cell(console, cell)
    outcomes = _measure(console, checks, precisions, backends, place, seed)
    if not outcomes:
        refuse("no backend that can run here takes any of this")
    named = "case" if case else "own cell" if cell else "full" if full else "quick"
    report = Report(outcomes, place, seed, named, _not_run(backends, place, checks, precisions))
    _show(console, report)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        text = markdown(report) if output.suffix == ".md" else as_json(report)
        output.write_text(text, encoding="utf-8")
        console.print(f"written: {output}", soft_wrap=True)
    if report.failed:
        raise typer.Exit(1)


# --- arguments ------------------------------------------------------------------------------------


def refuse(message: object) -> NoReturn:
    """A bad argument: say so and end with 2."""
    typer.secho(f"bptt check: {message}", err=True, fg="red")
    raise typer.Exit(2)


def _device(name: str) -> str:
    import torch

    here = torch.cuda.is_available()
    if name not in ("", "cpu", "cuda"):
        refuse(f"--device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not here:
        refuse("--device cuda: this torch finds no GPU")
    return name or ("cuda" if here else "cpu")


def _known(option: str, names: Iterable[str], known: Sequence[str]) -> list[str]:
    for name in names:
        if name not in known:
            refuse(f"--{option} must be one of {', '.join(known)}; got {name!r}")
    return list(dict.fromkeys(names))


def _checks(full: bool, layers: list[str], case: str, cell: str) -> list[Check]:
    from bptt.custom.program import CellError
    from bptt.tools.bench.accuracy_cases import LAYERS, checks, own_checks

    chosen = _known("layer", layers, LAYERS) or LAYERS
    if cell and (layers or full):
        refuse("--cell has checks of its own: give it without --layer and --full")
    try:
        found = own_checks(cell) if cell else checks(full or bool(case), chosen)
    except CellError as error:
        refuse(f"--cell {error}")
    if case:
        found = [each for each in found if each.name == case]
    if not found:
        refuse(f"--case: there is no {case!r}; names are those that a report shows")
    return found


def _precisions(names: list[str], device: str) -> list[Precision]:
    from bptt.tools.bench.accuracy_cases import PRECISIONS

    if device == "cpu" and "tf32" in names:
        refuse("--dtype tf32: only a GPU multiplies float32 as TF32")
    usual = ["float32", "bfloat16", "float16"]
    usual += ["float64"] if device == "cpu" else ["tf32"]
    return [PRECISIONS[name] for name in _known("dtype", names, tuple(PRECISIONS)) or usual]


def _backends(
    names: list[str], device: str, checks: list[Check], precisions: list[Precision]
) -> list[str]:
    """Those asked for, each of which must have something to do; or all that can run here."""
    import bptt
    from bptt.tools.bench.accuracy import why_not

    here = {status.name: status for status in bptt.backends()}
    for name in _known("backend", names, tuple(here)):
        if not here[name].available:
            refuse(f"--backend {name} cannot run here: {here[name].reason}")
        reasons = [why_not(c, p, name, device) for p in precisions for c in checks]
        if all(reasons):
            refuse(f"--backend {name} cannot run this: {reasons[0]}")
    return list(dict.fromkeys(names)) or [n for n, status in here.items() if status.available]


def _not_run(
    backends: list[str], device: str, checks: list[Check], precisions: list[Precision]
) -> list[str]:
    """Which backends left out some cases, or all, and why."""
    import bptt
    from bptt.tools.bench.accuracy import why_not

    lines = [f"{s.name}: {s.reason}" for s in bptt.backends() if not s.available]
    for name in backends:
        reasons = Counter(why_not(c, p, name, device) for p in precisions for c in checks)
        lines += [f"{name}, {n} cases: {reason}" for reason, n in reasons.items() if reason]
    return lines


def _measure(
    console: Console, checks: list[Check], precisions: list[Precision], backends: list[str],
    device: str, seed: int,
) -> list[Outcome]:  # fmt: skip
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    from bptt.tools.bench import accuracy

    outcomes: list[Outcome] = []
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(checks) * len(precisions))
        for precision in precisions:
            for each in checks:
                progress.update(task, description=f"{precision.name} {each.name}")
                outcomes += accuracy.measure(each, precision, backends, device, seed)
                progress.advance(task)
    return outcomes


def _show_cell(console: Console, name: str) -> None:
    """What a cell computes and keeps, and whether its derivative is that of its function."""
    from bptt.custom.files import load_cell
    from bptt.tools.bench.own_cell import derivative_error

    cell = load_cell(name)
    spec = cell.spec
    console.print(
        f"{name}: gates {', '.join(spec.gates)}; states {', '.join(spec.states)}; "
        f"{cell.product} product; {len(spec.saved)} values kept for each unit and step",
        highlight=False,
    )
    wrong = derivative_error(cell)
    if wrong:
        console.print(f"FAILED its derivative: {wrong}", style="red", markup=False)
        raise typer.Exit(1)
    console.print("its derivative is that of its function, by finite differences in float64")


# --- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """Outputs or gradients of one row.

    Attributes:
        bptt, torch_nn: the largest errors in units; None where there are none.
        ratio: bptt's over torch.nn's, over the cases that both have.
        as_accurate: cases where bptt's largest error is at most torch.nn's.
        compared: cases that both have.
    """

    bptt: float | None
    torch_nn: float | None
    ratio: float | None
    as_accurate: int
    compared: int

    @classmethod
    def of(cls, outcomes: list[Outcome], gradient: bool) -> Side:
        ours = [o.worst(gradient) for o in outcomes]
        both = [(a, o.worst(gradient, True)) for a, o in zip(ours, outcomes, strict=True)]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        theirs = max((b for _, b in pairs), default=None)
        ratio = max(a for a, _ in pairs) / theirs if theirs else None
        largest = max((a for a in ours if a is not None), default=None)
        return cls(largest, theirs, ratio, sum(a <= b for a, b in pairs), len(pairs))

    def cells(self) -> list[str]:
        compared = f"{self.as_accurate / self.compared:.0%}" if self.compared else ""
        theirs = "none" if self.torch_nn is None else _number(self.torch_nn)
        return [_number(self.bptt), theirs, _number(self.ratio), compared]


@dataclass(frozen=True)
class Row:
    """All cases of a layer in one precision on one backend.

    Attributes:
        mean_ratio: geometric mean over all tensors of bptt's error over torch.nn's.
    """

    layer: str
    dtype: str
    backend: str
    cases: int
    passed: int
    output: Side
    gradient: Side
    mean_ratio: float | None

    @classmethod
    def of(cls, layer: str, dtype: str, backend: str, outcomes: list[Outcome]) -> Row:
        sides = Side.of(outcomes, False), Side.of(outcomes, True)
        passed = sum(o.passed for o in outcomes)
        return cls(layer, dtype, backend, len(outcomes), passed, *sides, _mean_ratio(outcomes))

    def cells(self) -> list[str]:
        head = [self.dtype, self.backend, f"{self.passed}/{self.cases}"]
        return [*head, *self.output.cells(), *self.gradient.cells(), _number(self.mean_ratio)]


@dataclass(frozen=True)
class Report:
    """What all outcomes come to."""

    outcomes: list[Outcome]
    device: str
    seed: int
    checked: str
    not_run: list[str]

    @property
    def rows(self) -> list[Row]:
        groups: dict[tuple[str, str, str], list[Outcome]] = {}
        for o in self.outcomes:
            groups.setdefault((o.check.group, o.precision.name, o.backend), []).append(o)
        return [Row.of(*key, group) for key, group in groups.items()]

    @property
    def failed(self) -> list[Outcome]:
        return [o for o in self.outcomes if not o.passed]

    @property
    def less_accurate(self) -> list[dict[str, Any]]:
        """Tensors in which torch.nn is more accurate, the largest difference first."""
        worse = [
            {"case": o.check.name, "dtype": o.precision.name, "backend": o.backend, **asdict(e)}
            for o in self.outcomes
            for e in o.errors
            if e.torch_nn is not None and e.bptt > e.torch_nn
        ]
        return sorted(worse, key=lambda entry: entry["torch_nn"] - entry["bptt"])

    @property
    def compared(self) -> int:
        """Tensors for which there is an error of torch.nn's."""
        return sum(e.torch_nn is not None for o in self.outcomes for e in o.errors)

    @property
    def mean_ratios(self) -> dict[str, float]:
        """Geometric means of bptt's error over torch.nn's, by backend and dtype."""
        groups: dict[str, list[Outcome]] = {}
        for o in self.outcomes:
            groups.setdefault(f"{o.backend} {o.precision.name}", []).append(o)
        means = {name: _mean_ratio(group) for name, group in groups.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    @property
    def no_torch_nn(self) -> list[str]:
        """Why torch.nn has no errors in some of what it has at all."""
        reasons = {
            f"{o.precision.name}: {o.no_torch_nn}"
            for o in self.outcomes
            if o.no_torch_nn and not o.check.beyond_torch
        }
        return sorted(reasons)

    def rerun(self, outcome: Outcome) -> str:
        """The command that runs one outcome alone."""
        own = ["--cell", outcome.check.layer] if outcome.check.is_own else []
        words = ["bptt", "check", *own, "--case", outcome.check.name, "--backend", outcome.backend]
        words += ["--dtype", outcome.precision.name, "--device", self.device]
        return shlex.join([*words, "--seed", str(self.seed)])


def _mean_ratio(outcomes: Iterable[Outcome]) -> float | None:
    """Geometric mean over all tensors of bptt's error over torch.nn's; None where there is none."""
    pairs = [(e.bptt, e.torch_nn) for o in outcomes for e in o.errors]
    logs = [math.log(a / b) for a, b in pairs if b and a and math.isfinite(a)]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _notes(report: Report) -> list[str]:
    """What is to be said below the tables, a paragraph each."""
    worse = report.less_accurate
    lines = [
        "Largest errors, in units of eps times the largest exact value, of bptt and torch.nn (nn); "
        "their ratio (/nn); share of cases where bptt is at least as accurate (≤nn): of outputs "
        "and final states, then of gradients. Mean: geometric mean of all tensors' ratios.",
        *(f"not run: {line}" for line in report.not_run),
        *(f"torch.nn none: {line}" for line in report.no_torch_nn),
        *(
            f"bptt's errors are {mean:.2f} times torch.nn's in the mean: {name}"
            for name, mean in report.mean_ratios.items()
        ),
        f"bptt is less accurate than torch.nn in {len(worse)} of {report.compared} tensors"
        + (", the largest differences in units:" if worse else "."),
    ]
    for entry in worse[:_SHOWN]:
        lines.append(
            f"  {entry['bptt']:.2f}, torch.nn {entry['torch_nn']:.2f}, allowed "
            f"{entry['allowed']:.1f}: {entry['backend']} {entry['dtype']} {entry['case']} "
            f"{entry['tensor']}"
        )
    if len(worse) > _SHOWN:
        lines.append(f"  and {len(worse) - _SHOWN} more; --output FILE.json has all")
    return lines


def _show(console: Console, report: Report) -> None:
    from rich import box
    from rich.table import Table

    rows = report.rows
    for layer in dict.fromkeys(row.layer for row in rows):
        table = Table(box=box.SIMPLE_HEAD, title=layer, title_style="bold", title_justify="left",
                      pad_edge=False, padding=0)  # fmt: skip
        for i, head in enumerate(_HEAD):
            table.add_column(f"\n{head}", justify="right" if i == 2 else "left", overflow="fold")
        for first in ("out", "grad"):
            for i, head in enumerate(_SIDE):
                title = f"{first if i == 0 else ''}\n{head}"
                table.add_column(title, justify="right", overflow="fold")
        table.add_column("\nmean", justify="right", overflow="fold")
        for row in rows:
            if row.layer == layer:
                style = None if row.passed == row.cases else "bold red"
                table.add_row(*row.cells(), style=style)
        console.print(table)
    for line in _notes(report):
        console.print(line, highlight=False, markup=False, soft_wrap=line.startswith("  "))
    for outcome in report.failed:
        name = f"{outcome.backend} {outcome.precision.name} {outcome.check.name}"
        console.print(
            f"FAILED {name}\n  {outcome.reason}", style="red", markup=False, soft_wrap=True
        )
        console.print(f"  {report.rerun(outcome)}", highlight=False, markup=False, soft_wrap=True)
    console.print(_verdict(report), style="bold red" if report.failed else "green")


def _verdict(report: Report) -> str:
    total, bad = len(report.outcomes), len(report.failed)
    if bad:
        return f"{bad} of {total} cases failed (seed {report.seed}, {report.device})"
    return f"all {total} cases passed (seed {report.seed}, {report.device})"


def as_json(report: Report) -> str:
    """The summary that the tables show, and every error."""
    from bptt.tools.bench import machine

    content = {
        **machine.facts(report.device),
        "checked": report.checked,
        "seed": report.seed,
        "passed": not report.failed,
        "summary": [asdict(row) for row in report.rows],
        "not_run": report.not_run,
        "mean_ratios": report.mean_ratios,
        "tensors_compared": report.compared,
        "less_accurate": report.less_accurate,
        "failed": [_entry(o) | {"rerun": report.rerun(o)} for o in report.failed],
        "outcomes": [
            _entry(o) | {"options": asdict(o.check), "errors": [asdict(e) for e in o.errors]}
            for o in report.outcomes
        ],
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _entry(outcome: Outcome) -> dict[str, Any]:
    return {
        "case": outcome.check.name,
        "dtype": outcome.precision.name,
        "backend": outcome.backend,
        "passed": outcome.passed,
        "reason": outcome.reason,
        "no_torch_nn": outcome.no_torch_nn,
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity: the text "inf" stands for it."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def markdown(report: Report) -> str:
    """The same tables and notes as on the screen."""
    from bptt.tools.bench import machine

    facts = machine.facts(report.device)
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    lines = [
        "# Accuracy beside torch.nn and float64", "",
        f"{facts['device']['name']}; {versions}; {facts['date']}; commit {facts['commit'][:12]}; "
        f"set {report.checked}, seed {report.seed}. {_verdict(report)}.", "",
    ]  # fmt: skip
    heads = [
        *_HEAD,
        *(f"{side} {head}" for side in ("output", "gradient") for head in _SIDE),
        "mean",
    ]
    rows = report.rows
    for layer in dict.fromkeys(row.layer for row in rows):
        lines += [f"## {layer}", "", _line(heads), _line(["--"] * len(heads))]
        lines += [_line(row.cells()) for row in rows if row.layer == layer] + [""]
    lines += [f"- {line.strip()}" for line in _notes(report)]
    for outcome in report.failed:
        lines.append(f"- FAILED: {outcome.reason}: `{report.rerun(outcome)}`")
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
