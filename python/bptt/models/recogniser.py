"""Speech to symbols without an alignment: recurrent layers and connectionist classification (CTC).

    f_t         = log of the power in each of M bands of the mel scale, 25 ms around every 10 ms
    h_1..h_T    = recurrent layers over f_1..f_T
    p_t         = softmax(W h_t + b) over a blank and S symbols
    loss        = -log of the sum, over all paths of symbols and blanks that collapse to the labels
                  once repetitions and then blanks go, of the product of their p_t

With layers of one direction the model can listen while somebody speaks: a chunk of samples at a
time, from the states that the last one left, to the same result.

Source: Graves et al. 2006, Connectionist temporal classification (ICML).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Impl, recurrent

BLANK = 0
SILENCE = 1e-6  # power in a band that counts as none


class LogMel(nn.Module):
    """Samples [..., N] to features [..., T, bands]; frame t begins at sample t * hop.

    Args:
        rate: samples a second.
        bands: M.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, bands: int) -> None:
        super().__init__()
        from librosa.filters import mel

        self.width, self.hop = rate // 40, rate // 100
        self.register_buffer("window", torch.hann_window(self.width).clone())
        filters = torch.from_numpy(mel(sr=rate, n_fft=self.width, n_mels=bands, fmin=60))
        self.register_buffer("filters", filters)

    def frames(self, samples: int) -> int:
        """How many frames so many samples fill."""
        return max(0, (samples - self.width) // self.hop + 1)

    def forward(self, samples: Tensor) -> Tensor:
        wave = torch.stft(
            samples, self.width, self.hop, window=self.window, center=False, return_complex=True
        )
        return (self.filters @ wave.abs().square()).clamp_min(SILENCE).log().transpose(-1, -2)


class Recogniser(nn.Module):
    """Features [B, T, bands] to log-probabilities [B, T, 1 + S].

    Args:
        symbols: S.
        rate, bands: see `LogMel`.
        units: H, of each direction.
        cell: see `recurrent`.
        layers, bidirectional: of the recurrent layers.
        dropout: on features, between layers and before the output.
        impl: "bptt", or "torch" for torch.nn's layers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        symbols: int,
        *,
        rate: int = 8000,
        bands: int = 40,
        units: int = 128,
        cell: str = "gru",
        layers: int = 2,
        bidirectional: bool = False,
        dropout: float = 0.0,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        self.features = LogMel(rate, bands)
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("deviation", torch.ones(bands))
        self.layer = recurrent(
            cell,
            bands,
            units,
            layers=layers,
            bidirectional=bidirectional,
            dropout=dropout,
            impl=impl,
        )
        self.bidirectional = bidirectional
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear((2 if bidirectional else 1) * units, 1 + symbols)

    def scale_to(self, features: Tensor) -> None:
        """Takes mean and deviation of features [N, bands] as those of all that will come."""
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0).clamp_min(1e-3))

    def forward(
        self, features: Tensor, lengths: Tensor | None = None, state: Any = None
    ) -> tuple[Tensor, Any]:
        """Log-probabilities of every frame, and the state to go on from."""
        x = (features - self.mean) / self.deviation
        h, state = self.layer(self.dropout(x), state, lengths=lengths)
        return self.output(self.dropout(h)).log_softmax(-1), state

    def losses(
        self, features: Tensor, lengths: Tensor, labels: Tensor, counts: Tensor
    ) -> dict[str, Tensor]:
        """Mean CTC loss of a label, in nats.

        Args:
            features: [B, T, bands].
            lengths: int64 [B], frames.
            labels: int64 [B, U], 1 to S, anything past the counts.
            counts: int64 [B], labels.
        """
        log_p, _ = self(features, lengths)
        loss = F.ctc_loss(
            log_p.transpose(0, 1), labels, lengths, counts, BLANK, "none", zero_infinity=True
        )
        return {"ctc": loss.sum() / counts.sum()}

    @torch.no_grad()
    def hear(self, features: Tensor, lengths: Tensor) -> list[list[int]]:
        """The symbols of each row: the likeliest of every frame, collapsed."""
        best = self(features, lengths)[0].argmax(-1)
        return [
            collapsed(row[:length])[0]
            for row, length in zip(best.tolist(), lengths.tolist(), strict=True)
        ]


def collapsed(path: list[int], last: int = BLANK) -> tuple[list[int], int]:
    """The symbols of a path, repetitions and blanks gone, after a path that ended with `last`."""
    symbols = []
    for one in path:
        if one not in (last, BLANK):
            symbols.append(one)
        last = one
    return symbols, last


class Listening:
    """A model that hears a sound chunk by chunk, to the symbols that it hears in the whole.

    Args:
        model: of one direction.

    Raises:
        ValueError: the model reads both ways, and so must know the end.
    """

    def __init__(self, model: Recogniser) -> None:
        if model.bidirectional:
            raise ValueError("a model of two directions cannot hear chunk by chunk")
        self.model, self.last = model, BLANK
        self.rest = torch.zeros(0)
        self.state: Any = None

    @torch.no_grad()
    def feed(self, samples: Tensor) -> list[int]:
        """The symbols that a chunk [N] of samples adds; N is any."""
        self.rest = torch.cat([self.rest, samples])
        count = self.model.features.frames(len(self.rest))
        if count == 0:
            return []
        features = self.model.features(self.rest)
        self.rest = self.rest[count * self.model.features.hop :]
        log_p, self.state = self.model(features[None], None, self.state)
        symbols, self.last = collapsed(log_p[0].argmax(-1).tolist(), self.last)
        return symbols
