"""Do the parts of the C++ engine keep their contracts, seen from below the ops?

Cells and their gradients, the table of cells, activations on vectors, the plan, and the team.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt import _dev
from bptt.recurrence.cells import CELLS, CellMath
from bptt.recurrence.control import ACTIVATIONS
from bptt.recurrence.gradients import KEEP_NOTHING, Config, LoopInputs, forward_op
from cases import ALL_CELLS, F32, F64

# --- cells ----------------------------------------------------------------------------------------


def test_the_tables_of_cells_agree():
    ours = [
        {
            "name": spec.name,
            "gates": len(spec.gates),
            "states": len(spec.states),
            "saved": len(spec.saved),
            "unit_weights": len(spec.unit_weights),
            "stages": spec.stages,
            "shared_gates": spec.shared_gates,
            "normalized": spec.normalized,
        }
        for spec in CELLS.values()
        if spec.custom is None  # others may have been made in this process
    ]
    assert _dev.cells() == ours
    assert all(name == spec.name for name, spec in CELLS.items())


# A layer normalisation of one unit is nothing.
UNIT_CELLS = tuple(name for name, spec in CELLS.items() if not spec.normalized)
OWN = {"gates": "own", "states": "own", "bound": 0.0}
MATHS = [
    OWN,
    {"gates": "hard_sigmoid", "states": "softsign", "bound": 0.0},
    {"gates": "identity", "states": "hard_tanh", "bound": 0.0},
    {"gates": "tanh", "states": "sigmoid", "bound": 0.4},
    {"gates": "softsign", "states": "relu", "bound": 0.2},
]
maths = pytest.mark.parametrize("math", MATHS, ids=lambda m: "-".join(map(str, m.values())))


def math_of(math, cell):
    """The same choice in C++ and in Python."""
    bound = math["bound"] if CELLS[cell].cell_states == 1 else 0.0
    chosen = [getattr(_dev.Activation, math[name]) for name in ("gates", "states")]
    names = ["" if math[name] == "own" else math[name] for name in ("gates", "states")]
    hold = (lambda c: c.clamp(-bound, bound)) if bound else (lambda c: c)
    return _dev.Math(*chosen, bound), CellMath(*(ACTIVATIONS[n] for n in names), hold)


def draw_step(cell, seed):
    """Inputs of one step of a layer of one unit: gates_x, weights, bias, states, own weights."""
    random = np.random.default_rng(seed)
    spec = CELLS[cell]
    gates = len(spec.gates)
    counts = (gates, gates, gates, len(spec.states), len(spec.unit_weights))
    values = [list(random.normal(size=count)) for count in counts]
    if cell == "slstm":  # the normaliser is a sum of exponentials
        values[3][2] = abs(values[3][2]) + 0.5
    if cell in ("rnn_relu", "indrnn"):  # clear of the kink, half of the draws on either side
        values[0] = [4.0 if seed % 2 else -4.0]
    return values


@pytest.mark.parametrize("cell", UNIT_CELLS)
@pytest.mark.parametrize("seed", range(6))
@maths
def test_a_step_is_the_python_step(cell, seed, math):
    gates_x, weights, bias, states, peep = draw_step(cell, seed)
    own = CELLS[cell].stages == 0  # then a unit's own weights are those of the product
    w, b = (torch.tensor(v, dtype=F64) for v in (peep if own else weights, bias))
    in_cpp, in_python = math_of(math, cell)

    def recur(operand, which=slice(None)):
        return (w[which] * operand + b[which]).unbind()

    def scalars(values):
        return tuple(torch.tensor(values, dtype=F64).unbind())

    expected = CELLS[cell].step(
        scalars(gates_x), recur, scalars(states), scalars(peep) if peep else None, in_python
    )
    got, _ = _dev.step_forward(cell, gates_x, weights, bias, states, peep, in_cpp)
    np.testing.assert_allclose(got, [s.item() for s in expected], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("cell", UNIT_CELLS)
@pytest.mark.parametrize("seed", range(6))
@maths
def test_the_gradient_of_a_step_is_its_finite_difference(cell, seed, math):
    chosen, _ = math_of(math, cell)
    gates_x, weights, bias, states, peep = draw_step(cell, seed)
    dstates = list(np.random.default_rng(seed + 100).normal(size=len(states)))
    after, saved = _dev.step_forward(cell, gates_x, weights, bias, states, peep, chosen)
    grads = _dev.step_backward(cell, weights, saved, states, after, peep, dstates, chosen)
    # A gradient of the bias is one of gates_h.
    places = {"gates_x": 0, "bias": 2, "states": 3, "peep": 4}
    width = 1e-6
    for (name, place), grad in zip(places.items(), grads, strict=True):
        for k, got in enumerate(grad):
            sides = []
            for sign in (1, -1):
                moved = [list(v) for v in (gates_x, weights, bias, states, peep)]
                moved[place][k] += sign * width
                states_moved, _ = _dev.step_forward(cell, *moved, chosen)
                sides.append(np.dot(states_moved, dstates))
            expected = (sides[0] - sides[1]) / (2 * width)
            assert got == pytest.approx(expected, abs=2e-9, rel=1e-8), f"{name}[{k}]"


def test_a_wrong_number_of_values_is_refused():
    with pytest.raises(ValueError, match="gates_x must hold 4 values, got 3"):
        _dev.step_forward("lstm", [0.0] * 3, [0.0] * 4, [0.0] * 4, [0.0] * 2, [])
    with pytest.raises(ValueError, match="unknown cell elman"):
        _dev.step_forward("elman", [], [], [], [], [])


# --- activations on vectors -----------------------------------------------------------------------

LONG = np.longdouble
EXACT = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.where(x < 0, LONG(0), x),
    "exponential": np.exp,
}
# Units in the last place that the activations may be off. A sigmoid adds a rounding to 1 + e^-x,
# one to its inverse, and what the exponential is off; without fused multiply-add a little more.
ULPS = {"sigmoid": 4, "tanh": 5, "relu": 0, "exponential": 3}


def samples(dtype):
    """Values of every size at which an activation is not yet constant, and of either sign."""
    random = np.random.default_rng(5)
    small = 10.0 ** random.uniform(-30, 0, 2000)
    values = [small, random.uniform(0, 20, 4000), np.linspace(0, 80, 4001)]
    values = np.concatenate(values)
    return np.concatenate([values, -values]).astype(dtype)


def assert_activation(name, x, y):
    """Hold y = name(x), in the dtype of both, against extended precision."""
    exact = EXACT[name](x.astype(LONG))
    one_ulp = np.spacing(np.abs(exact).astype(x.dtype)).astype(LONG)
    # Results below the normal range may be flushed: sigmoid(-100) is as good as 0.
    tiny = LONG(np.finfo(x.dtype).tiny)
    error = np.abs(y.astype(LONG) - exact)
    worst = np.argmax(error / (ULPS[name] * one_ulp + tiny))
    assert (error <= ULPS[name] * one_ulp + tiny).all(), (
        f"{name}({x[worst]!r}) is {y[worst]!r}, {error[worst] / one_ulp[worst]} ulp off"
    )


def assert_special_values(name, dtype, activation):
    """NaN, infinities, zeros, denormals and the largest numbers."""
    info = np.finfo(dtype)
    x = np.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, info.tiny / 4, -info.tiny / 4, info.max, -info.max],
        dtype=dtype,
    )
    small = info.tiny / 4
    expected = {
        "sigmoid": [np.nan, 1, 0, 0.5, 0.5, 0.5, 0.5, 1, 0],
        "tanh": [np.nan, 1, -1, 0, 0, small, -small, 1, -1],
        "relu": [np.nan, np.inf, 0, 0, 0, small, 0, info.max, 0],
    }[name]
    # What saturates at 0 may stop at the smallest normal number.
    np.testing.assert_allclose(
        activation(x), np.array(expected, dtype=dtype), rtol=2 * info.eps, atol=info.tiny
    )
    assert np.isnan(activation(x)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXACT)
def test_activations_are_exact_to_a_few_roundings(name, dtype):
    x = samples(dtype)
    assert_activation(name, x, _dev.activation(name, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_activations_of_special_values(name, dtype):
    assert_special_values(name, dtype, lambda x: _dev.activation(name, x))


def activation_by_the_op(name, x):
    """The activation of one step of an RNN without recurrent product."""
    gates_x = torch.from_numpy(x).view(1, 1, 1, 1, -1)
    units = gates_x.shape[-1]
    zeros = gates_x.new_zeros
    # A projection to nothing but zeros would hide y; with w_hh = 0 and h0 = 0 the gate is gates_x.
    loop = LoopInputs(
        gates_x=gates_x,
        x=None,
        w_ih=None,
        b_ih=None,
        w_hh=zeros(1, units, units),
        b_hh=None,
        w_hr=None,
        w_unit=None,
        h0=zeros(1, 1, units),
        c0=None,
        lengths=None,
        resets=None,
    )
    y = forward_op(Config("cpu", f"rnn_{name}", (False,)), loop, KEEP_NOTHING)[0]
    return y.flatten().numpy()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_activations_of_every_instruction_set(name, dtype, isa, monkeypatch):
    if isa not in _dev.instruction_sets():
        pytest.skip(f"this machine or build has no {isa}")
    monkeypatch.setenv("BPTT_CPU_ISA", isa)
    x = samples(dtype)[::17]
    assert_activation(name, x, activation_by_the_op(name, x))
    assert_special_values(name, dtype, lambda x: activation_by_the_op(name, x))


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("BPTT_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match="BPTT_CPU_ISA"):
        torch.ops.bptt.cpu_instruction_set()


def test_bfloat16_is_rounded_as_torch_rounds_it():
    random = np.random.default_rng(3)
    # Every pattern of the upper half, with lower halves that round down, up, and to even both ways.
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = random.choice(
        np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32), 1 << 16
    )
    x = (upper | lower).view(np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16).to(F32).numpy()
    np.testing.assert_array_equal(_dev.through_bfloat16(x), expected)


# --- the plan -------------------------------------------------------------------------------------

plans = {
    "cell": st.sampled_from(ALL_CELLS),
    "is_double": st.booleans(),
    "sizes": st.tuples(
        st.integers(1, 10_000),
        st.integers(0, 2000),
        st.integers(1, 6),
        st.integers(1, 4096),
        st.integers(1, 4096),
    ),
    "vector": st.sampled_from([2, 4, 8, 16]),
    "threads": st.integers(1, 128),
}


@settings(max_examples=300)
@given(**plans)
def test_a_plan_uses_no_more_than_the_threads(cell, is_double, sizes, vector, threads):
    lanes, rows, units = _dev.plan(cell, is_double, list(sizes), vector, threads)
    assert min(lanes, rows, units) >= 1
    assert lanes * rows * units <= threads
    _, batch, directions, hidden, _ = sizes
    assert lanes <= directions
    assert rows <= max(1, batch)
    assert units <= -(-hidden // vector)


@settings(max_examples=300)
@given(**plans, fewer=st.integers(1, 128))
def test_fewer_workers_never_need_more_lanes(cell, is_double, sizes, vector, threads, fewer):
    # Scratch memory is made for the plan of all threads, and used by that of whoever shows up.
    lanes, _, _ = _dev.plan(cell, is_double, list(sizes), vector, threads)
    with_fewer, _, _ = _dev.plan(cell, is_double, list(sizes), vector, min(fewer, threads))
    assert with_fewer <= lanes


@settings(max_examples=300)
@given(
    cell=st.sampled_from(ALL_CELLS),
    sizes=st.tuples(*(st.integers(1, most) for most in (50, 100, 6, 300, 300, 300))),
    threads=st.integers(1, 64),
    fewer=st.integers(1, 64),
)
def test_fewer_workers_never_need_more_scratch(cell, sizes, threads, fewer):
    # A smaller team may cut the batch where a larger one cuts the units, and project more at once.
    most = _dev.forward_scratch(cell, list(sizes), threads)
    assert _dev.forward_scratch(cell, list(sizes), min(fewer, threads)) <= most


def test_small_problems_stay_on_one_thread_and_large_ones_use_all():
    assert _dev.plan("lstm", False, [10, 1, 2, 16, 16], 16, 8) == (1, 1, 1)
    lanes, rows, units = _dev.plan("lstm", False, [100, 64, 2, 512, 512], 16, 8)
    assert lanes == 2 and lanes * rows * units == 8


def test_large_batches_are_cut_between_rows():
    """Large weights are cut between units, unless each worker has many rows for all of them."""
    assert _dev.plan("lstm", False, [1, 255, 1, 512, 512], 16, 2) == (1, 1, 2)
    assert _dev.plan("lstm", False, [1, 256, 1, 512, 512], 16, 2) == (1, 2, 1)


def test_a_call_waits_for_its_team_as_long_as_that_is_worth():
    """From the time a thread takes to wake to some turns of a scheduler, as the work is."""
    times = [_dev.patience([1, batch, 1, 256, 256], 4) for batch in (1, 100, 1000, 100_000)]
    assert times == sorted(times)
    assert times[0] == 200 and 1000 < times[2] < 10_000 and times[-1] == 50_000


MEGABYTE = 1 << 20
sizes_of_weights = st.integers(1, 100 * MEGABYTE)
rows_of_calls = st.integers(1, 500)


@pytest.mark.parametrize("columns", [False, True], ids=["forward", "backward"])
@given(bytes=sizes_of_weights, products=rows_of_calls, batch=rows_of_calls, more=rows_of_calls)
def test_weights_once_packed_stay_so_for_more(columns, bytes, products, batch, more):
    """More products, or more rows in each, never make packing less of a gain."""
    if _dev.placement(bytes, products, batch, columns) == "packed":
        assert _dev.placement(bytes, products + more, batch, columns) == "packed"
    if _dev.placement(bytes, products, batch, columns) != "rows":
        assert _dev.placement(bytes, products, batch + more, columns) != "rows"


@pytest.mark.parametrize(
    ("columns", "megabytes", "products", "batch", "wanted"),
    [
        (False, 4, 1, 1, "rows"),
        (False, 4, 1, 64, "panels"),
        (False, 1, 100, 32, "packed"),
        (True, 4, 0, 64, "rows"),  # no product: nothing to pack
        (True, 0.25, 15, 4, "rows"),
        (True, 0.25, 15, 16, "packed"),
        (True, 4, 1, 8, "rows"),
        (True, 4, 1, 16, "panels"),
        (True, 4, 3, 16, "packed"),
        (True, 16, 3, 1, "rows"),
        (True, 16, 15, 1, "packed"),
    ],
)
def test_weights_are_packed_where_it_was_measured_to_pay(
    columns, megabytes, products, batch, wanted
):
    assert _dev.placement(int(megabytes * MEGABYTE), products, batch, columns) == wanted


def test_many_rows_have_weights_packed_that_spare_them_a_way_through_memory():
    """Where the input is added to the hidden state's product before its gates are stored."""
    for batch, wanted in ((64, "panels"), (1000, "packed")):
        gates = batch * 4 * 256 * 4
        assert _dev.placement(2 * MEGABYTE, 1, batch, False, gates) == wanted
        assert _dev.placement(2 * MEGABYTE, 1, batch, False) == "panels"


@given(st.integers(0, 10_000), st.integers(1, 200))
def test_cutting_covers_everything_once_in_nearly_equal_parts(total, parts):
    ranges = [_dev.cut(total, parts, k) for k in range(parts)]
    assert ranges[0][0] == 0 and ranges[-1][1] == total
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    sizes = {end - begin for begin, end in ranges}
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 10_000), st.integers(1, 200))
def test_dealing_gives_each_part_as_many_as_cards_in_turn(total, parts):
    ranges = [_dev.deal(total, parts, k) for k in range(parts)]
    assert ranges[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert [end - begin for begin, end in ranges] == [
        len(range(k, total, parts)) for k in range(parts)
    ]


@given(st.lists(st.integers(0, 5)))
def test_rows_are_taken_the_longest_first(lengths):
    order = _dev.order_rows(lengths)
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])


# --- the team -------------------------------------------------------------------------------------


def members(pool, wanted, rounds=25):
    """How many members a team had; asserts that each ran once and met all others every round."""
    workers, failures, indices = _dev.run_meeting(pool, wanted, rounds)
    assert not any(failures)
    count = sum(w > 0 for w in workers)
    # Every member, numbered from 0 without gaps, was told the true size of the team, once.
    assert workers == [count] * count + [0] * (wanted - count)
    # A whole team's threads have the numbers that their pool gave them, in each call the same.
    if pool == "threads" and 1 < wanted == count:
        assert indices == list(range(wanted))
    return count


@pytest.mark.parametrize("wanted", [1, 2, 3, 5])
def test_a_team_of_threads_meets_in_every_round(wanted):
    # A thread that starts late is left out by design, so a team may be smaller than wanted.
    assert 1 <= members("threads", wanted) <= wanted


@pytest.mark.parametrize("pool", ["in_turn", "one_piece"])
@pytest.mark.parametrize("wanted", [1, 2, 7])
def test_one_thread_that_runs_every_piece_is_a_team_of_one(pool, wanted):
    assert members(pool, wanted) == 1


@pytest.mark.parametrize("wanted", [2, 3])
def test_who_comes_late_goes_home(wanted):
    assert 1 <= members("latecomer", wanted) < wanted


def test_teams_form_again_and_again():
    assert all(1 <= members("threads", 3, rounds=2) <= 3 for _ in range(30))
