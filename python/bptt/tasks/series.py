"""Task `series`: series of any length into one vector each, and back; recurrent autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.decomposition import PCA
from torch import Tensor, nn

from bptt.data.errors import BadInput
from bptt.data.series import Part, Series, load_series
from bptt.models.recurrent import valid
from bptt.models.recurrent_autoencoder import RecurrentAutoencoder
from bptt.models.recurrent_variational import RecurrentVariationalAutoencoder
from bptt.train import pictures
from bptt.train.settings import CELL_HELP, CellName, Settings
from bptt.train.task import Anchor, Fitting, Judgement, Rows, Task, batched, seeded

from .image_task import probe_accuracy


class SeriesSettings(Settings):
    model: Literal["plain", "variational"] = Field("plain", description="The autoencoder.")
    code: int = Field(16, ge=1, description="Size of the code.")
    units: int = Field(128, ge=1, description="Hidden state of the encoder, each way, and decoder.")
    cell: CellName = Field("gru", description=CELL_HELP)
    impl: Literal["bptt", "torch"] = Field("bptt", description="Whose recurrent layers.")
    layers: int = Field(1, ge=1, description="Recurrent layers of the encoder and the decoder.")
    bidirectional: bool = Field(True, description="The encoder reads both ways.")
    beta: float = Field(1.0, ge=0, description="Of the variational one: weight of the divergence.")
    lr: float = Field(3e-3, gt=0, description="Learning rate at the start; it falls to 0.")


class SeriesTask(Task):
    name = "series"
    model = "Recurrent autoencoder, or recurrent variational; lengths differ"
    data: ClassVar[str] = "an .npz file (--data); JapaneseVowels from aeon"
    metric = "squared error of a value, in standard deviations"
    anchor = "the mean series; PCA of the padded series, as many components"
    minutes: ClassVar[float] = 0.3
    steps: ClassVar[int] = 2000
    Settings = SeriesSettings
    series: Series

    def load(self) -> int:
        self.series = load_series(self.settings.data)
        if len(self.series.train.series) < 2:
            raise BadInput(f"--data {self.settings.data}: 2 series or more are needed to train on")
        return len(self.series.train.series)

    def data_name(self) -> str:
        return self.series.name

    def sets(self) -> tuple[Rows, Rows]:
        train = self.series.train
        rows = Rows(x=train.series, lengths=train.lengths)
        return rows.split(0.1, self.settings.seed, self.settings.examples)

    def build(self) -> Fitting:
        s = self.settings
        features = self.series.train.series.shape[2]
        sizes = (features, s.code, s.units, s.cell, s.layers, s.bidirectional, s.impl)
        model: nn.Module = (
            RecurrentAutoencoder(*sizes)
            if s.model == "plain"
            else RecurrentVariationalAutoencoder(*sizes, beta=s.beta)
        )
        return Fitting(model, lr=s.lr, arguments=("x", "lengths"))

    def codes(self, model: Any, part: Part) -> Tensor:
        """Codes [N, code]; means of the variational one."""
        made = batched(model.encoder, part.series, part.lengths)
        return made[:, : self.settings.code]

    def judge(self, model: Any) -> Judgement:
        train, test = self.series.train, self.series.test
        made = batched(model.reconstruct, test.series, test.lengths)
        metrics = {"test error": _error(made, test)}
        pca = PCA(min(self.settings.code, len(train.series)), random_state=self.settings.seed)
        flat = (part.series.flatten(1).numpy() for part in (train, test))
        places = (pca.fit_transform(next(flat)), pca.transform(next(flat)))
        back = torch.from_numpy(pca.inverse_transform(places[1])).reshape(test.series.shape)
        source = f"PCA, {pca.n_components_} components"
        anchors = [
            Anchor("test error", "below", _error(_mean(train), test), "the mean of each step"),
            Anchor("test error", "below", _error(back, test), source),
        ]
        if len(train.labels.unique()) > 1:

            def probed(codes: tuple[np.ndarray, np.ndarray]) -> float:
                return probe_accuracy(codes[0], train.labels, codes[1], test.labels)

            ours = (self.codes(model, train).numpy(), self.codes(model, test).numpy())
            metrics["probe accuracy"] = probed(ours)
            anchors.append(Anchor("probe accuracy", "above", probed(places), source))
        return Judgement(metrics, anchors)

    def figures(self, model: Any) -> dict[str, Figure]:
        test = self.series.test
        title = "Test series (three features, solid) and their reconstructions (dashed)"
        figures = {
            title: self._beside(model, test.series[:8], test.lengths[:8]),
            "Codes of the test set": pictures.latent_map(self.codes(model, test), test.labels),
        }
        if self.settings.model == "variational":
            with seeded(self.settings.seed):
                figures["Samples: codes drawn from N(0, I)"] = self.sample(model, 8)
        return figures

    def reconstruct(self, model: Any, files: Sequence[Any]) -> tuple[Figure, list[str]]:
        if files:
            raise BadInput("series are read from --data FILE.npz, its test part; no other files")
        test = self.series.test
        errors = batched(model.errors, test.series[:8], test.lengths[:8])
        lines = [f"test series {i}  error {error:.5f}" for i, error in enumerate(errors.tolist())]
        return self._beside(model, test.series[:8], test.lengths[:8]), lines

    def sample(self, model: Any, count: int) -> Figure:
        if self.settings.model != "variational":
            raise BadInput("this run's model is plain: train with --model variational to sample")
        steps = int(self.series.train.lengths.float().mean().round())
        return pictures.series_grid([(one, None) for one in model.sample(count, steps)])

    def _beside(self, model: Any, x: Tensor, lengths: Tensor) -> Figure:
        made = batched(model.reconstruct, x, lengths)
        return pictures.series_grid(
            [(a[:n], b[:n]) for a, b, n in zip(x, made, lengths.tolist(), strict=True)]
        )


def _mean(part: Part) -> Tensor:
    """The mean of each step over the series that have it: [1, T, features]."""
    within = valid(part.series, part.lengths)
    return part.series.sum(0, keepdim=True) / within.sum(0, keepdim=True).clamp_min(1)


def _error(made: Tensor, part: Part) -> float:
    """Mean squared error over all values within the lengths."""
    within = valid(part.series, part.lengths)
    squared = (made - part.series).square() * within
    return (squared.sum() / (within.sum() * part.series.shape[2])).item()
