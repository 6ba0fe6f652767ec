"""Makes tables of a result file: the Markdown beside it, and the speed section of the README.

python benchmarks/report.py                    print the bars of every committed result
python benchmarks/report.py FILE --enforce     exit code 1 when one is missed
python benchmarks/report.py --update-readme    write README's speed section anew
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from problems import GRID, LAYERS, LEAST_MEAN, LEAST_RATIO, MOST_BUILD_S, MOST_IMPORT_S, PASSES

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BEGIN = "<!-- speed: written by benchmarks/report.py --update-readme -->"
END = "<!-- end of speed -->"
DISTURBING = 0.1  # share of the processor in other programs' hands above which times mislead

Result = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """Something asked for, what was reached (formatted), and whether that is enough."""

    what: str
    asked: str
    reached: str
    met: bool


def folder_of(result: Result) -> str:
    """The folder of a machine's results."""
    slug = re.sub(r"[^a-z0-9]+", "-", result["machine"]["processor"].lower()).strip("-")
    return f"cpu-{slug}"


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def rows_of(result: Result, **wanted: object) -> list[Result]:
    """The rows that have these values."""
    return [r for r in result["rows"] if all(r[k] == v for k, v in wanted.items())]


def bars(result: Result) -> list[Bar]:
    """What the project asks of a run, beside what the run has."""
    answer = []
    for layer in LAYERS:
        ratios = [row["ratio"] for row in rows_of(result, layer=layer)]
        if ratios:
            mean, asked = geometric_mean(ratios), LEAST_MEAN[layer]
            what = f"{layer}, geometric mean of the ratios"
            answer.append(Bar(what, f"at least {asked:.1f}", f"{mean:.2f}", mean >= asked))
    worst = min(result["rows"], key=lambda row: row["ratio"])
    answer.append(
        Bar(
            "smallest ratio of any row",
            f"at least {LEAST_RATIO:.2f}",
            f"{worst['ratio']:.2f} ({name_of(worst)})",
            worst["ratio"] >= LEAST_RATIO,
        )
    )
    for name, what, most in (
        ("import_s", "import of bptt beyond torch's", MOST_IMPORT_S),
        ("build_s", "build of the extension, two jobs", MOST_BUILD_S),
    ):
        if name in result:
            value = result[name]
            answer.append(Bar(what, f"at most {most:g} s", f"{value:.3g} s", value <= most))
    return answer


def name_of(row: Result) -> str:
    kind = "bidirectional " if row["directions"] == 2 else ""
    shape = f"T={row['steps']} B={row['batch']} H={row['hidden']}"
    return f"{kind}{row['layer']}, {shape}, {row['which']}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; columns after the first are set to the right."""
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars_table(result: Result) -> str:
    rows = [
        [bar.what, bar.asked, bar.reached, "yes" if bar.met else "**no**"] for bar in bars(result)
    ]
    return table(["bar", "asked", "reached", "met"], rows)


def means_table(result: Result) -> str:
    """Geometric means of the ratios by layer, pass and number of directions."""
    head = ["layer"]
    columns = [(which, directions) for which in PASSES for directions in (1, 2)]
    head += [f"{which}, {directions} dir." for which, directions in columns]
    body = []
    for layer in LAYERS:
        line = [layer]
        for which, directions in columns:
            rows = rows_of(result, layer=layer, which=which, directions=directions)
            line.append(f"{geometric_mean([r['ratio'] for r in rows]):.2f}" if rows else "")
        body.append(line)
    return table(head, body)


def rows_table(rows: list[Result]) -> str:
    head = ["layer", "dir.", "T, B, H=I", "pass", "torch.nn ms", "bptt ms", "ratio"]
    head += ["ratio q1 to q3", "torch.nn of GEMM", "bptt of GEMM", "rounds"]
    body = []
    for row in rows:
        line = [row["layer"], str(row["directions"])]
        line += [f"{row['steps']}, {row['batch']}, {row['hidden']}", row["which"]]
        for side in ("torch_ms", "bptt_ms"):
            ms = row[side]
            line.append(f"{ms['median']:.2f} ({ms['q1']:.2f} to {ms['q3']:.2f})")
        line += [f"**{row['ratio']:.2f}**", f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}"]
        line += [f"{row[f'{side}_share_of_gemm']:.0%}" for side in ("torch", "bptt")]
        body.append([*line, str(row["rounds"])])
    return table(head, body)


def machine_line(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    line = (
        f"{machine['processor']}, {machine['cores']} cores, {result['threads']} threads, "
        f"{machine['bptt_instructions']} instructions; torch {versions['torch']}, Python "
        f"{versions['python']}, {machine['system']}; {result['dtype']}; {result['date']}"
    )
    return line


def source_line(result: Result) -> str:
    commit = result["commit"][:12] or "unknown"
    changed = " with uncommitted changes" if result["sources_changed_since_commit"] else ""
    return f"bptt {result['versions']['bptt']}, commit {commit}{changed}"


def gemm_line(result: Result) -> str:
    gemm = result["gemm"]
    line = (
        f"torch.mm of two {gemm['size']} x {gemm['size']} matrices ran at "
        f"{gemm['gflops_before']:.0f} GFLOP/s before the rows and {gemm['gflops_after']:.0f} after"
    )
    load = result["other_load"]
    if load is None:
        return line
    line += f"; other programs took {load:.0%} of the processor"
    return f"{line}, so that the times say little" if load > DISTURBING else line


def markdown(result: Result) -> str:
    """The table beside a result file."""
    part = "" if len(result["rows"]) == len(GRID) else f" ({len(result['rows'])} rows of the grid)"
    return f"""# torch.nn and bptt{part}

{machine_line(result)}. {source_line(result)}. {gemm_line(result)}.

Ratio: median time of torch.nn / median time of bptt; above 1 bptt is faster. How it is measured:
[benchmarks/README.md](../../README.md).

{bars_table(result)}

Geometric means of the ratios:

{means_table(result)}

All rows; times are medians (first to third quartile), shares are of the matrix product's speed:

{rows_table(result["rows"])}
"""


def summary(result: Result) -> str:
    """What the terminal shows."""
    lines = [f"  {bar.what}: {bar.reached}, asked {bar.asked}" for bar in bars(result)]
    verdicts = ["met   " if bar.met else "MISSED" for bar in bars(result)]
    shown = [f"{v}{line}" for v, line in zip(verdicts, lines, strict=True)]
    return "\n".join([machine_line(result), gemm_line(result), *shown])


def committed() -> list[tuple[Path, Result]]:
    """The result files of this folder."""
    paths = sorted(RESULTS.glob("*/issue2.json"))
    return [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def readme_section() -> str:
    """README's speed section: every figure in it comes from a committed result file."""
    parts = [BEGIN]
    for path, result in committed():
        where = path.with_suffix(".md").relative_to(HERE.parent).as_posix()
        parts += [
            f"Measured on: {machine_line(result)}. {source_line(result)}. {gemm_line(result)}. "
            f"Every row with quartiles: [{where}]({where}).",
            "Geometric means over five shapes of the ratio torch.nn / bptt, above 1 bptt is "
            "faster; both sides timed in turns in one run:",
            means_table(result),
            bars_table(result),
            "One direction, milliseconds, forward+backward:",
            short_table(rows_of(result, directions=1, which="forward+backward")),
        ]
    if len(parts) == 1:
        parts.append("No result file is committed yet; `make bench` makes one.")
    return "\n\n".join([*parts, END])


def short_table(rows: list[Result]) -> str:
    head = ["T, B, H=I", "layer", "torch.nn", "bptt", "ratio", "bptt's share of the GEMM speed"]
    body = [
        [
            f"{row['steps']}, {row['batch']}, {row['hidden']}",
            row["layer"],
            f"{row['torch_ms']['median']:.1f}",
            f"{row['bptt_ms']['median']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['bptt_share_of_gemm']:.0%}",
        ]
        for row in sorted(rows, key=lambda r: (-r["hidden"], -r["batch"]))
    ]
    return table(head, body)


def update_readme(text: str) -> str:
    """README with its speed section written anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md must hold the lines {BEGIN} and {END}")
    return before + readme_section() + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="result files; default: all committed")
    parser.add_argument("--update-readme", action="store_true")
    parser.add_argument("--enforce", action="store_true", help="exit code 1 if a bar is missed")
    options = parser.parse_args()
    read = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in options.files]
    missed = False
    for path, result in read or committed():
        path.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
        print(summary(result))
        missed |= any(not bar.met for bar in bars(result))
    if options.update_readme:
        text = README.read_text(encoding="utf-8")
        README.write_text(update_readme(text), encoding="utf-8")
    return int(missed and options.enforce)


if __name__ == "__main__":
    sys.exit(main())
