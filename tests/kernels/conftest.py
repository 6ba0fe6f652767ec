"""Settings of the tests that run Triton's interpreter: they need a process of their own.

Under TRITON_INTERPRET=1 the ops for CPU tensors take the backend "triton" too, through Python; the
other tests are about the ops as they are registered for everyone.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("tests/kernels: run with TRITON_INTERPRET=1 in the environment")

import triton_interpreter

triton_interpreter.install()


def pytest_configure(config):
    # Triton's interpreter turns arrays of one element into numbers for range(T).
    ignored = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"
    config.addinivalue_line("filterwarnings", ignored)
