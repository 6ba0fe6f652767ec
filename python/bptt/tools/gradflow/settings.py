"""What is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

DTYPES = ("float32", "float64", "bfloat16", "float16")
PLAIN = "plain"
FEWEST_STEPS = 8  # of the adding problem


@dataclass(frozen=True)
class Settings:
    """The task, the networks and their training.

    Attributes:
        steps: T, the length of the sequences.
        hidden: H, units of each layer.
        batch: B, sequences that are measured, and in a batch of training.
        layers: L.
        train: steps of training before the second measurement; 0 for none.
        gain: what the initial hidden-to-hidden weights are multiplied by.
        forget_bias: the LSTM's initial bias of the forget gate. torch.nn's is about 0, which
            halves the cell state at every step; 1 is the advice of Jozefowicz, Zaremba and
            Sutskever, "An Empirical Exploration of Recurrent Network Architectures" (2015).
        learning_rate: of Adam.
        truncate: k of runs whose gradients stop every k steps, beside the plain ones; 0 for none.
        clip: bound of the norm of dL/dh_t at every step, of runs beside the plain ones; 0 for none.
        seed: of weights and data.
        dtype: of weights and data, a name in `DTYPES`.
        device: where all runs.

    Raises:
        ValueError: naming the attribute, what was expected and what came.
    """

    steps: int = 100
    hidden: int = 64
    batch: int = 64
    layers: int = 1
    train: int = 300
    gain: float = 1.0
    forget_bias: float = 1.0
    learning_rate: float = 2e-3
    truncate: int = 0
    clip: float = 0.0
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {
            "steps": FEWEST_STEPS,
            "hidden": 1,
            "batch": 1,
            "layers": 1,
            "train": 0,
            "truncate": 0,
        }
        least["seed"] = 0
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")
        for name in ("gain", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if not (math.isfinite(self.clip) and self.clip >= 0):
            raise ValueError(f"clip must be a finite number of 0 or more, got {self.clip}")
        if not math.isfinite(self.forget_bias):
            raise ValueError(f"forget_bias must be finite, got {self.forget_bias}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")

    def treatments(self) -> dict[str, dict[str, Any]]:
        """Options of the layers by the names of the runs that have them, the plain ones first."""
        found: dict[str, dict[str, Any]] = {PLAIN: {}}
        if self.truncate:
            found[f"truncate={self.truncate}"] = {"truncate": self.truncate}
        if self.clip:
            found[f"clip={self.clip:g}"] = {"clip_grad_norm": self.clip}
        return found
