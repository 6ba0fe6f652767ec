"""Does every Triton kernel compile for every GPU it is meant for, and fit it?

Nothing runs: registers, spills and shared memory come from what the compiler made. Triton compiles
for one target in a process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bptt.kernels.plan import CHIPS
from bptt.recurrence.cells import CELLS

# Bytes a thread may spill. Hidden sizes that 16 does not divide take the most: their loads are not
# vectorised, and every element has an address of its own.
SPILLED = {"aligned": 48, "odd": 160}
REGISTERS = 255  # of a thread, on NVIDIA
AMD_REGISTERS = 512


# A process compiles every 17th variant, as all of all take half an hour: the tables in
# benchmarks/results/triton-compiled have them. Two such of one target; of the others one, and that
# not in every run.
EVERY, MOST = 17, "sm_90"
PARTS = [
    (MOST, 0),
    pytest.param(MOST, 1, marks=pytest.mark.exhaustive),
    *(pytest.param(t, 0, marks=pytest.mark.exhaustive) for t in CHIPS if t != MOST),
]


def table(target, first, *options):
    """Rows of a target."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bptt.kernels.ahead_of_time", target]
    command += ["--every", str(EVERY), "--first", str(first), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "first"), PARTS)
def test_variants_compile_and_fit(target, first):
    rows = table(target, first)
    assert len(rows) > 25
    assert {row["cell"] for row in rows} >= {"lstm", "gru", "gru_reset_before", "lstm_peephole"}
    assert_fit(rows, target)


@pytest.mark.slow
def test_cells_of_ones_own_compile_and_fit():
    cells = Path(__file__).resolve().parent.parent / "docs" / "course" / "cells.py"
    rows = table(MOST, 0, "--cell", f"{cells}:ugrnn", "--every", "5")
    assert len(rows) > 2 and all(row["cell"].startswith("ugrnn") for row in rows)
    assert_fit(rows, MOST)


@pytest.mark.slow
def test_loops_that_do_more_than_run_their_cells_fit():
    rows = table(MOST, 0, "--control")
    assert len(rows) > 10 and all(row["control"] for row in rows)
    assert_fit(rows, MOST)


@pytest.mark.slow
def test_variants_that_write_gradients_of_hidden_states_fit():
    rows = table(MOST, 0, "--gradients")
    assert len(rows) > 5 and all(row["gradients"] for row in rows)
    assert_fit(rows, MOST)


def assert_fit(rows, target):
    most = AMD_REGISTERS if CHIPS[target].amd else REGISTERS
    for row in rows:
        what = f"{row['kernel']} {row['cell']} {row['precision']} H={row['hidden']}"
        assert row["shared"] <= CHIPS[target].shared, what
        assert row["registers"] <= most, what
        allowed = SPILLED["odd" if row["hidden"] % 16 else "aligned"]
        spec = CELLS.get(row["cell"])  # none of one's own
        if (spec is not None and spec.normalized) or row["control"]:  # more is kept, and asked for
            allowed += 32
        assert row["spilled"] <= allowed, f"{what}: {row['spilled']} bytes spilled"
