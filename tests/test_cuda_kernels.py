"""Do the sanitizers have anything to say of the CUDA kernels, run in the simulator?

What the kernels compute is asked in `tests/simulated`; here they run under AddressSanitizer and
UndefinedBehaviorSanitizer, and as threads of the operating system under ThreadSanitizer.
"""

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("block", "cluster", "grid", "step")
VARIANTS = ("controlled", "normalized", "diagonal")


@functools.cache
def program(engine):
    """The path of the program that runs an LSTM's kernels in an engine."""
    path = f"build/native/simulator/kernels.{engine}"
    command = [sys.executable, "setup.py", "--quiet", "build_simulator", f"--programs={path}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return ROOT / path


# They take minutes to compile.
@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("engine", ["fibers", "address", "thread"])
@pytest.mark.parametrize(
    ("tier", "number", "weights"),
    [*itertools.product(TIERS + VARIANTS, ["fp32", "bf16"], ["shared"]),
     *itertools.product(TIERS[:3], ["bf16"], ["held"])],
)  # fmt: skip
def test_nothing_is_said_of_a_run(tier, number, weights, engine, seed):
    done = subprocess.run(
        [program(engine), tier, number, weights, str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
