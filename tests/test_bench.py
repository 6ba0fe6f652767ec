"""Does `bptt bench` measure what it says, keep what it measured, and say what went wrong?

How fast anything is, is not asked here.
"""

import csv
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bptt
from bptt.engines import measured
from bptt.tools.bench import (
    choice,
    compare,
    floor,
    memory,
    providers,
    report,
    results,
    run,
    timing,
)
from bptt.tools.bench import problems as known
from bptt.tools.bench.layers import KINDS, OTHERS
from bptt.tools.bench.problems import Problem
from bptt.tools.bench.run import Run, relative_error
from bptt.tools.cli.app import app

SMALL = ["bench", "--layers", "GRU", "--shapes", "4x2x3x5", "--seconds", "0.01"]
FAST = ["--provider", "bptt", "--passes", "inference,step"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "result.json"


@pytest.fixture(autouse=True)
def _quick_figures(monkeypatch):
    """The speed of large products is not needed to see rows come and go."""
    monkeypatch.setattr(floor, "_CPU_SIZE", 64)
    monkeypatch.setattr(floor, "_copy_speed", lambda device: 10.0)
    monkeypatch.setattr("bptt.tools.bench.machine.import_seconds", lambda: 0.1)


def bench(path, *arguments, small=True):
    first = SMALL if small else ["bench"]
    return CliRunner().invoke(app, [*first, *arguments, "--output", str(path)])


def rows_of(path):
    return json.loads(path.read_text())["rows"]


# --- problems -------------------------------------------------------------------------------------


def problem(**changes):
    return replace(Problem("LSTM", "fp16", 10, 16, 768, 768, which="inference"), **changes)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "PERSIST_STATIC"),
        ({"which": "step"}, "PERSIST_STATIC"),
        ({"precision": "bf16"}, "STANDARD"),
        ({"precision": "tf32"}, "STANDARD"),
        ({"layer": "GRU"}, "STANDARD"),
        ({"layer": "RNN"}, "PERSIST_STATIC"),
        ({"layer": "RNN", "batch": 96, "hidden": 896}, "STANDARD"),
        ({"directions": 2}, "STANDARD"),
        ({"layers": 2}, "STANDARD"),
        ({"batch": 12}, "STANDARD"),
        ({"batch": 136}, "STANDARD"),
        ({"hidden": 1152}, "STANDARD"),
        ({"hidden": 700}, "STANDARD"),
        ({"input": 100}, "STANDARD"),
        ({"hidden": 192}, "SMALL_H"),
        ({"hidden": 192, "which": "step"}, "STANDARD"),
        ({"hidden": 128, "which": "step"}, "SMALL_H"),
        ({"layer": "RNN", "hidden": 384, "precision": "bf16"}, "SMALL_H"),
        ({"layer": "RNN", "hidden": 256, "which": "backward"}, "SMALL_H"),
    ],
)
def test_the_class_of_kernel_that_cudnn_takes(changes, kind):
    assert problem(**changes).cudnn_class == kind


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 2)])
def test_operations_and_bytes_are_those_of_the_weights(layer, layers, directions):
    one = Problem(layer, "fp32", 7, 3, 5, 4, layers, directions, "inference")
    options = {"num_layers": layers, "bidirectional": directions == 2, "bias": False}
    made = KINDS[layer].make(5, 4, **options)
    weights = sum(p.numel() for p in made.parameters() if p.dim() == 2)  # of products
    assert one.flop == 2 * weights * 7 * 3
    rows, width = 7 * 3, 4 * directions
    inputs = 5 + (layers - 1) * width
    assert one.bytes == 4 * (weights + rows * (inputs + width * layers))
    assert replace(one, which="backward").flop == 2 * one.flop
    assert replace(one, which="step").flop == 3 * one.flop


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", known.GRIDS)
def test_grids_by_name(name, device):
    grid = known.grid(name, device)
    assert len(grid) == len(set(grid)) > 3
    assert {p.layer for p in grid} >= (set(OTHERS) if name == "cells" else {"LSTM", "GRU"})
    if device == "cuda":
        assert "PERSIST_STATIC" in {p.cudnn_class for p in known.grid("hard-case", "cuda")}


@pytest.mark.parametrize(
    "changes", [{"layer": "LSTMP"}, {"precision": "fp8"}, {"batch": 0}, {"directions": 3}]
)
def test_impossible_problems_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        problem(**changes)


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_writes_a_valid_result_a_report_and_a_table(path):
    done = bench(path, "--passes", "inference,forward,backward,step", "--provider", "bptt")
    assert done.exit_code == 0, done.output
    result = results.Result.read(path)
    content = result.content
    assert [row["which"] for row in content["rows"]] == list(known.PASSES)
    assert content["versions"]["torch"] == torch.__version__ and content["device"]["kind"] == "cpu"
    assert content["figures"].keys() == {"copy", "gemm_fp32", "import_s"}
    for row in content["rows"]:
        assert (row["input"], row["hidden"], row["steps"], row["batch"]) == (3, 5, 4, 2)
        assert row["cudnn_class"] is None and row["floor_ms"] > 0
        theirs, ours = row["providers"]["torch.nn"], row["providers"]["bptt"]
        assert theirs["status"] == ours["status"] == "timed"
        assert ours["error"] < 1e-6 and ours["kernel"].startswith("cpu: ")
        assert ours["ms"]["q1"] <= ours["ms"]["median"] <= ours["ms"]["q3"]
        assert ours["us_per_step"] == pytest.approx(1e3 * ours["ms"]["median"] / 4)
        ratio = theirs["ms"]["median"] / ours["ms"]["median"]
        assert ours["ratio"]["median"] == pytest.approx(ratio)
        assert ours["share_of_floor"] == pytest.approx(row["floor_ms"] / ours["ms"]["median"])
        assert (ours["saved_bytes"] > 0) == (row["which"] != "inference")
        assert ours["peak_bytes"] > 0
    page = path.with_suffix(".md").read_text()
    assert "| GRU | fp32 | step | 1 |" in page and "Beside time" in page
    with path.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 and {line["provider"] for line in lines} == {"torch.nn", "bptt"}
    last = content["rows"][-1]["providers"]["bptt"]
    assert float(lines[-1]["ms_median"]) == last["ms"]["median"]


def test_a_row_once_measured_is_kept(path, monkeypatch):
    assert bench(path, *FAST).exit_code == 0
    before = path.read_text()
    monkeypatch.setattr("bptt.tools.bench.run.measure", lambda *_: pytest.fail("measured again"))
    done = bench(path, *FAST)
    assert done.exit_code == 0 and "2 measured before" in done.output
    assert path.read_text() == before


def test_another_provider_is_added_to_the_rows(path):
    assert bench(path, *FAST).exit_code == 0
    assert bench(path, *FAST, "--provider", "bptt reference").exit_code == 0
    for row in rows_of(path):
        assert row["providers"].keys() == {"torch.nn", "bptt", "bptt reference"}


def test_an_interrupted_run_goes_on(path, monkeypatch):
    measure = Run.measure
    calls = []

    def interrupted(self, problem):
        calls.append(problem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        measure(self, problem)

    monkeypatch.setattr(Run, "measure", interrupted)
    done = bench(path, *FAST)
    assert done.exit_code == 130 and "1 problems are left" in done.output
    assert len(rows_of(path)) == 1
    assert bench(path, *FAST).exit_code == 0
    assert len(rows_of(path)) == 2 and len(calls) == 3


def test_no_problem_is_begun_after_the_time(path):
    done = bench(path, *FAST, "--minutes", "1e-9")
    assert done.exit_code == 0 and "out of time: 2 problems are left" in done.output


def damaged(layer):
    made = providers.First(bptt.GRU(layer.input_size, layer.hidden_size))
    made.layer.load_state_dict(layer.state_dict())
    with torch.no_grad():
        made.layer.weight_hh_l0[0, 0] += 0.01
    return made


def raising(layer):
    raise RuntimeError("no such\nluck")


def without_memory(layer):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("make", "status", "said"),
    [
        (damaged, "wrong", "error "),
        (raising, "failed", "RuntimeError: no such"),
        (without_memory, "failed", "OutOfMemoryError"),
    ],
)
def test_what_is_wrong_or_fails_is_shown_and_not_timed(path, monkeypatch, make, status, said):
    bad = providers.Provider("bad", make, providers.never)
    monkeypatch.setattr(
        providers, "named", lambda *_: [providers.torch_nn(), bad, providers.ours("bptt")]
    )
    done = bench(path, "--passes", "inference,step")
    assert done.exit_code == 1 and "2 measurements are wrong or failed" in done.output
    for row in rows_of(path):
        entry = row["providers"]["bad"]
        assert entry["status"] == status and said in entry["reason"] and "ms" not in entry
        assert row["providers"]["bptt"]["status"] == "timed"
    assert f"{status}: " in path.with_suffix(".md").read_text()
    results.validate(json.loads(path.read_text()))


def test_a_call_that_fails_while_it_is_timed_leaves_the_others(path, monkeypatch):
    class Tired(nn.Module):
        calls = 0

        def forward(self, x):
            Tired.calls += 1
            if Tired.calls > 4:
                raise RuntimeError("tired")
            return self.layer(x)

    def tired(layer):
        made = Tired()
        made.layer = providers.flattened(layer)
        return made

    bad = providers.Provider("tired", tired, providers.never)
    monkeypatch.setattr(
        providers, "named", lambda *_: [providers.torch_nn(), bad, providers.ours("bptt")]
    )
    assert bench(path, "--passes", "inference").exit_code == 1
    (row,) = rows_of(path)
    assert row["providers"]["tired"] == {"status": "failed", "reason": "RuntimeError: tired"}
    assert row["providers"]["bptt"]["status"] == "timed"


def test_a_provider_that_ended_the_process_is_left_out(path):
    left = [str(Problem("GRU", "fp32", 4, 2, 3, 5, which="step")), "bptt"]
    path.with_suffix(".running").write_text(json.dumps(left))
    done = bench(path, *FAST)
    assert "ended the process last time" in done.output
    inference, step = rows_of(path)
    assert inference["providers"]["bptt"]["status"] == "timed"
    assert step["providers"]["bptt"]["reason"] == "the process ended while it ran"
    assert not path.with_suffix(".running").exists()


def test_a_gradient_that_is_zero_is_no_error():
    zeros, values = torch.zeros(3), torch.tensor([3.0, 4.0])
    assert run.relative_error([values, zeros], [values.double(), zeros.double()]) == 0
    assert run.relative_error([zeros + 1e-3], [zeros.double()]) == pytest.approx(3**0.5 * 1e-3)


def test_onnxruntime_runs_the_exported_layer(path):
    pytest.importorskip("onnxruntime")
    assert bench(path, "--passes", "inference,step", "--provider", "onnxruntime").exit_code == 0
    inference, step = results.Result.read(path).content["rows"]
    entry = inference["providers"]["onnxruntime"]
    assert entry["status"] == "timed" and entry["error"] < 1e-5
    assert step["providers"]["onnxruntime"]["reason"] == "inference in float32 on a CPU only"


def test_layers_that_torch_nn_lacks_stand_beside_the_loop_in_python(path):
    options = ["--layers", "IndRNN,LSTM-4-heads,LSTM", "--shapes", "4x2x3x8", "--passes", "step"]
    options += ["--seconds", "0.01", "--provider", "bptt", "--provider", "onnxruntime"]
    assert bench(path, *options, small=False).exit_code == 0
    rows = {row["layer"]: row["providers"] for row in rows_of(path)}
    for layer in ("IndRNN", "LSTM-4-heads"):
        providers_of = rows[layer]
        assert providers_of["torch.nn"] == {"status": "absent", "reason": "has no such layer"}
        assert providers_of["onnxruntime"]["reason"] == "has no such layer"
        assert "ratio" in providers_of["bptt"] and "ratio" not in providers_of["bptt reference"]
    assert {"ratio"} <= rows["LSTM"]["bptt"].keys() and "ratio" not in rows["LSTM"]["torch.nn"]
    assert "bptt reference" in path.with_suffix(".md").read_text()


def test_an_absent_provider_says_why(path):
    assert bench(path, "--passes", "inference", "--provider", "flashrnn").exit_code == 0
    (row,) = rows_of(path)
    assert row["providers"]["flashrnn"] == {"status": "absent", "reason": "needs a GPU"}


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enormous"], "grid must be one of"),
        (["--layers", "LSTMP"], "layer must be one of"),
        (["--precision", "fp8"], "precision must be one of"),
        (["--passes", "sideways"], "pass must be one of"),
        (["--directions", "3"], "directions must be one of"),
        (["--directions", "two"], "--directions must be whole numbers"),
        (["--shapes", "4x5"], "--shapes must be TxBxH"),
        (["--shapes", "4x0x5"], "batch must be at least 1, got 0"),
        (["--provider", "cudnn"], "provider must be one of torch.nn"),
        (["--device", "tpu"], "--device must be cpu or cuda"),
        (["--depth", "7"], "no problem of the grid"),
    ],
)
def test_bad_arguments(path, arguments, message):
    done = bench(path, *arguments, small=False)
    assert done.exit_code == 2 and message in done.output
    assert not path.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(path):
    done = bench(path, "--device", "cuda")
    assert done.exit_code == 2 and "finds no GPU" in done.output


def test_a_file_of_another_run_is_not_gone_on_with(path):
    assert bench(path, *FAST).exit_code == 0
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "commit": "0" * 40}))
    done = bench(path, *FAST)
    assert done.exit_code == 2 and "its commit is" in done.output and "--fresh" in done.output
    assert bench(path, *FAST, "--fresh").exit_code == 0


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 1}', "[]"])
def test_what_is_no_result_file_is_refused(path, text):
    path.write_text(text)
    done = bench(path, *FAST)
    assert done.exit_code == 2 and str(path.name) in done.output.replace("\n", "")


def test_the_list_measures_nothing(path):
    done = bench(path, *FAST, "--list")
    assert done.exit_code == 0 and "2 problems" in done.output and not path.exists()


# --- comparison -----------------------------------------------------------------------------------


def timed(median, spread=0.01):
    return {
        "status": "timed",
        "ms": {"median": median, "q1": median - spread, "q3": median + spread},
    }


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (timed(1.0), timed(0.5), "faster"),
        (timed(1.0), timed(2.0), "slower"),
        (timed(1.0), timed(1.04), "same"),
        (timed(1.0, 0.5), timed(1.4, 0.5), "same"),  # as noisy as they differ
        (timed(1.0), {"status": "wrong"}, "broken"),
        ({"status": "failed"}, {"status": "failed"}, "same"),
        (timed(1.0), {"status": "absent"}, "gone"),
        ({"status": "absent"}, timed(1.0), "new"),
        ({"status": "wrong"}, timed(1.0), "new"),
    ],
)
def test_verdicts(before, after, verdict):
    assert compare.verdict(before, after) == verdict


def test_two_files_side_by_side(path, tmp_path):
    assert bench(path, *FAST).exit_code == 0
    content = json.loads(path.read_text())
    for ms in (row["providers"]["bptt"]["ms"] for row in content["rows"]):
        ms.update(median=1.0, q1=1.0, q3=1.0)
    path.write_text(json.dumps(content))
    for ms in (row["providers"]["bptt"]["ms"] for row in content["rows"]):
        ms.update(median=10.0, q1=10.0, q3=10.0)
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(content))
    done = CliRunner().invoke(app, ["bench", "--compare", str(path), str(slower)])
    assert done.exit_code == 1 and "2 same, 2 slower" in done.output
    done = CliRunner().invoke(app, ["bench", "--compare", str(slower), str(path)])
    assert done.exit_code == 0 and "2 faster" in done.output
    done = CliRunner().invoke(app, ["bench", "--compare", str(path), str(tmp_path / "no.json")])
    assert done.exit_code == 2 and "No such file" in done.output


# --- which backend is best ------------------------------------------------------------------------


def test_a_table_of_choices_is_what_bptt_measured_reads(tmp_path, monkeypatch):
    def row(hidden, batch, **ms):
        one = Problem("LSTM", "fp16", 8, batch, hidden, hidden)
        entries = {name.replace("_", " "): timed(value) for name, value in ms.items()}
        entries["torch.nn"] = entries.pop("torch")
        return {**one.asdict(), "providers": entries}

    rows = [
        row(256, 16, torch=3.0, bptt=1.0, bptt_cuda=1.0),
        row(512, 16, torch=1.0, bptt=2.0, bptt_cuda=2.0),
        row(1024, 16, torch=3.0, bptt=2.0, bptt_cuda_grid=1.5, bptt_triton_persistent=0.1),
        row(1024, 64, torch=1.99, bptt=2.0),
    ]
    device = {"kind": "cuda", "name": "NVIDIA Something"}
    content = {"device": device, "grid": "full", "commit": "abc", "rows": rows}
    made = choice.table(results.Result(tmp_path / "r.json", content))
    path = tmp_path / "table.json"
    path.write_text(json.dumps(made))
    monkeypatch.setenv("BPTT_MEASURED", str(path))
    measured.rows_for.cache_clear()
    found = measured.rows_for("NVIDIA Something")
    measured.rows_for.cache_clear()
    assert [(r.hidden, r.batch, r.backend, r.tier) for r in found] == [
        ((363, 724), (16, 32), "torch", ""),
        ((725, 1024), (16, 32), "cuda", "grid"),
    ]


# --- what is measured beside time -----------------------------------------------------------------


def call_of(layer, which="step"):
    x, dy = torch.randn(6, 3, 4), torch.randn(6, 3, 8)
    return timing.Call(providers.First(layer), x, dy, which, providers.torch_nn().context)


def test_saved_memory_is_what_a_layer_keeps():
    """Four gates and the cell state of every step, in float32."""
    rows = 6 * 3 * 8 * 4
    assert memory.saved_bytes(call_of(bptt.LSTM(4, 8))) == 5 * rows
    assert memory.saved_bytes(call_of(bptt.LSTM(4, 8), "inference")) == 0
    assert memory.saved_bytes(call_of(nn.LSTM(4, 8))) > 5 * rows


def test_peak_memory_counts_what_is_gone_again():
    class Wasteful(nn.Module):
        def forward(self, x):
            return (x.repeat(1000, 1, 1)[: len(x)] + 0)[..., :1] + x.new_zeros(8)

    call = timing.Call(
        Wasteful(), torch.randn(6, 3, 4), torch.randn(6, 3, 8), "inference",
        providers.torch_nn().context,
    )  # fmt: skip
    assert 6 * 3 * 4 * 4 * 1000 <= memory.peak_bytes(call, "cpu") < 2 * 6 * 3 * 4 * 4 * 1000


def test_every_pass_computes_what_it_says():
    layer = nn.LSTM(4, 8)
    assert (
        len(call_of(layer, "inference").results()) == len(call_of(layer, "forward").results()) == 1
    )
    backward, step = (call_of(layer, which) for which in ("backward", "step"))
    assert len(backward.results()) == len(step.results()) == 6
    assert relative_error([torch.ones(2) * float("nan")], [torch.ones(2).double()]) != 0


def test_the_floor_is_the_larger_of_both_and_the_exchanges():
    one = Problem("LSTM", "fp32", 10, 1, 64, 64, which="inference")
    figures = {"copy": 1e9, "gemm_fp32": 1.0}
    assert floor.floor_ms(one, figures) == pytest.approx(one.flop / 1e6)
    figures = {"copy": 1.0, "gemm_fp32": 1e9}
    assert floor.floor_ms(one, figures) == pytest.approx(one.bytes / 1e6)
    exchanges = {"block of 1": 0.1, "cluster of 8": 0.7, "grid of 128": 1.5}
    large = replace(one, hidden=1024)
    fast = {"copy": 1e9, "gemm_fp32": 1e9, "exchanges_us": exchanges}
    assert floor.floor_ms(one, fast) == pytest.approx(10 * 0.1e-3, rel=1e-3)
    assert floor.floor_ms(large, fast) == pytest.approx(10 * 1.5e-3, rel=0.1)


def test_rows_of_a_gpu_are_drawn(tmp_path):
    """Heat maps over H and B, and lines over T: made of a file, whatever the device was."""
    rows = []
    for steps, batch, hidden in [(t, 8, 64) for t in (1, 10, 100)] + [(10, 16, 64), (10, 8, 128)]:
        entry = {**timed(1.0), "us_per_step": 5.0, "ratio": {"median": 2.0, "q1": 1.9, "q3": 2.1}}
        one = Problem("LSTM", "bf16", steps, batch, hidden, hidden)
        rows.append({**one.asdict(), "floor_ms": 0.1, "cudnn_class": "STANDARD",
                     "providers": {"torch.nn": entry, "bptt": entry}})  # fmt: skip
    result = results.Result(tmp_path / "gpu.json", {"rows": rows})
    assert sorted(p.name for p in report.draw(result)) == ["gpu-ratio-step.png", "gpu-steps.png"]
    assert all(p.stat().st_size > 5000 for p in tmp_path.glob("*.png"))


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_the_adapter_to_flashrnn(layer):
    pytest.importorskip("flashrnn")
    theirs = getattr(nn, layer)(5, 8)
    x = torch.randn(6, 3, 5)
    torch.testing.assert_close(providers.FlashRnn(theirs, "vanilla")(x), theirs(x)[0])
