"""Section 1: what machine this is, which backends there are, and why the others are absent."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import bptt

DISTURBING = 0.1  # share of the cores in other programs' hands above which times mislead


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


class OtherLoad:
    """How much of this process's cores other programs take, from its making until `warning`."""

    def __init__(self) -> None:
        self.busy, self.own, self.wall = _busy_seconds(), time.process_time(), time.perf_counter()

    def share(self) -> float:
        """Between 0 and 1; 0 where the system does not tell."""
        others = _busy_seconds() - self.busy - (time.process_time() - self.own)
        available = cores() * (time.perf_counter() - self.wall)
        return min(1.0, max(0.0, others / available))

    def warning(self) -> str | None:
        """A line for the reader where it was enough to spoil a measurement."""
        share = self.share()
        if share < DISTURBING:
            return None
        return (
            f"[yellow]Other programs took {share:.0%} of the processor meanwhile: "
            "the times above say little.[/]"
        )


def _busy_seconds() -> float:
    """Time that the cores of this process have been busy since the system started."""
    statistics = Path("/proc/stat")
    if not statistics.is_file():
        return 0.0
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in statistics.read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name in mine:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


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
