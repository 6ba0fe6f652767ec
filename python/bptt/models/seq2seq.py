"""Encoder, attention, decoder: one sequence of symbols in, another out.

With e a learnt embedding, source symbols x_1..x_T, target symbols y_1..y_U and y_0 the start:

    H_t  = [forward_t; backward_t]    bidirectional recurrence over e(x_1)..e(x_T)
    s_0  = tanh(W_b [forward_T; backward_1])
    s_u  = recurrence(e(y_{u-1}), s_{u-1})
    a_ut = softmax over t of  s_u . W_a H_t / sqrt(size of s_u)
    c_u  = sum over t of  a_ut H_t
    p(y_u | y_<u, x) = softmax(W_o tanh(W_c [s_u; c_u]))

The attention reads the decoder's states and does not feed back into them, so under teacher forcing
(y_{u-1} is the true symbol) the whole decoder is one call of a fused layer and the attention of all
steps one batched product: there is no loop over time here, except in `greedy`.

Source: Sutskever, Vinyals, Le 2014 (arXiv 1409.3215) for encoder and decoder; Bahdanau, Cho, Bengio
2015 (arXiv 1409.0473) for the bidirectional encoder and s_0; Luong, Pham, Manning 2015 (arXiv
1508.04025), equations 5, 6 and 8 ("general"), for the attention, here scaled by the square root of
the size (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .recurrent import Cell, Impl, recurrent

State = Any  # what the decoder layer takes and returns: [1, B, S], or two of them for the LSTM


class Memory(NamedTuple):
    """What the decoder attends to.

    Attributes:
        keys: W_a H, [B, T, S].
        values: H, [B, T, 2E].
        padding: bool [B, 1, T], true past the length of a source.
    """

    keys: Tensor
    values: Tensor
    padding: Tensor


class Seq2Seq(nn.Module):
    """A bidirectional encoder and a decoder with attention.

    Args:
        source_symbols: size of the source vocabulary.
        target_symbols: size of the target vocabulary.
        hidden: size S of the decoder's state; the encoder has E = S / 2 in each direction.
        embedding: size of both embeddings.
        cell: "gru", "lstm" or "rnn".
        dropout: on embeddings and before the output.
        impl: "bptt", or "torch" for torch.nn's layers.

    Raises:
        ValueError: an unknown cell or implementation, or an odd `hidden`.
    """

    def __init__(
        self,
        source_symbols: int,
        target_symbols: int,
        *,
        hidden: int = 256,
        embedding: int = 64,
        cell: Cell = "gru",
        dropout: float = 0.0,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        if hidden % 2:
            raise ValueError(f"hidden must be even (half for each direction), got {hidden}")
        self.cell = cell
        self.source_embedding = nn.Embedding(source_symbols, embedding)
        self.target_embedding = nn.Embedding(target_symbols, embedding)
        kind: dict[str, Any] = {"cell": cell, "batch_first": False, "impl": impl}
        self.encoder = recurrent(inputs=embedding, hidden=hidden // 2, bidirectional=True, **kind)
        self.decoder = recurrent(inputs=embedding, hidden=hidden, **kind)
        self.bridge = nn.Linear(hidden, hidden)  # W_b
        self.key = nn.Linear(hidden, hidden, bias=False)  # W_a
        self.combine = nn.Linear(2 * hidden, hidden)  # W_c
        self.output = nn.Linear(hidden, target_symbols)  # W_o
        self.dropout = nn.Dropout(dropout)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """Read the sources once.

        Args:
            source: int64 [T, B], anything past the lengths.
            lengths: int64 [B], on the source's device.

        Returns:
            The memory to attend to and the decoder's first state.
        """
        embedded = self.dropout(self.source_embedding(source))  # [T, B, embedding]
        values, last = self.encoder(embedded, lengths=lengths)  # [T, B, 2E], [2, B, E]
        h = last[0] if self.cell == "lstm" else last
        h = torch.tanh(self.bridge(h.transpose(0, 1).flatten(1)))[None]  # [1, B, S]
        steps = torch.arange(source.shape[0], device=source.device)
        padding = steps >= lengths[:, None, None]  # [B, 1, T]
        memory = Memory(self.key(values).transpose(0, 1), values.transpose(0, 1), padding)
        return memory, (h, torch.zeros_like(h)) if self.cell == "lstm" else h

    def decode(self, memory: Memory, previous: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores of the symbols that follow each of `previous`.

        Args:
            memory: from `encode`.
            previous: int64 [U, B], y_{u-1} of every step.
            state: from `encode`, or from the last call when decoding step by step.

        Returns:
            Logits [U, B, target_symbols] and the state after the last step.
        """
        embedded = self.dropout(self.target_embedding(previous))  # [U, B, embedding]
        states, state = self.decoder(embedded, state)  # [U, B, S]
        context, _ = self.attend(memory, states)  # [U, B, 2E]
        combined = torch.tanh(self.combine(torch.cat([states, context], dim=-1)))  # [U, B, S]
        return self.output(self.dropout(combined)), state

    def attend(self, memory: Memory, states: Tensor) -> tuple[Tensor, Tensor]:
        """The context [U, B, 2E] of each decoder state [U, B, S], and the weights [B, U, T]."""
        queries = states.transpose(0, 1) * states.shape[-1] ** -0.5  # [B, U, S]
        energies = queries @ memory.keys.transpose(1, 2)  # [B, U, T]
        # The lowest finite value: minus infinity would make NaN of a source of length 0.
        lowest = torch.finfo(energies.dtype).min
        weights = energies.masked_fill(memory.padding, lowest).softmax(dim=-1)
        return (weights @ memory.values).transpose(0, 1), weights

    def forward(self, source: Tensor, lengths: Tensor, previous: Tensor) -> Tensor:
        """Teacher forcing: logits [U, B, target_symbols] for the symbols after `previous` [U, B].

        Args as in `encode` and `decode`; `previous` is the target shifted by one, start first.
        """
        memory, state = self.encode(source, lengths)
        return self.decode(memory, previous, state)[0]

    @torch.no_grad()
    def greedy(
        self, source: Tensor, lengths: Tensor, *, start: int, end: int, max_steps: int
    ) -> Tensor:
        """Take the likeliest symbol at each step, for all sources at once.

        Args:
            source: int64 [T, B]; lengths: int64 [B].
            start: index of y_0.
            end: index that ends a sequence; what follows it in a column is to be ignored.
            max_steps: longest output.

        Returns:
            int64 [U, B] with U at most `max_steps`.
        """
        memory, state = self.encode(source, lengths)
        symbol = torch.full_like(source[:1], start)  # [1, B]
        ended = torch.zeros_like(symbol, dtype=torch.bool)
        steps: list[Tensor] = []
        while len(steps) < max_steps and not bool(ended.all()):
            logits, state = self.decode(memory, symbol, state)
            symbol = logits.argmax(dim=-1)  # [1, B]
            ended |= symbol == end
            steps.append(symbol)
        return torch.cat(steps)
