"""Ratios torch.nn / bptt for CI: small, quick, and comparable from machine to machine.

    .venv/bin/python -m pytest benchmarks --benchmark-only --benchmark-json now.json

pytest-benchmark times bptt; torch.nn runs in the set-up of every round, under the same clock, and
what is of interest is `extra_info["ratio"]`. `bptt bench` is the benchmark proper.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.benchmark.utils.timer import timer

from bptt.tools.bench import problems, providers
from bptt.tools.bench.run import SLACK, Setting, relative_error
from bptt.tools.bench.timing import Call, ratio

ROUNDS = 20


@pytest.mark.parametrize("problem", problems.grid("quick", "cpu"), ids=str)
def test_ratio(problem: problems.Problem, benchmark: Any) -> None:
    setting = Setting.of(problem, "cpu")
    theirs, ours = (
        Call(way.make(setting.theirs), setting.x, setting.dy, problem.which, way.context)
        for way in (providers.torch_nn(), providers.ours("bptt"))
    )
    errors = [relative_error(call.results(), setting.exact) for call in (theirs, ours)]
    assert errors[1] <= SLACK * (errors[0] + 1e-7), "wrong, so not timed"
    their_times: list[float] = []

    def before_each() -> None:
        theirs.prepare()
        begin = timer()
        theirs.run()
        their_times.append(timer() - begin)
        ours.prepare()

    benchmark.pedantic(ours.run, setup=before_each, rounds=ROUNDS, warmup_rounds=2)
    if benchmark.stats is None:  # --benchmark-disable: checked, not timed
        return
    our_times = list(benchmark.stats.stats.data)
    their_times = their_times[-len(our_times) :]
    middle, first, third = ratio(their_times, our_times)
    benchmark.extra_info.update(ratio=middle, ratio_q1=first, ratio_q3=third)
