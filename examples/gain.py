"""How long two ways of doing the same take, in turns: what each example prints.

An example's `pair()` gives two functions that do the same work, first as the package does it, then
with bptt; what they return agrees.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from bptt.tools.bench.timing import Plain, measure

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def measured(pair: Pair, seconds: float = 3.0) -> tuple[float, float]:
    """Milliseconds of both, medians."""
    calls = {name: Plain(call) for name, call in zip(("before", "after"), pair, strict=True)}
    times = measure(calls, "cpu", seconds)
    return median(times["before"]), median(times["after"])


def show(pair: Pair) -> None:
    before, after = measured(pair)
    print(f"before {before:.1f} ms, with bptt {after:.1f} ms: {before / after:.2f} times as fast")
