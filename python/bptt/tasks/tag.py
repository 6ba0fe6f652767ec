"""Task `tag`: the part of speech of every word; many to many, aligned.

Judged on all words, on words never seen, and on those whose tag what follows tells better than what
precedes: a network of one direction has not read that yet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.data.tagged import Sentence
from bptt.models.tagger import Tagger
from bptt.train.task import Anchor, Fitting, Judgement, batched

from .words import WordSettings, WordTask

FLOOR = 0.9156  # of the most frequent tag of each word, People's Daily
_SEEN = 20  # times that a word must come before it is said what tells its tag
_MARGIN = 0.05  # nats
SHOWN = 12


class TagSettings(WordSettings):
    forget: float = Field(0.1, ge=0, lt=1, description="Words taken for unknown in training.")


class TagTask(WordTask):
    name = "tag"
    model = "Tagger of words; many to many, aligned"
    metric = "share of right tags"
    anchor = "the most frequent tag of each word"
    minutes: ClassVar[float] = 5
    steps: ClassVar[int] = 3000
    Settings = TagSettings

    @cached_property
    def later(self) -> set[str]:
        """Words whose tag is told by what follows, of those to train on."""
        return told_later(self.corpus.train)

    def build(self) -> Fitting:
        s = self.settings
        model = Tagger(self.encoder(forget=s.forget), len(self.tags), s.dropout)
        return Fitting(model, lr=s.lr, arguments=("words", "ends", "lengths", "tags"))

    def found(self, model: Any, sentences: Sequence[Sentence]) -> list[tuple[str, ...]]:
        """The model's tags of each sentence; its own are not looked at."""
        return [tags for tags, _ in self.weighed(model, [words for words, _ in sentences])]

    def weighed(
        self, model: Any, sentences: Sequence[Sequence[str]]
    ) -> list[tuple[tuple[str, ...], list[float]]]:
        """The likeliest tags of each sentence's words, and their probabilities."""
        blank = self.tags.symbols[0]
        rows = self.rows([(tuple(words), (blank,) * len(words)) for words in sentences])
        order = rows.columns["lengths"].argsort(stable=True)

        def some(chosen: Tensor) -> Tensor:
            batch = self.collate(rows[chosen])
            p = model(batch["words"], batch["ends"], batch["lengths"]).softmax(2)
            p[..., : len(self.tags) - len(self.tags.symbols)] = 0  # padding, start and end
            best = torch.stack([p.argmax(2).to(p.dtype), p.amax(2)])  # [2, B, T]
            wide = best.new_zeros(2, len(chosen), rows.columns["words"].shape[1])
            wide[:, :, : best.shape[2]] = best
            return wide.transpose(0, 1)

        made = batched(some, order, size=256)[order.argsort()]
        return [
            (self.tags.decode(row[0, : len(words)].long().tolist()), row[1, : len(words)].tolist())
            for row, words in zip(made, sentences, strict=True)
        ]

    def judge(self, model: Any) -> Judgement:
        test = self.corpus.test
        seen = {word for words, _ in self.corpus.train for word in words}
        later = self.later
        frequent = most_frequent(self.corpus.train)
        default = Counter(tag for _, tags in self.corpus.train for tag in tags).most_common(1)[0][0]
        right: dict[str, list[bool]] = defaultdict(list)
        for (words, tags), found in zip(test, self.found(model, test), strict=True):
            for word, tag, mine in zip(words, tags, found, strict=True):
                right["accuracy"].append(mine == tag)
                right["by the most frequent tag"].append(frequent.get(word, default) == tag)
                if word not in seen:
                    right["on words never seen"].append(mine == tag)
                if word in later:
                    right["where what follows tells"].append(mine == tag)
        metrics = {name: sum(each) / len(each) for name, each in right.items()}
        floor = metrics["by the most frequent tag"]
        anchors = [Anchor("accuracy", "above", floor, "the most frequent tag, this split")]
        if self.settings.data is None:
            anchors.append(Anchor("accuracy", "above", FLOOR, "the same, measured before"))
            anchors.append(Anchor("accuracy", "above", 0.97, "what good taggers reach"))
        counted = {f"words judged {k}": float(len(right[k])) for k in right if k != "accuracy"}
        del counted["words judged by the most frequent tag"]
        metrics["words judged"] = float(len(right["accuracy"]))
        return Judgement(metrics | counted, anchors)

    def figures(self, model: Any) -> dict[str, Figure]:
        from sklearn.metrics import ConfusionMatrixDisplay

        test = self.corpus.test
        found = [tag for tags in self.found(model, test) for tag in tags]
        true = [tag for _, tags in test for tag in tags]
        common = [tag for tag, _ in Counter(true).most_common(16)]
        figure = Figure(figsize=(8, 8), layout="constrained")
        ConfusionMatrixDisplay.from_predictions(
            true,
            found,
            labels=common,
            normalize="true",
            values_format=".0%",
            ax=figure.subplots(),
            colorbar=False,
            cmap="Blues",
            text_kw={"fontsize": 7},
        )
        return {"Which tag was taken for which (the commonest)": figure}

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        test = self.corpus.test[:500]
        later = self.later
        first = [["sentence up to the word", "the word", "what follows", "the model", "the corpus"]]
        rows = []
        for (words, tags), found in zip(test, self.found(model, test), strict=True):
            for t, (word, tag, mine) in enumerate(zip(words, tags, found, strict=True)):
                if word in later:
                    before, after = " ".join(words[max(0, t - 6) : t]), " ".join(words[t + 1 :][:6])
                    rows.append([before, word, after, mine, tag])
        return {"Words whose tag depends on what follows": first + rows[:SHOWN]}


def most_frequent(sentences: Sequence[Sentence]) -> dict[str, str]:
    """Each word's most frequent tag."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in sentences:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    return {word: tags.most_common(1)[0][0] for word, tags in counts.items()}


def told_later(sentences: Sequence[Sentence]) -> set[str]:
    """Words whose tag the next word's tag tells better than the one before.

    By mutual information of a word's tag with that of its neighbours, over its occurrences: the
    next one has `_MARGIN` nats more.
    """
    pairs: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for words, tags in sentences:
        around = ("", *tags, "")
        for t, word in enumerate(words):
            pairs[word].append((around[t + 1], around[t], around[t + 2]))
    found = set()
    for word, seen in pairs.items():
        if len(seen) >= _SEEN and len({tag for tag, _, _ in seen}) > 1:
            before = _information([(tag, b) for tag, b, _ in seen])
            after = _information([(tag, a) for tag, _, a in seen])
            if after > before + _MARGIN:
                found.add(word)
    return found


def _information(pairs: list[tuple[str, str]]) -> float:
    """Mutual information of two columns, in nats."""
    from sklearn.metrics import mutual_info_score

    return float(mutual_info_score(*zip(*pairs, strict=True)))
