"""One to many: the name of a picture, letter by letter.

    z       = tanh(W encoder(picture)),  convolutions
    s_u     = recurrent layer over [e(y_{u-1}); z],  s_0 = z
    p(y_u)  = softmax(V s_u + b),  y_0 the start, until the end

Source: Vinyals et al. 2015 (arXiv 1411.4555), Show and tell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bptt.data.vocabulary import END, PAD, START

from .recurrent import Impl, recurrent


class Captioner(nn.Module):
    """Pictures [B, 3, 32, 32] to names.

    Args:
        symbols: of names; with padding, start and end.
        units: H.
        channels: of the first convolution.
        embedding: of a symbol.
        cell: see `recurrent`.
        dropout: before z, on embeddings and before the output.
        impl: "bptt", or "torch" for torch.nn's layers.
    """

    def __init__(
        self,
        symbols: int,
        *,
        units: int = 256,
        channels: int = 32,
        embedding: int = 64,
        cell: str = "gru",
        dropout: float = 0.0,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after in (
            (3, channels),
            (channels, 2 * channels),
            (2 * channels, 4 * channels),
        ):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            blocks += [convolution, nn.BatchNorm2d(after), nn.ReLU()]  # 32 -> 16 -> 8 -> 4
        self.encoder = nn.Sequential(*blocks, nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.start = nn.Linear(4 * channels * 16, units)
        self.embedding = nn.Embedding(symbols, embedding, padding_idx=PAD)
        self.layer = recurrent(cell, embedding + units, units, impl=impl)
        self.output = nn.Linear(units, symbols)
        self.cell = cell

    def code(self, pictures: Tensor) -> Tensor:
        """z, [B, units]."""
        z: Tensor = self.start(self.dropout(self.encoder(pictures))).tanh()
        return z

    def forward(self, z: Tensor, symbols: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [B, U, symbols] of what follows each of the symbols [B, U], and the state.

        Args:
            z: of the pictures [B, units].
            symbols: int64 [B, U].
            state: to go on from; z if not given, of an LSTM with a cell state of zeros.
        """
        if state is None:
            state = (z[None], torch.zeros_like(z)[None]) if self.cell == "lstm" else z[None]
        wide = z[:, None].expand(-1, symbols.shape[1], -1)
        x = torch.cat([self.dropout(self.embedding(symbols)), wide], 2)
        y, state = self.layer(x, state)
        return self.output(self.dropout(y)), state

    def symbol_losses(self, pictures: Tensor, names: Tensor) -> Tensor:
        """Nats of each symbol after the start, 0 where padding is: [B, U - 1].

        Args:
            pictures: [B, 3, 32, 32].
            names: int64 [B, U], from start to end, padded.
        """
        logits, _ = self(self.code(pictures), names[:, :-1])
        return F.cross_entropy(
            logits.transpose(1, 2), names[:, 1:], ignore_index=PAD, reduction="none"
        )

    def losses(self, pictures: Tensor, names: Tensor) -> dict[str, Tensor]:
        """Mean nats of a symbol; in training, pictures move by up to two pixels."""
        if self.training:
            down, right = torch.randint(-2, 3, (2,)).tolist()
            pictures = pictures.roll((down, right), (2, 3))
        nats = self.symbol_losses(pictures, names)
        return {"nats": nats.sum() / (names[:, 1:] != PAD).sum()}

    @torch.no_grad()
    def name(self, pictures: Tensor, steps: int) -> Tensor:
        """The likeliest symbols, one after another, END past the end: [B, steps]."""
        z, state = self.code(pictures), None
        last = torch.full((len(pictures), 1), START, device=pictures.device)
        written = []
        for _ in range(steps):
            logits, state = self(z, last, state)
            last = logits.argmax(2).where(last != END, END)
            written.append(last)
        return torch.cat(written, 1)
