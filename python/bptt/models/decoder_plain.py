"""A decoder without attention: all it knows of the source is one vector, the same at each step.

With c the encoder's last states and e(y) the embedding of a symbol:

    s_u = recurrence([e(y_{u-1}); c], s_{u-1})
    r_u = tanh(W_c [s_u; c])

Under teacher forcing (y_{u-1} is the true symbol) all steps are one call of a fused layer.

Source: Cho et al. 2014 (arXiv 1406.1078), section 2.2, where c is an input of every step;
Sutskever, Vinyals, Le 2014 (arXiv 1409.3215) give it at the start alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Decoded, Memory, State, layer_state, state_of
from .recurrent import Cell, Impl, recurrent


class PlainDecoder(nn.Module):
    """See the module; arguments as `Seq2Seq` has them."""

    def __init__(
        self, embedding: int, hidden: int, *, cell: Cell, layers: int, dropout: float, impl: Impl
    ) -> None:
        super().__init__()
        self.cell = cell
        self.layer = recurrent(
            cell,
            embedding + hidden,
            hidden,
            layers=layers,
            dropout=dropout,
            batch_first=False,
            impl=impl,
        )
        self.combine = nn.Linear(2 * hidden, hidden)  # W_c

    def keys(self, values: Tensor) -> Tensor:
        return values[..., :0]  # nothing is looked up

    def start(self, memory: Memory, states: State) -> State:
        return states

    def forward(self, memory: Memory, embedded: Tensor, state: State) -> Decoded:
        steps, rows = embedded.shape[:2]
        each = rows // len(memory.summary)
        context = memory.summary.repeat_interleave(each, 0).expand(steps, -1, -1)  # [U, N, 2E]
        x = torch.cat([embedded, context], dim=-1)
        states, after = self.layer(x, layer_state(state, self.cell))  # [U, N, S]
        readout = torch.tanh(self.combine(torch.cat([states, context], dim=-1)))
        return Decoded(readout, state_of(after), None)
