"""Do the Triton kernels compute on a GPU what the float64 reference says, and behave there?

As `tests/kernels` does in the interpreter, on sizes that fill tiles and pass them.
"""

from dataclasses import replace

import pytest
import torch

import bptt
from bptt.kernels import plan
from cases import ALL_CELLS, BF16, F16, F32, LSTMS, Case, call, check, make_inputs
from tiers import TIERS, TILED, force_tier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]
DTYPES = (F32, F16, BF16)
ONE_PRODUCT = tuple(cell for cell in ALL_CELLS if bptt.cells.CELLS[cell].stages == 1)


def names(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.fixture(autouse=True)
def _full_precision():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


@pytest.fixture
def tier(request, monkeypatch):
    force_tier(monkeypatch, request.param)
    return request.param


every_tier = pytest.mark.parametrize("tier", TIERS, indirect=True)
tiled = pytest.mark.parametrize("tier", TILED, indirect=True)


@every_tier
@pytest.mark.parametrize("masks", ["none", "lengths", "resets", "both"])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_every_cell_dtype_and_mask(cell, dtype, masks, tier):
    case = Case(cell, steps=9, batch=33, hidden=37, directions=2, masks=masks)
    check(case, dtype, "triton", "cuda")


@tiled
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ["gru_reset_before", *LSTMS])
def test_two_products_in_a_step(cell, dtype, tier):
    case = Case(cell, steps=9, batch=17, hidden=37, directions=2, masks="both")
    case = replace(case, proj=0 if cell == "gru_reset_before" else 20)
    check(case, dtype, "triton", "cuda")


@every_tier
@pytest.mark.parametrize("cell", ["lstm_peephole", "gru"])
def test_small_enough_for_a_sanitizer(cell, tier):
    """What `.ci/gpu` runs under compute-sanitizer, which slows a kernel down a hundredfold."""
    check(
        Case(cell, steps=3, batch=17, hidden=19, directions=2, masks="both"), F32, "triton", "cuda"
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("hidden", [1, 16, 64, 100, 128, 200, 256, 512, 700])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_as_planned(cell, dtype, hidden, recompute):
    case = Case(cell, steps=7, batch=19, inputs=24, hidden=hidden, directions=2, masks="both")
    check(replace(case, recompute=recompute), dtype, "triton", "cuda")


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_a_persistent_launch_waits_rightly_in_a_long_sequence(cell, monkeypatch):
    """More tiles than processors, and a thousand meetings."""
    monkeypatch.setattr(plan, "_ONE_LAUNCH", True)
    case = Case(cell, steps=500, batch=64, inputs=8, hidden=700, directions=2)
    check(case, BF16, "triton", "cuda")


def on_gpu(case):
    return {
        name: t if t is None else (t.float() if t.is_floating_point() else t).cuda()
        for name, t in make_inputs(case).items()
    }


@pytest.mark.parametrize("hidden", [64, 300])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_run_to_run(cell, hidden):
    case = Case(cell, steps=20, batch=40, inputs=24, hidden=hidden, directions=2)
    tensors = on_gpu(case)
    x = tensors["x"].requires_grad_()

    def once():
        with bptt.backend("triton"):
            y = call(case, tensors)[0]
            return y.detach(), torch.autograd.grad((y * tensors["loss_y"]).sum(), x)[0]

    first, second = once(), once()
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("hidden", [64, 300])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_no_call_waits_for_the_device(cell, hidden):
    case = Case(cell, steps=5, batch=8, inputs=24, hidden=hidden, directions=2, masks="both")
    tensors = on_gpu(case)
    x = tensors["x"].requires_grad_()
    with bptt.backend("triton"):
        for mode in ("default", "error"):  # compiled by the first, watched in the second
            torch.cuda.set_sync_debug_mode(mode)
            try:
                call(case, tensors)[0].nan_to_num().sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None


@pytest.mark.parametrize("one_launch", [False, True])
@pytest.mark.parametrize("hidden", [64, 300, 700])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_captured_graph_replays(cell, hidden, one_launch, monkeypatch):
    monkeypatch.setattr(plan, "_ONE_LAUNCH", one_launch)
    layer = (bptt.GRU if cell == "gru" else bptt.LSTM)(24, hidden, device="cuda")
    x = torch.randn(6, 8, 24, device="cuda")
    with torch.no_grad(), bptt.backend("triton"):
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)[0]
        x.normal_()
        graph.replay()
        assert torch.equal(y, layer(x)[0])


def test_new_steps_and_batch_compile_nothing():
    from bptt.kernels import forward

    layer = bptt.GRU(24, 64, device="cuda")
    with torch.no_grad(), bptt.backend("triton"):
        for steps, batch in ((1, 1), (16, 16), (7, 33), (128, 256)):
            layer(torch.randn(steps, batch, 24, device="cuda"))
            caches = forward.forward_resident.device_caches.values()
            compiled = sum(len(cache[0]) for cache in caches)
            if steps == 1:
                first = compiled
            assert compiled == first
