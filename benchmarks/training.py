"""How long an epoch takes with bptt's layers and with torch.nn's under the same reference model.

python benchmarks/training.py RUN...     writes results/<machine>/training.json and training.md

RUNs are finished runs of `bptt train`. Both implementations take the same steps of the optimizer,
forward, backward and update, on the same batches drawn from an epoch, in turns; an epoch is what
its number of batches takes. The losses of both, from equal weights, stand beside.
"""

from __future__ import annotations

from itertools import islice
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
from bptt.tools.bench.timing import Plain, measure
from bptt.train.fit import loader

BATCHES = 8  # of an epoch, evenly over its lengths


class Stepping:
    """An implementation's model that takes the steps of some batches."""

    def __init__(self, task: Any, impl: str, weights: list[torch.Tensor]) -> None:
        settings = task.settings
        task.settings = settings.model_copy(update={"impl": impl})
        self.module: Any = task.build()
        task.settings = settings
        names = self.module.model.state_dict()
        self.module.model.load_state_dict(dict(zip(names, weights, strict=True)))
        self.module.train()
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-3)
        self.losses: list[float] = []

    def __call__(self, batches: list[Any]) -> None:
        torch.manual_seed(0)  # the same dropout
        for batch in batches:
            loss = torch.stack(list(self.module.losses(batch).values())).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())


def row_of(run: Path, seconds: float) -> dict[str, Any]:
    task, model, _ = finished(run, None)
    if "forcing" in type(task.settings).model_fields:  # true symbols alone: no loop over steps
        task.settings = task.settings.model_copy(update={"forcing": 1.0})
    if getattr(task.settings, "weight_drop", 0):  # torch.nn has none
        task.settings = task.settings.model_copy(update={"weight_drop": 0.0})
    train, _ = task.sets()
    torch.manual_seed(0)
    loaded = loader(task, train, shuffle=True)
    every = max(1, len(loaded) // BATCHES)
    batches = list(islice(loaded, 0, None, every))[:BATCHES]
    weights = list(model.state_dict().values())
    both = {impl: Stepping(task, impl, weights) for impl in ("bptt", "torch")}
    calls = {impl: Plain(lambda s=s: s(batches)) for impl, s in both.items()}
    times = {impl: median(ms) for impl, ms in measure(calls, "cpu", seconds).items()}
    first = {impl: s.losses[: len(batches)] for impl, s in both.items()}
    return {
        "task": task.name,
        "data": task.data_name(),
        "options": {
            key: value
            for key, value in task.settings.model_dump(mode="json").items()
            if key in ("cell", "attention", "layers", "units", "batch")
        },
        "batches": len(loaded),
        **{f"{impl}_s": ms / 1000 * len(loaded) / len(batches) for impl, ms in times.items()},
        "losses": first,
    }


def text_of(content: dict[str, Any]) -> str:
    lines = heading("Training", content)
    lines += [
        "Seconds of an epoch, float32, forward, backward and update; loss after eight steps:",
        "",
    ]
    rows = [
        [
            f"{r['task']}, {r['data']}", ", ".join(map(str, r["options"].values())),
            str(r["batches"]), f"{r['bptt_s']:.1f}", f"{r['torch_s']:.1f}",
            f"{r['torch_s'] / r['bptt_s']:.2f}",
            " and ".join(f"{r['losses'][impl][-1]:.4f}" for impl in ("bptt", "torch")),
        ]
        for r in content["rows"]
    ]  # fmt: skip
    head = ["task", "model", "batches", "bptt s", "torch.nn s", "speed", "losses"]
    return "\n".join([*lines, table(head, rows)]) + "\n"


def main(
    runs: list[Path],
    seconds: Annotated[float, typer.Option(help="for each row")] = 20.0,
    output: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    load = machine.OtherLoad()
    rows = [row_of(run, seconds) for run in track(runs, "training")]
    save("training", {"rows": rows}, load, text_of, output)


if __name__ == "__main__":
    typer.run(main)
