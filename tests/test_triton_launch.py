"""What does a call of the Triton backend launch, on a GPU that is not there?

Kernels are compiled for an H200 and reach a driver that does nothing (`no_driver.py`): the way from
tensors to launches is the one on a GPU, nothing is computed.
"""

import contextlib
import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets here", allow_module_level=True)

from bptt.kernels import backward, forward, launch, launcher, plan
from bptt.kernels.no_driver import NoDriver
from bptt.recurrence.cells import CELLS

T, B = 5, 40


@pytest.fixture(scope="session")  # what Triton has compiled stays with the driver it was loaded by
def the_driver(tmp_path_factory):
    return NoDriver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(the_driver):
    the_driver.launches.clear()
    return the_driver


def train(cell, hidden, steps=T, batch=B, directions=2, proj=0, keep_dh=False):
    """Both passes of the raw op."""
    spec, state = CELLS[cell], proj or hidden
    rows = len(spec.gates) * hidden
    gates_x = torch.randn(steps, batch, directions, len(spec.gates), hidden)
    w_hh, h0 = torch.randn(directions, rows, state), torch.randn(directions, batch, state)
    c0 = torch.randn(directions, batch, hidden) if spec.has_cell_state else None
    w_hr = torch.randn(directions, state, hidden) if proj else None
    peephole = torch.randn(directions, 3 * hidden) if spec.unit_weights else None
    options = (None, None)
    reverse = [0, 1][:directions]
    inputs = (w_hh, None, w_hr, peephole, h0, c0, *options)
    y, h_n, c_n, saved, cells = launch.forward(
        "triton", cell, gates_x, None, None, None, *inputs, reverse, "gates"
    )
    dc_n = c_n if spec.has_cell_state else None
    kept = (y, saved, cells)
    rest = (w_hh, w_hr, peephole, h0, c0, *options, reverse)
    return launch.backward("triton", cell, y, h_n, dc_n, *kept, *rest, keep_dh)


@pytest.mark.parametrize(
    ("cell", "hidden", "kernel", "grid"),
    [
        ("gru", 24, "resident", (3, 2, 1)),
        ("lstm", 100, "block", (3, 2, 1)),
        ("gru_reset_before", 32, "block", (3, 2, 1)),
    ],
)
def test_the_block_tier_is_one_launch_a_pass(cell, hidden, kernel, grid, driver):
    train(cell, hidden)
    assert [launched[:3] for launched in driver.launches] == [
        (f"forward_{kernel}", grid, False),
        (f"backward_{kernel}", grid, False),
    ]


@pytest.mark.parametrize(
    ("cell", "hidden", "proj"), [("lstm", 600, 0), ("lstm", 600, 70), ("gru_reset_before", 600, 0)]
)
def test_the_step_tier_launches_each_product_of_each_step(cell, hidden, proj, driver):
    before = driver.count
    train(cell, hidden, proj=proj)
    products = 1 + (proj > 0 or cell == "gru_reset_before")
    names = [f"{way}_step" for way in ("forward", "backward") for _ in range(products * T)]
    assert [launched.kernel for launched in driver.launches] == names
    assert driver.count - before == len(names)
    state = proj or hidden
    widths = [hidden, state] if products == 2 else [hidden]
    for launched, width in zip(driver.launches, widths * T, strict=False):
        assert launched.grid == (3, (width + 31) // 32, 2)


@pytest.mark.parametrize(("cell", "hidden"), [("gru", 24), ("lstm", 100), ("lstm", 600)])
def test_gradients_of_hidden_states_take_no_launch_of_their_own(cell, hidden, driver):
    seen = []
    for keep_dh in (False, True):
        driver.launches.clear()
        dh = train(cell, hidden, keep_dh=keep_dh)[-1]
        seen.append([launched[:3] for launched in driver.launches])
        assert list(dh.shape) == ([T, B, 2, hidden] if keep_dh else [0])
    assert seen[0] == seen[1]


def addresses(io):
    return [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in io]


@pytest.mark.parametrize("proj", [0, 70])
def test_later_steps_differ_from_the_first_in_the_step_alone(proj, driver):
    """The first goes through Triton's search for a compiled kernel, the others past it."""
    train("lstm", 600, proj=proj)
    products = 2 if proj else 1
    for way in (driver.launches[: products * T], driver.launches[products * T :]):
        for k, launched in enumerate(way):
            first = way[k % products]
            assert launched.arguments[1] == k // products
            assert addresses(launched.arguments[0]) == addresses(first.arguments[0])
            assert launched.arguments[2:] == first.arguments[2:]


@pytest.mark.parametrize(("processors", "programs"), [(132, 114), (10, 10)])
def test_a_persistent_launch_has_no_more_programs_than_processors(
    processors, programs, driver, monkeypatch
):
    def planned(*arguments):
        return replace(plan.plan_for(*arguments), tier=plan.PERSISTENT)

    monkeypatch.setattr(launch, "plan_for", planned)
    monkeypatch.setattr(launch, "chip_of", lambda _: plan.Chip(0, processors))
    train("gru", 600)
    assert [launched[:3] for launched in driver.launches] == [
        ("forward_persistent", (programs, 1, 1), True),
        ("backward_persistent", (programs, 1, 1), True),
    ]


@pytest.mark.parametrize(("cell", "hidden"), [("gru", 24), ("lstm", 100), ("lstm", 600)])
def test_new_steps_and_batch_compile_nothing(cell, hidden, driver):
    def compiled():
        kernels = [k for m in (forward, backward) for k in vars(m).values() if hasattr(k, "params")]
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    train(cell, hidden, steps=1, batch=1, directions=1)
    first = compiled()
    assert first > 0
    for steps, batch in ((2, 3), (16, 16), (7, 33), (64, 128)):
        train(cell, hidden, steps, batch, directions=1)
    assert compiled() == first


@pytest.mark.parametrize(("version", "tried"), [("3.6.0", True), ("3.8.1", True), ("4.0.0", False)])
def test_a_triton_nobody_tried_launches_every_step_the_slow_way(
    version, tried, driver, monkeypatch
):
    monkeypatch.setattr(launcher.triton, "__version__", version)
    launcher._is_tried.cache_clear()
    expected = contextlib.nullcontext() if tried else pytest.warns(UserWarning, match="slow way")
    with expected:
        train("lstm", 600)
    names = [f"{way}_step" for way in ("forward", "backward") for _ in range(T)]
    assert [launched.kernel for launched in driver.launches] == names
    launcher._is_tried.cache_clear()
