"""Are the library's cells in CUDA, simulated, those of the reference loop over their functions?

Two of them have a recurrent product and run in the step tier; of the others a thread owns a unit.
"""

from dataclasses import replace

import pytest
import torch

import bptt
import own_cells
from bptt.custom.library import CELLS_HERE, cell_named
from bptt.engines import gpu
from bptt.recurrence.control import PLAIN
from cases import BF16, F16, F32
from emulated import dtype_name
from variants import CONTROLS, Variant, check_variant, fitting

PROCESSORS = 132
NEW = Variant(steps=6, batch=4, hidden=5, directions=2, masks="both")
# The others are about activations and bounds that a function has or has not.
EACH_CONTROL = [name for name in CONTROLS if "activations" not in name and name != "cell-bound"]
cells = pytest.mark.parametrize("cell", CELLS_HERE)


@pytest.fixture(autouse=True)
def _settings():
    """Full float32, and seed 1."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.ops.bptt.simulate(1, PROCESSORS)
    cell_named.cache_clear()
    with own_cells.known_cells_as_before():
        yield
    cell_named.cache_clear()
    torch.backends.cudnn.rnn.fp32_precision = before
    torch.ops.bptt.simulate(1, PROCESSORS)


def variant_of(cell, **changed):
    """A variant of the cell, with as much of its control as the cell can have."""
    made = cell_named(cell)
    control = changed.pop("control", PLAIN)._replace(states="", gates="", cell_bound=0.0)
    if made.spec.free:
        control = control._replace(recurrent_dropout=0.0)
    return replace(NEW, cell=made.name, control=fitting(made.name, control), **changed)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=dtype_name)
@cells
def test_agrees_with_its_function(cell, dtype):
    for seed in (1, 2):
        torch.ops.bptt.simulate(seed, PROCESSORS)
        check_variant(variant_of(cell, seed=seed), "cuda", dtype)


@pytest.mark.parametrize("control", EACH_CONTROL)
@cells
def test_every_control(cell, control):
    check_variant(variant_of(cell, control=CONTROLS[control]), "cuda")


@pytest.mark.parametrize(
    ("change", "control"),
    [
        ({"recompute": True}, "all"),
        ({"keep_cells": True, "hidden_gradients": True}, "plain"),
        ({"keep_cells": True, "hidden_gradients": True}, "all"),
        ({"steps": 1}, "plain"),
        ({"batch": 1, "masks": "none"}, "all"),
        ({"bias": False, "masks": "resets", "directions": 1}, "plain"),
        ({"batch": 67, "hidden": 9}, "plain"),
        ({"batch": 3, "hidden": 37}, "all"),
    ],
    ids=str,
)
@cells
def test_options_and_edges(cell, change, control):
    chosen = PLAIN if control == "plain" else CONTROLS[control]
    check_variant(variant_of(cell, control=chosen, **change), "cuda")


@cells
def test_its_plan_is_of_the_step_tier(cell):
    name = cell_named(cell).name
    device = gpu.device_limits(torch.device("cpu"))
    for backward in (False, True):
        plan = gpu.make_plan(name, "bf16", (100, 64, 1, 256, 256), False, backward, device)
        one_launch = cell_named(cell).product != "dense"
        assert (plan.tier, plan.exchanges) == ("step", 0 if one_launch else 1)


@cells
def test_a_layer_takes_the_kernels(cell):
    layers = {"min_gru": "MinGRU", "min_lstm": "MinLSTM", "sru": "SRU", "light_gru": "LightGRU",
              "diagonal_gru": "DiagonalGRU", "diagonal_lstm": "DiagonalLSTM",
              "minimal_gated_unit": "MGU"}  # fmt: skip
    layer = getattr(bptt, layers[cell])(3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3)
    with bptt.backend("reference"):
        expected = layer(x)[0]
    with bptt.backend("cuda"):
        assert bptt.explain(layer, x).backend == "cuda"
        torch.testing.assert_close(layer(x)[0], expected)
