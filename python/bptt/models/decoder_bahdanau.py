"""A decoder whose attention decides what its next state sees: input feeding, one step at a time.

    a_ut = softmax over t of  v . tanh(W_q s_{u-1} + W_a H_t + w_v v_ut)
    c_u  = sum over t of  a_ut H_t
    s_u  = recurrence([e(y_{u-1}); c_u], s_{u-1})
    r_u  = tanh(W_c [s_u; c_u])

with s_{u-1} the top layer's state, and with coverage v_ut = sum over w < u of a_wt, what was looked
at before; without it that term is not there. A state depends on the context, which depends on the
state before: the decoder takes bptt's cells step by step, while the encoder stays one fused call.

Source: Bahdanau, Cho, Bengio 2015 (arXiv 1409.0473), section 3.1 and appendix A.1.2; See, Liu,
Manning 2017 (arXiv 1704.04368), equations 10 and 11, for the coverage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import Decoded, Memory, State, attended
from .recurrent import Cell, Impl, recurrent_cell


class BahdanauDecoder(nn.Module):
    """See the module; arguments as `Seq2Seq` has them.

    The state carries the coverage [1, N, T] after the layers' states, if `coverage` is true.
    """

    def __init__(
        self,
        embedding: int,
        hidden: int,
        *,
        cell: Cell,
        layers: int,
        dropout: float,
        impl: Impl,
        coverage: bool = False,
    ) -> None:
        super().__init__()
        inputs = [embedding + hidden] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(recurrent_cell(cell, size, hidden, impl) for size in inputs)
        self.parts = 2 if cell == "lstm" else 1  # states of a cell
        self.query = nn.Linear(hidden, hidden, bias=False)  # W_q
        self.key = nn.Linear(hidden, hidden)  # W_a
        self.energy = nn.Linear(hidden, 1, bias=False)  # v
        self.covered = nn.Linear(1, hidden, bias=False) if coverage else None  # w_v
        self.combine = nn.Linear(2 * hidden, hidden)  # W_c
        self.dropout = nn.Dropout(dropout)  # between layers

    def keys(self, values: Tensor) -> Tensor:
        return self.key(values)

    def start(self, memory: Memory, states: State) -> State:
        if self.covered is None:
            return states
        return *states, torch.zeros_like(memory.keys[None, :, :, 0])

    def forward(self, memory: Memory, embedded: Tensor, state: State) -> Decoded:
        layers = [list(part.unbind(0)) for part in state[: self.parts]]  # by part, by layer: [N, S]
        coverage = state[self.parts][0] if self.covered is not None else None  # [N, T]
        tops, contexts, weights = [], [], []
        for symbol in embedded.unbind(0):  # [N, e]
            context, weight = self._attend(memory, layers[0][-1], coverage)
            coverage = None if coverage is None else coverage + weight
            x = torch.cat([symbol, context], dim=-1)
            for i, cell in enumerate(self.cells):
                after: Any = cell(x, self._of_layer(layers, i))
                for part, new in zip(layers, after if self.parts == 2 else (after,), strict=True):
                    part[i] = new
                x = self.dropout(layers[0][i])
            tops.append(layers[0][-1])
            contexts.append(context)
            weights.append(weight)
        both = torch.cat([torch.stack(tops), torch.stack(contexts)], dim=-1)  # [U, N, 2S]
        extra = () if coverage is None else (coverage[None],)
        after_all = (*(torch.stack(part) for part in layers), *extra)
        return Decoded(torch.tanh(self.combine(both)), after_all, torch.stack(weights, 1))

    def _of_layer(self, layers: list[list[Tensor]], i: int) -> Any:
        return (layers[0][i], layers[1][i]) if self.parts == 2 else layers[0][i]

    def _attend(
        self, memory: Memory, state: Tensor, coverage: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The context [N, 2E] for states [N, S], and the weights [N, T]."""
        sources = len(memory.values)
        sums = memory.keys[:, None] + self.query(state).unflatten(0, (sources, -1))[:, :, None]
        if coverage is not None and self.covered is not None:
            sums = sums + self.covered(coverage.unflatten(0, (sources, -1))[..., None])
        energies = self.energy(torch.tanh(sums))[..., 0]  # [B, K, T]
        weights = attended(energies, memory.padding)
        return (weights @ memory.values).flatten(0, 1), weights.flatten(0, 1)
