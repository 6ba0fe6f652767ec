"""Which backend runs a call, who decides, and is it told?"""

import contextlib
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import bptt
from bptt.engines import dispatch

# torch's own forward mode, on its first use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

T, B, I, H = 4, 2, 3, 5
LAYERS = [
    pytest.param(bptt.RNN, {}, "rnn_tanh", id="rnn"),
    pytest.param(bptt.RNN, {"nonlinearity": "relu"}, "rnn_relu", id="rnn-relu"),
    pytest.param(bptt.GRU, {}, "gru", id="gru"),
    pytest.param(bptt.GRU, {"reset_after": False}, "gru_reset_before", id="gru-reset-before"),
    pytest.param(bptt.LSTM, {}, "lstm", id="lstm"),
    pytest.param(bptt.LSTM, {"peephole": True, "proj_size": 2}, "lstm_peephole", id="lstm-all"),
]


class Spy(TorchDispatchMode):
    """Counts the fused loops that run."""

    def __init__(self):
        super().__init__()
        self.fused = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fused += func.name().startswith("bptt::recurrence")
        return func(*args, **(kwargs or {}))


def fused(run):
    """How many fused loops `run()` runs."""
    with Spy() as spy:
        run()
    return spy.fused


@pytest.mark.parametrize(("layer", "options", "cell"), LAYERS)
def test_the_backend_named_by_explain_is_the_one_that_runs(layer, options, cell):
    module, x = layer(I, H, **options), torch.randn(T, B, I)
    for name in ("auto", "cpu", "reference"):
        with bptt.backend(name):
            told = bptt.explain(module, x)
            count = fused(lambda: module(x))
        assert told.cell == cell
        assert told.forced == (name != "auto")
        assert told.backend == ("reference" if name == "reference" else "cpu")
        assert count == (0 if name == "reference" else 1)


def test_backends_are_listed_in_order_with_reasons():
    rows = {row.name: row for row in bptt.backends()}
    assert tuple(rows) == ("cuda", "triton", "cpu", "torch", "reference")
    assert rows["cpu"].available and "instructions" in rows["cpu"].detail
    assert rows["reference"].available
    for row in rows.values():
        assert bool(row.reason) != row.available
        assert bool(row.detail) == row.available


@pytest.mark.parametrize("name", ["gpu", "CPU", "", None, 3])
def test_an_unknown_backend_is_refused_with_the_names_there_are(name):
    with (
        pytest.raises(
            ValueError, match=r"expected one of auto, cuda, triton, cpu, torch, reference, got"
        ),
        bptt.backend(name),
    ):
        pytest.fail("entered")


@pytest.mark.parametrize("name", [row.name for row in bptt.backends() if not row.available])
def test_an_absent_backend_is_refused_with_its_reason(name):
    reason = next(row.reason for row in bptt.backends() if row.name == name)
    with pytest.raises(RuntimeError, match=f"{name!r} is not available: {reason}"):
        bptt.backend(name).__enter__()


def test_blocks_nest_and_an_error_leaves_none_behind():
    assert dispatch.forced_backend() == "auto"
    with bptt.backend("reference"):
        with bptt.backend("cpu"):
            with bptt.backend("auto"):
                assert dispatch.forced_backend() == "auto"
            assert dispatch.forced_backend() == "cpu"
        assert dispatch.forced_backend() == "reference"
        with contextlib.suppress(ValueError), bptt.backend("nothing"):
            pass
        assert dispatch.forced_backend() == "reference"
    with contextlib.suppress(KeyError), bptt.backend("reference"):
        raise KeyError
    assert dispatch.forced_backend() == "auto"


def test_a_backend_is_forced_on_its_own_thread_only():
    seen = []
    with bptt.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch.forced_backend()))
        thread.start()
        thread.join()
        assert dispatch.forced_backend() == "reference"
    assert seen == ["auto"]


def test_a_forced_backend_never_falls_back():
    dtype = torch.complex64
    layer, x = bptt.GRU(I, H, dtype=dtype), torch.randn(T, B, I, dtype=dtype)
    message = rf"'cpu' cannot run gru: cpu: {dtype} is not one of float32, float64, bfloat16"
    with bptt.backend("cpu"):
        with pytest.raises(RuntimeError, match=message):
            layer(x)
        with pytest.raises(RuntimeError, match=message):
            bptt.explain(layer, x)
    assert bptt.explain(layer, x).backend == "reference"
    assert layer(x)[0].dtype == dtype


def test_a_forced_cpu_backend_refuses_forward_mode_with_the_reason():
    layer, x = bptt.RNN(I, H), torch.randn(T, B, I)
    with bptt.backend("cpu"), pytest.raises(RuntimeError, match="forward-mode AD runs through"):
        torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))


def test_the_gradient_runs_on_the_backend_of_its_forward_pass():
    layer, x = bptt.LSTM(I, H), torch.randn(T, B, I)
    with bptt.backend("reference"):
        loss = layer(x)[0].sum()
    assert fused(loss.backward) == 0
    loss = layer(x)[0].sum()
    with bptt.backend("reference"):
        # Two: a mode that came after a short call has its loop made anew, for the usual way.
        assert fused(loss.backward) == 2


# --- BPTT_BACKEND -------------------------------------------------------------------------------


def in_subprocess(code, backend):
    environment = dict(os.environ, BPTT_BACKEND=backend)
    code = "import torch, bptt\nlayer, x = bptt.RNN(2, 3), torch.randn(2, 1, 2)\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


ASK = """
import threading
ask = lambda: print(bptt.explain(layer, x).backend, bptt.explain(layer, x).forced)
ask()
thread = threading.Thread(target=ask); thread.start(); thread.join()
with bptt.backend("cpu"): ask()
with bptt.backend("auto"): ask()
ask()
"""


def test_the_environment_forces_every_thread_and_an_inner_block_wins():
    code, lines, errors = in_subprocess(ASK, "reference")
    assert code == 0, errors
    forced = "reference True"
    assert lines == [forced, forced, "cpu True", "cpu False", forced]


def test_an_empty_environment_variable_forces_nothing():
    code, lines, errors = in_subprocess("print(bptt.explain(layer, x).forced)", "")
    assert (code, lines) == (0, ["False"]), errors


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "nope",
            "ValueError: BPTT_BACKEND: expected one of auto, cuda, triton, cpu, torch, reference",
        ),
        ("triton", "RuntimeError: BPTT_BACKEND: backend 'triton' is not available"),
    ],
)
def test_a_wrong_environment_variable_is_an_error_of_the_first_call(name, error):
    code, _, errors = in_subprocess("layer(x)", name)
    assert code == 1
    assert error in errors


# --- explain ------------------------------------------------------------------------------------


def test_explain_reads_as_text():
    text = str(bptt.explain(bptt.LSTM(I, H, bidirectional=True), torch.randn(T, B, I)))
    lines = text.split("\n")
    assert lines[0] == "lstm: backend cpu (the first backend with nothing against it)"
    assert lines[1].startswith("  kernel: fused time loop in C++, ")
    assert [line.split(":")[0] for line in lines[2:]] == [
        "  not cuda",
        "  not triton",
        "  not torch",
        "  not reference",
        "  transforms",
    ]


def test_explain_says_that_a_backend_was_forced():
    with bptt.backend("reference"):
        told = bptt.explain(bptt.GRU(I, H), torch.randn(T, B, I))
    assert "backend reference (forced)" in str(told)
    assert told.reasons["cpu"] == "another backend is forced"
    assert "Python loop" in told.kernel


def test_explain_knows_forward_mode():
    with forward_ad.dual_level():
        told = bptt.explain(bptt.GRU(I, H), torch.randn(T, B, I))
    assert told.backend == "reference"
    assert told.reasons["cpu"].startswith("forward-mode AD")


def test_explain_knows_autocast():
    layer, x = bptt.GRU(I, H, dtype=torch.complex64), torch.randn(T, B, I, dtype=torch.complex64)
    assert bptt.explain(layer, x).backend == "reference"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bptt.explain(layer, x).backend == "cpu"


@pytest.mark.parametrize(
    "shape",
    [(T, B, I), (0, B, I), (T, 0, I), (T, I)],
    ids=["batch", "no-steps", "no-batch", "unbatched"],
)
def test_explain_takes_any_input_of_the_layer(shape):
    for layer in (bptt.LSTM(I, H), bptt.LSTM(I, H, batch_first=True, proj_size=2)):
        assert bptt.explain(layer, torch.randn(shape)).backend == "cpu"


def test_explain_takes_a_packed_sequence():
    packed = pack_sequence([torch.randn(n, I) for n in (4, 2, 1)])
    assert bptt.explain(bptt.GRU(I, H), packed).backend == "cpu"


def test_explain_knows_other_devices():
    layer, x = bptt.GRU(I, H, device="meta"), torch.randn(T, B, I, device="meta")
    told = bptt.explain(layer, x)
    assert told.backend == "reference"
    assert told.reasons["cpu"] == "tensors are on meta, it takes CPU tensors"


@pytest.mark.parametrize("cell", [bptt.RNNCell, bptt.GRUCell, bptt.LSTMCell])
@pytest.mark.parametrize("forced", ["auto", "cpu"])
def test_explain_says_that_cells_run_their_equations(cell, forced):
    module, x = cell(I, H), torch.randn(B, I)
    with bptt.backend(forced):
        assert fused(lambda: module(x)) == 0
        told = bptt.explain(module, x)
    assert told.backend == "reference" and not told.forced
    assert "no loop to fuse" in told.reasons["cpu"]


@pytest.mark.parametrize(
    ("layer", "input", "message"),
    [
        (torch.nn.LSTM(I, H), torch.randn(T, B, I), "layer must be a layer or cell of bptt"),
        (bptt.LSTM(I, H), [1.0], "input must be a tensor or PackedSequence, got list"),
    ],
)
def test_explain_refuses_what_it_cannot_explain(layer, input, message):
    with pytest.raises(TypeError, match=message):
        bptt.explain(layer, input)


# --- why Triton is absent -------------------------------------------------------------------------


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert dispatch._find_triton() == "Triton is not installed; install triton 3.6 or later"


@pytest.mark.parametrize(
    ("version", "reason"),
    [("3.5.1", "triton 3.5.1 is too old; install 3.6 or later"), ("3.6.0", None), ("4.0", None)],
)
def test_an_old_triton_is_named(version, reason, monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch.metadata, "version", lambda name: version)
    assert dispatch._find_triton() == reason


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (dispatch.Problem("lstm", "cpu", torch.float32), "tensors are on cpu, it takes CUDA"),
        (dispatch.Problem("lstm", "xpu", torch.float32), "tensors are on xpu, it takes CUDA"),
        (dispatch.Problem("lstm", "cuda", torch.float64), "torch.float64 is not one of float32"),
        (dispatch.Problem("lstm", "cuda", torch.float32, "because"), "because"),
        (dispatch.Problem("lstm", "cuda", torch.bfloat16), None),
    ],
)
def test_what_triton_does_not_take(problem, reason):
    answer = dispatch._triton_supports(problem)
    assert answer is None if reason is None else reason in answer


# --- what a GPU would be given, without one -------------------------------------------------------


@pytest.fixture
def gpu_here(monkeypatch):
    """As if torch saw a GPU, and this build had kernels for one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    monkeypatch.setattr(dispatch, "_TRITON_ERROR", None)
    monkeypatch.setattr(dispatch, "_TRITON_INTERPRETED", False)
    monkeypatch.setattr(dispatch, "_SIMULATOR", "")
    monkeypatch.setattr(dispatch, "_start_errors", {})


def refuse(index):
    raise RuntimeError(
        f"bptt::gpu_device: CUDA driver version is insufficient for CUDA runtime version\n({index})"
    )


def test_a_build_that_cannot_start_leaves_the_gpu_to_triton(gpu_here, monkeypatch):
    """A driver older than the runtime, or no code for the GPU: found before the first call."""
    problem = dispatch.Problem("lstm", "cuda", torch.float32)
    monkeypatch.setattr(torch.ops.bptt, "gpu_device", lambda index: [90, 132, 232448, 1980])
    assert dispatch.choose(problem) == "cuda"
    dispatch._start_errors.clear()
    monkeypatch.setattr(torch.ops.bptt, "gpu_device", refuse)
    assert dispatch.choose(problem) == "triton"
    reason = dispatch.reasons(problem)["cuda"]
    assert "cannot start on GPU 0" in reason and "driver version is insufficient" in reason
    with pytest.raises(RuntimeError, match="not available: its kernels cannot start"):
        dispatch.check_backend_name("cuda", "test")


def test_float64_on_a_gpu_takes_torchs_kernels(gpu_here, monkeypatch):
    monkeypatch.setattr(torch.ops.bptt, "gpu_device", lambda index: [90, 132, 232448, 1980])
    problem = dispatch.Problem("lstm", "cuda", torch.float64)
    assert dispatch.choose(problem) == "torch"
    beyond = dispatch.Problem("lstm", "cuda", torch.float64, beyond_torch="zoneout")
    assert dispatch.choose(beyond) == "reference"
    assert dispatch.choose(dispatch.Problem("lstm", "cpu", torch.float64)) == "cpu"
