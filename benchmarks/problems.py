"""The grid of the speed benchmark, and what the project asks of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LAYERS = ("RNN", "GRU", "LSTM")
SHAPES = ((100, 32, 128), (100, 32, 512), (512, 1, 256), (50, 256, 256), (100, 16, 64))
PASSES = ("forward", "forward+backward")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}

# Ratios torch.nn / bptt: the geometric mean over all rows of a layer, and the smallest of any row.
LEAST_MEAN = {"RNN": 2.0, "GRU": 2.0, "LSTM": 1.0}
LEAST_RATIO = 0.95
MOST_IMPORT_S = 0.3  # what importing bptt may add to importing torch
MOST_BUILD_S = 180.0  # the extension from nothing, on two cores
THREADS = 2


@dataclass(frozen=True)
class Problem:
    """One row: a layer of one kind on a batch of sequences, float32.

    Attributes:
        layer: "RNN" (tanh), "GRU" or "LSTM".
        directions: 1 or 2.
        steps, batch, hidden: T, B and H, which is also the number of input features.
        which: "forward" (without gradients) or "forward+backward".
    """

    layer: str
    directions: int
    steps: int
    batch: int
    hidden: int
    which: str

    @property
    def gflop(self) -> float:
        """Billions of operations in the matrix products; a backward pass has two per product."""
        rows = self.directions * GATES[self.layer] * self.hidden
        forward = 2 * self.steps * self.batch * rows * (self.hidden + self.hidden)
        return forward * (1 if self.which == "forward" else 3) / 1e9

    def __str__(self) -> str:
        kind = "bidirectional" if self.directions == 2 else "unidirectional"
        return f"{self.layer}-{kind}-T{self.steps}-B{self.batch}-H{self.hidden}-{self.which}"

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


# The pass changes fastest: both passes of a layer are checked against one float64 run.
GRID = tuple(
    Problem(layer, directions, *shape, which)
    for layer in LAYERS
    for directions in (1, 2)
    for shape in SHAPES
    for which in PASSES
)
