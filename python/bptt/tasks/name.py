"""Task `name`: what is on a small picture? Its name, letter by letter; one to many."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.data import Vocabulary, pad
from bptt.data.named_pictures import Named, load_named
from bptt.data.vocabulary import END, PAD, START
from bptt.models.captioner import Captioner
from bptt.train.settings import RecurrentSettings
from bptt.train.task import Anchor, Batch, Fitting, Judgement, Rows, Task, batched

SHOWN = 24


class NameSettings(RecurrentSettings):
    layers: Any = Field(1, ge=1, le=1, description="One: its state comes from the picture.")
    units: int = Field(256, ge=1, description="Hidden state.")
    channels: int = Field(32, ge=1, description="Of the first convolution.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Before the state and the output.")
    lr: float = Field(2e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")


class NameTask(Task):
    name = "name"
    model = "Recurrent describer of pictures; one to many"
    data: ClassVar[str] = "a font of colour emoji, or a folder of named pictures (--data); Noto's"
    metric = "nats of a letter of names never seen"
    anchor = "the same model that is shown another picture"
    minutes: ClassVar[float] = 5
    steps: ClassVar[int] = 3000
    Settings = NameSettings

    def load(self) -> int:
        self.parts = load_named(self.settings.data)
        every = [name for part in self.parts.values() for name in part.names]
        self.letters = Vocabulary({letter for name in every for letter in name}, "letter")
        self.longest = max(map(len, every))
        return len(self.parts["train"].names)

    def data_name(self) -> str:
        return "named pictures" if self.settings.data else "emoji"

    def rows(self, part: Named) -> Rows:
        symbols = [[START, *self.letters.encode(name), END] for name in part.names]
        return Rows(pictures=part.pictures, names=pad(symbols).values)

    def sets(self) -> tuple[Rows, Rows]:
        train = self.rows(self.parts["train"])
        most = self.settings.examples
        chosen = torch.randperm(len(train))[: most or len(train)]
        return Rows(**train[chosen]), self.rows(self.parts["validation"])

    def collate(self, batch: Any) -> Batch:
        longest = int((batch["names"] != PAD).sum(1).max())
        return {**batch, "names": batch["names"][:, :longest]}

    def build(self) -> Fitting:
        s = self.settings
        model = Captioner(
            len(self.letters),
            units=s.units,
            channels=s.channels,
            cell=s.cell,
            dropout=s.dropout,
            impl=s.impl,
        )
        return Fitting(model, lr=s.lr, arguments=("pictures", "names"))

    def told(self, model: Any, pictures: Tensor) -> list[str]:
        """The names that the model gives."""
        made = batched(lambda x: model.name(x, self.longest), pictures, size=256)
        return ["".join(self.letters.decode(row)) for row in made.tolist()]

    @torch.no_grad()
    def judge(self, model: Any) -> Judgement:
        test = self.parts["test"]
        names = self.rows(test).columns["names"]
        count = int((names[:, 1:] != PAD).sum())

        def nats(pictures: Tensor) -> float:
            return batched(model.symbol_losses, pictures, names).double().sum().item() / count

        own, other = nats(test.pictures), nats(test.pictures.roll(len(names) // 2, 0))
        train = self.parts["train"]
        right = [a == b for a, b in zip(self.told(model, train.pictures), train.names, strict=True)]
        new = [a == b for a, b in zip(self.told(model, test.pictures), test.names, strict=True)]
        metrics = {
            "nats of a letter": own,
            "nats of a letter, shown another picture": other,
            "names of training told exactly": sum(right) / len(right),
            "new names told exactly": sum(new) / len(new),
            "pictures judged": float(len(new)),
        }
        return Judgement(metrics, [Anchor("nats of a letter", "below", other, "another picture")])

    def figures(self, model: Any) -> dict[str, Figure]:
        return {
            f"Pictures {what}, and the names that the model gives": self._drawn(model, part)
            for what, part in (("of training", "train"), ("never seen", "test"))
        }

    def _drawn(self, model: Any, part: str, count: int = SHOWN) -> Figure:
        pictures = self.parts[part].pictures
        chosen = torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).long()
        figure = Figure(figsize=(11, 1.7 * -(-len(chosen) // 6)), layout="constrained")
        axes = figure.subplots(-(-len(chosen) // 6), 6, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        for k, told, axis in zip(chosen, self.told(model, pictures[chosen]), axes, strict=False):
            axis.imshow(pictures[k].permute(1, 2, 0).numpy())
            axis.set_title(told[:28], fontsize=8)
        return figure

    def sample(self, model: Any, count: int) -> Figure:
        """Pictures of the test part and the names that the model gives."""
        return self._drawn(model, "test", count)
