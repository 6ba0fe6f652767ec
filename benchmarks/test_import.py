"""How much does importing bptt add to importing torch?"""

from __future__ import annotations

import subprocess
import sys

LIMIT_S = 0.3

IMPORT = """
import time, torch
start = time.perf_counter()
import bptt
print(time.perf_counter() - start)
"""


def import_s() -> float:
    """Seconds that `import bptt` takes in a fresh process that has torch."""
    return float(subprocess.check_output([sys.executable, "-c", IMPORT], text=True))


def test_import(benchmark):
    times = []
    # The benchmark's own clock sees torch's import too: the figure that counts is in extra_info.
    benchmark.pedantic(lambda: times.append(import_s()), rounds=5)
    benchmark.extra_info["import_bptt_s"] = min(times)
    assert min(times) <= LIMIT_S
