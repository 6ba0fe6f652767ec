"""Encoder, attention, decoder: one sequence of symbols in, another out.

With e a learnt embedding, source symbols x_1..x_T, target symbols y_1..y_U and y_0 the start:

    H_t  = [forward_t; backward_t]    bidirectional layers over e(x_1)..e(x_T)
    s_0  = tanh(W_b [forward_T; backward_1])    of each decoder layer, from the encoder's last one
    r_u  = decoder(e(y_{u-1}), s_{u-1}, H)
    p(y_u | y_<u, x) = softmax(W_o r_u)

The decoder is one of three: `decoder_plain`, `decoder_luong`, `decoder_bahdanau`.

Source: Sutskever, Vinyals, Le 2014 (arXiv 1409.3215) for encoder and decoder; Bahdanau, Cho, Bengio
2015 (arXiv 1409.0473) for the bidirectional encoder and s_0; Bengio et al. 2015 (arXiv 1506.03099)
for feeding the decoder its own symbols in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import search
from .attention import Decoded, Decoder, Memory, State, repetition
from .decoder_bahdanau import BahdanauDecoder
from .decoder_luong import LuongDecoder
from .decoder_plain import PlainDecoder
from .language_model import chosen
from .recurrent import Cell, Impl, recurrent

Attention = Literal["none", "luong", "bahdanau"]
_DECODERS: dict[str, Any] = {"none": PlainDecoder, "luong": LuongDecoder}


class Seq2Seq(nn.Module):
    """A bidirectional encoder and a decoder.

    Args:
        source_symbols: size of the source vocabulary.
        target_symbols: size of the target vocabulary.
        hidden: size S of the decoder's states; the encoder has E = S / 2 in each direction.
        embedding: size of both embeddings.
        layers: L, of encoder and of decoder.
        cell: "gru", "lstm" or "rnn".
        attention: "none", "luong" or "bahdanau".
        coverage: weight of the loss for looking at one place again and again; with "bahdanau" the
            attention also knows where it has looked.
        dropout: on embeddings, between layers and before the output.
        smoothing: part of the probability that the loss spreads over all symbols.
        padding: the target symbol that stands past a sequence's end.
        impl: "bptt", or "torch" for torch.nn's layers and cells.

    Raises:
        ValueError: an unknown cell, attention or implementation, an odd `hidden`, or coverage
            without attention.
    """

    def __init__(
        self,
        source_symbols: int,
        target_symbols: int,
        *,
        hidden: int = 256,
        embedding: int = 64,
        layers: int = 1,
        cell: Cell = "gru",
        attention: Attention = "luong",
        coverage: float = 0.0,
        dropout: float = 0.0,
        smoothing: float = 0.0,
        padding: int = 0,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        if hidden % 2:
            raise ValueError(f"hidden must be even (half for each direction), got {hidden}")
        if attention not in get_args(Attention):
            known = ", ".join(get_args(Attention))
            raise ValueError(f"attention must be one of {known}, got {attention!r}")
        if coverage and attention == "none":
            raise ValueError(f"coverage={coverage} needs an attention, got attention='none'")
        self.cell, self.layers = cell, layers
        self.coverage, self.smoothing, self.padding = coverage, smoothing, padding
        self.source_embedding = nn.Embedding(source_symbols, embedding)
        self.target_embedding = nn.Embedding(target_symbols, embedding)
        self.encoder = recurrent(
            cell,
            embedding,
            hidden // 2,
            layers=layers,
            dropout=dropout,
            bidirectional=True,
            batch_first=False,
            impl=impl,
        )
        self.bridge = nn.Linear(hidden, layers * hidden)  # W_b of every layer
        kind: dict[str, Any] = {"cell": cell, "layers": layers, "dropout": dropout, "impl": impl}
        self.decoder: Decoder = (
            BahdanauDecoder(embedding, hidden, coverage=coverage > 0, **kind)
            if attention == "bahdanau"
            else _DECODERS[attention](embedding, hidden, **kind)
        )
        self.output = nn.Linear(hidden, target_symbols)  # W_o
        self.dropout = nn.Dropout(dropout)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """Read the sources once.

        Args:
            source: int64 [T, B], anything past the lengths.
            lengths: int64 [B], on the source's device.

        Returns:
            The memory of all B sources and the decoder's first state.
        """
        embedded = self.dropout(self.source_embedding(source))  # [T, B, embedding]
        values, last = self.encoder(embedded, lengths=lengths)  # [T, B, 2E], [2L, B, E]
        values = values.transpose(0, 1)
        h = last[0] if self.cell == "lstm" else last
        summary = h[-2:].transpose(0, 1).flatten(1)  # [B, 2E]
        steps = torch.arange(source.shape[0], device=source.device)
        padding = steps >= lengths[:, None]  # [B, T]
        memory = Memory(values, self.decoder.keys(values), padding, summary)
        first = torch.tanh(self.bridge(summary)).unflatten(1, (self.layers, -1)).transpose(0, 1)
        first = first.contiguous()
        states = (first, torch.zeros_like(first)) if self.cell == "lstm" else (first,)
        return memory, self.decoder.start(memory, states)

    def decode(self, memory: Memory, previous: Tensor, state: State) -> tuple[Tensor, Decoded]:
        """Scores of the symbols that follow each of `previous`.

        Args:
            memory: from `encode`.
            previous: int64 [U, N], y_{u-1} of every step; N is B, or a multiple of it.
            state: from `encode`, or from the last call when decoding step by step.

        Returns:
            Logits [U, N, target_symbols], and what the decoder made.
        """
        embedded = self.dropout(self.target_embedding(previous))  # [U, N, embedding]
        made = self.decoder(memory, embedded, state)
        return self.output(self.dropout(made.readout)), made

    def forward(
        self, source: Tensor, lengths: Tensor, previous: Tensor, own: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [U, B, target_symbols] for the symbols after `previous` [U, B]; the attention.

        Args:
            source, lengths: as in `encode`.
            previous: the target shifted by one, start first: teacher forcing.
            own: bool [U, B], true where the decoder is fed the symbol it just found likeliest
                instead. The decoder then goes step by step.

        Returns:
            The logits, and the weights of the attention [B, U, T] or None.
        """
        memory, state = self.encode(source, lengths)
        if own is None:
            logits, made = self.decode(memory, previous, state)
            return logits, made.weights
        steps: list[Tensor] = []
        weights: list[Tensor | None] = []
        symbols = previous[0]
        for truth, mine in zip(previous.unbind(0), own.unbind(0), strict=True):
            symbols = torch.where(mine, symbols, truth) if steps else truth
            logits, made = self.decode(memory, symbols[None], state)
            state, symbols = made.state, logits[0].argmax(-1)
            steps.append(logits)
            weights.append(made.weights)
        looked = None if weights[0] is None else torch.cat([w for w in weights if w is not None], 1)
        return torch.cat(steps), looked

    def losses(
        self, source: Tensor, lengths: Tensor, target: Tensor, own: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Mean over the symbols of the target [U + 1, B] after its first, `padding` left out.

        Returns:
            "entropy", in nats, and with coverage that loss, weighted.
        """
        logits, weights = self(source, lengths, target[:-1], own)
        wanted = target[1:]
        smoothing = self.smoothing if self.training else 0.0
        terms = {
            "entropy": F.cross_entropy(
                logits.flatten(0, 1),
                wanted.flatten(),
                ignore_index=self.padding,
                label_smoothing=smoothing,
            )
        }
        if self.coverage and weights is not None:
            real = (wanted != self.padding).t()  # [B, U]
            again = (repetition(weights) * real).sum() / real.sum()
            terms["coverage"] = self.coverage * again
        return terms

    def _begin(
        self, source: Tensor, lengths: Tensor, start: int, never: Sequence[int] = ()
    ) -> tuple[search.Step, State, Tensor]:
        """What searches go on from: step, state, symbols; those of `never` have no probability."""
        memory, state = self.encode(source, lengths)

        def step(symbols: Tensor, state: State) -> tuple[Tensor, State]:
            logits, made = self.decode(memory, symbols[None], state)
            for symbol in never:
                logits[..., symbol] = -torch.inf
            return logits[0].log_softmax(-1), made.state

        return step, state, torch.full_like(source[0], start)

    @torch.no_grad()
    def greedy(
        self,
        source: Tensor,
        lengths: Tensor,
        *,
        start: int,
        end: int,
        steps: int,
        never: Sequence[int] = (),
    ) -> Tensor:
        """Take the likeliest symbol at each step, for all sources at once.

        Args:
            source, lengths: as in `encode`.
            start: index of y_0.
            end: index that ends a sequence.
            steps: longest output.
            never: symbols that are not taken, such as one for unknown words.

        Returns:
            int64 [B, U] with U at most `steps`; from a sequence's end on, ends.
        """
        begun = self._begin(source, lengths, start, never)
        return search.greedy(*begun, end=end, steps=steps)

    @torch.no_grad()
    def beams(
        self,
        source: Tensor,
        lengths: Tensor,
        *,
        start: int,
        end: int,
        steps: int,
        width: int,
        penalty: float = 1.0,
        never: Sequence[int] = (),
    ) -> search.Beams:
        """The `width` best outputs of each source: see `greedy` and `search.beam_search`."""
        step, state, first = self._begin(source, lengths, start, never)
        return search.beam_search(
            step,
            chosen,
            state,
            first,
            end=end,
            width=width,
            steps=steps,
            penalty=penalty,
        )

    @torch.no_grad()
    def sample(
        self, source: Tensor, lengths: Tensor, *, start: int, end: int, steps: int, **how: Any
    ) -> Tensor:
        """Outputs [B, steps] drawn by chance: see `search.sample` for how."""
        begun = self._begin(source, lengths, start)
        return search.sample(*begun, steps=steps, end=end, **how).t()

    @torch.no_grad()
    def looked(self, source: Tensor, lengths: Tensor, previous: Tensor) -> Tensor | None:
        """Where each step looks, [B, U, T], when the decoder is fed `previous` [U, B]."""
        weights: Tensor | None = self(source, lengths, previous)[1]
        return weights
