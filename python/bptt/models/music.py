"""Many to many, step by step: which keys sound next, given all that sounded; and one to many.

    h_t     = recurrent layers over x_1..x_t, x_t in {0, 1}^K the keys that sound at step t
    p(k)    = sigmoid(W h_t + b)_k, of key k at step t + 1

Given one chord and its own draws after it, the model composes: one to many.

Source: Boulanger-Lewandowski, Bengio, Vincent 2012 (arXiv 1206.6392), the RNN baseline; Chung et
al. 2014 (arXiv 1412.3555), the comparison of tanh, GRU and LSTM on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Impl, recurrent


class MusicModel(nn.Module):
    """Keys [B, T, keys] in {0, 1} to logits of those of the next step.

    Args:
        keys: K.
        units: H.
        cell: see `recurrent`.
        layers: of recurrence.
        dropout: on inputs, between layers and before the output.
        weight_drop: on hidden-to-hidden weights (Merity, Keskar, Socher, arXiv 1708.02182).
        transpose: in training each piece is moved by up to so many keys, up or down.
        impl: "bptt", or "torch" for torch.nn's layers.
    """

    def __init__(
        self,
        keys: int,
        *,
        units: int = 256,
        cell: str = "gru",
        layers: int = 1,
        dropout: float = 0.0,
        weight_drop: float = 0.0,
        transpose: int = 0,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        self.transpose = transpose
        self.layer = recurrent(
            cell, keys, units, layers=layers, dropout=dropout, weight_drop=weight_drop, impl=impl
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(units, keys)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [B, T, keys], and the state to go on from."""
        h, state = self.layer(self.dropout(x), state)
        return self.output(self.dropout(h)), state

    def step_losses(self, x: Tensor) -> Tensor:
        """Nats of steps 1.. of x [B, T, keys], each given those before: [B, T - 1]."""
        logits, _ = self(x[:, :-1])
        return F.binary_cross_entropy_with_logits(logits, x[:, 1:], reduction="none").sum(2)

    def losses(self, keys: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Mean nats of a step; keys bool [B, T, keys], lengths [B]."""
        x = keys.to(self.output.weight.dtype)
        if self.training and self.transpose:
            x = self._moved(x)
        nats = self.step_losses(x)
        within = torch.arange(1, x.shape[1], device=x.device) < lengths[:, None]
        return {"nats": (nats * within).sum() / within.sum()}

    def _moved(self, x: Tensor) -> Tensor:
        most, keys = self.transpose, x.shape[2]
        moves = torch.randint(-most, most + 1, (len(x), 1, 1), device=x.device)
        places = (torch.arange(keys, device=x.device) - moves) % keys
        return x.gather(2, places.expand(-1, x.shape[1], -1))

    @torch.no_grad()
    def compose(self, chord: Tensor, steps: int) -> Tensor:
        """A piece [steps, keys], bool, from a chord [keys] on; keys are drawn by chance."""
        x, state = chord.to(self.output.weight.dtype)[None, None], None
        piece = [x[0, 0]]
        for _ in range(steps - 1):
            logits, state = self(x, state)
            x = torch.bernoulli(logits.sigmoid())
            piece.append(x[0, 0])
        return torch.stack(piece).bool()
