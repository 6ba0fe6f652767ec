"""Task `digits`: which digits does somebody say, one or several in a row? By CTC.

Several in a row are made of single recordings, with gaps between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bptt.data.batches import SimilarLengths
from bptt.data.speech import RATE, Spoken, load_digits
from bptt.models import score
from bptt.models.recogniser import SILENCE, LogMel, Recogniser
from bptt.train.lengths import by_length
from bptt.train.settings import RecurrentSettings
from bptt.train.task import Anchor, Batch, Fitting, Judgement, Rows, Task

MOST = 5  # digits in a row
_GAP = 12  # frames between two, at most
_SEED = 1000  # of strings: another one than that of weights


class DigitsSettings(RecurrentSettings):
    layers: int = Field(2, ge=1, description="Recurrent layers on top of each other.")
    bidirectional: bool = Field(
        True, description="The layers read both ways; without, they can listen chunk by chunk."
    )
    bands: int = Field(40, ge=4, description="Bands of the mel scale.")
    strings: int = Field(2000, ge=0, description="Rows of several digits to train on.")
    dropout: float = Field(0.1, ge=0, lt=1, description="On features, between layers, at the end.")
    batch: int = Field(32, ge=0, description="Rows in a batch, on each device.")


class DigitsTask(Task):
    name = "digits"
    model = "Recurrent recogniser of spoken digits, by CTC"
    data: ClassVar[str] = "the recordings of the Free Spoken Digit Dataset (--data)"
    metric = "share of digits, and error rate in rows of several"
    anchor = "98 % on takes 0 to 4"
    minutes: ClassVar[float] = 5
    steps: ClassVar[int] = 3500
    Settings = DigitsSettings

    spoken: dict[str, Spoken]

    def load(self) -> int:
        s = self.settings
        self.spoken = load_digits(s.data)
        features = LogMel(RATE, s.bands)
        self.frames = {
            part: [self._features(features, sound) for sound in spoken.sounds]
            for part, spoken in self.spoken.items()
        }
        return len(self.spoken["train"].sounds) + s.strings

    @staticmethod
    def _features(features: LogMel, sound: Tensor) -> Tensor:
        """[T, bands], of silence where a sound is shorter than a frame."""
        missing = features.width - len(sound)
        made: Tensor = features(torch.cat([sound, sound.new_zeros(max(0, missing))]))
        return made

    def data_name(self) -> str:
        return "spoken digits"

    def vocabularies(self) -> dict[str, Any]:
        return {"digits": list(range(10)), "rate": RATE}

    def use(self, vocabularies: dict[str, Any]) -> None:
        self.frames = {}

    def rows(self, part: str, singles: bool, strings: int) -> Rows:
        """Which recordings follow each other in a row, and how many frames lie before each.

        Columns: chosen int64 [N, 5], -1 where there is none; gaps int64 [N, 5]; lengths int64 [N].
        """
        frames = torch.tensor([len(one) for one in self.frames[part]])
        generator = torch.Generator().manual_seed(_SEED + self.settings.seed)
        alone = torch.full((len(frames) if singles else 0, MOST), -1)
        alone[:, 0] = torch.arange(len(alone))
        several = torch.randint(len(frames), (strings, MOST), generator=generator)
        counts = torch.randint(2, MOST + 1, (strings, 1), generator=generator)
        several[torch.arange(MOST) >= counts] = -1
        gaps = torch.randint(_GAP + 1, several.shape, generator=generator)
        chosen, gaps = torch.cat([alone, several]), torch.cat([torch.zeros_like(alone), gaps])
        lengths = ((frames[chosen] + gaps) * (chosen >= 0)).sum(1)
        return Rows(chosen=chosen, gaps=gaps, lengths=lengths, part=self._number(part, len(chosen)))

    def _number(self, part: str, count: int) -> Tensor:
        return torch.full((count,), list(self.frames).index(part))

    def sets(self) -> tuple[Rows, Rows]:
        s = self.settings
        train = self.rows("train", True, s.strings)
        if s.examples:
            train = Rows(**train[torch.randperm(len(train))[: s.examples]])
        return train, self.rows("validation", True, min(s.strings, 300))

    def batches(self, rows: Rows, shuffle: bool) -> SimilarLengths:
        return by_length(rows, ("lengths",), self.settings, shuffle)

    def collate(self, batch: Any) -> Batch:
        """Features [B, T, bands] of rows of recordings, and their labels [B, 5]."""
        part = list(self.frames)[int(batch["part"][0])]
        frames, digits = self.frames[part], torch.tensor(self.spoken[part].digits)
        rows = []
        for chosen, gaps in zip(batch["chosen"].tolist(), batch["gaps"].tolist(), strict=True):
            pieces = []
            for one, gap in zip(chosen, gaps, strict=True):
                if one >= 0:
                    silence = frames[one].new_full((gap, frames[one].shape[1]), SILENCE).log()
                    pieces += [silence, frames[one]]
            rows.append(torch.cat(pieces))
        return {
            "features": pad_sequence(rows, batch_first=True),
            "lengths": batch["lengths"],
            "labels": digits[batch["chosen"].clamp_min(0)] + 1,
            "counts": (batch["chosen"] >= 0).sum(1),
        }

    def build(self) -> Fitting:
        s = self.settings
        model = Recogniser(
            10,
            rate=RATE,
            bands=s.bands,
            units=s.units,
            cell=s.cell,
            layers=s.layers,
            bidirectional=s.bidirectional,
            dropout=s.dropout,
            impl=s.impl,
        )
        if self.frames:
            model.scale_to(torch.cat(self.frames["train"]))
        return Fitting(model, lr=s.lr, arguments=("features", "lengths", "labels", "counts"))

    def heard(self, model: Any, rows: Rows) -> tuple[list[str], list[str]]:
        """What the model hears in each row, and what is said, as digits."""
        heard, said = [], []
        for chosen in torch.arange(len(rows)).split(64):
            batch = self.collate(rows[chosen])
            heard += [text_of(row) for row in model.hear(batch["features"], batch["lengths"])]
            labels = zip(batch["labels"].tolist(), batch["counts"].tolist(), strict=True)
            said += [text_of(row[:count]) for row, count in labels]
        return heard, said

    def judge(self, model: Any) -> Judgement:
        singles = self.heard(model, self.rows("test", True, 0))
        several = self.heard(model, self.rows("test", False, 500))
        right = [one == other for one, other in zip(*singles, strict=True)]
        scores = score([tuple(h) for h in several[0]], [[tuple(s)] for s in several[1]])
        metrics = {
            "accuracy": sum(right) / len(right),
            "digit error rate in rows of several": scores.symbol_error_rate,
            "rows of several with an error": scores.word_error_rate,
            "recordings judged": float(len(right)),
        }
        anchors = [Anchor("accuracy", "above", 0.98, "what good published models reach")]
        return Judgement(metrics, anchors)

    def figures(self, model: Any) -> dict[str, Figure]:
        rows = self.rows("test", False, 2)
        batch = self.collate(rows[torch.arange(2)])
        with torch.no_grad():
            p = model(batch["features"], batch["lengths"])[0].exp()
        made = {}
        for i, length in enumerate(batch["lengths"].tolist()):
            said = text_of(batch["labels"][i, : int(batch["counts"][i])].tolist())
            title = f"“{said}”: what is heard, and what the model makes of it"
            made[title] = heard_figure(batch["features"][i, :length], p[i, :length])
        return made

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        heard, said = self.heard(model, self.rows("test", False, 200))
        rows = [[s, h, "right" if s == h else "wrong"] for h, s in zip(heard, said, strict=True)]
        wrong = [row for row in rows if row[2] == "wrong"]
        first = [["said", "heard", ""]]
        return {"Rows of several": first + rows[:8], "Errors among two hundred": first + wrong[:12]}


def text_of(symbols: Sequence[int]) -> str:
    """The digits of symbols 1 to 10."""
    return "".join(str(one - 1) for one in symbols)


def heard_figure(features: Tensor, p: Tensor) -> Figure:
    """Features [T, bands], and below them the probabilities [T, 11] of blank and digits."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.imshow(features.t().numpy(), origin="lower", aspect="auto", cmap="magma")
    above.set_ylabel("mel band")
    for digit in range(10):
        if p[:, digit + 1].max() > 0.3:
            below.plot(p[:, digit + 1].numpy(), label=str(digit))
    below.plot(p[:, 0].numpy(), color="grey", alpha=0.4, label="blank")
    below.set_xlabel("frame of 10 ms")
    below.set_ylabel("probability")
    below.legend(fontsize=8, ncols=4)
    return figure
