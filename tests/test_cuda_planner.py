"""Can every plan for a GPU run there, and is the tier the expected one? Needs no GPU."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt import _dev
from bptt.engines import gpu
from bptt.recurrence.cells import CELLS
from cases import ALL_CELLS

# Capability, processors, bytes of shared memory that one block may have, MHz.
H200 = (90, 132, 232448, 1980)
A100 = (80, 108, 166912, 1410)
DEVICES = {
    "h200": H200,  # and the H100 in a socket
    "h100_card": (90, 114, 232448, 1755),
    "a100": A100,
    "rtx4090": (89, 128, 101376, 2520),
    "b200": (100, 148, 232448, 1965),
    "rtx5090": (120, 170, 101376, 2407),
    "h200_slice": (90, 16, 232448, 1980),
}
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
TIERS = ("block", "cluster", "grid", "step")
CUT = ("team", "units", "rows", "passes", "parts", "held", "threads")


def question(
    cell="lstm", number="bf16", steps=512, batch=16, directions=1, hidden=256, state=None,
    backward=False, device=H200,
):  # fmt: skip
    sizes = [steps, batch, directions, hidden, hidden if state is None else state]
    return _dev.GpuQuestion(cell, number, sizes, state is not None, backward, list(device))


def plan(tier=None, **problem):
    """The best plan, or the best of a tier; None where there is none."""
    asked = question(**problem)
    return _dev.plan_gpu(asked) if tier is None else _dev.plan_tier(asked, tier)


def error_of(plan, **problem):
    return _dev.plan_error(question(**problem), plan["tier"], [plan[name] for name in CUT])


# --- the rules, stated once more ------------------------------------------------------------------


def ceil(a, b):
    return -(-a // b)


def rounded_up(a, b):
    return ceil(a, b) * b


def weight_rows(plan, cell, backward):
    """Rows of a block's weights as matrix instructions take them, 8 from registers or 16."""
    rows = plan["units"] * (1 if backward else len(CELLS[cell].gates))
    return 8 if plan["held"] and rows <= 8 else rounded_up(rows, 16)


def part_depth(plan, cell, number, backward):
    columns = plan["team"] * plan["units"] * (len(CELLS[cell].gates) if backward else 1)
    return rounded_up(ceil(rounded_up(columns, 128 // BYTES[number]), plan["parts"]), 64)


def shared_bytes(plan, cell, number, backward):
    """What a block keeps in shared memory, counted array by array."""
    spec, size = CELLS[cell], BYTES[number]
    weights = weight_rows(plan, cell, backward)
    gates, word = len(spec.gates), 4 // size
    units, rows, all_rows = plan["units"], plan["rows"], plan["rows"] * plan["passes"]
    columns = plan["team"] * units * (gates if backward else 1)
    pitch = rounded_up(columns, 128 // size) + 16 // size
    fetched = gates
    if backward:  # saved values, dy, and two states of which cell states are float
        fetched = len(spec.saved) + 1 + 2 * (word if len(spec.states) == 2 else 1)
    carried = len(spec.states) + (len(spec.unit_weights) if backward else 0)
    sums = plan["parts"] * rows * (weights + 4) * 4
    if plan["held"]:  # four instructions' depth of what registers get lies in their place at first
        sums = max(sums, plan["parts"] * weights * (4 * 32 * (16 // min(weights, 16)) + 16))
    arrays = [
        0 if plan["held"] else weights * pitch * size,
        (1 if plan["tier"] == "grid" else 2) * rows * pitch * size,
        sums,
        carried * all_rows * units * 4,
        0 if backward else 2 * gates * units * 4,  # biases
        fetched * all_rows * units // word * 4,
    ]
    return rounded_up(sum(arrays), 8) + 16


def assert_cut(p, cell, number, batch, hidden, backward):
    assert p["units"] % (4 // BYTES[number]) == 0
    assert p["team"] == ceil(hidden, p["units"])
    assert p["rows"] % 8 == 0 and 8 <= p["rows"] <= min(64, rounded_up(batch, 8))
    assert p["passes"] == 1 or p["tier"] == "grid"
    assert p["threads"] % 32 == 0 and 32 <= p["threads"] <= 256
    # No pass and no part is empty.
    assert p["rows"] * (p["passes"] - 1) < batch
    gates = len(CELLS[cell].gates)
    columns = p["team"] * p["units"] * (gates if backward else 1)
    depth = rounded_up(columns, 128 // BYTES[number])
    part = part_depth(p, cell, number, backward)
    assert part * (p["parts"] - 1) < depth <= part * p["parts"]
    rows = weight_rows(p, cell, backward)
    if p["held"]:  # in 128 registers of each thread
        assert number != "fp32"
        assert ceil(rows, 16) * p["parts"] * 32 <= p["threads"]
        assert min(rows, 16) * part * BYTES[number] <= 128 * 32 * 4
    elif number != "fp32":  # the least that occupies all warps, or less
        assert p["parts"] == 1 or (p["parts"] - 1) * rows // 16 * ceil(p["rows"], 32) < 8


def assert_residency(p, device, teams):
    capability, processors, shared, _ = device
    if p["tier"] == "block":
        assert p["team"] == 1 and p["exchanges"] == 0
        fit = min((shared + 1024) // (p["shared_bytes"] + 1024), 2048 // p["threads"])
        assert p["waves"] >= ceil(p["blocks"], processors * fit)
    elif p["tier"] == "cluster":
        assert capability >= 90
        assert 2 <= p["team"] <= (16 if capability in (90, 100) else 8)
        assert p["exchanges"] == 1
        assert p["waves"] >= ceil(teams, max(1, processors // p["team"]))
    else:
        assert p["team"] >= 2 and p["blocks"] <= processors
        assert p["waves"] == 1 and p["exchanges"] == 1


def assert_plan(p, device, cell, number, steps, batch, directions, hidden, backward):
    """That a launch by the plan is possible."""
    spec = CELLS[cell]
    assert 0 < p["step_us"] < p["sequence_us"] * 1.001
    assert p["step_us"] * steps <= p["sequence_us"] * 1.001
    if p["tier"] == "step":
        assert p["exchanges"] == spec.stages and p["blocks"] >= 1 and p["waves"] >= 1
        return
    assert spec.stages == 1
    assert_cut(p, cell, number, batch, hidden, backward)
    assert p["shared_bytes"] == shared_bytes(p, cell, number, backward) <= device[2]
    slices = ceil(batch, p["rows"] * p["passes"])
    assert p["blocks"] == p["team"] * slices * directions
    assert slices <= 65535 and directions <= 65535
    assert p["tier"] != "grid" or steps * p["team"] < 2**31
    assert_residency(p, device, slices * directions)


# --- all plans obey them --------------------------------------------------------------------------

HIDDEN = (1, 2, 3, 7, 16, 33, 64, 100, 128, 192, 250, 256, 384, 512, 768, 1000, 1024, 2048, 4096)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("number", BYTES)
@pytest.mark.parametrize("cell", ALL_CELLS)
@pytest.mark.parametrize("device", DEVICES)
def test_every_plan_can_run(device, cell, number, backward):
    for hidden, batch, directions in itertools.product(HIDDEN, (1, 9, 64, 300), (1, 2, 5)):
        problem = {
            "cell": cell, "number": number, "steps": 100, "batch": batch,
            "directions": directions, "hidden": hidden, "backward": backward,
            "device": DEVICES[device],
        }  # fmt: skip
        asked = question(**problem)
        best = _dev.plan_gpu(asked)
        plans = [p for tier in TIERS if (p := _dev.plan_tier(asked, tier))]
        assert min(p["sequence_us"] for p in plans) == best["sequence_us"]
        for p in [best, *plans]:
            assert error_of(p, **problem) is None, (p, problem)
            assert_plan(p, **problem)


problems = st.fixed_dictionaries(
    {
        "cell": st.sampled_from(ALL_CELLS),
        "number": st.sampled_from(list(BYTES)),
        "steps": st.integers(1, 2**33),
        "batch": st.one_of(st.integers(1, 300), st.integers(1, 2**34)),
        "directions": st.one_of(st.integers(1, 4), st.integers(1, 2**34)),
        "hidden": st.one_of(st.integers(1, 1500), st.integers(1, 2**34)),
        "backward": st.booleans(),
        "device": st.sampled_from(list(DEVICES.values())),
    }
)


@settings(max_examples=500)
@given(problems)
def test_a_plan_of_any_size_can_run(problem):
    p = plan(**problem)
    assert error_of(p, **problem) is None
    assert_plan(p, **problem)
    assert plan(**problem) == p


def persistent_plans(problem):
    return [p for tier in TIERS[:3] if (p := plan(tier, **problem))]


@settings(max_examples=300)
@given(problems, st.data())
def test_a_damaged_plan_is_refused(problem, data):
    found = persistent_plans(problem)
    if not found:
        return
    p = data.draw(st.sampled_from(found))
    memory = problem["device"][2]
    damages = [
        {"rows": p["rows"] + 1},
        {"rows": 72},
        {"rows": 0},
        {"passes": 0},
        {"passes": 2**20},
        {"parts": 0},
        {"parts": 2**20},
        {"team": 0},
        {"team": p["team"] + 1},
        {"team": p["team"] - 1},
        {"team": 2**20},
        {"units": 0},
        {"units": -p["units"]},
        {"units": 2**30},
        {"units": memory, "team": ceil(problem["hidden"], memory)},
        {"threads": 0},
        {"threads": p["threads"] + 1},
        {"threads": 288},
        {"held": 2},
        {"held": -1},
        {"tier": "block" if p["tier"] != "block" else "grid"},
        {"tier": "block" if p["tier"] != "block" else "cluster"},
    ]
    if BYTES[problem["number"]] == 2:
        damages.append({"units": p["units"] + 1})
    if p["tier"] != "grid":
        damages.append({"passes": 2})
    if problem["number"] == "fp32":
        damages.append({"held": 1})
    if p["held"]:
        damages.append({"parts": 9})
        holders = ceil(weight_rows(p, problem["cell"], problem["backward"]), 16) * p["parts"]
        if holders > 1:
            damages.append({"threads": 32 * (holders - 1)})
    for damage in damages:
        assert error_of({**p, **damage}, **problem) is not None, damage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": A100}, "no clusters"),
        ({"device": (120, 170, 232448, 2407)}, "no such large clusters"),
        ({"cell": "gru_reset_before"}, "two products"),
        ({"state": 128}, "projection"),
        ({"hidden": 512}, "does not cover"),
        ({"hidden": 128}, "without units"),
        ({"hidden": 0}, "out of range"),
        ({"directions": 65536}, "directions"),
        ({"device": (90, 132, 8 * 1024, 1980)}, "shared memory"),
        ({"number": "fp32"}, "registers"),
    ],
)
def test_a_plan_for_another_problem_is_refused(changes, message):
    p = plan("cluster", hidden=256)
    assert p["team"] == 16
    assert message in error_of(p, **{"hidden": 256, **changes})


def test_a_grid_must_be_resident_and_its_counter_hold_all_steps():
    p = plan("grid", hidden=1024)
    assert error_of(p, hidden=1024) is None
    assert "all blocks" in error_of(p, hidden=1024, directions=3)
    assert "all blocks" in error_of(p, hidden=1024, device=(90, p["blocks"] - 1, 232448, 1980))
    assert "counter" in error_of(p, hidden=1024, steps=2**31 // p["team"])


@pytest.mark.parametrize("team", range(6))
def test_the_step_tier_looks_at_the_blocks_of_a_tile_alone(team):
    numbers = dict.fromkeys(CUT, 0) | {"tier": "step", "team": team}
    error = error_of(numbers, hidden=10**6)
    assert (error is None) == (team in (1, 2, 4)), error
    of_old = error_of(numbers, hidden=10**6, device=(80, 108, 166912, 1410))
    assert (of_old is None) == (team == 1), of_old


def test_blocks_share_a_tile_where_there_are_processors_to_spare():
    """A backward pass of 32 tiles, each of 128 slices; and one of as many tiles as processors."""
    shared = plan("step", number="tf32", hidden=1024, batch=64, backward=True)
    assert shared["team"] > 1 and shared["blocks"] == 32 * shared["team"]
    assert plan("step", number="tf32", hidden=1024, batch=256, backward=True)["team"] == 1
    assert plan("step", hidden=64, batch=64)["team"] == 1  # a slice or two
    old = (80, 108, 166912, 1410)
    assert (
        plan("step", number="tf32", hidden=1024, batch=64, backward=True, device=old)["team"] == 1
    )


# --- the tiers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("number", ["fp16", "bf16"])
@pytest.mark.parametrize("cell", [c for c in ALL_CELLS if CELLS[c].stages == 1])
@pytest.mark.parametrize("hidden", [1, 32, 64])
def test_small_weights_stay_in_a_block(cell, number, hidden, backward):
    assert plan(cell=cell, number=number, hidden=hidden, backward=backward)["tier"] == "block"


def test_the_grid_takes_weights_that_no_cluster_holds():
    assert plan("cluster", hidden=1024) is None
    assert plan(hidden=1024)["tier"] == "grid"
    assert plan(hidden=1024, backward=True)["tier"] == "grid"
    assert plan(hidden=256)["tier"] in ("block", "cluster")


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("device", ["a100", "rtx4090"])
def test_no_clusters_before_hopper(hidden, device):
    assert plan("cluster", hidden=hidden, device=DEVICES[device]) is None
    assert plan(hidden=hidden, device=DEVICES[device])["tier"] != "cluster"


@pytest.mark.parametrize("backward", [False, True])
def test_two_products_and_what_fits_nowhere_take_the_step_tier(backward):
    two_stages = plan(cell="gru_reset_before", hidden=64, backward=backward)
    projected = plan(hidden=64, state=32, backward=backward)
    assert two_stages["tier"] == projected["tier"] == "step"
    assert two_stages["exchanges"] == projected["exchanges"] == 2
    large = plan(hidden=8192, backward=backward)
    assert large["tier"] == "step" and large["exchanges"] == 1
    assert all(plan(tier, hidden=8192, backward=backward) is None for tier in TIERS[:3])
    # As large as the state, but a projection all the same.
    assert plan(hidden=64, state=64, backward=backward)["tier"] == "step"


def test_a_device_that_does_not_tell_its_clock():
    p = plan(device=(90, 132, 232448, 0))
    assert 0.5 < p["step_us"] < 10


@pytest.mark.parametrize("device", [(90, 0, 232448, 1980), (90, 132, 0, 1980), (0, -1, -1, -1)])
def test_an_impossible_device_gets_the_step_tier(device):
    p = plan(device=device)
    assert p["tier"] == "step" and 0 < p["step_us"] < 1e6
    assert "the device is out of range" in error_of(plan("cluster"), device=device)


def test_many_sequences_run_in_waves():
    p = plan("block", hidden=128, batch=64 * 132 * 3)
    assert p["waves"] >= 3
    p = plan("cluster", hidden=512, batch=4096)
    assert p["waves"] > 1


# --- the model ------------------------------------------------------------------------------------


def assert_never_falls(times):
    # But for a little: blocks with more to do have more threads, which load the weights sooner, and
    # the search tries numbers of slices in growing steps.
    assert all(later >= 0.96 * sooner for sooner, later in itertools.pairwise(times)), times


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("number", BYTES)
@pytest.mark.parametrize("cell", ALL_CELLS)
@pytest.mark.parametrize("device", DEVICES)
def test_more_work_never_takes_less_time(device, cell, number, backward):
    hidden_sizes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    batches = (1, 8, 16, 64, 128, 256, 512)
    times = {}
    for hidden, batch in itertools.product(hidden_sizes, batches):
        p = plan(
            cell=cell, number=number, hidden=hidden, batch=batch, backward=backward,
            device=DEVICES[device],
        )  # fmt: skip
        times[hidden, batch] = p["sequence_us"]
    for batch in batches:
        assert_never_falls([times[hidden, batch] for hidden in hidden_sizes])
    for hidden in hidden_sizes:
        assert_never_falls([times[hidden, batch] for batch in batches])


def test_longer_sequences_take_longer_and_repay_the_loading_of_weights():
    times = [plan(hidden=256, steps=steps)["sequence_us"] for steps in (1, 2, 10, 100, 1000, 10**6)]
    assert times == sorted(times)
    assert plan(hidden=1024, steps=1)["tier"] == "step"


# Microseconds per step of an LSTM's forward pass in bfloat16 on an H100 that nothing but latencies
# and bandwidths would allow, by a separate model.
FLOORS = {
    256: {1: 0.7, 16: 0.7, 64: 0.7, 256: 0.8},
    512: {1: 0.9, 16: 0.9, 64: 1.1, 256: 2.0},
    768: {1: 1.0, 16: 1.0, 64: 1.5, 256: 2.9},
    1024: {1: 1.1, 16: 1.1, 64: 1.9, 256: 4.3},
    2048: {1: 1.6, 16: 2.0, 64: 4.9, 256: 17},
}


@pytest.mark.parametrize("hidden", FLOORS)
def test_the_modelled_time_lies_above_the_floor_and_not_far(hidden):
    for batch, floor in FLOORS[hidden].items():
        p = plan(hidden=hidden, batch=batch)
        # A launch of the step tier ends with its last wave.
        step = p["step_us"] * (1 if p["tier"] == "step" else p["waves"])
        # Of the step tier's time most is launches and the instructions of its slices.
        most = (10 if p["tier"] == "step" else 6) * floor
        assert floor <= step <= most, f"batch {batch}: {step:.2f} us, floor {floor}"


def test_waves_are_those_that_the_driver_says_clusters_take():
    """Small groups of processors hold fewer clusters than are guessed."""

    def waves(*clusters):
        return gpu.make_plan("lstm", "bf16", (100, 256, 1, 256, 256), False, False,
                             (*H200, *clusters), "cluster")  # fmt: skip

    guessed = waves()
    teams = guessed.blocks // guessed.team
    for room in (teams, teams - 1, 1):
        told = waves(*(0 if size == 1 else room for size in range(1, 17)))
        assert told.waves == -(-told.blocks // told.team // room)
    assert waves(*[0] * 16) == guessed


def test_a_device_of_another_form_is_refused():
    with pytest.raises(RuntimeError, match="device must be"):
        gpu.make_plan("lstm", "bf16", (100, 256, 1, 256, 256), False, False, (*H200, 1))
