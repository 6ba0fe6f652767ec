"""Collects the rows of a run, measures the machine's matrix product beside them, writes the result.

The result file is written when the whole grid was measured, and for a part of it only with
--results: a part never replaces the whole.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import report
import torch
from problems import GRID, THREADS

import bptt
from bptt.demo.machine import OtherLoad, cores, processor

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc", "kernels", "python", "setup.py")
GEMM_SIZE, GEMM_ROUNDS = 2048, 10


class Run:
    """One session: what it measured so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, float] = {}
        self.load: OtherLoad | None = None
        self.gemm: list[float] = []  # GFLOP/s before the first row and after the last
        self.written: Path | None = None
        self.result: dict[str, Any] | None = None


RUN = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bptt")
    group.addoption(
        "--results", type=Path, help="write the result here, even of a part of the grid"
    )
    group.addoption(
        "--enforce", action="store_true", help="fail when the speed asked for is missed"
    )
    group.addoption("--build-time", action="store_true", help="also time a build from nothing")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUN] = Run()


@pytest.fixture
def record_fact(request: pytest.FixtureRequest) -> Any:
    """A function (name, value) that enters a single figure."""
    return request.config.stash[RUN].facts.__setitem__


@pytest.fixture
def record_row(request: pytest.FixtureRequest) -> Any:
    """A function that enters a row of the grid."""
    run = request.config.stash[RUN]
    if not run.gemm:
        run.gemm.append(gemm_gflops())
        run.load = OtherLoad()
    return run.rows.append


def gemm_gflops() -> float:
    """Speed of the matrix product that torch itself uses, in GFLOP/s."""
    torch.set_num_threads(THREADS)
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    out = torch.empty(GEMM_SIZE, GEMM_SIZE)
    times = []
    for _ in range(GEMM_ROUNDS + 1):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - started)
    return 2 * GEMM_SIZE**3 / median(times[1:]) / 1e9


def git(*arguments: str) -> str:
    """What git answers, or an empty string outside of a checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def result_of(run: Run) -> dict[str, Any]:
    """All there is to know about a run, as it goes into the file."""
    peak = max(run.gemm)
    for row in run.rows:
        for side in ("torch", "bptt"):
            gflops = row["gflop"] / row[f"{side}_ms"]["median"] * 1e3
            row[f"{side}_share_of_gemm"] = gflops / peak
    return {
        "schema": 1,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "system": f"{platform.system()} {platform.machine()}",
            "torch_instructions": torch.backends.cpu.get_cpu_capability(),
            "bptt_instructions": torch.ops.bptt.cpu_instruction_set(),
        },
        "versions": {
            "bptt": bptt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": git("rev-parse", "HEAD"),
        "sources_changed_since_commit": bool(git("status", "--porcelain", "--", *SOURCES)),
        "threads": THREADS,
        "dtype": "float32",
        "gemm": {"size": GEMM_SIZE, "gflops_before": run.gemm[0], "gflops_after": run.gemm[-1]},
        "other_load": run.load.share() if run.load is not None else None,
        **run.facts,
        "rows": run.rows,
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    run = session.config.stash[RUN]
    if not run.rows:
        return
    run.gemm.append(gemm_gflops())
    run.result = result_of(run)
    path = session.config.getoption("--results")
    if path is None and len(run.rows) == len(GRID):
        path = report.RESULTS / report.folder_of(run.result) / "issue2.json"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run.result, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(report.markdown(run.result), encoding="utf-8")
        run.written = path
    missed = any(not bar.met for bar in report.bars(run.result))
    if missed and session.config.getoption("--enforce"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    run = config.stash[RUN]
    if run.result is None:
        return
    terminalreporter.section("torch.nn / bptt")
    terminalreporter.write_line(report.summary(run.result))
    if run.written is not None:
        shown = run.written.resolve()
        shown = shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else shown
        terminalreporter.write_line(f"written: {shown} and the table beside it")
    else:
        terminalreporter.write_line("a part of the grid: not written; --results FILE writes it")
