"""Do cells made by `bptt.cell` agree with the float64 loop over their function in Triton, too?"""

import pytest

import own_cells
from bptt.recurrence.cells import CELLS
from cases import BF16, F32
from variants import CONTROLS, Variant, check_variant


@pytest.fixture(scope="module")
def own():
    with own_cells.defined() as made:
        yield made


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("name", own_cells.CELLS_OF_OURS)
def test_agrees_with_its_function(own, name, masks, dtype):
    check_variant(Variant(own[name].name, directions=2, masks=masks), "triton", dtype)


@pytest.mark.parametrize("hidden", [40, 300])  # weights on chip, and a launch for each step
@pytest.mark.parametrize("name", own_cells.CELLS_OF_OURS)
def test_agrees_in_other_tiers(own, name, hidden):
    variant = Variant(own[name].name, steps=3, batch=2, hidden=hidden, masks="lengths")
    check_variant(variant, "triton", F32)


@pytest.mark.parametrize("name", own_cells.CELLS_OF_OURS)
def test_agrees_with_what_a_loop_does_besides(own, name):
    control = CONTROLS["all"]._replace(states="", cell_bound=0.0)
    if not CELLS[own[name].name].has_cell_state:
        control = control._replace(zoneout_c=0.0)
    if own[name].spec.free:
        control = control._replace(recurrent_dropout=0.0)
    check_variant(Variant(own[name].name, control, masks="both"), "triton", F32)
