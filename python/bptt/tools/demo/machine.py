"""Section 1: what machine this is, which backends there are, and why the others are absent."""

from __future__ import annotations

import platform

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import bptt
from bptt.tools.bench.machine import DISTURBING, OtherLoad, cores, processor


def warning(load: OtherLoad) -> str | None:
    """A line for the reader where other programs took enough to spoil a measurement."""
    share = load.share()
    if share < DISTURBING:
        return None
    return (
        f"[yellow]Other programs took {share:.0%} of the processor meanwhile: "
        "the times above say little.[/]"
    )


def section(console: Console) -> bool:
    """Print the section; it fails where no fused backend is available."""
    console.rule("[bold]1. Machine and backends")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("processor", f"{processor()}, {cores()} cores")
    facts.add_row("system", f"{platform.system()} {platform.machine()}")
    facts.add_row("software", f"Python {platform.python_version()}, torch {torch.__version__}")
    facts.add_row("threads", f"{torch.get_num_threads()} (torch.set_num_threads changes it)")
    facts.add_row("torch's instructions", torch.backends.cpu.get_cpu_capability())
    console.print(facts)

    table = Table("backend", "here", "what runs, or why not", box=box.SIMPLE_HEAD, pad_edge=False)
    statuses = bptt.backends()
    for status in statuses:
        mark = "[green]yes" if status.available else "[yellow]no"
        table.add_row(status.name, mark, status.detail if status.available else status.reason)
    console.print(table)
    fused = any(status.available and status.name != "reference" for status in statuses)
    if not fused:
        console.print("[bold red]No fused backend: everything below runs the reference loop.")
    return fused
