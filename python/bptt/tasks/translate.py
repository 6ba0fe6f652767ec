"""Task `translate`: learn to translate from sentences in two languages.

An encoder reads the words of a sentence, a decoder writes those of the other language. Judged by
BLEU on detokenised text in lower case (sacrebleu) and by the perplexity of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from bptt.data import parallel
from bptt.data.errors import BadInput
from bptt.data.pieces import UNKNOWN, Pieces
from bptt.data.vocabulary import PAD
from bptt.train.task import Anchor, Judgement, Rows

from .pairs import EXAMPLES, Answer, PairSettings, PairTask

LONGEST_SOURCE = 100  # pieces; longer sentences are not trained on
# BLEU and perplexity of bentrevett/pytorch-seq2seq on Multi30k, German to English: a GRU with a
# context vector; with attention, the perplexity that of packed sequences and masked attention.
PUBLISHED = {"none": (20.6, 37.5), "luong": (28.3, 23.2), "bahdanau": (28.3, 23.2)}


class TranslateSettings(PairSettings):
    source: str = Field("", description="Language to translate from (de; es without --data).")
    target: str = Field("en", min_length=1, description="Language to translate into.")
    symbols: Literal["words", "subwords"] = Field(
        "words", description="What sentences are made of."
    )
    vocabulary: int = Field(10000, ge=50, description="Pieces of each language, at most.")
    least: int = Field(2, ge=1, description="How often a piece must be seen.")
    judged: int = Field(1000, ge=1, description="Test sentences to judge on, at most.")
    units: int = Field(320, ge=2, multiple_of=2, description="Hidden state of the decoder.")
    embedding: int = Field(256, ge=1, description="Size of the symbols' embeddings.")
    dropout: float = Field(0.4, ge=0, lt=1, description="Around and between the layers.")
    smoothing: float = Field(0.1, ge=0, lt=1, description="Probability spread over all symbols.")
    batch: int = Field(96, ge=0, description="Sentences in a batch, on each device.")
    beam: int = Field(5, ge=1, description="Width of the search when judged; 1 is greedy.")
    lr: float = Field(2e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")


class TranslateTask(PairTask[str]):
    name = "translate"
    model = "Encoder-decoder, with attention or without: sentences to sentences"
    data: ClassVar[str] = (
        "a folder of parallel sentences such as Multi30k's (--data); verses of Debian's sword texts"
    )
    metric = "BLEU and perplexity"
    anchor = "a well-known teaching repository on Multi30k, German to English"
    minutes: ClassVar[float] = 12
    steps: ClassVar[int] = 2400
    longest = 80  # pieces
    never = (UNKNOWN,)
    Settings = TranslateSettings

    def load(self) -> int:
        s = self.settings
        source = s.source or ("es" if s.data is None else "de")
        self.languages = (source, s.target)
        self.parts = (
            parallel.load_verses(source, s.target)
            if s.data is None
            else parallel.load_folder(s.data, source, s.target)
        )
        self.source, self.target = (
            Pieces.learn(sentences, s.symbols, s.vocabulary, s.least)
            for sentences in zip(*self.parts.train, strict=True)
        )
        self.rows = self._numbers(self.parts.train)
        self.validation = self._numbers(self.parts.validation)
        return len(self.rows)

    def _numbers(self, pairs: parallel.Pairs) -> Rows:
        """As a table, without what is empty or longer than `LONGEST_SOURCE`."""
        made = [(self.source.encode(a), self.target.encode(b)) for a, b in pairs]
        kept = [pair for pair in made if all(0 < len(part) <= LONGEST_SOURCE for part in pair)]
        if not kept:
            raise BadInput(f"no sentence has between 1 and {LONGEST_SOURCE} known pieces")
        return self.table(kept)

    def use(self, vocabularies: dict[str, Any]) -> None:
        self.source = Pieces.load(vocabularies["source"])
        self.target = Pieces.load(vocabularies["target"])

    def data_name(self) -> str:
        what = "two Bibles" if self.settings.data is None else self.settings.data.resolve().name
        return f"{what}, {' to '.join(self.languages)}"

    def encode_source(self, given: str) -> list[int]:
        numbers = self.source.encode(given)
        if not numbers:
            raise BadInput(f"there is nothing to translate in {given!r}")
        return numbers

    def source_names(self, given: str) -> list[str]:
        return self.source.names(self.encode_source(given))

    def target_names(self, numbers: Sequence[int]) -> list[str]:
        return self.target.names(numbers)

    def text(self, answer: Answer) -> str:
        return self.target.decode(answer.numbers)

    def judge(self, model: Any) -> Judgement:
        from sacrebleu.metrics.bleu import BLEU

        pairs = self.parts.test[: self.settings.judged]
        written = [self.text(best[0]) for best in self.answers(model, [a for a, _ in pairs])]
        bleu = BLEU(lowercase=True)
        references = [[b for _, b in pairs]]
        found = bleu.corpus_score(written, references)
        perplexity = self.perplexity(model, pairs)
        metrics = {
            "BLEU": found.score,
            "perplexity": perplexity,
            "sentences judged": float(len(pairs)),
        }
        notes = {"BLEU's signature": str(bleu.get_signature())}
        least, most = PUBLISHED[self.settings.attention]
        without = "without" if self.settings.attention == "none" else "with"
        source = f"bentrevett/pytorch-seq2seq, {without} attention, Multi30k de-en"
        anchors = [
            Anchor("BLEU", "above", least, source),
            Anchor("perplexity", "below", most, source),
        ]
        if self.settings.data is None or self.languages != ("de", "en"):
            anchors = []  # they are of another corpus
        elif self.settings.symbols == "subwords":
            anchors = anchors[:1]  # a word is several symbols
        return Judgement(metrics, anchors, notes)

    @torch.no_grad()
    def perplexity(self, model: Any, pairs: parallel.Pairs) -> float:
        """Of the references' pieces, ends counted, under teacher forcing."""
        nats, count = torch.zeros((), dtype=torch.float64), 0
        rows = self._numbers(pairs)
        order = rows.columns["target_length"].argsort()
        for chunk in order.split(self.settings.batch):
            batch = self.collate(rows[chunk])
            source, target = batch["source"].t(), batch["target"].t()
            logits = model(source, batch["source_length"], target[:-1])[0]
            nats += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), target[1:].flatten(), ignore_index=PAD, reduction="sum"
            ).double()
            count += int((target[1:] != PAD).sum())
        return math.exp(nats.item() / count)

    def shown(self) -> list[tuple[str, str, str]]:
        short = [pair for pair in self.parts.test if len(pair[0].split()) < 12]
        return [(a, a, b) for a, b in short[:EXAMPLES]]

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        from sacrebleu.metrics.chrf import CHRF

        pairs = self.parts.test[:200]
        written = [self.text(best[0]) for best in self.answers(model, [a for a, _ in pairs])]
        likeness = CHRF(lowercase=True)
        rows = [
            [f"{likeness.sentence_score(made, [b]).score:.0f}", a, made, b]
            for (a, b), made in zip(pairs, written, strict=True)
        ]
        ordered = sorted(rows, key=lambda row: float(row[0]))
        first = [["chrF", "source", "the model", "reference"]]
        return {
            "Sentences it never saw": first + rows[:EXAMPLES],
            "The worst of two hundred": first + ordered[:EXAMPLES],
            "The best": first + ordered[::-1][:EXAMPLES],
        }
