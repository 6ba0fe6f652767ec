"""Do the Triton kernels compute on a GPU what the float64 reference says, and behave there?

As `tests/kernels` does in the interpreter, on sizes that fill tiles and pass them.
"""

from dataclasses import replace

import pytest
import torch

import bptt
from cases import ALL_CELLS, BF16, F16, F32, LSTMS, Case, call, check, make_inputs

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
    from bptt.kernels import launch
    from bptt.kernels.plan import RESIDENT, Plan

    name = request.param

    def plan(cell, dtype, hidden, *_):
        units = max(16, 1 << (hidden - 1).bit_length()) if name == RESIDENT else 16
        return Plan(name, 16, units, 16, 4)

    monkeypatch.setattr(launch, "plan_for", plan)
    return name


def every_tier(names=("block, weights on chip", "block, weights from L2", "step")):
    return pytest.mark.parametrize("tier", names, indirect=True)


@every_tier()
@pytest.mark.parametrize("masks", ["none", "lengths", "resets", "both"])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_every_cell_dtype_and_mask(cell, dtype, masks, tier):
    case = Case(cell, steps=9, batch=33, hidden=37, directions=2, masks=masks)
    check(case, dtype, "triton", "cuda")


@every_tier(("block, weights from L2", "step"))
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ["gru_reset_before", *LSTMS])
def test_two_products_in_a_step(cell, dtype, tier):
    case = Case(cell, steps=9, batch=17, hidden=37, directions=2, masks="both")
    case = replace(case, proj=0 if cell == "gru_reset_before" else 20)
    check(case, dtype, "triton", "cuda")


@pytest.mark.parametrize("hidden", [1, 16, 64, 100, 128, 200, 256, 512, 700])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_as_planned(cell, dtype, hidden):
    case = Case(cell, steps=7, batch=19, inputs=24, hidden=hidden, directions=2, masks="both")
    check(case, dtype, "triton", "cuda")


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


@pytest.mark.parametrize("hidden", [64, 300])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_captured_graph_replays(cell, hidden):
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
