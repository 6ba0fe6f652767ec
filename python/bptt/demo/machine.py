"""Section 1: what machine this is, which backends there are, and why the others are absent."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import bptt


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
