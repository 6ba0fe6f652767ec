"""Section 4: `bptt train g2p`, shortened: learn to pronounce English, be judged on unseen words."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bptt.tasks.g2p import G2pSettings, G2pTask
from bptt.tools.bench.machine import OtherLoad
from bptt.train import report
from bptt.train.fit import fit
from bptt.train.folder import Run

from .machine import warning


def section(console: Console, settings: dict[str, Any]) -> bool:
    """Train, show transcriptions of unseen words, print the error rates.

    Args:
        console: where to.
        settings: of the task `g2p`.
    """
    console.rule("[bold]4. Learning to pronounce: letters to phonemes, on bptt's layers")
    task = G2pTask(G2pSettings(**settings))
    task.prepare()
    size = sum(parameter.numel() for parameter in task.build().parameters())
    cell = task.settings.cell.upper()
    console.print(
        f"{task.data_name()}: {len(task.training)} words to learn from, {len(task.held_out)} held "
        f"out, split by word. Model: bidirectional {cell} encoder, {cell} decoder with attention, "
        f"{size / 1e3:.0f} k parameters."
    )
    others = OtherLoad()
    run = Run(Path(tempfile.mkdtemp(prefix="bptt-demo-")) / "g2p")
    run.start(task.name, task.settings)
    fitted = fit(task, run)
    disturbed = warning(others)
    if disturbed:
        console.print(disturbed)
    result = report.conclude(task, run, fitted)
    first, *rows = next(iter(task.tables(fitted.module.model).values()))
    table = Table(*first, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        color = "green" if row[-1] == "right" else "red"
        table.add_row(*row[:-1], f"[{color}]{row[-1]}")
    console.print(table)
    metrics, rate = result["metrics"], len(task.rows) * result["epochs"] / fitted.seconds
    console.print(
        f"On {metrics['words judged']:.0f} words it never saw: [bold]word error rate "
        f"{metrics['word error rate']:.1%}, phoneme error rate "
        f"{metrics['phoneme error rate']:.1%}[/], after {fitted.seconds:.0f} s of training, "
        f"{rate:.0f} words/s. `bptt train g2p` gives it longer."
    )
    console.print(f"Look at {run.report}", soft_wrap=True)
    return True
