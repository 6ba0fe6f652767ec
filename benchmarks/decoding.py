"""How fast trained encoder-decoders answer: words or sentences a second, beside torch.nn's layers.

python benchmarks/decoding.py RUN...     writes results/<machine>/decoding.json and decoding.md

RUNs are of g2p, inflect or translate. The same weights run in bptt's layers and in torch.nn's, the
same code around them, in turns; outputs are compared, too.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from saving import RESULTS, heading, save

from bptt.tasks.runs import finished
from bptt.tools.bench import machine
from bptt.tools.bench.report import table
from bptt.tools.bench.timing import Plain, measure, ratio

COUNTS = (1, 200)  # inputs in a call
BEAMS = (1, 5)


def both(run: Path) -> tuple[Any, dict[str, Any]]:
    """The task of a run, and its model in both implementations."""
    task, model, _ = finished(run, None)
    settings = task.settings
    models = {}
    for impl in ("bptt", "torch"):
        task.settings = settings.model_copy(update={"impl": impl})
        made: Any = task.build().model
        weights = dict(zip(made.state_dict(), model.state_dict().values(), strict=True))
        made.load_state_dict(weights)
        models[impl] = made.eval()
    return task, models


def rows_of(run: Path, seconds: float) -> list[dict[str, Any]]:
    task, models = both(run)
    inputs = [given for given, _, _ in task.shown()]
    made = []
    for count in COUNTS:
        some = (inputs * (count // len(inputs) + 1))[:count]
        for beam in BEAMS:
            answers = {name: task.answers(m, some, beam=beam) for name, m in models.items()}
            same = sum(
                ours[0].numbers == theirs[0].numbers
                for ours, theirs in zip(answers["bptt"], answers["torch"], strict=True)
            )
            calls = {
                name: Plain(lambda m=m, some=some, beam=beam: task.answers(m, some, beam=beam))
                for name, m in models.items()
            }
            times = measure(calls, "cpu", seconds)
            middle, q1, q3 = ratio(times["torch"], times["bptt"])
            made.append(
                {
                    "task": task.name,
                    "model": f"{task.settings.cell}, attention {task.settings.attention}",
                    "beam": beam,
                    "inputs": count,
                    "same_answers": same,
                    **{f"{name}_per_s": 1000 * count / median(ms) for name, ms in times.items()},
                    "ratio": {"median": middle, "q1": q1, "q3": q3},
                    "rounds": len(times["bptt"]),
                }
            )
    return made


def ratio_text(row: dict[str, Any]) -> str:
    spread = row["ratio"]
    return f"{spread['median']:.2f} ({spread['q1']:.2f} to {spread['q3']:.2f}; {row['rounds']})"


def text_of(content: dict[str, Any]) -> str:
    lines = heading("Decoding", content)
    lines += [
        "Answers a second, float32; ratio: bptt's to that of torch.nn's layers, by medians, and "
        "the quartiles of the ratios within each round.",
        "",
    ]
    rows = [
        [
            r["task"], r["model"], str(r["beam"]), str(r["inputs"]), f"{r['bptt_per_s']:.0f}",
            f"{r['torch_per_s']:.0f}", ratio_text(r), f"{r['same_answers']} of {r['inputs']}",
        ]
        for r in content["rows"]
    ]  # fmt: skip
    columns = ["task", "model", "beam", "inputs in a call", "bptt", "torch.nn"]
    head = [*columns, "ratio (quartiles; rounds)", "alike"]
    return "\n".join([*lines, table(head, rows)]) + "\n"


def main(
    runs: list[Path],
    seconds: Annotated[float, typer.Option(help="for each row")] = 4.0,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    torch.manual_seed(0)
    load = machine.OtherLoad()
    rows = [row for run in track(runs, "decoding") for row in rows_of(run, seconds)]
    save("decoding", {"rows": rows}, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
