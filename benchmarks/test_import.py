"""How much does importing bptt add to importing torch?"""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from typing import Any

IMPORT = """
import time, torch
start = time.perf_counter()
import bptt
print(time.perf_counter() - start)
"""


def import_s() -> float:
    """Seconds that `import bptt` takes in a fresh process that has torch."""
    return float(subprocess.check_output([sys.executable, "-c", IMPORT], text=True))


def test_import(benchmark: Any, record_fact: Any) -> None:
    times: list[float] = []
    # The benchmark's own clock sees Python start and torch's import too; ours is in extra_info.
    benchmark.pedantic(lambda: times.append(import_s()), rounds=7, warmup_rounds=1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    del times[0]  # the warm-up: files may come from the disk
    benchmark.extra_info["import_s"] = median(times)
    record_fact("import_s", median(times))
