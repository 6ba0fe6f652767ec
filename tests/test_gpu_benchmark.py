"""Does the benchmark for GPUs run through, here on the CPU, and is what it says so?"""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("gpu")
    sys.modules.pop("gpu", None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden": 192, "which": "forward"}, "SMALL_H"),
        ({"hidden": 192}, "STANDARD"),
        ({"hidden": 192, "precision": "bf16"}, "STANDARD"),
        ({"layer": "RNN", "hidden": 256, "precision": "bf16"}, "SMALL_H"),
        ({"hidden": 768}, "PERSIST_STATIC"),
        ({"hidden": 768, "layer": "GRU"}, "STANDARD"),
        ({"hidden": 768, "batch": 1}, "STANDARD"),
        ({"hidden": 768, "directions": 2}, "STANDARD"),
        ({"layer": "RNN", "hidden": 1024, "batch": 96}, "STANDARD"),
    ],
)
def test_classes_of_cudnn(gpu, change, expected):
    row = {"layer": "LSTM", "precision": "fp16", "steps": 8, "batch": 16, "hidden": 768}
    row = gpu.Row(**{**row, "directions": 1, "which": "forward+backward", **change})
    assert row.cudnn_class == expected


def test_a_run(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "HARD", (3, 2, 4))
    gpu.main(tmp_path, device="cpu", rows=4)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["layer"] for row in result["rows"]] == ["LSTM", "LSTM", "GRU", "GRU"]
    for row in result["rows"]:
        for entry in row["providers"].values():
            low, median, high = entry["ms"]
            assert 0 < low <= median <= high and entry["error"] < 0.05
    report = (tmp_path / "gpu.md").read_text()
    assert (
        report.count("| LSTM | 1 | fp16 | 3 | 2 | 4 |") == 2 and report in capsys.readouterr().out
    )


def test_wrong_numbers_are_not_timed(gpu):
    exact = [torch.ones(4, dtype=torch.float64)]
    for off in (1.1, float("nan")):
        entry = gpu.timed(lambda off=off: [off * torch.ones(4)], exact, 0.01, "cpu")
        assert "ms" not in entry and "wrong" in entry
    failed = gpu.timed(lambda: 1 / 0, exact, 0.01, "cpu")
    assert failed["wrong"] == "ZeroDivisionError: division by zero"
