"""Does every Triton kernel compile for every GPU it is meant for, and fit it?

Nothing runs: registers, spills and shared memory come from what the compiler made. Triton compiles
for one target in a process.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bptt.kernels.plan import CHIPS

# Bytes a thread may spill. Hidden sizes that 16 does not divide take the most: their loads are not
# vectorised, and every element has an address of its own.
SPILLED = {"aligned": 48, "odd": 160}
REGISTERS = 255  # of a thread, on NVIDIA
AMD_REGISTERS = 512


@pytest.fixture(scope="module")
def tables():
    """Rows of every target; two targets compile at a time."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    waiting, running, rows = list(CHIPS), {}, {}

    def finish(target):
        out, err = running.pop(target).communicate()
        rows[target] = [json.loads(line) for line in out.splitlines()]
        assert not err.strip(), err[-3000:]

    while waiting or running:
        while waiting and len(running) < 2:
            target = waiting.pop(0)
            command = [sys.executable, "-m", "bptt.kernels.ahead_of_time", target]
            running[target] = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finish(next(iter(running)))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("target", CHIPS)
def test_every_variant_compiles_and_fits(target, tables):
    rows = tables[target]
    assert len(rows) > 200
    assert {row["cell"] for row in rows} >= {"lstm", "gru", "gru_reset_before", "lstm_peephole"}
    most = AMD_REGISTERS if CHIPS[target].amd else REGISTERS
    for row in rows:
        what = f"{row['kernel']} {row['cell']} {row['precision']} H={row['hidden']}"
        assert row["shared"] <= CHIPS[target].shared, what
        assert row["registers"] <= most, what
        allowed = SPILLED["odd" if row["hidden"] % 16 else "aligned"]
        assert row["spilled"] <= allowed, f"{what}: {row['spilled']} bytes spilled"
