"""Are outputs and gradients of the CUDA kernels, simulated, those of the float64 reference?

The kernels, their launches and the ops are those of a GPU, compiled for the CPU; threads run in an
order that a seed decides, and copies and remote stores arrive as late as is allowed. Shapes are
small, as threads are fibers. The bounds for each dtype stand in `cases.assert_close`.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt
from bptt.engines import gpu
from cases import ALL_CELLS, BF16, F16, F32, LSTMS, Case, call, check, make_inputs, run
from cuda_tiers import HELD, TIERS, force_tier
from emulated import (
    BAD_ARGUMENTS,
    EDGES,
    MASKS,
    arguments,
    change_name,
    dtype_name,
    float_inputs,
    transformed_gradients,
)

DTYPES = (F32, F16, BF16)
ONE_PRODUCT = tuple(cell for cell in ALL_CELLS if bptt.recurrence.cells.CELLS[cell].stages == 1)
PROCESSORS = 132


@pytest.fixture(autouse=True)
def _settings():
    """Full float32, and seed 1."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.ops.bptt.simulate(1, PROCESSORS)
    yield
    torch.backends.cudnn.rnn.fp32_precision = before
    torch.ops.bptt.simulate(1, PROCESSORS)


@pytest.fixture
def tier(request, monkeypatch):
    force_tier(monkeypatch, request.param)
    if request.param in HELD:
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
    return request.param


every_tier = pytest.mark.parametrize("tier", TIERS, indirect=True)


def fitting(dtype, tier):
    """A dtype whose weights the tier can hold."""
    return BF16 if dtype == F32 and tier in HELD else dtype


@pytest.mark.parametrize(
    ("dtype", "tier"),
    [(dtype, tier) for tier in TIERS for dtype in DTYPES if fitting(dtype, tier) == dtype],
    ids=str,
    indirect=["tier"],
)
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_every_cell_and_dtype(cell, dtype, tier):
    for seed in (1, 2, 3):
        torch.ops.bptt.simulate(seed, PROCESSORS)
        case = Case(cell, steps=4, directions=2, masks="both", seed=seed)
        check(case, dtype, "cuda")


@every_tier
@pytest.mark.parametrize(
    "case",
    [*(Case(cell, 4, directions=2, masks="both") for cell in ALL_CELLS),
     Case("lstm", 4, hidden=33, proj=20, directions=2, masks="both")],
    ids=lambda case: f"{case.cell}-{case.proj}",
)  # fmt: skip
def test_tf32_is_float32_with_rounder_products(case, tier):
    """What tensor cores drop of a factor is a 2048th of it, or twice that."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    tensors = float_inputs(case)
    results = []
    for backend in ("cuda", "cpu"):
        x = tensors["x"].clone().requires_grad_()
        with bptt.backend(backend):
            y = call(case, {**tensors, "x": x})[0]
        grad = torch.autograd.grad((y * tensors["loss_y"]).sum(), x)[0]
        results.append((y.detach(), grad))
    for left, right in zip(*results, strict=True):
        inside = ~right.isnan()
        error = (left - right)[inside].abs().max() / right[inside].abs().max()
        assert 0 < error < 4e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_reset_before_the_product(dtype):
    check(Case("gru_reset_before", steps=4, directions=2, masks="both"), dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("proj", [1, 20])
@pytest.mark.parametrize("cell", LSTMS)
def test_projection(cell, proj, dtype):
    check(Case(cell, steps=3, hidden=33, proj=proj, directions=2, masks="both"), dtype, "cuda")


@every_tier
@pytest.mark.parametrize("cell", ["gru", "lstm_peephole", "rnn_tanh"])
def test_recompute(cell, tier):
    check(Case(cell, steps=4, directions=2, masks="both", recompute=True), BF16, "cuda")


@every_tier
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_gradients_of_hidden_states(cell, tier):
    case = Case(cell, steps=4, layers=2, directions=2, masks="both", hidden_gradients=True)
    check(case, fitting(F32, tier), "cuda")


@pytest.mark.parametrize(
    ("cell", "proj", "dtype"),
    [("gru_reset_before", 0, F32), ("lstm", 20, F32), ("gru", 0, BF16), ("lstm_peephole", 0, F16)],
)
def test_gradients_of_hidden_states_in_the_step_tier(cell, proj, dtype, monkeypatch):
    force_tier(monkeypatch, "step")
    case = Case(cell, 3, hidden=33, proj=proj, masks="both", hidden_gradients=True)
    check(case, dtype, "cuda")


@every_tier
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_masks(cell, masks, tier):
    check(Case(cell, masks=masks, directions=2), fitting(F32, tier), "cuda")


@every_tier
@pytest.mark.parametrize("change", [*EDGES, {"steps": 2, "hidden": 70}], ids=change_name)
@pytest.mark.parametrize(("cell", "dtype"), [("rnn_tanh", BF16), ("gru", F32), ("lstm", F16)])
def test_options_and_edges(cell, dtype, change, tier):
    check(replace(Case(cell), **change), fitting(dtype, tier), "cuda")


@pytest.mark.parametrize("units", [8, 40], ids=["eight rows", "sixteen rows"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=dtype_name)
@pytest.mark.parametrize("seed", [1, 2])
def test_weights_that_reach_registers_in_several_turns(units, dtype, seed, monkeypatch):
    """Of a warp's rows 200 columns; 32 to 128 of them pass through shared memory at a time."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    torch.ops.bptt.simulate(seed, PROCESSORS)
    cut = {"tier": "grid", "team": -(-200 // units), "units": units, "rows": 8, "passes": 1}

    def plan(cell, kind, sizes, projected, backward, device, *_):
        limits = gpu.device_limits(device)
        planned = gpu.make_plan(cell, gpu.number_of(kind), sizes, False, backward, limits, "step")
        return replace(planned, **cut, parts=1, held=1, threads=96, waves=1)

    monkeypatch.setattr(gpu, "plan_for", plan)
    case = Case("rnn_tanh", steps=3, batch=3, hidden=200, seed=seed)
    if dtype == BF16:
        check(case, BF16, "cuda")
    else:
        tensors = float_inputs(case)
        with bptt.backend("cuda"):
            ours = call(case, tensors)[0]
        with bptt.backend("cpu"):
            exact = call(case, tensors)[0]
        assert (ours - exact).abs().max() < 4e-3 * exact.abs().max()


def split_tiles(monkeypatch, split):
    """Makes every launch one of the step tier with so many blocks to a tile."""

    def plan(cell, dtype, sizes, projected, backward, device, *_):
        number, limits = gpu.number_of(dtype), gpu.device_limits(device)
        planned = gpu.make_plan(cell, number, sizes, projected, backward, limits, "step")
        return replace(planned, team=split)

    monkeypatch.setattr(gpu, "plan_for", plan)


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize(
    ("cell", "hidden", "dtype", "proj"),
    [
        ("rnn_tanh", 300, BF16, 0),
        ("rnn_tanh", 299, F16, 0),
        ("gru", 136, F32, 0),
        ("gru_reset_before", 101, BF16, 0),
        ("lstm", 201, F32, 0),
        ("lstm", 136, BF16, 72),
    ],
    ids=str,
)
def test_products_of_many_slices_shared_among_blocks(cell, hidden, dtype, proj, split, monkeypatch):
    """More slices than buffers, blocks without any, and sizes that start chunks anywhere."""
    split_tiles(monkeypatch, split)
    torch.ops.bptt.simulate(hidden, PROCESSORS)
    check(Case(cell, 2, 5, 3, hidden, proj=proj, masks="both"), dtype, "cuda")


@pytest.mark.parametrize("split", [1, 2, 4])
def test_a_split_of_the_depth_in_tf32(split, monkeypatch):
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    split_tiles(monkeypatch, split)
    case = Case("lstm", 2, 20, 3, 136)
    inputs = make_inputs(case)
    exact, found = run(case, inputs, "reference"), run(case, inputs, "cuda", F32)
    for name, value in found.items():
        error = (value - exact[name]).abs().max() / exact[name].abs().max()
        assert 1e-6 < error < 6e-3, (name, error)


def test_clusters_without_room_become_single_blocks_and_it_is_said(monkeypatch):
    split_tiles(monkeypatch, 4)
    monkeypatch.setattr(gpu, "refusals", Counter())
    torch.ops.bptt.simulate(1, 3)  # blocks at a time
    with pytest.warns(RuntimeWarning, match="no room for 4 blocks of a cluster .* one block to a"):
        check(Case("gru_reset_before", steps=3, hidden=20, masks="both"), F32, "cuda")
    assert set(gpu.refusals) == {("gru_reset_before", way) for way in ("forward", "backward")}


@pytest.mark.parametrize("split", [0, 3, 8])
def test_a_split_that_there_is_not(split, monkeypatch):
    split_tiles(monkeypatch, split)
    with bptt.backend("cuda"), pytest.raises(RuntimeError, match="of 1, 2 or 4 blocks"):
        bptt.GRU(3, 4)(torch.randn(2, 1, 3))


@pytest.mark.parametrize("seed", range(2, 6))
@every_tier
def test_any_order_of_threads_and_deliveries(tier, seed):
    torch.ops.bptt.simulate(seed, PROCESSORS)
    check(Case("lstm", steps=5, batch=20, hidden=20, directions=2, masks="both"), BF16, "cuda")


@pytest.mark.parametrize("cell", ["gru", "lstm_peephole"])
def test_a_launch_without_room_takes_the_step_tier_and_says_so(cell, monkeypatch):
    """Blocks of a cooperative launch that are not all on the device would wait for ever."""
    force_tier(monkeypatch, "grid")
    monkeypatch.setattr(gpu, "refusals", Counter())
    case = Case(cell, steps=3, hidden=20, directions=2, masks="both")
    torch.ops.bptt.simulate(1, 3)  # blocks at a time
    with pytest.warns(RuntimeWarning, match="no room for .* step tier ran") as told:
        check(case, F32, "cuda")
        check(case, F32, "cuda")
    assert len(told) == 2  # once a pass
    assert gpu.refusals[cell, "forward"] >= 2 and gpu.refusals[cell, "backward"] >= 2
    layer = bptt.GRU(8, 20) if cell == "gru" else bptt.LSTM(8, 20, peephole=True)
    with bptt.backend("cuda"):
        assert "forward calls found no room" in str(bptt.explain(layer, torch.randn(3, 4, 8)))


@pytest.mark.parametrize("text", ["soon", "-1", "1e10", "nan"])
def test_a_patience_that_is_none(text, monkeypatch):
    monkeypatch.setenv("BPTT_PATIENCE_SECONDS", text)
    message = f'BPTT_PATIENCE_SECONDS must be a number .* got "{text}"'
    with bptt.backend("cuda"), pytest.raises(RuntimeError, match=message):
        bptt.GRU(3, 4)(torch.randn(2, 1, 3))


def test_another_patience(monkeypatch):
    monkeypatch.setenv("BPTT_PATIENCE_SECONDS", "0")
    check(Case("gru", steps=2, batch=3, hidden=6), BF16, "cuda")


def test_every_tier_rounds_the_hidden_state_alike(monkeypatch):
    """Without a product of it nothing else tells the tiers apart."""
    layer, x = bptt.GRU(5, 12).bfloat16(), torch.randn(6, 9, 5).bfloat16()
    torch.nn.init.zeros_(layer.weight_hh_l0)
    outputs = {}
    for name in TIERS:
        with monkeypatch.context() as patched, bptt.backend("cuda"), torch.no_grad():
            force_tier(patched, name)
            outputs[name] = layer(x, torch.ones(1, 9, 12).bfloat16())[0]
    for name, y in outputs.items():
        assert torch.equal(y, outputs["step"]), name


@settings(max_examples=15)
@given(
    st.sampled_from(ALL_CELLS),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from([1, 2]),
    st.sampled_from(MASKS),
    st.integers(0, 1000),
)
def test_any_problem_as_planned(cell, steps, batch, hidden, directions, masks, seed):
    case = Case(cell, steps, batch, 3, hidden, directions, masks=masks, seed=seed)
    check(case, F32, "cuda")


@every_tier
@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm"])
def test_run_to_run(cell, tier):
    """To the bit, in whatever order threads and blocks come."""
    case = Case(cell, steps=3, batch=20, hidden=18, directions=2, masks="both")
    tensors = float_inputs(case)

    def once(seed):
        torch.ops.bptt.simulate(seed, PROCESSORS)
        x = tensors["x"].clone().requires_grad_()
        y = call(case, {**tensors, "x": x})[0]
        return y.detach(), torch.autograd.grad((y * tensors["loss_y"]).sum(), x)[0]

    with bptt.backend("cuda"):
        runs = [once(seed) for seed in (1, 2)]
    for left, right in zip(*runs, strict=True):
        assert torch.equal(left.nan_to_num(7), right.nan_to_num(7))


@pytest.mark.parametrize(
    ("tier", "blocks"),
    [
        ("block", 1),
        ("cluster", 4),
        pytest.param("cluster", 16, marks=pytest.mark.exhaustive),
        ("grid", 2),
        ("grid", 20),
    ],
)
def test_exchanges_of_the_benchmark_deliver_what_was_sent(tier, blocks):
    out = torch.zeros(blocks, dtype=torch.int32)
    torch.ops.bptt.gpu_exchange(tier, 20, out)
    assert out.tolist() == [20] * blocks


@pytest.mark.parametrize(
    ("tier", "rounds", "blocks", "message"),
    [
        ("step", 1, 1, "exchange nothing"),
        ("cluster", 1, 17, "out must have 1 to 16 elements"),
        ("grid", 0, 2, "rounds must be 1 to 1000000, got 0"),
    ],
)
def test_bad_arguments_of_exchanges(tier, rounds, blocks, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bptt.gpu_exchange(tier, rounds, torch.zeros(blocks, dtype=torch.int32))


# --- transforms take the same kernels -------------------------------------------------------------


def test_per_sample_gradients_and_ensembles():
    ours, theirs = transformed_gradients("cuda"), transformed_gradients("reference")
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), BAD_ARGUMENTS)
def test_bad_arguments_of_the_op(changes, message):
    with pytest.raises(RuntimeError, match=f"bptt::recurrence_forward: .*{message}"):
        gpu.forward(*arguments("cuda", **changes).values())


def test_directions_that_repeat_no_pattern_are_refused():
    many = {"gates_x": torch.randn(3, 2, 41, 4, 4), "w_hh": torch.randn(41, 16, 4),
            "h0": torch.randn(41, 2, 4), "c0": torch.randn(41, 2, 4)}  # fmt: skip
    with pytest.raises(RuntimeError, match="repeat a pattern of at most 24 directions"):
        gpu.forward(*arguments("cuda", **many, reverse=[0] * 40 + [1]).values())
    assert (
        gpu.forward(*arguments("cuda", **many, reverse=[0, 1] * 20 + [0]).values())[0]
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("tier", TIERS, indirect=True)
@pytest.mark.parametrize("lengths", [[-5, 99], [3, 0]])
def test_lengths_out_of_range_stay_inside_memory(lengths, tier):
    """On a GPU nobody reads them beforehand; the simulator checks every address."""
    given = arguments("cuda", lengths=torch.tensor(lengths))
    outputs = gpu.forward(*given.values())
    expected = gpu.forward(*{**given, "lengths": given["lengths"].clamp(0, 3)}.values())
    assert torch.equal(outputs[0], expected[0]) and outputs[0].isfinite().all()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([0, 1, 4], "plan must be"),
        ([9, 1, 4, 8, 1, 1, 0, 64], "names no tier"),
        ([0, 1, 4, 8, 1, -1, 0, 64], "impossible number"),
        ([0, 1, 3, 8, 1, 1, 2, 64], "plan .*: "),
        ([0, 1, 4, 7, 1, 1, 0, 64], "plan .*: "),
        ([0, 1, 4, 8, 2, 1, 0, 64], "plan .*: "),
        ([1, 17, 4, 8, 1, 1, 0, 64], "plan .*: "),
        ([0, 1, 4, 8, 1, 1, 1, 64], "float32 products take no weights from registers"),
    ],
)
def test_impossible_plans_are_refused(plan, message, monkeypatch):
    class Forced:
        numbers = plan

    monkeypatch.setattr(gpu, "plan_for", lambda *_: Forced)
    with pytest.raises(RuntimeError, match=f"bptt::gpu_forward: .*{message}"):
        gpu.forward(*arguments("cuda").values())


# --- the choice -----------------------------------------------------------------------------------


def test_auto_never_takes_the_simulator():
    layer, x = bptt.LSTM(3, 4), torch.randn(200, 1, 3)
    assert bptt.explain(layer, x).backend == "cpu"
    with bptt.backend("cuda"):
        text = str(bptt.explain(layer, x))
    assert "forward block tier" in text and "us a step by the model" in text
    with bptt.backend("cuda"):
        text = str(bptt.explain(bptt.GRU(3, 700, reset_after=False), x))
    assert "step tier, 2 launches per step" in text


def test_float64_is_refused_with_its_reason():
    layer, x = bptt.LSTM(3, 4).double(), torch.randn(2, 1, 3).double()
    with (
        bptt.backend("cuda"),
        pytest.raises(RuntimeError, match=r"torch.float64 is not one of float32, float16"),
    ):
        layer(x)
