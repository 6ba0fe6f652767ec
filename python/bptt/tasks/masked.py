"""Task `masked`: words that are hidden, told from those around them; to begin other tasks with."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.models.words import MaskedWords, WordCell
from bptt.train.task import Anchor, Fitting, Judgement, Rows, seeded

from .words import UNKNOWN, WordSettings, WordTask

_JUDGED = 512  # sentences at once


class MaskedSettings(WordSettings):
    cell: WordCell = Field("transformer", description="Of the recurrent layers, or a transformer.")
    layers: int = Field(2, ge=1, description="Layers on top of each other.")
    hidden: float = Field(0.15, gt=0, lt=1, description="Share of words that are hidden.")
    dropout: float = Field(0.1, ge=0, lt=1, description="On inputs, and between layers.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")


class MaskedTask(WordTask):
    name = "masked"
    model = "Masked language model of words (BERT)"
    metric = "nats of a hidden word"
    anchor = "how often each word is"
    minutes: ClassVar[float] = 10
    steps: ClassVar[int] = 3000
    Settings = MaskedSettings

    def build(self) -> Fitting:
        unknown = self.words.encode([UNKNOWN])[0]
        model = MaskedWords(
            self.encoder(),
            hidden=self.settings.hidden,
            mask=unknown,
            character=self.characters.encode([UNKNOWN])[0],
        )
        if self.corpus is not None:
            model.bias.data.copy_(self.frequencies())
        return Fitting(model, lr=self.settings.lr, arguments=("words", "ends", "lengths"))

    def frequencies(self) -> Tensor:
        """Log of how often each word is, each counted once more: [words]."""
        words = self.rows(self.corpus.train).columns["words"].flatten()
        counts = torch.bincount(words, minlength=len(self.words)).float()
        counts[: len(self.words) - len(self.words.symbols)] = 0  # padding, start and end
        return (counts + 1).log() - (counts + 1).sum().log()

    @torch.no_grad()
    def hidden(self, model: Any, rows: Rows) -> tuple[Tensor, Tensor]:
        """Words that were hidden [N], and log-probabilities [N, words] of what they may be."""
        words, told = [], []
        with seeded(self.settings.seed):
            for chosen in torch.arange(len(rows)).split(_JUDGED):
                batch = self.collate(rows[chosen])
                columns = [batch[name] for name in ("words", "ends", "lengths")]
                seen, ends, which = model.hide(*columns)
                told.append(model.told(seen, ends, batch["lengths"], which).log_softmax(1))
                words.append(batch["words"][which])
        return torch.cat(words), torch.cat(told)

    def judge(self, model: Any) -> Judgement:
        words, told = self.hidden(model, self.rows(self.corpus.test[:2000]))
        frequent = self.frequencies()
        metrics = {
            "nats of a hidden word": -told.gather(1, words[:, None]).double().mean().item(),
            "by how often each word is": -frequent[words].double().mean().item(),
            "share of hidden words told": (told.argmax(1) == words).double().mean().item(),
            "words judged": float(len(words)),
        }
        bound = metrics["by how often each word is"]
        anchors = [Anchor("nats of a hidden word", "below", bound, "how often each word is")]
        return Judgement(metrics, anchors)

    def figures(self, model: Any) -> dict[str, Figure]:
        words, told = self.hidden(model, self.rows(self.corpus.test[:500]))
        right = (told.argmax(1) == words).double()
        often = self.frequencies().exp()[words] * 1000
        figure = Figure(figsize=(5.5, 3.2), layout="constrained")
        axis = figure.subplots()
        for bar, (low, high) in enumerate(pairwise([0, 0.01, 0.1, 1, 10, 1000])):
            within = (often > low) & (often <= high)
            axis.bar(bar, right[within].mean().nan_to_num().item(), color="C0")
        axis.set_xticks(range(5), ["to 0.01", "to 0.1", "to 1", "to 10", "more"])
        axis.set_xlabel("how often the word is in a thousand")
        axis.set_ylabel("share of hidden words told")
        return {"Hidden words, by how common they are": figure}

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        rows = [["the hidden word", "the likeliest, and their probabilities"]]
        words, told = self.hidden(model, self.rows(self.corpus.test[:20]))
        for word, log_p in list(zip(words.tolist(), told, strict=True))[:20]:
            p, best = log_p.exp().topk(4)
            guesses = [
                f"{''.join(self.words.decode([k]))} {one:.0%}"
                for k, one in zip(best.tolist(), p.tolist(), strict=True)
            ]
            rows.append(["".join(self.words.decode([word])), ", ".join(guesses)])
        return {"Hidden words": rows}
