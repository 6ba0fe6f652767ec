"""Do cell variants, and what a loop does besides running its cell, agree with the reference?

As in `test_triton_recurrence.py`: interpreted, each tier with tiles smaller than the shapes. A case
takes a second or two, so each pair of a cell and a setting is seen in one tier, which goes round.
"""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.kernels import launch, plan
from bptt.kernels.plan import BLOCK, PERSISTENT, RESIDENT, STEP, Chip
from bptt.kernels.random import draw, happens, threshold_of
from bptt.recurrence import random
from bptt.recurrence.cells import CELLS
from bptt.recurrence.control import PLAIN, Control
from cases import BF16, F16, F32
from emulated import MASKS
from tiers import TIERS, TILED, force_tier
from variants import CONTROLS, EVERY_CELL, NEW_CELLS, NORMALIZED, Variant, check_variant

SMALL = Variant(steps=3, batch=3, hidden=18, directions=2, masks="both")
# Every second pair, of the next cell the others; and all settings at once.
PAIRS = [
    (cell, control, turn + place)
    for turn, cell in enumerate(EVERY_CELL)
    for place, control in enumerate(CONTROLS)
    if (turn + place) % 2 == 0 or control == "all"
]


@pytest.fixture
def in_tier(monkeypatch):
    """Checks a variant in a tier; three programs share the tiles of a persistent one."""
    monkeypatch.setattr(launch, "chip_of", lambda _: Chip(shared=0, processors=3))

    def check(variant, tier, dtype=F32):
        force_tier(monkeypatch, tier)
        check_variant(variant, "triton", dtype)

    return check


def tier_of(cell, turn):
    """A tier that takes the cell, another one for each turn; the first is taken twice as often."""
    tiers = TILED if CELLS[cell].stages == 2 else (RESIDENT, BLOCK, RESIDENT, STEP)
    return tiers[turn % len(tiers)]


@pytest.mark.parametrize("tier", (RESIDENT, STEP))
@pytest.mark.parametrize("cell", NEW_CELLS)
def test_new_cells(cell, tier, in_tier):
    in_tier(replace(SMALL, cell=cell), tier)


@pytest.mark.parametrize(("cell", "control", "turn"), PAIRS)
def test_controls(cell, control, turn, in_tier):
    in_tier(replace(SMALL, cell=cell, control=CONTROLS[control]), tier_of(cell, turn // 2))


@pytest.mark.parametrize(
    ("cell", "tier"),
    [(cell, tier) for cell in ("lstm", "indrnn") for tier in TIERS]
    + [("gru_layer_norm", STEP), ("lstm_layer_norm", RESIDENT), ("lstm_layer_norm", PERSISTENT)],
)
def test_all_at_once(cell, tier, in_tier):
    options = {"keep_cells": True, "hidden_gradients": True, "recompute": True}
    in_tier(replace(SMALL, cell=cell, control=CONTROLS["all"], **options), tier)


@pytest.mark.parametrize("tier", [BLOCK, STEP])
@pytest.mark.parametrize(
    ("cell", "control"), [("lstm", "zoneout"), ("cifg", "zoneout-mean"), ("cifg", "all")]
)
def test_projection(cell, control, tier, in_tier):
    options = {"proj": 3, "keep_cells": True, "hidden_gradients": True}
    in_tier(replace(SMALL, cell=cell, control=CONTROLS[control], **options), tier)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("cell", NEW_CELLS)
def test_half_precision(cell, dtype, in_tier):
    turn = NEW_CELLS.index(cell) + (dtype is BF16)
    in_tier(replace(SMALL, cell=cell, recompute=True), tier_of(cell, turn), dtype)


@pytest.mark.parametrize(
    ("cell", "control"),
    [
        ("rnn_layer_norm", "zoneout-mean"),
        ("gru_reset_before", "recurrent-dropout"),
        ("lstm", "all"),
    ],
)
def test_controls_in_half_precision(cell, control, in_tier):
    # Without relu and without a bound of the state: rounded to 16 bits, a state near one of their
    # kinks falls on its other side now and then, and the gradient with it.
    smooth = CONTROLS[control]._replace(states="", cell_bound=0.0)
    in_tier(replace(SMALL, cell=cell, control=smooth), tier_of(cell, 0), BF16)


@pytest.mark.parametrize("change", [{"steps": 1}, {"batch": 1, "bias": False}, {"hidden": 1}])
@pytest.mark.parametrize("cell", NEW_CELLS)
def test_edges(cell, change, in_tier):
    changed = {"directions": 1, "masks": "none", **change}
    in_tier(replace(SMALL, cell=cell, **changed), tier_of(cell, NEW_CELLS.index(cell)))


@pytest.mark.parametrize("tier", [RESIDENT, STEP])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_probabilities_at_their_ends(p, tier, in_tier):
    for sampled in (False, True):
        control = Control(zoneout_h=p, zoneout_c=p, sampled=sampled, recurrent_dropout=1 - p)
        in_tier(replace(SMALL, control=control), tier)


@settings(max_examples=12)
@given(
    st.sampled_from(EVERY_CELL),
    st.sampled_from([PLAIN, *CONTROLS.values()]),
    st.integers(1, 4),
    st.integers(1, 18),
    st.integers(1, 40),
    st.sampled_from(MASKS),
    st.booleans(),
    st.integers(0, 1000),
)
def test_any_variant_as_planned(cell, control, steps, batch, hidden, masks, keep_cells, seed):
    keep_cells = keep_cells and CELLS[cell].has_cell_state
    sizes = {"steps": steps, "batch": batch, "hidden": hidden}
    variant = Variant(cell, control, **sizes, masks=masks, keep_cells=keep_cells, seed=seed)
    check_variant(variant, "triton", F32)


# --- random numbers -------------------------------------------------------------------------------


@triton.jit
def drawn(
    words, occurred, seed, t, threshold, KIND: tl.constexpr, B: tl.constexpr, H: tl.constexpr
):
    d = tl.program_id(0)
    b, n = tl.arange(0, B)[:, None], tl.arange(0, H)[None, :]
    four = draw(seed, KIND, b, n, t, d)
    for k in tl.static_range(4):
        tl.store(words + ((d * 4 + k) * B + b) * H + n, four[k].to(tl.int64))
    tl.store(occurred + (d * B + b) * H + n, happens(four[0], threshold).to(tl.int8))


@pytest.mark.parametrize("kind", [random.ZONEOUT, random.RECURRENT_DROPOUT])
@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**62) + 12345678901])
def test_draws_are_those_of_the_package(kind, seed):
    D, B, H, t, p = 3, 8, 32, 70000, 0.3
    words = torch.zeros(D, 4, B, H, dtype=torch.int64)
    occurred = torch.zeros(D, B, H, dtype=torch.int8)
    key = torch.tensor([seed])
    drawn[(D,)](words, occurred, key, t, threshold_of(p), kind, B, H)
    for d in range(D):
        expected = random.draw(key, kind, B, H, t, d)
        assert torch.equal(words[d], torch.stack(expected))
        assert torch.equal(occurred[d].bool(), random.happens(expected[0], p))


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "hidden", "state", "control", "tier", "words"),
    [
        ("slstm", 64, 64, PLAIN, RESIDENT, ""),
        ("indrnn", 5000, 5000, PLAIN, RESIDENT, ""),
        ("indrnn", 5000, 5000, Control(gradient_norm=1.0), BLOCK, "whole rows of 5000 units"),
        ("cifg", 64, 9, PLAIN, BLOCK, "a projection is a second product"),
        ("lstm_layer_norm", 600, 600, PLAIN, STEP, "layer normalisation then exchange sums"),
        ("lstm", 600, 600, Control(gradient_norm=1.0), STEP, "gradient_norm then exchange sums"),
        ("lstm", 64, 64, CONTROLS["all"], RESIDENT, ""),
    ],
)
def test_why_a_variant_leaves_the_fastest_tier(cell, hidden, state, control, tier, words):
    problem = (cell, F32, hidden, state, True, torch.device("cpu"), control)
    assert plan.plan_for(*problem).tier == tier
    why = plan.why_not_resident(*problem)
    assert words in why and bool(why) == (tier != RESIDENT)


def test_a_normalised_cell_is_planned_in_whole_tiles():
    for cell in NORMALIZED:
        chosen = plan.plan_for(cell, F32, 65, 65, False, torch.device("cpu"))
        assert launch.parts_of(chosen, 65) * chosen.units >= 65
