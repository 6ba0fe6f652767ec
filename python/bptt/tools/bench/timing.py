"""Times of several calls, in turns, so that all of them see the same clock of the machine.

CPU: the clock of `torch.utils.benchmark`, whose Timer cannot take turns nor prepare each call. GPU:
CUDA events around each call, with the second cache emptied before it and one wait at the end. Both
prepare a call untimed: what it needs is there, and what it would add to is gone. On a CPU the same
call runs once more before it is timed: after another one its caches are cold, its threads asleep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark.utils.timer import timer

FEWEST_ROUNDS, MOST_ROUNDS = 5, 1000
CACHE_BYTES = 256 * 2**20  # more than the second cache of any GPU


class Call:
    """One pass of a module on an input: `prepare`, then `run`, whose time counts.

    Args:
        module: x [T, B, I] to y.
        x: the input.
        dy: the gradient of the output.
        which: one of `problems.PASSES`.
        context: what both run under.
    """

    def __init__(
        self, module: nn.Module, x: Tensor, dy: Tensor, which: str,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:  # fmt: skip
        self.module, self.dy, self.which, self.context = module, dy, which, context
        self.x = x if which == "inference" else x.clone().requires_grad_()
        self.leaves = [self.x, *module.parameters()]
        self.y: Tensor | None = None

    def prepare(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None
        self.y = None  # the graph of the round before
        if self.which == "backward":
            self.y = self.module(self.x)

    def run(self) -> Tensor:
        if self.which == "inference":
            with torch.no_grad():
                return self.module(self.x)
        if self.which != "backward":
            self.y = self.module(self.x)
        assert self.y is not None
        if self.which != "forward":
            self.y.backward(self.dy)
        return self.y

    def results(self) -> list[Tensor]:
        """What a run made: the output, and the gradients of input and weights if there are any."""
        self.prepare()
        y = self.run().detach()
        if self.which in ("inference", "forward"):
            return [y]
        return [y, *(leaf.grad for leaf in self.leaves if leaf.grad is not None)]


@dataclass(frozen=True)
class Spread:
    """Times of one call, in milliseconds."""

    median: float
    q1: float
    q3: float
    rounds: int

    @classmethod
    def of(cls, times: list[float]) -> Spread:
        first, middle, third = quantiles(times, n=4)
        return cls(middle, first, third, len(times))


def short(error: BaseException) -> str:
    """One line of an exception."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


class Failure(Exception):
    """A call that raised while all were timed; `name` is its provider's."""

    def __init__(self, name: str, reason: BaseException) -> None:
        super().__init__(short(reason))
        self.name = name


def measure(calls: Mapping[str, Call], device: str, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call in every round; rounds for about `seconds` in all.

    Raises:
        Failure: a call raised.
    """
    once = _on_gpu if device == "cuda" else _on_cpu
    trial = once(calls)  # warms up, too
    pace = 2 * sum(trial.values()) / 1e3  # every call comes twice, once to prepare or to warm up
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / max(pace, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, ms in once(calls).items():
            times[name].append(ms)
    return times


@dataclass(frozen=True)
class Plain:
    """A call without anything around it."""

    run: Callable[[], Any]

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def prepare(self) -> None:
        pass


def milliseconds(run: Callable[[], Any], device: str, rounds: int = 10) -> float:
    """Median time of a function of no arguments."""
    once = _on_gpu if device == "cuda" else _on_cpu
    return median([once({"": Plain(run)})[""] for _ in range(rounds + 1)][1:])


def ratio(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Ratio of the medians, and the quartiles of the ratios within each round."""
    first, _, third = quantiles([a / b for a, b in zip(theirs, ours, strict=True)], n=4)
    return median(theirs) / median(ours), first, third


@contextmanager
def _blamed(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as reason:
        raise Failure(name, reason) from reason


def _on_cpu(calls: Mapping[str, Call | Plain]) -> dict[str, float]:
    answer = {}
    for name, call in calls.items():
        with _blamed(name), call.context():
            call.prepare()
            call.run()  # so that caches and threads are its own, not those of the call before
            call.prepare()
            begin = timer()
            call.run()
            answer[name] = (timer() - begin) * 1e3
    return answer


def _on_gpu(calls: Mapping[str, Call | Plain]) -> dict[str, float]:
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")
    events = {}
    for name, call in calls.items():
        with _blamed(name), call.context():
            call.prepare()
            cache.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call.run()
            end.record()
            events[name] = (begin, end)
    torch.cuda.synchronize()
    return {name: begin.elapsed_time(end) for name, (begin, end) in events.items()}
