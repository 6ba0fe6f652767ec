"""Are the CUDA kernels of cell variants and controlled loops, simulated, those of the reference?

Any cell with any `Control`: layer normalisation, zoneout, recurrent dropout, bounds and the rest,
forward and backward, against the float64 reference loop. As in test_cuda_recurrence.py, threads
run in an order that a seed decides. Shapes are small, as threads are fibers.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.engines import gpu
from bptt.recurrence.control import PLAIN, Control
from cases import BF16, F16, F32
from cuda_tiers import share_tiles
from emulated import dtype_name
from variants import (
    CONTROLS,
    EVERY_CELL,
    NEW_CELLS,
    Variant,
    check_variant,
    fitting,
    make_variant,
    run_variant,
)

PROCESSORS = 132
NEW = Variant(steps=4, batch=4, hidden=5, directions=2, masks="both")


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """Full float32, and seed 1."""
    share_tiles(monkeypatch)
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.ops.bptt.simulate(1, PROCESSORS)
    yield
    torch.backends.cudnn.rnn.fp32_precision = before
    torch.ops.bptt.simulate(1, PROCESSORS)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=dtype_name)
@pytest.mark.parametrize("cell", NEW_CELLS)
def test_new_cells(cell, dtype):
    for seed in (1, 2, 3):
        torch.ops.bptt.simulate(seed, PROCESSORS)
        check_variant(replace(NEW, cell=cell, seed=seed), "cuda", dtype)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_every_control(cell, control):
    check_variant(replace(NEW, cell=cell, control=CONTROLS[control]), "cuda")


# What puts a hidden state together from what was stored, or draws, in numbers that round.
@pytest.mark.parametrize("control", ["activations", "zoneout", "zoneout-mean", "all"])
@pytest.mark.parametrize(
    ("cell", "dtype"),
    [("rnn_tanh", BF16), ("gru_reset_before", F16), ("lstm_peephole", BF16), ("slstm", F16),
     ("indrnn", BF16), ("lstm_layer_norm", BF16), ("rnn_layer_norm", F16)],
)  # fmt: skip
def test_controls_in_sixteen_bits(cell, dtype, control):
    chosen = CONTROLS[control]
    if cell == "indrnn" and control == "zoneout-mean":
        # Its relu: on which side of the kink a small output was, the stored mean does not tell.
        chosen = chosen._replace(states="tanh")
    check_variant(replace(NEW, cell=cell, control=chosen), "cuda", dtype)


@pytest.mark.parametrize("control", [PLAIN, CONTROLS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("cell", (*NEW_CELLS, "lstm", "gru", "gru_reset_before"))
@pytest.mark.parametrize(
    "change",
    [
        {"recompute": True},
        {"keep_cells": True},
        {"hidden_gradients": True},
        {"steps": 1},
        {"batch": 1, "masks": "none"},
        {"bias": False, "masks": "resets", "directions": 1},
        {"recompute": True, "keep_cells": True, "hidden_gradients": True, "masks": "lengths"},
    ],
    ids=lambda change: "-".join(change),
)
def test_options_and_edges(cell, change, control):
    check_variant(replace(NEW, cell=cell, control=control, **change), "cuda")


@pytest.mark.parametrize("control", ["zoneout", "zoneout-mean", "gradient-norm", "all"])
@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole", "cifg"])
def test_projection(cell, control):
    """Zoneout, dropout and bounds act on the projected state."""
    change = {"proj": 3, "keep_cells": True, "hidden_gradients": True}
    check_variant(replace(NEW, cell=cell, control=CONTROLS[control], **change), "cuda")


# More than a tile of rows, of units, and of units of a row's block.
@pytest.mark.parametrize("control", [PLAIN, CONTROLS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize(
    ("cell", "batch", "hidden"),
    [("cifg", 67, 5), ("slstm", 3, 37), ("indrnn", 67, 9), ("rnn_layer_norm", 2, 263),
     ("lstm_layer_norm", 66, 37), ("gru", 66, 33)],
)  # fmt: skip
def test_several_blocks(cell, batch, hidden, control):
    variant = Variant(cell, control, 3, batch, 3, hidden, 2, masks="both")
    check_variant(variant, "cuda")


@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("cell", ["lstm_layer_norm", "gru_reset_before", "indrnn", "slstm"])
def test_any_order_of_threads(cell, seed):
    """Runs agree with the reference, and to the bit with each other."""
    torch.ops.bptt.simulate(seed, PROCESSORS)
    variant = replace(NEW, cell=cell, control=CONTROLS["all"], hidden=35, hidden_gradients=True)
    check_variant(variant, "cuda")
    variant = replace(variant, control=fitting(cell, variant.control))
    inputs = make_variant(variant)
    runs = []
    for order in (1, seed):
        torch.ops.bptt.simulate(order, PROCESSORS)
        runs.append(run_variant(variant, inputs, "cuda", F32))
    for name, left in runs[0].items():
        assert torch.equal(left, runs[1][name]), name


def controls():
    """Some settings of `Control`."""
    rate = st.sampled_from([0.0, 0.0, 0.3, 1.0])
    bound = st.sampled_from([0.0, 0.0, 0.4])
    return st.builds(
        Control,
        gates=st.just(""),
        states=st.just(""),
        cell_bound=bound,
        zoneout_h=rate,
        zoneout_c=rate,
        sampled=st.booleans(),
        recurrent_dropout=st.sampled_from([0.0, 0.0, 0.4]),
        truncate=st.integers(0, 4),
        gradient_bound=bound,
        gradient_norm=bound,
    )


@settings(max_examples=30)
@given(
    st.builds(
        Variant,
        cell=st.sampled_from(EVERY_CELL),
        control=controls(),
        steps=st.integers(1, 6),
        batch=st.integers(1, 5),
        inputs=st.just(2),
        hidden=st.integers(2, 20),
        directions=st.sampled_from([1, 2]),
        masks=st.sampled_from(["none", "lengths", "resets", "both"]),
        bias=st.booleans(),
        recompute=st.booleans(),
        keep_cells=st.booleans(),
        hidden_gradients=st.booleans(),
        seed=st.integers(0, 1000),
    )
)
def test_any_problem(variant):
    check_variant(variant, "cuda")


def test_tf32():
    """What tensor cores drop of a factor is a 2048th of it: normalised, and through a dropout."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    for cell in ("lstm_layer_norm", "gru"):
        variant = replace(NEW, cell=cell, control=Control(recurrent_dropout=0.4))
        inputs = make_variant(variant)
        exact = run_variant(variant, inputs, "reference")
        for name, ours in run_variant(variant, inputs, "cuda", F32).items():
            error = (ours - exact[name]).abs().max() / exact[name].abs().max().clamp(min=1)
            assert 0 < error < 1e-2, (cell, name)


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "control", "options", "words"),
    [
        ("lstm", PLAIN, {}, None),
        ("lstm", PLAIN, {"projected": True}, "two products per step"),
        ("lstm", PLAIN, {"all_cells": True}, "gradients of all cell states"),
        ("lstm", Control(zoneout_h=0.1), {}, "have no zoneout_h"),
        ("gru", Control(states="relu", truncate=5), {}, "have no states, truncate"),
        ("cifg", PLAIN, {}, "do not know cifg"),
        ("gru_layer_norm", PLAIN, {}, "looks at a row as a whole"),
        ("indrnn", PLAIN, {}, "no unit looks at another"),
    ],
)
def test_why_a_problem_takes_the_step_tier(cell, control, options, words):
    reason = gpu.reason_for_step_tier(cell, control, **options)
    assert (reason is None) if words is None else (words in reason)


@pytest.mark.parametrize(
    ("cell", "control", "forward", "backward"),
    [
        ("lstm", Control(zoneout_h=0.1), "a launch per step", "a launch per step"),
        ("lstm", Control(gradient_norm=1.0), "a launch per step", "3 launches per step"),
        ("gru_layer_norm", PLAIN, "2 launches per step", "2 launches per step"),
        ("lstm_layer_norm", Control(gradient_norm=1.0), "2 launches", "3 launches per step"),
        ("indrnn", PLAIN, "one launch for all steps", "one launch for all steps"),
        ("indrnn", Control(gradient_norm=1.0), "one launch for all", "2 launches per step"),
    ],
)
def test_launches_of_a_plan(cell, control, forward, backward):
    sizes = gpu.Sizes(50, 8, 2, 64, 64)
    for is_backward, words in ((False, forward), (True, backward)):
        device = torch.device("cpu")
        plan = gpu.plan_for(cell, F32, sizes, False, is_backward, device, control)
        assert words in str(plan)


@pytest.mark.parametrize(
    ("cell", "control", "message"),
    [
        ("lstm", Control(truncate=2), "what is asked of the loop needs the step tier"),
        ("cifg", PLAIN, "the cell has kernels of the step tier only"),
        ("rnn_layer_norm", PLAIN, "the cell has kernels of the step tier only"),
        ("indrnn", PLAIN, "the cell has kernels of the step tier only"),
    ],
)
def test_plans_of_persistent_tiers_are_refused(cell, control, message, monkeypatch):
    class Forced:
        numbers = (0, 1, 6, 8, 1, 1, 0, 64)

    monkeypatch.setattr(gpu, "plan_for", lambda *_: Forced)
    with pytest.raises(RuntimeError, match=f"bptt::gpu_forward: .*{message}"):
        check_variant(replace(NEW, cell=cell, control=control, hidden=6), "cuda")


def test_what_draws_needs_a_seed():
    variant = replace(NEW, cell="gru", control=Control(recurrent_dropout=0.4))
    inputs = {**make_variant(variant), "seed": None}
    with pytest.raises(RuntimeError, match="seed"):
        run_variant(variant, inputs, "cuda", F32)
