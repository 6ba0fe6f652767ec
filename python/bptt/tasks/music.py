"""Task `music`: what sounds next? Chorales step by step, many to many; composed from one chord."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.data.chorales import KEYS, LOWEST, load_chorales
from bptt.models.music import MusicModel
from bptt.train.settings import RecurrentSettings
from bptt.train.task import Anchor, Batch, Fitting, Judgement, Rows, Task, seeded

# Nats of a step of JSB Chorales' test part: GRU and LSTM as Bai, Kolter, Koltun 2018 (arXiv
# 1803.01271) have them, tanh as Chung et al. 2014 (arXiv 1412.3555).
PUBLISHED = {"gru": 8.43, "lstm": 8.45, "rnn": 9.10}


class MusicSettings(RecurrentSettings):
    units: int = Field(512, ge=1, description="Hidden state of a layer.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On inputs, between layers, at the end.")
    weight_drop: float = Field(
        0.6, ge=0, lt=1, description="On hidden-to-hidden weights; an option of bptt's layers."
    )
    transpose: int = Field(0, ge=0, le=11, description="Keys that pieces move in training.")
    clip: float = Field(0.0, ge=0, description="Bound on the norm of all gradients (0: none).")
    epochs: int = Field(150, ge=0, description="Passes over the data, at most.")
    batch: int = Field(16, ge=0, description="Pieces in a batch, on each device.")
    lr: float = Field(4e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")


class MusicTask(Task):
    name = "music"
    model = "Recurrent model of the next step's keys; many to many, one to many"
    data: ClassVar[str] = "a JSON file of piano rolls such as JSB Chorales' (--data)"
    metric = "nats of a step"
    anchor = "GRU 8.43, LSTM 8.45, tanh 9.10 on JSB Chorales, as published"
    minutes: ClassVar[float] = 8
    steps: ClassVar[int] = 3000
    Settings = MusicSettings

    def load(self) -> int:
        self.rolls = load_chorales(self.settings.data)
        return len(self.rolls["train"].keys)

    def data_name(self) -> str:
        return str(self.settings.data.stem)

    def sets(self) -> tuple[Rows, Rows]:
        train, valid = (
            Rows(keys=self.rolls[part].keys, lengths=self.rolls[part].lengths)
            for part in ("train", "valid")
        )
        most = self.settings.examples
        return (Rows(**train[:most]) if most else train), valid

    def collate(self, batch: Any) -> Batch:
        return {**batch, "keys": batch["keys"][:, : int(batch["lengths"].max())]}

    def build(self) -> Fitting:
        s = self.settings
        model = MusicModel(
            KEYS,
            units=s.units,
            cell=s.cell,
            layers=s.layers,
            dropout=s.dropout,
            weight_drop=s.weight_drop,
            transpose=s.transpose,
            impl=s.impl,
        )
        return Fitting(model, lr=s.lr, arguments=("keys", "lengths"))

    @torch.no_grad()
    def judge(self, model: Any) -> Judgement:
        test, train = self.rolls["test"], self.rolls["train"]
        nats = model.step_losses(test.keys.float())
        within = torch.arange(1, test.keys.shape[1]) < test.lengths[:, None]
        count = int(within.sum())
        metrics = {
            "nats of a step": nats[within].double().sum().item() / count,
            "steps judged": float(count),
        }
        anchors = [
            Anchor("nats of a step", "below", self._guess(train, test), "how often a key is")
        ]
        bound = PUBLISHED.get(self.settings.cell)
        if bound is not None and "jsb" in self.data_name().lower():
            source = f"{self.settings.cell} on JSB Chorales, as published"
            anchors.append(Anchor("nats of a step", "below", bound, source))
        return Judgement(metrics, anchors)

    @staticmethod
    def _guess(train: Any, test: Any) -> float:
        """Nats of a step by how often each key sounds, whatever sounded before."""
        share = (train.keys.sum((0, 1)) + 0.5) / (train.lengths.sum() + 1)
        within = torch.arange(1, test.keys.shape[1]) < test.lengths[:, None]
        keys = test.keys[:, 1:][within].double()
        return (
            -(keys @ share.log().double() + (1 - keys) @ (1 - share).log().double()).mean().item()
        )

    def figures(self, model: Any) -> dict[str, Figure]:
        with seeded(self.settings.seed):
            made = [model.compose(self._chord(i), 64) for i in range(3)]
        shown = {f"Composed from the first chord of test piece {i}": m for i, m in enumerate(made)}
        return {title: roll_figure(roll) for title, roll in shown.items()} | {
            "Test piece 0, by Bach": roll_figure(self._piece(0))
        }

    def _piece(self, i: int) -> Tensor:
        test = self.rolls["test"]
        return test.keys[i, : int(test.lengths[i])]

    def _chord(self, i: int) -> Tensor:
        return self._piece(i % len(self.rolls["test"].keys))[0]

    def sample(self, model: Any, count: int) -> Figure:
        """A piece of `count` steps from the first chord of a piece of the test part."""
        piece = int(torch.randint(len(self.rolls["test"].keys), ()))
        return roll_figure(model.compose(self._chord(piece), count))


def roll_figure(roll: Tensor) -> Figure:
    """Keys over steps, of a roll [T, keys], bool."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axis = figure.subplots()
    steps, keys = roll.nonzero(as_tuple=True)
    axis.barh(keys + LOWEST, 1, 0.8, left=steps.numpy(), color="C0")
    axis.set_xlim(0, len(roll))
    axis.set_ylim(LOWEST + 14, LOWEST + 67)
    axis.set_xlabel("step")
    axis.set_ylabel("MIDI pitch")
    axis.grid(alpha=0.3)
    return figure
