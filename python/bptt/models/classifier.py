"""Many to one: a sequence in, a class out; and one to one, the same without a recurrence.

    h_1..h_T = recurrent layers over x_1..x_T, or over embeddings of symbols
    p        = the last hidden states, or the mean or the maximum of h_1..h_T over time
    class    = softmax(W p + b)

The maximum over time of a bidirectional layer is that of Lai et al. 2015, Recurrent convolutional
neural networks for text classification (AAAI), and Conneau et al. 2017 (arXiv 1705.02364).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Impl, last_hidden, recurrent, valid

Pooling = Literal["last", "mean", "max"]


class Classifier(nn.Module):
    """What both kinds share: the loss. A subclass has `forward(x, lengths)`, logits [B, classes].

    Args:
        smoothing: part of the probability that the loss spreads over all classes.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def losses(self, x: Tensor, labels: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """Mean cross-entropy of labels [B], in nats."""
        smoothing = self.smoothing if self.training else 0.0
        logits = self(x, lengths)
        return {"entropy": F.cross_entropy(logits, labels, label_smoothing=smoothing)}


class SequenceClassifier(Classifier):
    """Sequences [B, T, features], or symbols [B, T], to logits [B, classes].

    Args:
        features: size of a step; of an embedding, where there are symbols.
        classes: how many.
        symbols: size of the vocabulary, or 0 for sequences of numbers.
        units: H, of each direction.
        cell: see `recurrent`.
        layers, bidirectional: of the recurrent layers.
        pooling: what is taken of the hidden states: "last", "mean" or "max".
        dropout: on inputs, between layers and before the output.
        weight_drop: on hidden-to-hidden weights (Merity, Keskar, Socher, arXiv 1708.02182).
        noise: standard deviation of what is added to numbers in training.
        smoothing: see `Classifier`.
        impl: "bptt", or "torch" for torch.nn's layers.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        symbols: int = 0,
        units: int = 128,
        cell: str = "gru",
        layers: int = 1,
        bidirectional: bool = True,
        pooling: Pooling = "max",
        dropout: float = 0.0,
        weight_drop: float = 0.0,
        noise: float = 0.0,
        smoothing: float = 0.0,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__(smoothing)
        self.embedding = nn.Embedding(symbols, features) if symbols else None
        self.layer = recurrent(
            cell,
            features,
            units,
            layers=layers,
            bidirectional=bidirectional,
            dropout=dropout,
            weight_drop=weight_drop,
            impl=impl,
        )
        self.directions = 2 if bidirectional else 1
        self.pooling, self.noise = pooling, noise
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.directions * units, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of x, whose steps past `lengths` [B] are not looked at."""
        if self.embedding is not None:
            x = self.embedding(x)
        elif self.training and self.noise:
            x = x + self.noise * torch.randn_like(x)
        y, state = self.layer(self.dropout(x), lengths=lengths)  # [B, T, D * H]
        return self.output(self.dropout(self._pooled(y, state, lengths)))

    def _pooled(self, y: Tensor, state: object, lengths: Tensor | None) -> Tensor:
        if self.pooling == "last":
            return last_hidden(state, self.directions)
        within = valid(y, lengths)
        if self.pooling == "mean":
            return (y * within).sum(1) / within.sum(1).clamp_min(1)
        return y.masked_fill(~within, -torch.inf).amax(1)


class FlatClassifier(Classifier):
    """The control without a recurrence: all steps as one vector, two feed-forward layers.

    Symbols come as the mean of their embeddings (a bag of words); numbers as they stand, zeros
    past the lengths.

    Args:
        features, classes, symbols, dropout, smoothing: as `SequenceClassifier` has them.
        steps: T of the longest sequence.
        units: of the layer between.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        symbols: int = 0,
        steps: int,
        units: int = 128,
        dropout: float = 0.0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(smoothing)
        self.embedding = nn.Embedding(symbols, features) if symbols else None
        self.steps = steps
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(features if symbols else steps * features, units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(units, classes),
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits [B, classes]; x is at most as long as `steps`."""
        logits: Tensor
        if self.embedding is not None:
            embedded = self.embedding(x)
            within = valid(embedded, lengths)
            logits = self.layers((embedded * within).sum(1) / within.sum(1).clamp_min(1))
            return logits
        x = x * valid(x, lengths)
        logits = self.layers(F.pad(x, (0, 0, 0, self.steps - x.shape[1])).flatten(1))
        return logits
