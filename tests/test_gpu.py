"""Do the kernels of both GPU backends compute there what the float64 reference says, and behave?

As `tests/kernels` and `tests/simulated` ask without a GPU, on sizes that fill tiles and pass them.
"""

import os
from dataclasses import replace
from random import Random

import pytest
import torch

import bptt
import cuda_tiers
import tiers
from bptt.custom.library import CELLS_HERE, cell_named
from bptt.engines import gpu, overlap
from bptt.kernels import plan
from bptt.recurrence.control import PLAIN
from cases import ALL_CELLS, BF16, F16, F32, LSTMS, Case, call, check, make_inputs
from variants import CONTROLS, Variant, check_variant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]
DTYPES = (F32, F16, BF16)
ONE_PRODUCT = tuple(cell for cell in ALL_CELLS if bptt.recurrence.cells.CELLS[cell].stages == 1)


def names(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.fixture(autouse=True)
def _full_precision():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


@pytest.fixture
def backend(request, monkeypatch):
    """A backend, all of whose launches take one tier."""
    name, tier = request.param
    (tiers if name == "triton" else cuda_tiers).force_tier(monkeypatch, tier)
    return name


def tiers_of(**by_backend):
    pairs = [(name, tier) for name, names in by_backend.items() for tier in names]
    return pytest.mark.parametrize("backend", pairs, indirect=True, ids="-".join)


every_tier = tiers_of(triton=tiers.TIERS, cuda=cuda_tiers.TIERS)
two_product_tiers = tiers_of(triton=tiers.TILED, cuda=["step"])
as_planned = pytest.mark.parametrize("backend", ["triton", "cuda"])


@every_tier
@pytest.mark.parametrize("masks", ["none", "lengths", "resets", "both"])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_every_cell_dtype_and_mask(cell, dtype, masks, backend):
    case = Case(cell, steps=9, batch=33, hidden=37, directions=2, masks=masks)
    check(case, dtype, backend, "cuda")


@two_product_tiers
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ["gru_reset_before", *LSTMS])
def test_two_products_in_a_step(cell, dtype, backend):
    case = Case(cell, steps=9, batch=17, hidden=37, directions=2, masks="both")
    case = replace(case, proj=0 if cell == "gru_reset_before" else 20)
    check(case, dtype, backend, "cuda")


@every_tier
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_gradients_of_hidden_states(cell, backend):
    case = Case(cell, 9, 33, hidden=37, directions=2, masks="both", hidden_gradients=True)
    check(case, F32, backend, "cuda")


@every_tier
@pytest.mark.parametrize("cell", ["lstm_peephole", "gru"])
def test_small_enough_for_a_sanitizer(cell, backend):
    """What `.ci/gpu` runs under compute-sanitizer, which slows a kernel down a hundredfold."""
    case = Case(cell, steps=3, batch=17, hidden=19, directions=2, masks="both")
    check(case, F32, backend, "cuda")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("hidden", [1, 16, 64, 100, 128, 200, 256, 512, 700])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ALL_CELLS)
@as_planned
def test_as_planned(backend, cell, dtype, hidden, recompute):
    case = Case(cell, steps=7, batch=19, inputs=24, hidden=hidden, directions=2, masks="both")
    check(replace(case, recompute=recompute), dtype, backend, "cuda")


@pytest.mark.parametrize("sampled", [False, True], ids=["plain", "zoneout"])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", CELLS_HERE)
@as_planned
def test_cells_of_the_library(backend, cell, dtype, sampled):
    control = CONTROLS["zoneout"] if sampled else PLAIN
    variant = Variant(cell_named(cell).name, control, 9, 33, 24, 100, 2, masks="both")
    check_variant(variant, backend, dtype, "cuda")


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
@pytest.mark.parametrize("tier", ["cluster", "grid"])
@pytest.mark.parametrize("hidden", [256, 500, 1024])
def test_teams_of_blocks_stay_in_step_in_a_long_sequence(cell, tier, hidden, monkeypatch):
    """The planner's best cut of a tier, for a thousand exchanges."""

    def plan_for(cell, dtype, sizes, projected, backward, device, *_):
        number, limits = gpu.number_of(dtype), gpu.device_limits(device)
        try:
            return gpu.make_plan(cell, number, sizes, projected, backward, limits, tier)
        except RuntimeError:  # too large for this tier
            return gpu.make_plan(cell, number, sizes, projected, backward, limits)

    monkeypatch.setattr(gpu, "plan_for", plan_for)
    check(Case(cell, steps=1000, batch=16, inputs=8, hidden=hidden), BF16, "cuda", "cuda")


def test_random_problems_neither_fail_nor_hang():
    """As many as BPTT_GPU_FUZZ says; `.ci/gpu` runs the rest of 10,000 where there is time."""
    random = Random(int(os.environ.get("BPTT_TEST_SEED", "20")))
    for _ in range(int(os.environ.get("BPTT_GPU_FUZZ", "300"))):
        hidden = random.choice([random.randint(1, 64), random.randint(65, 1200)])
        case = Case(
            random.choice(ALL_CELLS),
            steps=random.randint(1, 12),
            batch=random.randint(1, 80),
            inputs=random.randint(1, 40),
            hidden=hidden,
            directions=random.choice([1, 2]),
            masks=random.choice(["none", "lengths", "resets", "both"]),
            seed=random.randint(0, 2**31),
        )
        check(case, random.choice(DTYPES), "cuda", "cuda")


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
@as_planned
def test_run_to_run(backend, cell, hidden):
    case = Case(cell, steps=20, batch=40, inputs=24, hidden=hidden, directions=2)
    tensors = on_gpu(case)
    x = tensors["x"].requires_grad_()

    def once():
        with bptt.backend(backend):
            y = call(case, tensors)[0]
            return y.detach(), torch.autograd.grad((y * tensors["loss_y"]).sum(), x)[0]

    first, second = once(), once()
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("hidden", [64, 300])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@as_planned
def test_no_call_waits_for_the_device(backend, cell, hidden):
    case = Case(cell, steps=5, batch=8, inputs=24, hidden=hidden, directions=2, masks="both")
    tensors = on_gpu(case)
    x = tensors["x"].requires_grad_()
    with bptt.backend(backend):
        for mode in ("default", "error"):  # compiled by the first, watched in the second
            torch.cuda.set_sync_debug_mode(mode)
            try:
                call(case, tensors)[0].nan_to_num().sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None


@pytest.mark.parametrize(
    ("backend", "one_launch"), [("triton", False), ("triton", True), ("cuda", True)]
)
@pytest.mark.parametrize("hidden", [64, 300, 700, 1500])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_captured_graph_replays(cell, hidden, backend, one_launch, monkeypatch):
    monkeypatch.setattr(plan, "_ONE_LAUNCH", one_launch)
    layer = (bptt.GRU if cell == "gru" else bptt.LSTM)(24, hidden, device="cuda")
    x = torch.randn(6, 8, 24, device="cuda")
    with torch.no_grad(), bptt.backend(backend):
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)[0]
        x.normal_()
        graph.replay()
        assert torch.equal(y, layer(x)[0])


def test_streams_and_modules_at_once():
    """Two layers on two streams give what each gives alone: nothing is shared between launches."""
    layers = [bptt.LSTM(24, hidden, device="cuda") for hidden in (300, 700)]
    x = torch.randn(50, 16, 24, device="cuda")
    with torch.no_grad(), bptt.backend("cuda"):
        alone = [layer(x)[0] for layer in layers]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in layers]
        for _ in range(5):
            together = []
            for layer, stream in zip(layers, streams, strict=True):
                with torch.cuda.stream(stream):
                    together.append(layer(x)[0])
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("layer", [bptt.LSTM, bptt.GRU])
def test_layers_at_once_give_what_layers_in_turn_give(layer, monkeypatch):
    stack = layer(24, 128, 4, device="cuda")
    x = torch.randn(300, 16, 24, device="cuda", requires_grad=True)
    results = []
    with bptt.backend("cuda"):
        for chunk in ("0", "64"):
            monkeypatch.setattr(overlap, "_CHUNK", chunk)
            assert ("layers at once" in str(bptt.explain(stack, x))) == (chunk == "64")
            for _ in range(3):
                y = stack(x)[0]
                grads = torch.autograd.grad(y.square().sum(), [x, *stack.parameters()])
            results.append((y, grads))
    (y, grads), (y_chunks, grads_chunks) = results
    assert torch.equal(y, y_chunks)
    for left, right in zip(grads, grads_chunks, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)


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
