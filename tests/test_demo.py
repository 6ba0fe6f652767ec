"""Does the demo run every section, tell the truth, and fail when something fails?"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bptt
from bptt.tasks import pairs
from bptt.tools.demo import __main__ as entry
from bptt.tools.demo import machine, parity, speed
from bptt.tools.demo.app import app

TINY = ["--words", "300", "--hidden", "16", "--batch", "32", "--sample", "20"]


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_machine_lists_every_backend_and_why_it_is_absent():
    result = invoke("--only", "machine")
    assert torch.__version__ in result.output
    for status in bptt.backends():
        assert status.name in result.output
        words = (status.detail if status.available else status.reason).split()
        assert words[0] in result.output
    fused = any(s.available and s.name != "reference" for s in bptt.backends())
    assert result.exit_code == (0 if fused else 1)


def test_parity_holds_on_every_row():
    result = invoke("--only", "parity")
    assert result.exit_code == 0, result.output
    assert result.output.count("equal") == len(parity.LAYERS) * len(parity.VARIANTS)
    assert "DIFFERS" not in result.output


class SlightlyOff(nn.GRU):
    def forward(self, x, hx=None):
        y, h = super().forward(x, hx)
        return y * (1 + 1e-4), h


class WrongGradient(nn.GRU):
    def forward(self, x, hx=None):
        y, h = super().forward(x, hx)
        return y + 1e-3 * (y - y.detach()), h


class NotANumber(nn.GRU):
    def forward(self, x, hx=None):
        y, h = super().forward(x, hx)
        return y, h * float("nan")


@pytest.mark.parametrize("wrong", [SlightlyOff, WrongGradient, NotANumber])
def test_parity_fails_on_a_layer_that_is_wrong(wrong, monkeypatch):
    monkeypatch.setattr(bptt, "GRU", wrong)
    monkeypatch.setattr(parity, "VARIANTS", {"1 layer": {}})
    result = invoke("--only", "parity")
    assert result.exit_code == 1
    assert result.output.count("DIFFERS") == 1
    assert "Failed: parity" in result.output


def test_speed_shows_one_row_per_layer_and_shape(monkeypatch):
    monkeypatch.setattr(speed, "SHAPES", ((3, 2, 8), (5, 1, 4)))
    result = invoke("--only", "speed", "--seconds", "0")
    assert result.exit_code == 0
    for cell in speed.CELLS:
        rows = [line for line in result.output.splitlines() if line.strip().startswith(cell)]
        assert len(rows) == 3  # two shapes and the mean
        numbers = [float(number) for number in re.findall(r"\d+\.\d+", rows[0])]
        assert len(numbers) == 6
        assert all(number > 0 for number in numbers)


def test_ratio_is_torch_over_bptt(monkeypatch):
    row = speed.Row("GRU", (3, 2, 8), 3, (4.0, 1.0), (3.0, 6.0))
    monkeypatch.setattr(speed, "SHAPES", ((3, 2, 8),))
    monkeypatch.setattr(speed, "CELLS", ("GRU",))
    monkeypatch.setattr(speed, "measure", lambda *_: row)
    output = invoke("--only", "speed").output
    assert re.search(r"3, 2, 8 +4\.00 +1\.00 +4\.00 +3\.00 +6\.00 +0\.50 +3", output)
    assert speed.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_train_ends_with_transcriptions_and_error_rates():
    result = invoke("--only", "train", "--epochs", "2", *TINY)
    assert result.exit_code == 0
    assert re.search(r"word error rate \d+\.\d%, phoneme error rate \d+\.\d%", result.output)
    assert "On 20 words it never saw" in result.output
    assert "270 words to learn from, 30 held out, split by word" in result.output
    rows = re.findall(r" (right|wrong)", result.output)
    assert len(rows) == pairs.EXAMPLES
    report = re.search(r"Look at (\S+report\.html)", result.output)[1]
    assert "Words it never saw" in Path(report).read_text()


@pytest.mark.parametrize("only", ["", "parity,magic", ","])
def test_unknown_section_is_refused(only):
    result = invoke("--only", only)
    assert result.exit_code == 2
    assert "machine,parity,speed,train" in re.sub(r"[\s│]+", "", result.output)


def test_missing_dependency_is_named(monkeypatch):
    real = entry.find_spec
    monkeypatch.setattr(entry, "find_spec", lambda name: None if name == "rich" else real(name))
    with pytest.raises(SystemExit, match=r"demo needs rich, .*pip install rich"):
        entry.main()


def test_importing_bptt_needs_none_of_the_demo():
    names = ", ".join(map(repr, (*entry.NEEDED, "bptt.tools.demo", "bptt.models")))
    code = f"import sys, bptt; print([name for name in ({names}) if name in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert output.strip() == "[]"


def test_a_busy_machine_is_told():
    alone = machine.OtherLoad()
    alone.busy -= 1e-9
    assert 0.0 <= alone.share() <= 1.0
    disturbed = machine.OtherLoad()
    time.sleep(0.1)
    disturbed.busy -= 10.0 * machine.cores()  # as if others had run ten seconds on each core
    assert disturbed.share() == 1.0
    assert "100% of the processor" in machine.warning(disturbed)


def test_a_slow_row_is_cut_short(monkeypatch):
    monkeypatch.setattr(speed, "_forward", lambda *_: None)
    monkeypatch.setattr(speed, "_training", lambda *_: time.sleep(0.05))
    assert speed.measure("GRU", (2, 1, 4), 0.01).rounds == 1
    monkeypatch.setattr(speed, "_training", lambda *_: None)
    assert speed.LEAST_ROUNDS < speed.measure("GRU", (2, 1, 4), 1.0).rounds <= speed.MOST_ROUNDS
