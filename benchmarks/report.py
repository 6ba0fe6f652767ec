"""What the project asks of a run of `bptt bench standard`, and the speed section of the README.

python benchmarks/report.py                    print the bars of every committed result
python benchmarks/report.py FILE --enforce     exit code 1 when one is missed
python benchmarks/report.py --update-readme    write README's speed section anew
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bptt.tools.bench.problems import LAYERS
from bptt.tools.bench.report import (
    entries,
    figures_lines,
    geometric_mean,
    machine_line,
    name_of,
    source_line,
    table,
)
from bptt.tools.bench.results import Result

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BEGIN = "<!-- speed: written by benchmarks/report.py --update-readme -->"
END = "<!-- end of speed -->"

# Ratios torch.nn / bptt on a CPU: the geometric mean over a layer's rows, the smallest of any row.
LEAST_MEAN = {"RNN": 2.0, "GRU": 2.0, "LSTM": 1.0}
LEAST_RATIO = 0.95
MOST_IMPORT_S = 0.3  # what importing bptt may add to importing torch
COLUMNS = [(which, directions) for which in ("inference", "step") for directions in (1, 2)]

Row = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """Something asked for, what was reached (formatted), and whether that is enough."""

    what: str
    asked: str
    reached: str
    met: bool


def rows_of(result: Result, **wanted: object) -> list[Row]:
    """The rows that have these values, and a ratio."""
    return [
        row
        for row in result.content["rows"]
        if all(row[k] == v for k, v in wanted.items()) and entries([row], "bptt")
    ]


def ratio_of(row: Row) -> float:
    value: float = row["providers"]["bptt"]["ratio"]["median"]
    return value


def bars(result: Result) -> list[Bar]:
    """What the project asks of a run on a CPU, beside what the run has."""
    answer = []
    for layer in LAYERS:
        rows = rows_of(result, layer=layer)
        if rows:
            mean, asked = geometric_mean([ratio_of(row) for row in rows]), LEAST_MEAN[layer]
            what = f"{layer}, geometric mean of the ratios"
            answer.append(Bar(what, f"at least {asked:.1f}", f"{mean:.2f}", mean >= asked))
    rows = rows_of(result)
    if rows:
        worst = min(rows, key=ratio_of)
        reached = f"{ratio_of(worst):.2f} ({name_of(worst)})"
        least = f"at least {LEAST_RATIO:.2f}"
        what = "smallest ratio of any row"
        answer.append(Bar(what, least, reached, ratio_of(worst) >= LEAST_RATIO))
    seconds = result.content["figures"].get("import_s")
    if seconds is not None:
        what, most = "import of bptt beyond torch's", f"at most {MOST_IMPORT_S:g} s"
        answer.append(Bar(what, most, f"{seconds:.3g} s", seconds <= MOST_IMPORT_S))
    return answer


def bars_table(result: Result) -> str:
    rows = [
        [bar.what, bar.asked, bar.reached, "yes" if bar.met else "**no**"] for bar in bars(result)
    ]
    return table(["bar", "asked", "reached", "met"], rows)


def means_table(result: Result) -> str:
    """Geometric means of the ratios by layer, pass and number of directions."""
    head = ["layer", *(f"{which}, {directions} dir." for which, directions in COLUMNS)]
    body = []
    for layer in LAYERS:
        line = [layer]
        for which, directions in COLUMNS:
            rows = rows_of(result, layer=layer, which=which, directions=directions)
            line.append(f"{geometric_mean([ratio_of(r) for r in rows]):.2f}" if rows else "")
        body.append(line)
    return table(head, body)


def short_table(rows: list[Row]) -> str:
    head = [
        "T, B, H=I",
        "layer",
        "torch.nn ms",
        "bptt ms",
        "ratio",
        "bptt's share of the GEMM speed",
    ]
    body = []
    for row in sorted(rows, key=lambda r: (-r["hidden"], -r["batch"])):
        theirs, ours = (row["providers"][name] for name in ("torch.nn", "bptt"))
        line = [f"{row['steps']}, {row['batch']}, {row['hidden']}", row["layer"]]
        line += [f"{entry['ms']['median']:.1f}" for entry in (theirs, ours)]
        body.append([*line, f"{ratio_of(row):.2f}", f"{ours['share_of_gemm']:.0%}"])
    return table(head, body)


def committed() -> list[Result]:
    """The result files of CPUs in this folder, the newest first."""
    results = [Result.read(path) for path in sorted(RESULTS.glob("cpu-*/standard.json"))]
    return sorted(results, key=lambda result: result.content["date"], reverse=True)


def place_of(result: Result) -> str:
    """Where a result's report is, as README names it."""
    return result.path.with_suffix(".md").relative_to(HERE.parent).as_posix()


def speed_of(result: Result) -> list[str]:
    """The paragraphs about a result."""
    where = place_of(result)
    return [
        f"Measured on: {machine_line(result.content)}. {source_line(result.content)}. "
        f"Every row, with quartiles, errors and memory: [{where}]({where}).",
        "\n".join(figures_lines(result.content)),
        "Geometric means over five shapes of the ratio torch.nn / bptt, above 1 bptt is "
        "faster; inference is without gradients, a step is forward and backward:",
        means_table(result),
        bars_table(result),
        "One direction, forward and backward:",
        short_table(rows_of(result, directions=1, which="step")),
    ]


def readme_section() -> str:
    """README's speed section: every figure in it comes from a committed result file."""
    results = committed()
    parts = [line for result in results[:1] for line in speed_of(result)]
    for result in results[1:]:
        where = place_of(result)
        parts.append(f"Earlier, {machine_line(result.content)}: [{where}]({where}).")
    if not results:
        parts.append("No result file is committed yet; `make bench` makes one.")
    return "\n\n".join([BEGIN, *parts, END])


def update_readme(text: str) -> str:
    """README with its speed section written anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md must hold the lines {BEGIN} and {END}")
    return before + readme_section() + after


def main(
    files: Annotated[list[Path] | None, typer.Argument(help="default: all committed")] = None,
    readme: Annotated[bool, typer.Option("--update-readme")] = False,
    enforce: Annotated[bool, typer.Option(help="exit code 1 if a bar is missed")] = False,
) -> None:
    """Print what is asked of a run beside what it reached."""
    missed = False
    for result in [Result.read(path) for path in files or []] or committed():
        print(f"{result.path}\n{machine_line(result.content)}")
        for bar in bars(result):
            print(f"  {'met   ' if bar.met else 'MISSED'}  {bar.what}: {bar.reached}, {bar.asked}")
            missed |= not bar.met
    if readme:
        text = README.read_text(encoding="utf-8")
        README.write_text(update_readme(text), encoding="utf-8")
    sys.exit(int(missed and enforce))


if __name__ == "__main__":
    typer.run(main)
