"""Do commands take a cell of one's own, as `file.py:name`, and say what is wrong with a name?"""

from __future__ import annotations

from pathlib import Path

import pytest

import own_cells
from bptt.custom import files
from bptt.custom.program import CellError
from trained_runs import invoke, refused, train

CELLS_FILE = Path(__file__).resolve().parent.parent / "docs" / "course" / "cells.py"

WRONG = '''
import bptt, torch

@bptt.cell(gates=1)
def kinked(gates_x, gates_h, h):
    """Its derivative is none of its function: at 0.1 it jumps."""
    return torch.where(h > 0.1, h, 0 * h.detach()) + (gates_x[0] + gates_h[0]).detach()
'''


@pytest.fixture(autouse=True)
def as_before():
    known = dict(files._read)
    with own_cells.known_cells_as_before():
        files._read.clear()  # what was read by a test before is forgotten there
        yield
    files._read.clear()
    files._read.update(known)


def test_check_passes():
    result = invoke(
        "check", "--cell", f"{CELLS_FILE}:ugrnn", "--backend", "cpu", "--dtype", "float32"
    )
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "2 values kept for each unit" in told and "by finite differences" in told
    assert "cases passed" in told


def test_check_finds_a_derivative_that_is_none(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(WRONG, encoding="utf-8")
    result = invoke("check", "--cell", f"{file}:kinked")
    assert result.exit_code == 1
    assert "FAILED its derivative" in result.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.py:cell", "there is no file"),
        (f"{CELLS_FILE}:lstm", "it has ugrnn, light_gru"),
        ("cell", "a cell is named as file.py:name"),
    ],
)
def test_names_that_are_none(name, words, tmp_path):
    assert words in refused("check", "--cell", name)
    if ":" in name:
        assert words in refused("train", "lm", "--run", tmp_path, "--cell", name)


def test_a_file_that_fails(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0", encoding="utf-8")
    with pytest.raises(CellError, match=r"broken\.py fails: ZeroDivisionError"):
        files.load_cell(f"{file}:cell")


def test_trains(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60, encoding="utf-8")
    cell = f"{CELLS_FILE}:light_gru"
    small = ["--units", "12", "--epochs", "2", "--layers", "1", "--data", text]
    result = train("lm", tmp_path / "run", "--cell", cell, *small)
    losses = [epoch["validation/loss"] for epoch in result["history"]]
    assert losses[-1] < losses[0]
    sampled = invoke("sample", tmp_path / "run")
    assert sampled.exit_code == 0, sampled.output


def test_torch_nn_has_no_such_layer(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60, encoding="utf-8")
    cell = f"{CELLS_FILE}:ugrnn"
    told = refused(
        "train", "lm", "--run", tmp_path / "run", "--cell", cell, "--impl", "torch", "--data", text
    )
    assert "impl must be bptt for a cell of your own" in told
