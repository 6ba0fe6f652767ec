"""Settings of the tests that run the CUDA kernels in the simulator: they need their own process.

With BPTT_SIMULATOR the ops for CPU tensors take the backend "cuda" too; the other tests are about
the ops as they are registered for everyone.
"""

import os

import pytest

if not os.environ.get("BPTT_SIMULATOR"):
    raise pytest.UsageError(
        "tests/simulated: run with BPTT_SIMULATOR=build/native/simulator/ops.so in the "
        "environment, which `python setup.py build_simulator` makes"
    )
