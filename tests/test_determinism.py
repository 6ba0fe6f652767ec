"""Is every result the same to the last bit, run to run and whoever takes part in it?

The number of threads changes no bit of our ops. torch's own sums and products, which bias gradients
and bfloat16 weight gradients come from, make no such promise, so the thread tests look at the
ops themselves; the products over all steps have theirs in test_matrix_product.py.
"""

import math

import pytest
import torch

import bptt
from bptt.recurrence.cells import CELLS
from bptt.recurrence.gradients import KEEP_GATES, Config, LoopInputs, forward_op
from cases import ALL_CELLS, BF16, DTYPES, F32, LSTMS, Case, make_inputs, run

pytestmark = pytest.mark.threads

LAYERS = {
    "rnn": (bptt.RNN, {}),
    "gru": (bptt.GRU, {}),
    "gru-reset-before": (bptt.GRU, {"reset_after": False}),
    "lstm": (bptt.LSTM, {}),
    "lstm-peephole-proj": (bptt.LSTM, {"peephole": True, "proj_size": 40}),
}


def names(dtype):
    return str(dtype).removeprefix("torch.")


def assert_same_bits(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert not a.isnan().any()
        assert torch.equal(a, b)


# --- run to run -----------------------------------------------------------------------------------


def train_once(layer, x):
    """Outputs and gradients of a layer, with the generator of dropout at a fixed place."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    y = layer(x)[0]
    grads = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    return [y.detach(), *grads]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", LAYERS)
def test_run_to_run(name, dropout):
    cls, options = LAYERS[name]
    layer = cls(24, 64, 2, bidirectional=True, dropout=dropout, **options)
    x = torch.randn(12, 16, 24)
    first = train_once(layer, x)
    for _ in range(5):
        assert_same_bits(train_once(layer, x), first)


def test_dropout_does_something_and_follows_the_seed():
    layer = bptt.LSTM(4, 8, 2, dropout=0.5)
    x = torch.randn(5, 3, 4)
    torch.manual_seed(1)
    first, other = layer(x)[0], layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("hidden", [5, 64, 200])
@pytest.mark.parametrize("name", LAYERS)
def test_the_batch_of_a_single_step_changes_no_bit(name, hidden):
    """Up to eight rows, of which each is a row of its own."""
    cls, options = LAYERS[name]
    layer = cls(
        24, hidden, **{k: min(v, hidden - 1) if k == "proj_size" else v for k, v in options.items()}
    )
    x = torch.randn(1, 8, 24)
    with torch.no_grad():
        whole = layer(x)[0]
        for batch in range(1, 8):
            assert torch.equal(layer(x[:, :batch])[0], whole[:, :batch])
            assert torch.equal(layer(x[:, 8 - batch :])[0], whole[:, 8 - batch :])


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_cell_run_to_run(cell):
    case = Case(cell, steps=9, batch=12, hidden=48, directions=2, masks="both")
    inputs = make_inputs(case)
    first = run(case, inputs, "cpu", F32)
    for _ in range(3):
        assert_same_bits(list(run(case, inputs, "cpu", F32).values()), list(first.values()))


# --- the ops --------------------------------------------------------------------------------------


def op_inputs(cell, dtype, steps, batch, inputs, hidden, directions, proj=0, masks=""):
    """The tensors of one layer as the ops take them, and the gradients of its outputs.

    `masks` names the masks it has, of "lengths" and "resets".
    """
    spec = CELLS[cell]
    rows, state = len(spec.gates) * hidden, proj or hidden

    def draw(*shape):
        return (torch.rand(shape) - 0.5).to(dtype)

    has_c = spec.has_cell_state
    loop = LoopInputs(
        gates_x=None,
        x=draw(steps, batch, inputs),
        w_ih=draw(directions, rows, inputs),
        b_ih=draw(directions, rows),
        w_hh=draw(directions, rows, state) / hidden**0.5,
        b_hh=draw(directions, rows),
        w_hr=draw(directions, proj, hidden) if proj else None,
        w_unit=draw(directions, 3 * hidden) if spec.unit_weights else None,
        h0=draw(directions, batch, state),
        c0=draw(directions, batch, hidden) if has_c else None,
        lengths=torch.randint(0, steps + 1, (batch,)) if "lengths" in masks else None,
        resets=torch.rand(steps, batch) < 0.2 if "resets" in masks else None,
    )
    douts = (
        draw(steps, batch, directions, state),
        draw(directions, batch, state),
        draw(directions, batch, hidden) if has_c else None,
    )
    return loop, douts


def run_ops(cell, loop, douts):
    """All outputs of the forward and the backward op."""
    reverse = tuple(d % 2 == 1 for d in range(loop.w_hh.shape[0]))
    forward = forward_op(Config("cpu", cell, reverse), loop, KEEP_GATES)
    y, _, _, saved, cells = forward
    backward = torch.ops.bptt.recurrence_backward(
        "cpu",
        cell,
        *douts,
        y,
        saved,
        cells,
        loop.w_hh,
        loop.w_hr,
        loop.w_unit,
        loop.h0,
        loop.c0,
        loop.lengths,
        loop.resets,
        [int(r) for r in reverse],
        True,
    )
    return [*forward, *backward]


def plan(cell, dtype, loop):
    steps, batch, _ = loop.x.shape
    directions, rows, state = loop.w_hh.shape
    hidden = rows // len(CELLS[cell].gates)
    sizes = [steps, batch, directions, hidden, state]
    return tuple(torch.ops.bptt.cpu_plan(cell, dtype.itemsize, sizes)[:3])


MASKS = ("", "lengths", "lengths and resets")

# What the plan splits with two threads, and sizes that make it do so for every cell.
SPLITS = {
    "directions": ((2, 1, 1), {"steps": 20, "batch": 5, "hidden": 65, "directions": 2}),
    "rows": ((1, 2, 1), {"steps": 20, "batch": 27, "hidden": 65, "directions": 1}),
    "units": ((1, 1, 2), {"steps": 60, "batch": 3, "hidden": 129, "directions": 1}),
}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_the_number_of_threads_changes_no_bit(cell, dtype, split, masks):
    expected, sizes = SPLITS[split]
    loop, douts = op_inputs(cell, dtype, inputs=7, masks=masks, **sizes)
    assert plan(cell, dtype, loop) == expected
    several = run_ops(cell, loop, douts)
    torch.set_num_threads(1)
    assert plan(cell, dtype, loop) == (1, 1, 1)
    assert_same_bits(run_ops(cell, loop, douts), several)


# With three directions two threads have one to do after the other; the rest are more threads than
# many machines have cores.
@pytest.mark.parametrize(("threads", "directions"), [(2, 3), (4, 2), (5, 1), (8, 2)])
@pytest.mark.parametrize("masks", ["lengths", "lengths and resets"])
@pytest.mark.parametrize("cell", LSTMS)
def test_any_number_of_workers_changes_no_bit(cell, masks, threads, directions):
    loop, douts = op_inputs(cell, F32, 10, 26, 7, 65, directions, proj=33, masks=masks)
    torch.set_num_threads(1)
    alone = run_ops(cell, loop, douts)
    torch.set_num_threads(threads)
    assert math.prod(plan(cell, F32, loop)) > threads // 2
    assert_same_bits(run_ops(cell, loop, douts), alone)


def assert_rows_by_themselves_are_alike(cell, loop, douts, together, rows):
    """Some rows of a batch, computed without the others, have the bits they have among them."""
    of_rows = {"x": 1, "h0": 1, "c0": 1, "lengths": 0, "resets": 1}
    given = {name: getattr(loop, name) for name in of_rows}
    picked = {
        name: None if t is None else t[(slice(None),) * of_rows[name] + (rows,)]
        for name, t in given.items()
    }
    by_itself = run_ops(
        cell, loop._replace(**picked), [None if d is None else d[:, rows] for d in douts]
    )
    # The batch is the second axis everywhere but in dpeephole [B, D, 3*H].
    first_axis = 5 + 4
    expected = [
        t if t.numel() == 0 else t[rows] if k == first_axis else t[:, rows]
        for k, t in enumerate(together)
    ]
    assert_same_bits(by_itself, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("masks", ["lengths", "lengths and resets"])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_the_other_rows_of_a_batch_change_no_bit(cell, masks, dtype):
    # Steps enough that a row by itself is no short call, which sums in another order, and has
    # products of float32 where long ones have bfloat16's.
    steps = 90 if dtype == BF16 else 12
    loop, douts = op_inputs(cell, dtype, steps, 11, 7, 37, 2, masks=masks)
    together = run_ops(cell, loop, douts)
    for b in (0, 4, 10):
        assert_rows_by_themselves_are_alike(cell, loop, douts, together, slice(b, b + 1))


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_blocks_of_rows_change_no_bit(cell, masks):
    """More rows than a worker takes at a time, of one slice of the units or of several."""
    proj = 301 if cell in LSTMS and masks else 0
    loop, douts = op_inputs(cell, F32, 2, 500, 7, 515, 2, proj=proj, masks=masks)
    torch.set_num_threads(8)
    _, row_slices, unit_slices = plan(cell, F32, loop)
    assert CELLS[cell].normalized or (row_slices == 1 and unit_slices > 1)
    together = run_ops(cell, loop, douts)
    torch.set_num_threads(1)
    assert_same_bits(run_ops(cell, loop, douts), together)
    for rows in (slice(0, 200), slice(250, 490)):
        assert_rows_by_themselves_are_alike(cell, loop, douts, together, rows)
