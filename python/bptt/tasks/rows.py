"""Task `rows`: which images are not of a class? Recurrent autoencoders read them row by row.

One autoencoder for each class, trained on images of that class alone; it then sees the whole test
set, and its error on an image makes the image's anomaly score. The measure is the area under the
ROC curve (AUROC) for each class against all others, and its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn

from bptt.data.errors import BadInput
from bptt.models.recurrent_autoencoder import RecurrentAutoencoder
from bptt.train import pictures
from bptt.train.settings import CELL_HELP, CellName
from bptt.train.task import Anchor, Fitting, Judgement, Rows, batched

from . import image_task
from .image_task import ImageSettings, ImageTask

_COMPONENTS = 32
_LEAST_VARIANCE = 1e-3  # of a pixel that is always black: a grey value off by 0.03 is no news


class RowsSettings(ImageSettings):
    code: int = Field(16, ge=1, description="Size of the code.")
    units: int = Field(64, ge=1, description="Hidden state of the encoder, each way, and decoder.")
    cell: CellName = Field("gru", description=CELL_HELP)
    impl: Literal["bptt", "torch"] = Field("bptt", description="Whose recurrent layers.")
    layers: int = Field(1, ge=1, description="Recurrent layers of the encoder and the decoder.")
    bidirectional: bool = Field(True, description="The encoder reads both ways.")
    lr: float = Field(3e-3, gt=0, description="Learning rate at the start; it falls to 0.")


class OneForEach(nn.Module):
    """An autoencoder for each class; `losses` takes images [B, classes, height, width]."""

    def __init__(self, models: list[RecurrentAutoencoder]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        models: Any = self.models
        terms = [m.losses(x[:, k])["reconstruction"] for k, m in enumerate(models)]
        return {"reconstruction": torch.stack(terms).sum()}  # no weight is in two of them


class RowsTask(ImageTask):
    name = "rows"
    model = "Recurrent autoencoders of image rows, one for each class"
    metric = "mean AUROC of one class against all others"
    anchor = "PCA of 32 components, one for each class"
    minutes: ClassVar[float] = 4
    steps: ClassVar[int] = 3000
    Settings = RowsSettings

    def load(self) -> int:
        super().load()
        counts = torch.bincount(self.images.train_labels, minlength=self.images.classes)
        if self.images.classes < 2 or counts.min() < 2:
            raise BadInput(
                f"--data {self.settings.data}: this task needs labels of 2 classes or more, and "
                f"2 images of each to train on, got {counts.tolist()}"
            )
        self.least = int(counts.min())
        return self.least

    def sets(self) -> tuple[Rows, Rows]:
        """A row is an image of each class."""
        labels, images = self.images.train_labels, self.images.train
        by_class = [images[labels == k][: self.least] for k in range(self.images.classes)]
        rows = Rows(x=torch.stack(by_class, 1))  # [N, classes, height, width]
        return rows.split(0.1, self.settings.seed, self.settings.examples)

    def build(self) -> Fitting:
        s = self.settings
        models = [
            RecurrentAutoencoder(
                self.images.size[1],
                s.code,
                s.units,
                s.cell,
                s.layers,
                s.bidirectional,
                s.impl,
                s.loss,
            )
            for _ in range(self.images.classes)
        ]
        return Fitting(OneForEach(models), lr=s.lr)

    def judge(self, model: Any) -> Judgement:
        test = self.images.test
        plain, scaled, by_pca, scaled_pca = [], [], [], []
        for k, m in enumerate(model.models):
            own = self.images.train[self.images.train_labels == k]
            usual = batched(m.reconstruct, own) - own
            off = batched(m.reconstruct, test) - test
            plain.append(self._area(k, _scores(off)))
            scaled.append(self._area(k, _scores(off, usual)))
            pca = image_task.fit_pca(own, _COMPONENTS, self.settings.seed)
            usual = image_task.pca_reconstruct(pca, own) - own
            off = image_task.pca_reconstruct(pca, test) - test
            by_pca.append(self._area(k, _scores(off)))
            scaled_pca.append(self._area(k, _scores(off, usual)))
        metrics = {"mean AUROC": float(np.mean(scaled)), "of plain errors": float(np.mean(plain))}
        metrics |= {f"AUROC of class {k}": area for k, area in enumerate(scaled)}
        anchors = [
            Anchor("mean AUROC", "above", float(np.mean(by_pca)), "PCA, 32 components"),
            Anchor("mean AUROC", "above", float(np.mean(scaled_pca)), "the same, scaled errors"),
        ]
        return Judgement(metrics, anchors)

    def _area(self, k: int, scores: Tensor) -> float:
        return image_task.area(scores, self.images.test_labels != k)

    def figures(self, model: Any) -> dict[str, Figure]:
        shown = self.shown()
        rows = [("input", shown)]
        rows += [
            (f"as class {k}", batched(m.reconstruct, shown)) for k, m in enumerate(model.models)
        ]
        errors = batched(model.models[0].errors, self.images.test)
        own = self.images.test_labels == 0
        return {
            "Test images, and what each class's autoencoder makes of them": pictures.image_grid(
                rows
            ),
            "Errors by the autoencoder of class 0": pictures.histogram(
                [("class 0", errors[own]), ("others", errors[~own])], "error: the anomaly score"
            ),
        }

    def reconstruct(self, model: Any, files: Sequence[Any]) -> tuple[Figure, list[str]]:
        """By the autoencoder that makes the least error, which is named."""
        return super().reconstruct(_Best(model), files)


def _scores(off: Tensor, usual: Tensor | None = None) -> Tensor:
    """Anomaly scores [N] of errors [N, height, width]: the mean of their squares.

    With the errors on images of the class, each pixel's square is divided by what is usual there:
    minus the log-likelihood of a Gaussian with a variance of its own for each pixel.
    """
    squares = off.square()
    if usual is not None:
        squares = squares / (usual.square().mean(0) + _LEAST_VARIANCE)
    return squares.flatten(1).mean(1)


class _Best(nn.Module):
    """Of all autoencoders, for each image, the one with the least error."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.models = model.models

    def errors(self, x: Tensor) -> Tensor:
        return torch.stack([m.errors(x) for m in self.models]).amin(0)

    def reconstruct(self, x: Tensor) -> Tensor:
        made = torch.stack([m.reconstruct(x) for m in self.models])  # [classes, B, H, W]
        best = torch.stack([m.errors(x) for m in self.models]).argmin(0)  # [B]
        return made[best, torch.arange(len(x))]
