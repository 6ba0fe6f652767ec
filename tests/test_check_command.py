"""Does `bptt check` tell accurate layers from wrong ones, and say what it measured?"""

from __future__ import annotations

import json
import math
import re
import shlex

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bptt
from bptt.tools.bench import accuracy, accuracy_cases
from bptt.tools.cli.app import app

FLOAT32 = accuracy_cases.PRECISIONS["float32"]
CASE = accuracy_cases.Check("GRU")


def invoke(*arguments: str):
    # Wide enough that no line is broken.
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["check", *arguments], catch_exceptions=False
    )


def small(*arguments: str):
    """One case on the fused CPU kernels, in float32."""
    return invoke("--case", CASE.name, "--backend", "cpu", "--dtype", "float32", *arguments)


def test_the_quick_set_passes():
    result = invoke("--layer", "GRU", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert re.search(r"all \d+ cases passed", result.output)
    for words in ("GRU beyond torch.nn", "bfloat16", "float16", "none", "less accurate than"):
        assert words in result.output
    assert "LSTM" not in result.output


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_full_set_passes_on_the_fused_kernels():
    result = invoke("--full", "--backend", "cpu", "--dtype", "float32", "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_every_option_is_in_both_sets():
    quick, full = accuracy_cases.checks(), accuracy_cases.checks(full=True)
    assert set(quick) <= set(full)
    assert len({check.name for check in full}) == len(full)
    for checks in (quick, full):
        assert {check.layer for check in checks} == set(accuracy_cases.LAYERS)
        assert {check.layout for check in checks} == set(accuracy_cases.LAYOUTS)
        for option, values in {
            "nonlinearity": {"tanh", "relu", "sigmoid"}, "proj_size": {0, 6}, "num_layers": {1, 2},
        }.items():  # fmt: skip
            assert {getattr(check, option) for check in checks} == values, option
        for option in ("bidirectional", "bias", "states", "recompute", "peephole", "reset_after",
                       "lengths", "resets"):  # fmt: skip
            assert {getattr(check, option) for check in checks} == {False, True}, option
        assert min(check.steps for check in checks) == min(check.batch for check in checks) == 1
        assert {check.hidden % 2 for check in checks} == {0, 1}


# --- what is wrong is found ----------------------------------------------------------------------


class Scaled(bptt.GRU):
    def load_state_dict(self, weights, *args, **kwargs):
        weights = {name: 1.001 * weight for name, weight in weights.items()}
        return super().load_state_dict(weights, *args, **kwargs)


class WrongGradient(bptt.GRU):
    def forward(self, x, hx=None, **options):
        y, h = super().forward(x, hx, **options)
        return y + 1e-3 * (y - y.detach()), h


class NotANumber(bptt.GRU):
    def forward(self, x, hx=None, **options):
        y, h = super().forward(x, hx, **options)
        return torch.where(y == y.max(), torch.nan, y), h


class Raising(bptt.GRU):
    def forward(self, x, hx=None, **options):
        if self.bidirectional:
            raise RuntimeError("out of order")
        return super().forward(x, hx, **options)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Scaled, "more tensors"),
        (WrongGradient, "gradient of "),
        (NotANumber, "output: inf units"),
    ],
)
def test_a_wrong_layer_fails(monkeypatch, layer, words):
    monkeypatch.setattr(bptt, "GRU", layer)
    result = small("--seed", "3")
    assert result.exit_code == 1, result.output
    assert "1 of 1 cases failed" in result.output
    assert words in result.output
    # The command that it names runs that case alone, and finds the same.
    rerun = next(line for line in result.output.splitlines() if "bptt check" in line)
    words = shlex.split(rerun)[2:]
    assert words[words.index("--seed") + 1] == "3"
    again = invoke(*words)
    assert again.exit_code == 1
    monkeypatch.undo()
    assert invoke(*words).exit_code == 0


def test_a_case_that_raises_is_shown_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(bptt, "GRU", Raising)
    result = invoke("--layer", "GRU", "--backend", "cpu", "--dtype", "float32")
    assert result.exit_code == 1
    failed, total = map(int, re.search(r"(\d+) of (\d+) cases failed", result.output).groups())
    assert 0 < failed < total
    assert result.output.count("raised RuntimeError: out of order") == failed


def test_a_dtype_that_torch_nn_cannot_run_is_none(monkeypatch):
    class Picky(nn.GRU):
        def forward(self, x, hx=None):
            if x.dtype != torch.float64:
                raise NotImplementedError("no kernel for it")
            return super().forward(x, hx)

    monkeypatch.setattr(nn, "GRU", Picky)
    result = small()
    assert result.exit_code == 0, result.output
    assert "torch.nn none: float32: NotImplementedError: no kernel for it" in result.output


def test_overflow_in_torch_nn_excuses_nothing():
    exact = {"output": torch.ones(3, dtype=torch.float64)}
    theirs = {"output": torch.full((3,), math.inf, dtype=torch.float64)}
    ours = {"output": exact["output"] * 1.1}
    (error,) = accuracy._errors(CASE, FLOAT32, ours, theirs, exact)
    assert error.torch_nn is None and not error.passed


def test_units_and_verdict():
    exact = torch.tensor([0.5, -4.0], dtype=torch.float64)
    eps = FLOAT32.eps
    assert accuracy.units(exact + 3 * eps, exact, eps) == pytest.approx(0.75)
    assert accuracy.units(exact[:1], exact, eps) == math.inf
    assert accuracy.units(exact * math.nan, exact, eps) == math.inf
    assert accuracy.units(exact * 0, exact * 0, eps) == 0
    assert accuracy.Error("output", 5.0, 6.0, 2.0).passed  # as accurate as torch.nn
    assert accuracy.Error("output", 1.5, 0.0, 2.0).passed  # torch.nn was lucky
    assert not accuracy.Error("output", 2.5, 2.4, 2.0).passed
    assert not accuracy.Error("output", 2.5, None, 2.0).passed
    assert not accuracy.Error("output", math.inf, math.inf, 2.0).passed


def test_relu_units_stay_away_from_kinks():
    check = accuracy_cases.Check("RNN", nonlinearity="relu", num_layers=2, bidirectional=True)
    given = accuracy.Given.of(check, accuracy_cases.PRECISIONS["bfloat16"], 0)
    for name, weight in given.weights.items():
        assert (weight[0::2] >= 0).all() and (weight[1::2] <= 0).all(), name
    assert all((tensor >= 0).all() for tensor in given.inputs.values())


# --- what is written -----------------------------------------------------------------------------


def test_files_have_what_the_tables_show(tmp_path):
    file = tmp_path / "deep" / "check.json"
    result = invoke(
        "--layer", "RNN", "--dtype", "float32", "--device", "cpu", "--output", str(file)
    )
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["passed"] and content["seed"] == 0 and content["checked"] == "quick"
    assert content["versions"]["torch"] == torch.__version__
    shown = [line.split() for line in result.output.splitlines() if line[1:8] == "float32"]
    assert len(shown) == len(content["summary"])
    for cells, row in zip(shown, content["summary"], strict=True):
        assert cells[1:3] == [row["backend"], f"{row['passed']}/{row['cases']}"]
        assert cells[3] == f"{row['output']['bptt']:.2f}"
        theirs = row["output"]["torch_nn"]
        assert cells[4] == ("none" if theirs is None else f"{theirs:.2f}")
    errors = [error for outcome in content["outcomes"] for error in outcome["errors"]]
    assert sum(error["torch_nn"] is not None for error in errors) == content["tensors_compared"]
    for name, mean in content["mean_ratios"].items():
        assert f"{mean:.2f} times torch.nn's in the mean: {name}" in result.output
    worse = len(content["less_accurate"])
    assert (
        f"less accurate than torch.nn in {worse} of {content['tensors_compared']}" in result.output
    )


def test_a_failure_is_valid_json_and_markdown(tmp_path, monkeypatch):
    monkeypatch.setattr(bptt, "GRU", NotANumber)
    for name in ("check.json", "check.md"):
        assert small("--output", str(tmp_path / name)).exit_code == 1
    content = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert not content["passed"]
    assert content["failed"][0]["rerun"].startswith(f"bptt check --case {CASE.name} ")
    assert content["summary"][0]["output"]["bptt"] == "inf"
    text = (tmp_path / "check.md").read_text(encoding="utf-8")
    assert "| float32 | cpu | 0/1 | inf |" in text and "FAILED" in text


# --- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "cudnn"), "--backend must be one of cuda, triton, cpu"),
        (("--dtype", "int8"), "--dtype must be one of float64, float32"),
        (("--layer", "TCN"), "--layer must be one of RNN, GRU, LSTM"),
        (("--device", "tpu"), "--device must be cpu or cuda"),
        (("--case", "GRU,T0"), "there is no 'GRU,T0'"),
        (("--output", "check.txt"), ".json or .md"),
        (("--dtype", "tf32", "--device", "cpu"), "only a GPU"),
    ],
)
def test_bad_arguments(arguments, words):
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output


def test_a_backend_that_cannot_run_here_gives_its_reason():
    absent = [status for status in bptt.backends() if not status.available]
    for status in absent:
        result = invoke("--backend", status.name)
        assert result.exit_code == 2
        assert status.reason in result.output
