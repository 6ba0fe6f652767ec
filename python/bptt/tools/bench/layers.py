"""The layers that can be measured: torch.nn's three, and those that bptt has besides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

import bptt

BASELINE = "torch.nn"
# What stands in its place where torch.nn has no such layer: the loop a user would write.
PYTHON = "bptt reference"


@dataclass(frozen=True)
class Kind:
    """A layer with options.

    Attributes:
        layer: its class, by name.
        gates: G.
        share: how much of the hidden state a unit's recurrent product reads: all, a head, nothing.
        options: of the constructor.
    """

    layer: str
    gates: int
    share: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, *sizes: int, **options: Any) -> nn.Module:
        """Of torch.nn where that has it, else of bptt."""
        theirs = hasattr(nn, self.layer) and not self.options
        made: nn.Module = getattr(nn if theirs else bptt, self.layer)(
            *sizes, **options, **self.options
        )
        return made


_PLAIN = {"RNN": 1, "GRU": 3, "LSTM": 4}
LAYERS = tuple(_PLAIN)
KINDS = {
    **{name: Kind(name, gates) for name, gates in _PLAIN.items()},
    **{
        f"{name}-layer_norm": Kind(name, gates, options={"layer_norm": True})
        for name, gates in _PLAIN.items()
    },
    "LSTM-4-heads": Kind("LSTM", 4, 1 / 4, {"num_heads": 4}),
    "LSTM-hard_sigmoid": Kind("LSTM", 4, options={"gate_activation": "hard_sigmoid"}),
    "CIFG": Kind("CIFG", 3),
    "SLSTM": Kind("SLSTM", 4),
    "SLSTM-4-heads": Kind("SLSTM", 4, 1 / 4, {"num_heads": 4}),
    "LightGRU": Kind("LightGRU", 2),
    "MGU": Kind("MGU", 2),
    "IndRNN": Kind("IndRNN", 1, 0),
    "MinGRU": Kind("MinGRU", 2, 0),
    "MinLSTM": Kind("MinLSTM", 3, 0),
    "SRU": Kind("SRU", 4, 0),
    "DiagonalGRU": Kind("DiagonalGRU", 3, 0),
    "DiagonalLSTM": Kind("DiagonalLSTM", 4, 0),
}
OTHERS = tuple(name for name in KINDS if name not in LAYERS)


def baseline_of(layer: str) -> str:
    """The provider that the others of a row are compared with."""
    return BASELINE if layer in LAYERS else PYTHON
