"""How fast are the layers beside torch.nn's?

A row alternates torch.nn and bptt, call by call, on the same input and weights: the clock of a
machine drifts, and so both sides see the same clock. pytest-benchmark times bptt; torch.nn runs in
the set-up of every round, timed here. A result that is wrong is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from statistics import median, quantiles
from typing import Any

import pytest
import torch
from problems import GRID, THREADS, Problem
from torch import Tensor, nn

import bptt

SECONDS = 2.0  # for the rounds of one row, unless the fewest rounds take longer
FEWEST_ROUNDS, MOST_ROUNDS = 5, 100

Outputs = list[Tensor]


@lru_cache(maxsize=1)
def sides(
    layer: str, directions: int, steps: int, batch: int, hidden: int
) -> tuple[nn.RNNBase, nn.RNNBase, Tensor, Outputs]:
    """torch.nn's layer, bptt's with the same weights, their input, and what float64 makes of it."""
    torch.manual_seed(0)
    theirs = getattr(nn, layer)(hidden, hidden, bidirectional=directions == 2)
    ours = getattr(bptt, layer)(hidden, hidden, bidirectional=directions == 2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, hidden)
    double = getattr(nn, layer)(hidden, hidden, bidirectional=directions == 2).double()
    double.load_state_dict(theirs.state_dict())
    return theirs, ours, x, call_of(double, x.double(), "forward+backward")()


def call_of(layer: nn.RNNBase, x: Tensor, which: str) -> Callable[[], Outputs]:
    """What is timed: a function that returns the output, and the gradients where there are any."""
    if which == "forward":

        def forward() -> Outputs:
            with torch.no_grad():
                return [layer(x)[0]]

        return forward

    x = x.clone().requires_grad_()
    ones = torch.ones_like(layer(x)[0])
    leaves = [x, *layer.parameters()]

    def forward_backward() -> Outputs:
        for leaf in leaves:
            leaf.grad = None  # else the second round would add to the gradients of the first
        y, _ = layer(x)
        y.backward(ones)
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    return forward_backward


def check(ours: Outputs, theirs: Outputs, exact: Outputs) -> float:
    """Hold both sides against float64 and return bptt's largest relative error.

    bptt may lose four times what torch.nn loses in float32, and 32 roundings on top where torch.nn
    happens to lose nothing.
    """
    eps = torch.finfo(torch.float32).eps
    largest = 0.0
    for k, (mine, other, truth) in enumerate(zip(ours, theirs, exact, strict=False)):
        scale = truth.abs().max().item()
        error, theirs_error = ((t.double() - truth).abs().max().item() for t in (mine, other))
        bound = 4 * theirs_error + 32 * eps * scale
        what = "output" if k == 0 else f"gradient {k}"
        # Written so that a NaN fails.
        assert error <= bound, f"{what}: error {error:.3g} above {bound:.3g}: wrong, so not timed"
        largest = max(largest, error / scale)
    return largest


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread_ms(times: list[float]) -> dict[str, float]:
    first, middle, third = quantiles(times, n=4)
    return {"median": 1e3 * middle, "q1": 1e3 * first, "q3": 1e3 * third}


@pytest.mark.parametrize("problem", GRID, ids=str)
def test_speed(problem: Problem, benchmark: Any, record_row: Any) -> None:
    torch.set_num_threads(THREADS)
    theirs, ours, x, exact = sides(
        problem.layer, problem.directions, problem.steps, problem.batch, problem.hidden
    )
    why = bptt.explain(ours, x)
    assert why.backend != "reference", str(why)
    call_theirs, call_ours = (call_of(layer, x, problem.which) for layer in (theirs, ours))
    error = check(call_ours(), call_theirs(), exact)  # also the first warm-up

    pair = seconds(call_theirs) + seconds(call_ours)
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(SECONDS / pair)))
    their_times: list[float] = []
    benchmark.pedantic(
        call_ours, setup=lambda: their_times.append(seconds(call_theirs)), rounds=rounds
    )
    if benchmark.stats is None:  # --benchmark-disable: checked, not timed
        return
    our_times = list(benchmark.stats.stats.data)
    their_times = their_times[: len(our_times)]
    ratios = quantiles([a / b for a, b in zip(their_times, our_times, strict=True)], n=4)
    row = {
        **problem.asdict(),
        "rounds": rounds,
        "torch_ms": spread_ms(their_times),
        "bptt_ms": spread_ms(our_times),
        "ratio": median(their_times) / median(our_times),
        "ratio_q1": ratios[0],  # of the ratios within each round
        "ratio_q3": ratios[2],
        "gflop": problem.gflop,
        "relative_error": error,
        "kernel": f"{why.backend}: {why.kernel}",
    }
    benchmark.extra_info.update(row)
    record_row(row)
