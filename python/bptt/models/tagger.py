"""Many to many, aligned: a tag for each word of a sentence.

    h_1..T  = features of the words in their sentence, see `words`
    tag_t   = softmax(W h_t + b)

With recurrent layers of one direction a tag is found from the words up to it; with two, from those
after it, too.

Source: Graves and Schmidhuber 2005, Framewise phoneme classification with bidirectional LSTM.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bptt.data.vocabulary import PAD

from .words import WordEncoder


class Tagger(nn.Module):
    """Words of sentences to logits of tags.

    Args:
        encoder: of words.
        tags: how many.
        dropout: before the output.
    """

    def __init__(self, encoder: WordEncoder, tags: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(encoder.width, tags)

    def forward(self, words: Tensor, ends: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, T, tags]; see `WordEncoder`."""
        logits: Tensor = self.output(self.dropout(self.encoder(words, ends, lengths)))
        return logits

    def losses(
        self, words: Tensor, ends: Tensor, lengths: Tensor, tags: Tensor
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of the tags [B, T], PAD past the lengths, in nats."""
        logits = self(words, ends, lengths)
        entropy = F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=PAD)
        return {"entropy": entropy}
