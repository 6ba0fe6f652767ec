"""benchmarks/gpu_claims.py under Triton's interpreter: does the part about launches run?"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
try:
    import gpu_claims
finally:
    sys.path.pop(0)


def test_costs_of_a_launch():
    rows = list(gpu_claims.of_triton(gpu_claims.Shape(16, 4, torch.float32), "cpu", 2))
    assert len(rows) == 2 and all(row["measured"] > 0 for row in rows)
