"""Many to many, aligned: a tag for each word of a sentence.

    x_t     = [e(word_t); f(first character); f(last character)]
    h_t     = recurrent layers over x_1..x_T, in both directions or in one
    tag_t   = softmax(W h_t + b)

With one direction a tag is found from the words up to it; with two, from those after it, too.

Source: Graves and Schmidhuber 2005, Framewise phoneme classification with bidirectional LSTM, for
the two directions; Ling et al. 2015 (arXiv 1508.02096), for words made of characters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bptt.data.vocabulary import PAD

from .recurrent import Cell, Impl, recurrent


class Tagger(nn.Module):
    """Words of sentences to logits of tags.

    Args:
        words, characters: sizes of the vocabularies.
        tags: how many.
        embedding: size of a word's embedding; of a character's it is half as much.
        units: H, of each direction.
        cell: "rnn", "gru" or "lstm".
        layers, bidirectional: of the recurrent layers.
        dropout: on inputs, between layers and before the output.
        unknown: the number of a word that the vocabulary lacks.
        forget: share of words that are taken for unknown in training, so that characters count.
        impl: "bptt", or "torch" for torch.nn's layers.
    """

    def __init__(
        self,
        words: int,
        characters: int,
        tags: int,
        *,
        embedding: int = 100,
        units: int = 128,
        cell: Cell = "gru",
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        unknown: int = 0,
        forget: float = 0.0,
        impl: Impl = "bptt",
    ) -> None:
        super().__init__()
        self.unknown, self.forget = unknown, forget
        self.words = nn.Embedding(words, embedding)
        self.first = nn.Embedding(characters, embedding // 2)
        self.last = nn.Embedding(characters, embedding // 2)
        self.layer = recurrent(
            cell,
            embedding + 2 * (embedding // 2),
            units,
            layers=layers,
            bidirectional=bidirectional,
            dropout=dropout,
            impl=impl,
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear((2 if bidirectional else 1) * units, tags)

    def forward(self, words: Tensor, ends: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, T, tags].

        Args:
            words: int64 [B, T].
            ends: int64 [B, T, 2], first and last character of each word.
            lengths: int64 [B].
        """
        if self.training and self.forget:
            lost = torch.rand(words.shape, device=words.device) < self.forget
            words = words.masked_fill(lost, self.unknown)
        parts = [self.words(words), self.first(ends[..., 0]), self.last(ends[..., 1])]
        h, _ = self.layer(self.dropout(torch.cat(parts, 2)), lengths=lengths)
        logits: Tensor = self.output(self.dropout(h))
        return logits

    def losses(
        self, words: Tensor, ends: Tensor, lengths: Tensor, tags: Tensor
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of the tags [B, T], PAD past the lengths, in nats."""
        logits = self(words, ends, lengths)
        entropy = F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=PAD)
        return {"entropy": entropy}
