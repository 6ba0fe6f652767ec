"""A decoder whose attention reads its states and does not feed back into them.

    s_u  = recurrence(e(y_{u-1}), s_{u-1})
    a_ut = softmax over t of  s_u . W_a H_t / sqrt(size of s_u)
    c_u  = sum over t of  a_ut H_t
    r_u  = tanh(W_c [s_u; c_u])

So under teacher forcing (y_{u-1} is the true symbol) the whole decoder is one call of a fused
layer, and the attention of all steps one batched product: there is no loop over time here.

Source: Luong, Pham, Manning 2015 (arXiv 1508.04025), equations 5, 6 and 8 ("general"), here scaled
by the square root of the size (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Decoded, Memory, State, attended, by_row, by_source, layer_state, state_of
from .recurrent import Cell, Impl, recurrent


class LuongDecoder(nn.Module):
    """See the module; arguments as `Seq2Seq` has them."""

    def __init__(
        self, embedding: int, hidden: int, *, cell: Cell, layers: int, dropout: float, impl: Impl
    ) -> None:
        super().__init__()
        self.cell = cell
        self.layer = recurrent(
            cell,
            embedding,
            hidden,
            layers=layers,
            dropout=dropout,
            batch_first=False,
            impl=impl,
        )
        self.key = nn.Linear(hidden, hidden, bias=False)  # W_a
        self.combine = nn.Linear(2 * hidden, hidden)  # W_c

    def keys(self, values: Tensor) -> Tensor:
        return self.key(values)

    def start(self, memory: Memory, states: State) -> State:
        return states

    def forward(self, memory: Memory, embedded: Tensor, state: State) -> Decoded:
        states, after = self.layer(embedded, layer_state(state, self.cell))  # [U, N, S]
        context, weights = self.attend(memory, states)
        readout = torch.tanh(self.combine(torch.cat([states, context], dim=-1)))
        return Decoded(readout, state_of(after), weights)

    def attend(self, memory: Memory, states: Tensor) -> tuple[Tensor, Tensor]:
        """The context [U, N, 2E] of each state [U, N, S], and the weights [N, U, T]."""
        steps = len(states)
        queries = by_source(states * states.shape[-1] ** -0.5, len(memory.values))  # [B, K * U, S]
        weights = attended(queries @ memory.keys.transpose(1, 2), memory.padding)
        context = by_row(weights @ memory.values, steps)  # [N, U, 2E]
        return context.transpose(0, 1), by_row(weights, steps)
