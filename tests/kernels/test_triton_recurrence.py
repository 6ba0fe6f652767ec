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
from cases import ALL_CELLS, BF16, F16, F32, LSTMS, Case, call, check, make_inputs
from tiers import TIERS, TILED, force_tier

DTYPES = (F32, F16, BF16)
MASKS = ("none", "lengths", "resets", "both")
ONE_PRODUCT = tuple(cell for cell in ALL_CELLS if bptt.cells.CELLS[cell].stages == 1)


def names(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.fixture
def tier(request, monkeypatch):
    """The tier of every launch; three programs share the tiles of a persistent one."""
    force_tier(monkeypatch, request.param)
    monkeypatch.setattr(launch, "chip_of", lambda _: Chip(shared=0, processors=3))
    return request.param


every_tier = pytest.mark.parametrize("tier", TIERS, indirect=True)
tiled = pytest.mark.parametrize("tier", TILED, indirect=True)


@every_tier
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ONE_PRODUCT)
def test_every_cell_and_dtype(cell, dtype, tier):
    check(Case(cell, steps=4, directions=2, masks="both"), dtype, "triton")


@tiled
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
def test_reset_before_the_product(dtype, tier):
    check(Case("gru_reset_before", steps=4, directions=2, masks="both"), dtype, "triton")


@tiled
@pytest.mark.parametrize("proj", [1, 20])
@pytest.mark.parametrize("cell", LSTMS)
def test_projection(cell, proj, tier):
    check(Case(cell, steps=3, hidden=33, proj=proj, directions=2, masks="both"), F32, "triton")


@every_tier
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ["gru", "lstm_peephole"])
def test_recompute(cell, dtype, tier):
    case = Case(cell, steps=4, directions=2, masks="both", recompute=True)
    check(case, dtype, "triton")


@every_tier
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_masks(cell, masks, tier):
    check(Case(cell, masks=masks, directions=2), F32, "triton")


@every_tier
@pytest.mark.parametrize(
    "change",
    [
        {"bias": False, "states": False},
        {"batch_first": True, "strided": True, "masks": "both"},
        {"layers": 2, "directions": 2, "steps": 3},
        {"steps": 1, "batch": 1, "inputs": 1, "hidden": 1},
        {"steps": 2, "batch": 17, "hidden": 17},
        {"steps": 2, "batch": 33, "hidden": 32, "masks": "lengths"},
        {"batch": 0},
    ],
    ids=lambda change: ",".join(f"{k}={v}" for k, v in change.items()),
)
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
    inputs = {k: None if v is None else v.float() if v.is_floating_point() else v
              for k, v in make_inputs(case).items()}  # fmt: skip
    with bptt.backend("triton"):
        runs = [call(case, inputs) for _ in range(2)]
    for left, right in zip(*runs, strict=True):
        assert left is right or torch.equal(left.nan_to_num(7), right.nan_to_num(7))


# --- transforms take the same kernels -------------------------------------------------------------


def weights_of(layer):
    return {name: tensor.detach() for name, tensor in layer.named_parameters()}


def test_per_sample_gradients_and_ensembles():
    layer = bptt.GRU(3, 5, bidirectional=True)
    x = torch.randn(4, 2, 3)

    def loss(weights, row):
        return torch.func.functional_call(layer, weights, (row.unsqueeze(1),))[0].sum()

    def all_gradients():
        samples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights_of(layer), x)
        models = {name: torch.stack([w, 2 * w]) for name, w in weights_of(layer).items()}
        ensemble = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(models, x[:, 0])
        return [*samples.values(), *ensemble.values()]

    with bptt.backend("triton"):
        ours = all_gradients()
    with bptt.backend("reference"):
        theirs = all_gradients()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_patterns_of_directions():
    assert launch.direction_pattern([0, 1] * 100) == 2 << 24 | 0b10
    assert launch.direction_pattern([1, 0, 1]) == 2 << 24 | 0b01
    assert launch.direction_pattern([1, 1, 0]) == 3 << 24 | 0b011
    with pytest.raises(RuntimeError, match="repeat a pattern of at most 24 directions"):
        launch.direction_pattern([0] * 40 + [1])


# --- bad input ------------------------------------------------------------------------------------


def arguments(**changes):
    """A call of the raw op, T=3, B=2, D=1, H=R=4, with some arguments changed."""
    given = {
        "backend": "triton", "cell": "lstm", "gates_x": torch.randn(3, 2, 1, 4, 4), "x": None,
        "w_ih": None, "b_ih": None, "w_hh": torch.randn(1, 16, 4), "b_hh": None, "w_hr": None,
        "peephole": None, "h0": torch.randn(1, 2, 4), "c0": torch.randn(1, 2, 4),
        "lengths": None, "resets": None, "reverse": [0], "keep": "gates",
    }  # fmt: skip
    return {**given, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "gruu"}, "cell must be one of rnn_tanh.* got .gruu"),
        ({"gates_x": None}, "either gates_x, or x and w_ih"),
        ({"gates_x": torch.zeros(3, 2)}, "gates_x must have 5 dimensions"),
        ({"gates_x": torch.zeros(3, 2, 1, 4, 5)}, r"gates_x must be \[T, B, D, G, H\] = "),
        ({"w_hh": torch.zeros(16, 4)}, "w_hh must have 3 dimensions"),
        ({"w_hh": torch.zeros(1, 16, 4).double()}, "takes float32, float16 and bfloat16"),
        ({"w_hh": torch.zeros(1, 16, 3)}, r"without w_hr, w_hh must be \[D, G\*H, H\]"),
        ({"h0": torch.zeros(1, 3, 4)}, r"h0 must be \[D, B, R\] = \[1, 2, 4\], got \[1, 3, 4\]"),
        ({"h0": torch.zeros(1, 2, 4).half()}, "h0 must have dtype torch.float32"),
        ({"c0": None}, "c0 must be given"),
        ({"peephole": torch.zeros(1, 12)}, "peephole must be None for cell lstm"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, r"lengths must be \[B\] = \[2\]"),
        ({"lengths": torch.zeros(2)}, "lengths must have dtype torch.int64"),
        ({"resets": torch.zeros(3, 1, dtype=torch.bool)}, r"resets must be \[T, B\]"),
        ({"keep": "all"}, 'keep must be "nothing", "states" or "gates", got "all"'),
        ({"reverse": [0, 1]}, "reverse must have D = 1 flags, got 2"),
        ({"h0": torch.zeros(1, 2, 4, device="meta")}, "h0 must be on cpu"),
    ],
)
def test_bad_arguments_of_the_op(changes, message):
    with pytest.raises(RuntimeError, match=f"bptt::recurrence_forward: .*{message}"):
        launch.forward(*arguments(**changes).values())


@pytest.mark.parametrize("lengths", [[-5, 99], [3, 0]])
def test_lengths_out_of_range_stay_inside_memory(lengths):
    """On an accelerator nobody reads them beforehand; the interpreter checks every address."""
    outputs = launch.forward(*arguments(lengths=torch.tensor(lengths)).values())
    clamped = torch.tensor(lengths).clamp(0, 3)
    expected = launch.forward(*arguments(lengths=clamped).values())
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
