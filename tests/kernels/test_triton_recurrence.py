"""Are outputs and gradients of the Triton kernels, interpreted, those of the float64 reference?

Shapes are small, as a step takes milliseconds; each tier is run with tiles smaller than the shapes.
The bounds for each dtype stand in `cases.assert_close`.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt
from bptt.kernels import launch
from bptt.kernels.plan import Chip
from cases import ALL_CELLS, BF16, F16, F32, LSTMS, Case, call, check
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
from tiers import TIERS, TILED, force_tier

DTYPES = (F32, F16, BF16)
ONE_PRODUCT = tuple(cell for cell in ALL_CELLS if bptt.recurrence.cells.CELLS[cell].stages == 1)


@pytest.fixture
def tier(request, monkeypatch):
    """The tier of every launch; three programs share the tiles of a persistent one."""
    force_tier(monkeypatch, request.param)
    monkeypatch.setattr(launch, "chip_of", lambda _: Chip(shared=0, processors=3))
    return request.param


every_tier = pytest.mark.parametrize("tier", TIERS, indirect=True)
tiled = pytest.mark.parametrize("tier", TILED, indirect=True)


@every_tier
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_every_cell_and_dtype(cell, dtype, tier):
    check(Case(cell, steps=4, directions=2, masks="both"), dtype, "triton")


@tiled
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_reset_before_the_product(dtype, tier):
    check(Case("gru_reset_before", steps=4, directions=2, masks="both"), dtype, "triton")


@tiled
@pytest.mark.parametrize("proj", [1, 20])
@pytest.mark.parametrize("cell", LSTMS)
def test_projection(cell, proj, tier):
    check(Case(cell, steps=3, hidden=33, proj=proj, directions=2, masks="both"), F32, "triton")


@every_tier
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("cell", ["gru", "lstm_peephole"])
def test_recompute(cell, dtype, tier):
    case = Case(cell, steps=4, directions=2, masks="both", recompute=True)
    check(case, dtype, "triton")


@every_tier
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_gradients_of_hidden_states(cell, tier):
    case = Case(cell, steps=4, layers=2, directions=2, masks="both", hidden_gradients=True)
    check(case, F32, "triton")


@tiled
@pytest.mark.parametrize(
    ("cell", "proj", "dtype"),
    [("gru_reset_before", 0, F32), ("lstm", 20, F32), ("gru", 0, BF16), ("lstm_peephole", 0, F16)],
)
def test_gradients_of_hidden_states_between_two_products(cell, proj, dtype, tier):
    case = Case(cell, 3, hidden=33, proj=proj, masks="both", hidden_gradients=True)
    check(case, dtype, "triton")


@every_tier
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_masks(cell, masks, tier):
    check(Case(cell, masks=masks, directions=2), F32, "triton")


@every_tier
@pytest.mark.parametrize("change", EDGES, ids=change_name)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_peephole"])
def test_options_and_edges(cell, change, tier):
    check(replace(Case(cell), **change), F32, "triton")


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
    check(case, F32, "triton")


@every_tier
@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm"])
def test_run_to_run(cell, tier):
    case = Case(cell, steps=3, batch=20, hidden=18, directions=2, masks="both")
    inputs = float_inputs(case)
    with bptt.backend("triton"):
        runs = [call(case, inputs) for _ in range(2)]
    for left, right in zip(*runs, strict=True):
        assert left is right or torch.equal(left.nan_to_num(7), right.nan_to_num(7))


# --- transforms take the same kernels -------------------------------------------------------------


def test_per_sample_gradients_and_ensembles():
    ours, theirs = transformed_gradients("triton"), transformed_gradients("reference")
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_patterns_of_directions():
    assert launch.direction_pattern([0, 1] * 100) == 2 << 24 | 0b10
    assert launch.direction_pattern([1, 0, 1]) == 2 << 24 | 0b01
    assert launch.direction_pattern([1, 1, 0]) == 3 << 24 | 0b011
    with pytest.raises(RuntimeError, match="repeat a pattern of at most 24 directions"):
        launch.direction_pattern([0] * 40 + [1])


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), BAD_ARGUMENTS)
def test_bad_arguments_of_the_op(changes, message):
    with pytest.raises(RuntimeError, match=f"bptt::recurrence_forward: .*{message}"):
        launch.forward(*arguments("triton", **changes).values())


@pytest.mark.parametrize("lengths", [[-5, 99], [3, 0]])
def test_lengths_out_of_range_stay_inside_memory(lengths):
    """On an accelerator nobody reads them beforehand; the interpreter checks every address."""
    outputs = launch.forward(*arguments("triton", lengths=torch.tensor(lengths)).values())
    clamped = torch.tensor(lengths).clamp(0, 3)
    expected = launch.forward(*arguments("triton", lengths=clamped).values())
    assert outputs[0].shape == expected[0].shape and outputs[0].isfinite().all()


# --- the choice -----------------------------------------------------------------------------------


def test_auto_never_takes_the_interpreter():
    layer, x = bptt.LSTM(3, 4), torch.randn(2, 1, 3)
    assert bptt.explain(layer, x).backend == "cpu"
    with bptt.backend("triton"):
        text = str(bptt.explain(layer, x))
    assert "block, weights on chip tier, tiles of 16 rows x 16 units" in text
    with bptt.backend("triton"):
        text = str(bptt.explain(bptt.GRU(3, 700, reset_after=False), x))
    assert "step tier" in text and "two products per step" in text


def test_float64_is_refused_with_its_reason():
    layer, x = bptt.LSTM(3, 4).double(), torch.randn(2, 1, 3).double()
    with (
        bptt.backend("triton"),
        pytest.raises(RuntimeError, match=r"torch.float64 is not one of float32, float16"),
    ):
        layer(x)
