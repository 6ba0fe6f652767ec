"""Task `fill`: the convolutional autoencoder fills in a rectangle that it does not see."""

from __future__ import annotations

from typing import Any, ClassVar

from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.models.convolutional import ConvolutionalAutoencoder, rectangles
from bptt.train import pictures
from bptt.train.task import Anchor, Fitting, Judgement, batched, seeded

from . import image_task
from .image_task import ImageSettings, ImageTask


class FillSettings(ImageSettings):
    code: int = Field(64, ge=1, description="Size of the code.")
    channels: int = Field(16, ge=1, description="Of the first convolution; the second has twice.")
    masked: float = Field(
        0.5, gt=0, lt=1, description="Share of height and width that is masked out."
    )


class FillTask(ImageTask):
    name = "fill"
    model = "Convolutional autoencoder, mirrored transposed convolutions"
    metric = "squared error of a masked-out pixel"
    anchor = "the mean image; PCA fitted to the pixels that are seen"
    minutes: ClassVar[float] = 10
    steps: ClassVar[int] = 3000
    Settings = FillSettings

    def build(self) -> Fitting:
        s = self.settings
        model = ConvolutionalAutoencoder(*self.images.size, s.code, s.channels, s.loss, s.masked)
        return Fitting(model, lr=s.lr)

    def masks(self, x: Tensor) -> Tensor:
        """The same rectangles for every method."""
        with seeded(self.settings.seed):
            return rectangles(x, self.settings.masked)

    def judge(self, model: Any) -> Judgement:
        test = self.images.test
        mask = self.masks(test)
        mean = self.images.train.mean(0).expand_as(test)
        pca = image_task.fit_pca(self.images.train, self.settings.code, self.settings.seed)
        blind = image_task.pca_reconstruct(pca, test * mask + mean * (1 - mask))
        metrics = {
            "error of filled pixels": _hidden_error(batched(model.fill, test, mask), test, mask),
            "test error": batched(model.errors, test).mean().item(),
            "compression": self.compression(),
        }
        return Judgement(
            metrics,
            [
                Anchor("error of filled pixels", "below", _hidden_error(other, test, mask), source)
                for other, source in (
                    (mean, "the mean image"),
                    (blind, f"PCA, {pca.n_components_} components, the hole filled with the mean"),
                )
            ],
        )

    def figures(self, model: Any) -> dict[str, Figure]:
        shown = self.shown()
        mask = self.masks(shown)
        rows = [
            ("whole", shown),
            ("input", shown * mask),
            ("filled", batched(model.fill, shown, mask)),
        ]
        return {
            "Test images with a hole, and what fills it": pictures.image_grid(rows),
            **super().figures(model),
        }


def _hidden_error(made: Tensor, x: Tensor, mask: Tensor) -> float:
    """Mean squared error where the mask is 0."""
    return (((made - x).square() * (1 - mask)).sum() / (1 - mask).sum()).item()
