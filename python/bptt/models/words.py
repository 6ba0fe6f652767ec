"""Words in their sentence as vectors, and how to learn them from text without tags.

    x_t     = [e(word_t); f(first character); f(last character)]
    h_1..T  = recurrent layers, or a transformer, over x_1..x_T

Masked words: some words are hidden, and are to be told from the others.

    p(word_t) = softmax(E V h_t + b),  E the embeddings

Source: Devlin et al. 2018 (arXiv 1810.04805), BERT; words by their characters: Ling et al. 2015
(arXiv 1508.02096).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Impl, recurrent
from .transformer import Transformer

WordCell = Literal["rnn", "gru", "lstm", "transformer"]


class WordEncoder(nn.Module):
    """Words of sentences to features [B, T, width].

    Args:
        words, characters: sizes of the vocabularies.
        embedding: size of a word's embedding; of a character's it is half as much.
        units: H, of each direction; a transformer is as wide as both together.
        cell: "rnn", "gru", "lstm" or "transformer".
        layers, bidirectional: of the recurrent layers; a transformer sees both ways.
        dropout: on inputs and between layers.
        unknown: the number of a word, and of a character, that the vocabulary lacks.
        forget: share of words that are taken for unknown in training, so that characters count.
        impl: "bptt", or "torch" for torch.nn's layers.

    Attributes:
        width: of the features.
    """

    def __init__(
        self,
        words: int,
        characters: int,
        *,
        embedding: int = 100,
        units: int = 128,
        cell: WordCell = "gru",
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
        inputs = embedding + 2 * (embedding // 2)
        both = bidirectional or cell == "transformer"
        self.width = (2 if both else 1) * units
        self.dropout = nn.Dropout(dropout)
        if cell == "transformer":
            self.layer: nn.Module = Transformer(inputs, self.width, layers=layers, dropout=dropout)
        else:
            self.layer = recurrent(
                cell,
                inputs,
                units,
                layers=layers,
                bidirectional=bidirectional,
                dropout=dropout,
                impl=impl,
            )

    def forward(self, words: Tensor, ends: Tensor, lengths: Tensor) -> Tensor:
        """Features of each word.

        Args:
            words: int64 [B, T].
            ends: int64 [B, T, 2], first and last character of each word.
            lengths: int64 [B].
        """
        if self.training and self.forget:
            lost = torch.rand(words.shape, device=words.device) < self.forget
            words = words.masked_fill(lost, self.unknown)
        parts = [self.words(words), self.first(ends[..., 0]), self.last(ends[..., 1])]
        h: Tensor = self.layer(self.dropout(torch.cat(parts, 2)), None, lengths=lengths)[0]
        return h


class MaskedWords(nn.Module):
    """Tells hidden words of sentences.

    Args:
        encoder: of words.
        hidden: share of words that are hidden.
        mask: the number of a word that stands for a hidden one.
        character: the number of its characters.
    """

    def __init__(self, encoder: WordEncoder, *, hidden: float, mask: int, character: int) -> None:
        super().__init__()
        self.encoder, self.hidden, self.mask, self.character = encoder, hidden, mask, character
        self.project = nn.Linear(encoder.width, encoder.words.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(encoder.words.num_embeddings))

    def hide(self, words: Tensor, ends: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Words and ends with some hidden, and which: bool [B, T].

        Of those, one in ten is left as it is and one in ten becomes any word, so that what is seen
        is not to be trusted either.
        """
        steps = torch.arange(words.shape[1], device=words.device)
        chance = torch.rand(words.shape, device=words.device)
        chosen = (chance < self.hidden) & (steps < lengths[:, None])
        kind = torch.rand(words.shape, device=words.device)
        masked, other = chosen & (kind < 0.8), chosen & (kind >= 0.9)
        any_word = torch.randint_like(words, self.encoder.words.num_embeddings)
        words = torch.where(other, any_word, words.masked_fill(masked, self.mask))
        return words, ends.masked_fill((masked | other)[..., None], self.character), chosen

    def told(self, words: Tensor, ends: Tensor, lengths: Tensor, chosen: Tensor) -> Tensor:
        """Logits [N, words] of the chosen ones; words and ends with these hidden."""
        h = self.encoder(words, ends, lengths)[chosen]
        return F.linear(self.project(h), self.encoder.words.weight, self.bias)

    def losses(self, words: Tensor, ends: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropy of hidden words, in nats; see `WordEncoder`."""
        seen, seen_ends, chosen = self.hide(words, ends, lengths)
        if not chosen.any():
            chosen[:, 0] = True  # a mean needs one
        logits = self.told(seen, seen_ends, lengths, chosen)
        return {"entropy": F.cross_entropy(logits, words[chosen])}
