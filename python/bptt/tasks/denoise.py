"""Task `denoise`: the denoising autoencoder against a median filter and PCA, at the same noise."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy.ndimage import median_filter
from sklearn.decomposition import PCA
from torch import Tensor

from bptt.models.denoising import DenoisingAutoencoder
from bptt.train import pictures
from bptt.train.task import Anchor, Fitting, Judgement, batched, seeded

from . import image_task
from .image_task import DenseSettings, ImageTask

_COMPONENTS = (8, 16, 32, 64, 128)  # of which the best for PCA is taken, on training images


class DenoiseSettings(DenseSettings):
    code: int = Field(128, ge=1, description="Size of the code; it may exceed the pixels.")
    noise: Literal["gaussian", "masking", "salt-pepper"] = Field(
        "gaussian", description="What corrupts the input."
    )
    amount: float = Field(
        0.3, ge=0, description="Of noise: standard deviation, or share of the pixels."
    )


class DenoiseTask(ImageTask):
    name = "denoise"
    model = "Denoising autoencoder: Gaussian, masking or salt-and-pepper noise"
    metric = "squared error of a pixel after denoising"
    anchor = "median filter; PCA"
    minutes: ClassVar[float] = 5
    Settings = DenoiseSettings

    def build(self) -> Fitting:
        s = self.settings
        model = DenoisingAutoencoder(*self.images.size, s.code, s.hidden, s.loss, s.noise, s.amount)
        return Fitting(model, lr=s.lr)

    def corrupted(self, model: Any, x: Tensor) -> Tensor:
        """The same noise for every method."""
        with seeded(self.settings.seed):
            return model.corrupt(x)

    def judge(self, model: Any) -> Judgement:
        test = self.images.test
        noisy = self.corrupted(model, test)
        error = image_task.mean_squared
        denoised = batched(model.reconstruct, noisy)
        metrics = {"test error": error(denoised, test), "error of the input": error(noisy, test)}
        pca, components = self._pca(model)
        anchors = [
            Anchor("test error", "below", error(median(noisy), test), "median filter, 3x3"),
            Anchor(
                "test error",
                "below",
                error(image_task.pca_reconstruct(pca, noisy), test),
                f"PCA, {components} components",
            ),
        ]
        return Judgement(metrics, anchors)

    def _pca(self, model: Any) -> tuple[PCA, int]:
        """Components of clean images: as many as denoise some of them best."""
        train = self.images.train
        some = train[:5000]
        noisy = self.corrupted(model, some)

        def error(pca: PCA) -> float:
            return image_task.mean_squared(image_task.pca_reconstruct(pca, noisy), some)

        fitted = [image_task.fit_pca(train, n, self.settings.seed) for n in _COMPONENTS]
        best = min(fitted, key=error)
        return best, best.n_components_

    def figures(self, model: Any) -> dict[str, Figure]:
        clean = self.shown()
        noisy = self.corrupted(model, clean)
        rows = [
            ("clean", clean),
            ("input", noisy),
            ("output", batched(model.reconstruct, noisy)),
            ("median", median(noisy)),
        ]
        return {"Test images, corrupted and denoised": pictures.image_grid(rows)}


def median(x: Tensor) -> Tensor:
    """The median of each pixel and its eight neighbours."""
    return torch.from_numpy(median_filter(x.numpy(), size=(1, 3, 3)))
