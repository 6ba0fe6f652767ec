"""Sentences as numbers: words or subwords of a language, learnt from its sentences (tokenizers).

Numbers 0 to 2 are padding, start and end as in `Vocabulary`, 3 is what the vocabulary lacks. Words
are what stands between spaces and punctuation; apostrophes and hyphens within a word are part of
it. All is in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .vocabulary import END, PAD, START

UNKNOWN = 3
_SPECIAL = ["<pad>", "<start>", "<end>", "<unknown>"]
_WORD = r"\w+(?:['\u2019\-]\w+)*|[^\w\s]"  # u2019: a typographer's apostrophe
_START_OF_WORD = "\u2581"  # a lower one eighth block, as sentencepiece has it

Kind = Literal["words", "subwords"]


class Pieces:
    """A vocabulary of words or subwords; `learn` or `load` makes one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def learn(cls, sentences: Iterable[str], kind: Kind, size: int, least: int) -> Pieces:
        """A vocabulary of the most frequent pieces.

        Args:
            sentences: to learn from.
            kind: "words", or "subwords" by byte-pair encoding (Sennrich, Haddow, Birch, arXiv
                1508.07909).
            size: pieces, at most.
            least: how often a word, or a pair of subwords, must be seen.
        """
        words = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
        settings: dict[str, Any] = {
            "vocab_size": size,
            "min_frequency": least,
            "special_tokens": _SPECIAL,
            "show_progress": False,
        }
        model: Any = models.BPE if kind == "subwords" else models.WordLevel
        tokenizer: Any = Tokenizer(model(unk_token=_SPECIAL[UNKNOWN]))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        if kind == "subwords":
            mark = pre_tokenizers.Metaspace(_START_OF_WORD, split=False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, mark])
            tokenizer.decoder = decoders.Metaspace(_START_OF_WORD)
            trainer: Any = trainers.BpeTrainer(**settings)
        else:
            tokenizer.pre_tokenizer = words
            trainer = trainers.WordLevelTrainer(**settings)
        tokenizer.train_from_iterator(sentences, trainer)
        assert [tokenizer.token_to_id(s) for s in _SPECIAL] == [PAD, START, END, UNKNOWN]
        return cls(tokenizer)

    @classmethod
    def load(cls, text: str) -> Pieces:
        """What `dump` wrote."""
        return cls(Tokenizer.from_str(text))

    def dump(self) -> str:
        """All of it as JSON."""
        return str(self.tokenizer.to_str())

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, sentence: str) -> list[int]:
        """Numbers of a sentence, without start and end."""
        return list(self.tokenizer.encode(sentence).ids)

    def decode(self, numbers: Sequence[int]) -> str:
        """The sentence of numbers up to the first end; what ends a clause stands at its word."""
        numbers = list(numbers)
        kept = numbers[: numbers.index(END)] if END in numbers else numbers
        text = str(self.tokenizer.decode([n for n in kept if n > UNKNOWN]))
        return re.sub(r" ([.,;:!?])", r"\1", text)

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Each number's piece, for pictures."""
        return [str(self.tokenizer.id_to_token(n)).replace(_START_OF_WORD, "") for n in numbers]
