"""The adding problem: remember two numbers over a long time and say their sum."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import FEWEST_STEPS


def adding_problem(
    steps: int, batch: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw sequences of the adding problem.

    Each step holds a number of [-1, 1] and a marker. The marker is 1 at two steps: one of the first
    ten (or T/2 - 1, if that is fewer), and another one of the first T/2 - 1. It is -1 at the first
    and the last step if they are not those two, and 0 elsewhere. With X1 and X2 the marked numbers
    the target at the end is

        0.5 + (X1 + X2) / 4,

    and X1 counts as 0 where the first step is marked. Always saying 0.5 has a mean squared error of
    1/24 or a little less. In the original, lengths lie between T and 1.1 T; here all are T.

    Args:
        steps: T, at least 8.
        batch: B.
        generator: of the CPU.

    Returns:
        Inputs `[T, B, 2]` and targets `[B]`, float64 on the CPU.

    Raises:
        ValueError: too few steps.

    Source: Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), experiment 4.
    """
    if steps < FEWEST_STEPS:
        raise ValueError(f"steps must be at least {FEWEST_STEPS}, got {steps}")
    numbers = torch.rand(steps, batch, dtype=torch.float64, generator=generator) * 2 - 1
    half = steps // 2 - 1
    first = torch.randint(min(10, half), (batch,), generator=generator)
    second = torch.randint(half - 1, (batch,), generator=generator)
    second += second >= first  # any but the first
    markers = torch.zeros_like(numbers)
    markers[0], markers[-1] = -1.0, -1.0
    rows = torch.arange(batch)
    markers[first, rows] = 1.0
    markers[second, rows] = 1.0
    numbers[0] = torch.where(markers[0] == 1, 0.0, numbers[0])
    targets = 0.5 + (numbers[first, rows] + numbers[second, rows]) / 4
    return torch.stack([numbers, markers], dim=-1), targets
