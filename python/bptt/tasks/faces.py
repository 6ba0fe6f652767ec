"""Task `faces`: what is no face? An autoencoder of faces, and its error on other patches."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from bptt.data.errors import BadInput
from bptt.data.images import Images, as_images
from bptt.models.autoencoder import Autoencoder
from bptt.train import pictures
from bptt.train.task import Anchor, Fitting, Judgement, batched

from . import image_task
from .image_task import DenseSettings, ImageTask

_FACES = 100  # of skimage's patches; the other half shows no faces
_TRAINED = 70


class FacesSettings(DenseSettings):
    code: int = Field(8, ge=1, description="Size of the code.")


class FacesTask(ImageTask):
    name = "faces"
    model = "Undercomplete autoencoder of faces; its error is the anomaly score"
    data: ClassVar[str] = "200 patches of 25x25 of Labeled Faces in the Wild, from scikit-image"
    metric = "AUROC of faces against other patches"
    anchor = "PCA of the same size"
    minutes: ClassVar[float] = 0.2
    steps: ClassVar[int] = 600
    Settings = FacesSettings

    def load(self) -> int:
        if self.settings.data is not None:
            raise BadInput("--data is not for this task: its patches are those of scikit-image")
        patches, labels = faces()
        known = slice(_TRAINED)
        self.images = Images(
            "LFW patches", patches[known], labels[known], patches[_TRAINED:], labels[_TRAINED:]
        )
        return _TRAINED

    def build(self) -> Fitting:
        s = self.settings
        return Fitting(Autoencoder(*self.images.size, s.code, s.hidden, s.loss), lr=s.lr)

    def judge(self, model: Any) -> Judgement:
        test = self.images.test
        pca = image_task.fit_pca(self.images.train, self.settings.code, self.settings.seed)
        made = image_task.pca_reconstruct(pca, test)
        by_pca = self._area((made - test).square().flatten(1).mean(1))
        metrics = {
            "AUROC": self._area(batched(model.errors, test)),
            "test error on faces": batched(model.errors, test[self._faces()]).mean().item(),
            "compression": self.compression(),
        }
        source = f"PCA, {pca.n_components_} components"
        return Judgement(metrics, [Anchor("AUROC", "above", by_pca, source)])

    def _faces(self) -> Tensor:
        return self.images.test_labels == 0

    def _area(self, scores: Tensor) -> float:
        return image_task.area(scores, ~self._faces())

    def shown(self) -> Tensor:
        faces = self._faces()
        half = image_task.SHOWN // 2
        return torch.cat([self.images.test[faces][:half], self.images.test[~faces][:half]])

    def figures(self, model: Any) -> dict[str, Figure]:
        errors, faces = batched(model.errors, self.images.test), self._faces()
        groups = [("faces", errors[faces]), ("others", errors[~faces])]
        return {
            **super().figures(model),
            "Errors": pictures.histogram(groups, "error: the anomaly score"),
        }


def faces() -> tuple[Tensor, Tensor]:
    """Patches [200, 25, 25]: faces, label 0, then others, label 1."""
    from skimage.data import lfw_subset

    patches = as_images(lfw_subset(), "skimage.data.lfw_subset")
    labels = (torch.arange(len(patches)) >= _FACES).long()
    return patches, labels
