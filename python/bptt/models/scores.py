"""How often a transcription is wrong, where a word may be said in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Symbols = Sequence[str]


@dataclass(frozen=True)
class Scores:
    """Error counts over a set of words.

    Attributes:
        words: words judged.
        wrong_words: words whose transcription equals none of their references.
        edits: insertions, deletions and substitutions to the closest reference, summed.
        symbols: lengths of those closest references, summed.
    """

    words: int
    wrong_words: int
    edits: int
    symbols: int

    @property
    def word_error_rate(self) -> float:
        return self.wrong_words / self.words

    @property
    def symbol_error_rate(self) -> float:
        """Edits per symbol of the closest reference; the phoneme error rate if those are phonemes.

        It can pass 1 where a transcription is much longer than its reference.
        """
        return self.edits / self.symbols


def score(transcriptions: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> Scores:
    """Judge each transcription against the closest of its references.

    Among equally close references the longest counts.

    Raises:
        ValueError: the two lists differ in length, are empty, or a word has no reference.
    """
    from rapidfuzz.distance import Levenshtein

    if len(transcriptions) != len(references) or not references:
        raise ValueError(
            "expected one list of references for each transcription and at least one, got "
            f"{len(transcriptions)} transcriptions and {len(references)} lists"
        )
    wrong = edits = symbols = 0
    for transcription, choices in zip(transcriptions, references, strict=True):
        if not choices:
            raise ValueError(f"no reference for the transcription {' '.join(transcription)!r}")
        distance, minus_length = min(
            (Levenshtein.distance(transcription, choice), -len(choice)) for choice in choices
        )
        wrong += distance > 0
        edits += distance
        symbols -= minus_length
    return Scores(len(references), wrong, edits, symbols)
