"""benchmarks/gpu_claims.py on the simulator, at sizes that it can take: does every part run?"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
try:
    import gpu_claims
finally:
    sys.path.pop(0)


def test_costs_of_a_step(monkeypatch):
    monkeypatch.setattr(gpu_claims, "HARD", gpu_claims.Shape(16, 4, torch.float16))
    rows = [*gpu_claims.of_fixed_costs("cpu", 1, 3), *gpu_claims.of_biases("cpu", 2)]
    assert len(rows) == 4
    assert all(row["measured"] > 0 for row in rows[1:])
    assert "us" in {row["unit"] for row in rows}


def test_the_symbol_is_looked_for():
    """Without CUDA there is no such library, and that is what the row says."""
    (row,) = gpu_claims.of_the_library()
    assert row["measured"] in ("defined", "missing") or row["measured"].startswith("not read")


def test_rows_of_every_kind_are_shown():
    rows = [gpu_claims.row("a", "1.3", 1.25), gpu_claims.row("b", "defined", "missing", "")]
    assert gpu_claims.table(rows).row_count == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(gpu_claims.typer.BadParameter, match="no GPU"):
        gpu_claims.main()
