"""Does the backend "torch", torch.nn's own kernels, give the same numbers, and when is it taken?"""

import json

import pytest
import torch

import bptt
from bptt.engines import dispatch, measured
from cases import F32, Case, call, make_inputs

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")


@pytest.fixture(autouse=True)
def _no_caches():
    measured.rows_for.cache_clear()
    yield
    measured.rows_for.cache_clear()


@pytest.mark.parametrize(
    "change",
    [{}, {"directions": 2, "layers": 2}, {"bias": False, "states": False}, {"batch_first": True}],
    ids=lambda change: ",".join(change) or "plain",
)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_gradients(cell, change):
    case = Case(cell, **change)
    results = []
    for backend in ("torch", "reference"):
        tensors = {n: t.requires_grad_() if t is not None and "loss" not in n else t
                   for n, t in make_inputs(case).items()}  # fmt: skip
        with bptt.backend(backend):
            y, h_n, c_n = call(case, tensors)
        outputs = [t for t in (y, h_n, c_n) if t is not None]
        leaves = [t for t in tensors.values() if t is not None and t.requires_grad]
        loss = (y * tensors["loss_y"]).sum() + (h_n * tensors["loss_h_n"]).sum()
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_projection():
    layer, x = bptt.LSTM(3, 8, proj_size=4, bidirectional=True), torch.randn(5, 2, 3)
    expected = layer(x)[0]
    with bptt.backend("torch"):
        torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize(
    ("layer", "keywords", "reason"),
    [
        (bptt.LSTM(3, 4, peephole=True), {}, "torch.nn has no lstm_peephole"),
        (bptt.GRU(3, 4, reset_after=False), {}, "torch.nn has no gru_reset_before"),
        (bptt.GRU(3, 4), {"lengths": torch.tensor([2, 1])}, "only by packing"),
        (bptt.GRU(3, 4), {"resets": torch.zeros(5, 2, dtype=torch.bool)}, "has no resets"),
    ],
)
def test_what_it_does_not_take(layer, keywords, reason):
    with bptt.backend("torch"), pytest.raises(RuntimeError, match=reason):
        layer(torch.randn(5, 2, 3), **keywords)


def test_function_transforms_are_refused():
    layer = bptt.GRU(3, 4)
    with bptt.backend("torch"), pytest.raises(RuntimeError, match="no rule for it"):
        torch.func.vmap(lambda x: layer(x)[0])(torch.randn(2, 5, 1, 3))


def test_auto_takes_it_where_it_was_measured_to_be_faster_and_nowhere_else():
    problem = dispatch.Problem("lstm", "cpu", F32)
    assert dispatch.choose(problem, "auto") == "cpu"
    assert dispatch.choose(problem, "auto", fastest="torch") == "torch"
    beyond = dispatch.Problem("lstm", "cpu", F32, beyond_torch="torch.nn has no resets")
    assert dispatch.choose(beyond, "auto", fastest="torch") == "cpu"
    assert dispatch.choose(problem, "auto", fastest="cuda") == "cpu"  # not here
    nobody = dispatch.Problem("lstm", "xpu", F32)
    assert dispatch.choose(nobody, "auto") == "reference"


# --- tables of measurements -----------------------------------------------------------------------

ROW = {"cell": "lstm", "dtype": "float32", "directions": 1, "hidden": [1, 64], "batch": [8, 32],
       "backend": "torch"}  # fmt: skip


def put(path, monkeypatch, **table):
    path.write_text(json.dumps({"device": "cpu", "source": "here", "rows": [ROW], **table}))
    monkeypatch.setenv("BPTT_MEASURED", str(path))


def look_up(cell="lstm", dtype=F32, directions=1, hidden=64, batch=8):
    return measured.row_for(cell, dtype, directions, hidden, batch, torch.device("cpu"))


def test_a_table_answers_for_its_device_and_ranges(tmp_path, monkeypatch):
    put(tmp_path / "table.json", monkeypatch)
    assert look_up().backend == "torch" and look_up().source == "here"
    for change in (
        {"cell": "gru"},
        {"dtype": torch.float16},
        {"directions": 2},
        {"hidden": 65},
        {"batch": 7},
    ):
        assert look_up(**change) is None
    measured.rows_for.cache_clear()
    put(tmp_path / "table.json", monkeypatch, device="NVIDIA H200")
    assert look_up() is None


@pytest.mark.parametrize("table", [{"rows": [{"cell": "lstm"}]}, {"rows": 3}])
def test_a_broken_table_is_named(table, tmp_path, monkeypatch):
    put(tmp_path / "table.json", monkeypatch, **table)
    with pytest.raises(ValueError, match=r"table\.json is not a table of measurements"):
        look_up()


def test_explain_says_that_it_was_measured(tmp_path, monkeypatch):
    put(tmp_path / "table.json", monkeypatch)
    layer, x = bptt.LSTM(3, 64), torch.randn(2, 8, 3)
    row = look_up()
    monkeypatch.setattr("bptt.diagnostics._measured", lambda *_: row)
    told = bptt.explain(layer, x)
    assert told.backend == "torch"
    assert "backend torch (measured to be the fastest here, here)" in str(told)
    with bptt.backend("cpu"):
        assert "(forced)" in str(bptt.explain(layer, x))
