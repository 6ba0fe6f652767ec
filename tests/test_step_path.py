"""benchmarks/step_path.py: one thread's way through machine code, and that it does not grow."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import step_path
    from sass.listing import kernels
    from sass.machine import SHARED_START, Machine
finally:
    sys.path.pop(0)

pytestmark = [
    pytest.mark.skipif(step_path.unavailable() is not None, reason=str(step_path.unavailable())),
    pytest.mark.slow,
]

ARITHMETIC = """
extern __shared__ long long out[];
__global__ void arithmetic(int a, int b, long long c, unsigned d, float x, int rounds) {
  out[0] = a / b;
  out[1] = a % b;
  out[2] = c * a + d;
  out[3] = d / 7u + (d >> 3);
  out[4] = c < a ? c << 5 : c >> 5;
  out[5] = min(a, b) * 3 - max(a, b);
  int sum = 0;
  for (int k = 0; k < rounds; ++k) {
    if ((k * a) % 3 == 1) sum += k;
    __syncthreads();
  }
  out[6] = sum;
  out[7] = static_cast<long long>(x * 8.0f + 1.0f);
}
"""


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arithmetic")
    source, cubin = folder / "arithmetic.cu", folder / "arithmetic.cubin"
    source.write_text(ARITHMETIC)
    command = [shutil.which("nvcc"), f"-arch={step_path.ARCH}", "-cubin", "-o", cubin, source]
    subprocess.run(command, check=True)
    return kernels(cubin)[0]


def whole_quotient(a, b):
    return abs(a) // abs(b) * (1 if a * b >= 0 else -1)


@pytest.mark.parametrize(
    ("a", "b", "c", "d"),
    [
        (17, 5, 1 << 40, 3_000_000_000),
        (-17, 5, -5, 6),
        (1_000_003, -37, 12, 0),
        (3, 800, -(1 << 35), 9),
    ],
)
def test_integers_are_those_of_the_kernel(arithmetic, a, b, c, d):
    parameters = struct.pack("<iiqIfi", a, b, c, d, 2.5, 10)
    machine = Machine(arithmetic, parameters, 32, (1, 1, 1))
    machine.run()
    found = struct.unpack("<8q", machine.state.shared[SHARED_START : SHARED_START + 64])
    rest = a - b * whole_quotient(a, b)
    rounds = [k for k in range(10) if k * a - 3 * whole_quotient(k * a, 3) == 1]
    assert found == (
        whole_quotient(a, b), rest, c * a + d, d // 7 + (d >> 3), c << 5 if c < a else c >> 5,
        min(a, b) * 3 - max(a, b), sum(rounds), 21,
    )  # fmt: skip


def test_every_round_of_a_loop_is_counted(arithmetic):
    def barriers(rounds):
        parameters = struct.pack("<iiqIfi", 3, 5, 7, 9, 1.0, rounds)
        return Machine(arithmetic, parameters, 32, (1, 1, 1)).run().counts["BAR"]

    assert [barriers(rounds) for rounds in (0, 1, 13)] == [0, 1, 13]


def test_the_hard_case_has_not_grown():
    """Anew with benchmarks/step_path.py, where a kernel was meant to change."""
    committed = {(row.way, row.tier, row.cell, row.number): row for row in step_path.read()}
    for row in step_path.measured(step_path.HARD):
        before = committed[row.way, row.tier, row.cell, row.number]
        assert row.clocks <= 1.05 * before.clocks, row
