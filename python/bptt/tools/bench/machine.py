"""What a measurement was made on, and with what."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

import bptt

DISTURBING = 0.1  # share of the cores in other programs' hands above which times mislead
PACKAGES = ("triton", "flashrnn", "haste_pytorch", "torchrl")


def facts(device: str) -> dict[str, Any]:
    """Device, versions and commit; what a result file says of its run."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": _gpu() if device == "cuda" else _cpu(),
        "versions": _versions(device),
        **_source(),
    }


def _cpu() -> dict[str, Any]:
    return {
        "kind": "cpu",
        "name": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "bptt_instructions": torch.ops.bptt.cpu_instruction_set(),
        "bptt_bfloat16_products": torch.ops.bptt.cpu_bfloat16_products(),
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    fields = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    answers = _asked("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    values = [value.strip() for value in answers.splitlines()[0].split(",")] if answers else []
    return {
        "kind": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        **dict(zip(fields, values, strict=False)),
    }


def _versions(device: str) -> dict[str, str]:
    answer = {
        "bptt": bptt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        answer["cuda"] = str(torch.version.cuda)
        answer["cudnn"] = str(torch.backends.cudnn.version())
    for package in PACKAGES:
        try:
            answer[package] = version(package)
        except PackageNotFoundError:
            continue
    return answer


def _source() -> dict[str, Any]:
    """The commit of a checkout, or of what pip installed from one; "" where nobody knows."""
    root = Path(bptt.__file__).resolve().parents[2]
    if (root / "csrc").is_dir():
        commit = _asked("git", "-C", str(root), "rev-parse", "HEAD")
        sources = ("csrc", "kernels", "python", "setup.py")
        changed = _asked("git", "-C", str(root), "status", "--porcelain", "--", *sources)
        return {"commit": commit, "sources_changed_since_commit": bool(changed)}
    try:
        origin = json.loads(distribution("bptt").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    return {"commit": commit, "sources_changed_since_commit": False}


def _asked(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def import_seconds(rounds: int = 5) -> float:
    """What `import bptt` adds to a fresh process that has torch; the median."""
    code = (
        "import time, torch; a = time.perf_counter(); import bptt; print(time.perf_counter() - a)"
    )
    command = [sys.executable, "-c", code]
    times = [float(subprocess.check_output(command, text=True)) for _ in range(rounds + 1)]
    return median(times[1:])  # the first may read files from the disk


def folder_of(facts: dict[str, Any]) -> str:
    """A folder name for the results of a device: its kind and name."""
    device = facts["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")
    return f"{device['kind']}-{slug}"


# --- the processor --------------------------------------------------------------------------------


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
