"""Do cell variants, and what a loop does besides its cell, agree with the float64 reference?

Here for the cpu backend; tests/kernels and tests/simulated ask the same of the others, and
test_variant_reference.py whether the reference is right.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bptt import _dev
from bptt.recurrence.cells import CELLS
from bptt.recurrence.control import PLAIN, Control, from_numbers
from cases import BF16, F32, F64
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

PROJECTED = tuple(name for name, spec in CELLS.items() if spec.projects)


@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("cell", NEW_CELLS)
def test_cells(cell, dtype, masks):
    check_variant(Variant(cell, directions=2, masks=masks), "cpu", dtype)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_controls(cell, control):
    check_variant(Variant(cell, CONTROLS[control], directions=2, masks="both"), "cpu")


@pytest.mark.parametrize("dtype", [F64, BF16], ids=str)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_all_controls_in_other_dtypes(cell, dtype):
    check_variant(Variant(cell, CONTROLS["all"], masks="lengths"), "cpu", dtype)


@pytest.mark.parametrize("control", ["all", "zoneout", "recurrent-dropout"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_recomputed_gates(cell, control):
    variant = Variant(cell, CONTROLS[control], masks="both", recompute=True)
    variant = replace(variant, control=fitting(cell, variant.control))
    inputs = {n: x.to(F32) if n != "seed" and x is not None and x.is_floating_point() else x
              for n, x in make_variant(variant).items()}  # fmt: skip
    kept = run_variant(replace(variant, recompute=False), inputs, "cpu", F32)
    rebuilt = run_variant(variant, inputs, "cpu", F32)
    for name, expected in kept.items():
        torch.testing.assert_close(rebuilt[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("control", [PLAIN, CONTROLS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("cell", [c for c in EVERY_CELL if CELLS[c].has_cell_state])
def test_all_cell_states_and_their_gradients(cell, control):
    check_variant(Variant(cell, control, masks="both", keep_cells=True), "cpu")


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm", "lstm_layer_norm", "indrnn"])
def test_hidden_gradients(cell, control):
    check_variant(Variant(cell, CONTROLS[control], masks="both", hidden_gradients=True), "cpu")


@pytest.mark.parametrize("control", [None, *CONTROLS])
@pytest.mark.parametrize("cell", PROJECTED)
def test_projections(cell, control):
    control = PLAIN if control is None else CONTROLS[control]
    check_variant(Variant(cell, control, directions=2, proj=4, masks="both"), "cpu")


@given(
    cell=st.sampled_from(EVERY_CELL),
    control=st.sampled_from(sorted(CONTROLS)),
    sizes=st.tuples(st.integers(1, 9), st.integers(0, 19), st.integers(1, 20), st.integers(1, 40)),
    directions=st.integers(1, 2),
    masks=st.sampled_from(["none", "lengths", "resets", "both"]),
    seed=st.integers(0, 9),
)
def test_any_shape(cell, control, sizes, directions, masks, seed):
    steps, batch, inputs, hidden = sizes
    variant = Variant(
        cell, CONTROLS[control], steps, batch, inputs, hidden, directions, masks=masks, seed=seed,
        hidden_gradients=True, keep_cells=CELLS[cell].has_cell_state,
    )  # fmt: skip
    check_variant(variant, "cpu")


@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(cell, isa, monkeypatch):
    if isa not in _dev.instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("BPTT_CPU_ISA", isa)
    check_variant(Variant(cell, CONTROLS["all"], hidden=35, masks="both"), "cpu")


@pytest.mark.parametrize(("control", "masks"), [(PLAIN, "none"), (CONTROLS["all"], "both")])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_the_number_of_threads_changes_no_bit(cell, control, masks):
    variant = Variant(cell, control, 5, 25, 20, 70, directions=2, masks=masks)
    variant = replace(variant, control=fitting(cell, variant.control))
    inputs = make_variant(variant)
    answers = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        answers.append(run_variant(variant, inputs, "cpu", F32))
    for other in answers[1:]:
        for name, expected in answers[0].items():
            assert torch.equal(other[name], expected), name


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_numbers_carry_a_control(control):
    assert from_numbers(control.numbers()) == control
    assert PLAIN.numbers() == [] and from_numbers([]) == PLAIN


@pytest.mark.parametrize(
    ("numbers", "seed", "message"),
    [
        ([0.0] * 9, None, "control must hold 10 numbers or none, got 9"),
        (Control(cell_bound=-1.0).numbers(), None, "finite numbers of zero or more, got -1"),
        ([9.0, *[0.0] * 9], None, "control names no activation"),
        (Control(zoneout_h=1.5).numbers(), None, r"must lie in \[0, 1\]"),
        (Control(recurrent_dropout=0.5).numbers(), None, "draws and needs a seed, got None"),
        (
            Control(recurrent_dropout=0.5).numbers(),
            torch.zeros(2, dtype=torch.int64),
            r"seed must be \[1\] = \[1\], got \[2\]",
        ),
    ],
)
def test_the_op_refuses_a_bad_control(numbers, seed, message):
    gates_x, w_hh, state = torch.zeros(2, 3, 1, 4, 5), torch.zeros(1, 20, 5), torch.zeros(1, 3, 5)
    arguments = (gates_x, None, None, None, w_hh, None, None, None, state, state, None, None)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bptt.recurrence_forward("cpu", "lstm", *arguments, [0], "gates", numbers, seed)


def test_the_op_refuses_to_bound_what_is_not_there():
    gates_x, w_hh, state = torch.zeros(2, 3, 1, 3, 5), torch.zeros(1, 15, 5), torch.zeros(1, 3, 5)
    arguments = (gates_x, None, None, None, w_hh, None, None, None, state, None, None, None)
    with pytest.raises(RuntimeError, match="cell gru has no cell state"):
        torch.ops.bptt.recurrence_forward(
            "cpu", "gru", *arguments, [0], "gates", Control(zoneout_c=0.5).numbers(), None
        )
