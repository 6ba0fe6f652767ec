"""What a loop does besides running its cell: regularisation, bounds, and where gradients stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]

# In the order of `csrc/cells/math.h`; "" is the cell's own.
ACTIVATIONS: dict[str, Activation | None] = {
    "": None,
    "sigmoid": torch.sigmoid,
    # F.hardsigmoid takes 1/6 as float32 does, and has no second derivative.
    "hard_sigmoid": lambda x: F.relu6(x + 3) / 6,
    "tanh": torch.tanh,
    "hard_tanh": F.hardtanh,
    "relu": torch.relu,
    "softsign": F.softsign,
    "identity": lambda x: x,
}
_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}


class Control(NamedTuple):
    """The settings of a loop; those of `PLAIN` leave it as its cell's paper has it.

    Attributes:
        gates: a name in `ACTIVATIONS`: the activation of the gates in place of the cell's own.
        states: the same for candidates and for the state on its way out.
        cell_bound: c_t is held within [-cell_bound, cell_bound]; 0 for no bound.
        zoneout_h: probability that an element of the hidden state stays what it was.
        zoneout_c: the same for the cell states.
        sampled: whether zoneout draws masks; else it takes their mean.
        recurrent_dropout: probability that an element of the hidden state does not enter the
            recurrent products, one mask for a whole sequence; the others grow by 1 / (1 - p).
        truncate: k, or 0: no gradient of a state crosses the borders of runs of k steps.
        gradient_bound: elements of dL/dh_t are held within +-gradient_bound; 0 for no bound.
        gradient_norm: rows of dL/dh_t are scaled down to this norm; 0 for no bound.
    """

    gates: str = ""
    states: str = ""
    cell_bound: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    sampled: bool = False
    recurrent_dropout: float = 0.0
    truncate: int = 0
    gradient_bound: float = 0.0
    gradient_norm: float = 0.0

    @property
    def draws(self) -> bool:
        """Whether it needs a seed."""
        zoneout = self.sampled and (self.zoneout_h > 0 or self.zoneout_c > 0)
        return zoneout or self.recurrent_dropout > 0

    def numbers(self) -> list[float]:
        """How the ops take it; empty where nothing is asked for."""
        if self == PLAIN:
            return []
        return [float(_NUMBERS[self.gates]), float(_NUMBERS[self.states]), *map(float, self[2:])]

    def asked(self) -> list[str]:
        """The names of what is asked for."""
        names = (n for n in self._fields if n != "sampled")
        return [n for n in names if getattr(self, n) != getattr(PLAIN, n)]

    def without_randomness(self) -> Control:
        """The same for a single step whose states need no more than their gates."""
        return PLAIN._replace(gates=self.gates, states=self.states, cell_bound=self.cell_bound)


PLAIN = Control()


def from_numbers(numbers: Sequence[float]) -> Control:
    """The inverse of `Control.numbers`."""
    if not numbers:
        return PLAIN
    names = list(ACTIVATIONS)
    gates, states, *rest = numbers
    control = Control(names[int(gates)], names[int(states)], *rest)  # type: ignore[arg-type]
    return control._replace(sampled=control.sampled > 0, truncate=int(control.truncate))
