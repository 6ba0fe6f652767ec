"""Does `bptt doctor` tell what is here, and find what is broken?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import bptt
from bptt.tools import doctor
from bptt.tools.cli.app import app


def test_it_tells_what_is_here(monkeypatch):
    monkeypatch.setenv("BPTT_MEASURED", "/home/somebody/table.json")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for text in (bptt.__version__, torch.__version__, "BPTT_MEASURED=table.json", "fine"):
        assert text in result.output
    for status in bptt.backends():
        assert status.name in result.output
        assert (status.reason or status.detail)[:40] in result.output


def test_as_json_it_has_no_path_of_the_user():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert {check["backend"] for check in found["checks"]} == {
        status.name for status in bptt.backends() if status.available
    }
    assert all(check["fine"] for check in found["checks"])
    assert str(Path.home()) not in result.output
    assert str(Path.cwd()) not in result.output


def test_it_finds_a_wrong_backend(monkeypatch):
    passed = doctor._pass

    def wrong(layer, x):
        results = passed(layer, x)
        if x.dtype == torch.float32:
            results[1][0, 0, 0] = float("nan") if isinstance(layer, bptt.GRU) else 7.0
        return results

    monkeypatch.setattr(doctor, "_pass", wrong)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "wrong" in result.output
    assert "fine" not in result.output


def test_it_tells_what_a_backend_raises(monkeypatch):
    passed = doctor._pass

    def broken(layer, x):
        if isinstance(layer, bptt.LSTM):
            raise RuntimeError("no such\n kernel")
        return passed(layer, x)

    monkeypatch.setattr(doctor, "_pass", broken)
    found = doctor.checks()
    assert [check.layer for check in found if not check.fine] == ["LSTM"] * (len(found) // 3)
    assert all(c.trouble == "RuntimeError: no such kernel" for c in found if not c.fine)


@pytest.mark.parametrize(
    ("value", "shown"), [("1", "1"), ("/a/b/c.json", "c.json"), ("/x/y:/z", "y:z"), ("cpu", "cpu")]
)
def test_of_paths_the_last_part_is_shown(value, shown, monkeypatch):
    monkeypatch.setenv("BPTT_SOMETHING", value)
    assert doctor.settings()["BPTT_SOMETHING"] == shown


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ImportError: /home/ann/.venv/lib/_C.so: undefined symbol", "ImportError: _C.so: "),
        (r"OSError: C:\Users\ann\bptt\_C.dll is missing", "OSError: _C.dll is missing"),
        ("GPU kernels: 3/4 compiled, and/or none", "3/4 compiled, and/or none"),
    ],
)
def test_no_folder_is_in_what_it_tells(text, masked):
    assert masked in doctor._masked(text)
    assert "ann" not in doctor._masked(text)
