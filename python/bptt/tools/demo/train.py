"""Section 4: learn to pronounce English from the dictionary, and be judged on unseen words.

A bidirectional encoder reads the letters, a decoder with attention says the phonemes
(`bptt.models.Seq2Seq`); all recurrence runs on bptt's layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from bptt.tools.bench.machine import OtherLoad

from ...data import Padded, Vocabulary, cmudict, pad, similar_lengths
from ...data.vocabulary import END, PAD, START
from ...models import Seq2Seq, score
from .machine import warning

LONGEST = 40  # phonemes; the dictionary's longest word has 28
DECODE_BATCH = 512
EXAMPLES = 12
WARMUP = 0.05  # share of the training in which the learning rate rises
LOSS_MEMORY = 0.98  # of the running mean of the loss
REPORTS = 10  # lines printed on the way where there is no terminal for a progress bar


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        minutes: time to train for; the learning rate follows the clock.
        epochs: passes over the words instead, if above 0; then a seed gives the same result again.
        words: use so many words of the dictionary, 0 for all.
        sample: held-out words to judge on, at most.
    """

    minutes: float = 0.95
    epochs: float = 0.0
    seed: int = 0
    cell: str = "gru"
    hidden: int = 256
    batch: int = 128
    learning_rate: float = 5e-3
    words: int = 0
    sample: int = 5000


class Corpus:
    """The dictionary as tensors: letters in, phonemes out, and the words kept apart.

    Attributes:
        sources: the letters of every training pair of word and pronunciation.
        targets: start, phonemes, end of the same pairs.
        held_out: words not trained on, with their pronunciations.
    """

    def __init__(self, lexicon: cmudict.Lexicon, seed: int) -> None:
        self.training, self.held_out = cmudict.split(lexicon, seed=seed)
        self.letters = Vocabulary((c for word in lexicon for c in word), "letter")
        self.phonemes = Vocabulary((*cmudict.VOWELS, *cmudict.CONSONANTS), "phoneme")
        pairs = [(word, said) for word, choices in self.training.items() for said in choices]
        self.sources = pad([self.letters.encode(word) for word, _ in pairs])
        self.targets = pad([[START, *self.phonemes.encode(said), END] for _, said in pairs])

    def __len__(self) -> int:
        return len(self.sources.lengths)

    def batches(self, size: int, seed: int) -> Iterator[tuple[Padded, Padded]]:
        """Sources and targets [T, B] of one batch after another, without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            lengths = (self.sources.lengths, self.targets.lengths)
            for rows in similar_lengths(lengths, size, generator):
                yield self.sources.batch(rows), self.targets.batch(rows)


class Schedule:
    """How far the training is, by the clock or by the pairs seen, and the learning rate there."""

    def __init__(self, settings: Settings, pairs: int) -> None:
        self.settings = settings
        self.pairs = pairs
        self.seen = 0
        self.started = time.perf_counter()
        self.ended: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, or in all once it has ended."""
        return (self.ended or time.perf_counter()) - self.started

    def progress(self) -> float:
        """From 0 to 1, where the training ends."""
        if self.settings.epochs:
            return min(1.0, self.seen / (self.settings.epochs * self.pairs))
        return min(1.0, self.elapsed / max(60 * self.settings.minutes, 1e-9))

    def learning_rate(self, progress: float) -> float:
        """A short rise, then a straight line down to zero."""
        return self.settings.learning_rate * min(progress / WARMUP, 1.0 - progress)


def build(corpus: Corpus, settings: Settings) -> Seq2Seq:
    """A fresh model for the corpus, the same for the same seed."""
    torch.manual_seed(settings.seed)
    return Seq2Seq(
        len(corpus.letters), len(corpus.phonemes), hidden=settings.hidden, cell=settings.cell
    )


def loss_of(model: Seq2Seq, source: Padded, target: Padded) -> Tensor:
    """Mean cross-entropy per phoneme, in nats, the end counted as one."""
    logits = model(source.values, source.lengths, target.values[:-1])  # [U, B, phonemes]
    return F.cross_entropy(logits.flatten(0, 1), target.values[1:].flatten(), ignore_index=PAD)


def fit(model: Seq2Seq, corpus: Corpus, settings: Settings, console: Console) -> Schedule:
    """Train the model in place, with a progress bar.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), fused=True)
    schedule = Schedule(settings, len(corpus))
    batches = corpus.batches(settings.batch, settings.seed)
    mean = float("nan")
    model.train()
    with _Bar(console) as bar:
        while (progress := schedule.progress()) < 1.0:
            source, target = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(progress)
            loss = loss_of(model, source, target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} after {schedule.seen} pairs")
            mean = LOSS_MEMORY * mean + (1 - LOSS_MEMORY) * value if schedule.seen else value
            schedule.seen += len(source.lengths)
            bar.show(progress, mean, schedule)
    schedule.ended = time.perf_counter()
    return schedule


class _Bar:
    """A progress bar in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines = 0
        columns = (TextColumn("training"), BarColumn(), TaskProgressColumn())
        text = TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} words/s  left")
        self.bar = Progress(
            *columns, text, TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("training", total=1.0, loss=float("nan"), rate=0.0)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, progress: float, loss: float, schedule: Schedule) -> None:
        rate = schedule.seen / schedule.elapsed
        self.bar.update(self.task, completed=progress, loss=loss, rate=rate)
        if not self.console.is_terminal and progress * REPORTS >= self.lines + 1:
            self.lines = int(progress * REPORTS)
            left = schedule.elapsed * (1 / progress - 1)
            self.console.print(
                f"  {progress:4.0%}  loss {loss:.3f}  {rate:.0f} words/s  {left:.0f} s left"
            )


def transcribe(model: Seq2Seq, corpus: Corpus, words: list[str]) -> list[tuple[str, ...]]:
    """The phonemes the model says for each word, likeliest first at every step.

    Raises:
        ValueError: no words, an empty one, or a letter the corpus does not have.
    """
    sources = pad([corpus.letters.encode(word) for word in words])
    said: list[tuple[str, ...]] = [()] * len(words)
    model.eval()
    # Words of like length decode together: a batch takes as many steps as its longest.
    for rows in sources.lengths.argsort(stable=True).split(DECODE_BATCH):
        source = sources.batch(rows)
        columns = model.greedy(
            source.values, source.lengths, start=START, end=END, max_steps=LONGEST
        ).t()  # [B, U]
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            said[row] = corpus.phonemes.decode(column)
    return said


def section(console: Console, settings: Settings) -> bool:
    """Train, show transcriptions of unseen words, print the error rates."""
    console.rule("[bold]4. Learning to pronounce: letters to phonemes, on bptt's layers")
    lexicon = cmudict.load()
    if settings.words:
        lexicon = {word: lexicon[word] for word in list(lexicon)[: settings.words]}
    corpus = Corpus(lexicon, settings.seed)
    model = build(corpus, settings)
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"CMU Pronouncing Dictionary: {len(corpus.training)} words to learn from, "
        f"{len(corpus.held_out)} held out, split by word. "
        f"Model: bidirectional {settings.cell.upper()} encoder, {settings.cell.upper()} decoder "
        f"with attention, {size / 1e3:.0f} k parameters."
    )
    others = OtherLoad()
    schedule = fit(model, corpus, settings, console)
    console.print(
        f"Trained for {schedule.elapsed:.0f} s: {schedule.seen / len(corpus):.2f} passes, "
        f"{schedule.seen / schedule.elapsed:.0f} words/s."
    )
    disturbed = warning(others)
    if disturbed:
        console.print(disturbed)
    words = list(corpus.held_out)[: settings.sample]
    said = transcribe(model, corpus, words)
    console.print(_examples(corpus, words, said))
    scores = score(said, [corpus.held_out[word] for word in words])
    console.print(
        f"On {scores.words} words it never saw: [bold]word error rate "
        f"{scores.word_error_rate:.1%}, phoneme error rate {scores.symbol_error_rate:.1%}[/] "
        "(greedy decoding, stress ignored, judged against the closest pronunciation). "
        f"This is a short run of {schedule.elapsed:.0f} s; --minutes gives it longer."
    )
    return True


def _examples(corpus: Corpus, words: list[str], said: list[tuple[str, ...]]) -> Table:
    table = Table(
        "word it never saw",
        "the model says",
        "the dictionary says",
        "",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for word, phonemes in list(zip(words, said, strict=True))[:EXAMPLES]:
        references = corpus.held_out[word]
        right = phonemes in references
        table.add_row(
            word,
            " ".join(phonemes),
            " or ".join(" ".join(reference) for reference in references),
            "[green]right" if right else "[red]wrong",
        )
    return table
