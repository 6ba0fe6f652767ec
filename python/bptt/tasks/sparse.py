"""Task `sparse`: a code larger than the input, of which few units are active for any image."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from bptt.models.sparse import SparseAutoencoder
from bptt.train import pictures
from bptt.train.task import Anchor, Fitting, Judgement, batched

from . import image_task
from .image_task import DenseSettings, ImageTask, Sizes


class SparseSettings(DenseSettings):
    code: int = Field(1024, ge=1, description="Size of the code; it may exceed the pixels.")
    hidden: Sizes = Field([], description="Sizes between pixels and code; repeat it for each.")
    sparsity: Literal["l1", "kl", "k"] = Field("k", description="The penalty, or k-sparse codes.")
    weight: float = Field(0.1, ge=0, description="Of the penalty l1 or kl.")
    target: float = Field(0.05, gt=0, lt=1, description="Mean activity that kl asks of a unit.")
    active: int = Field(32, ge=1, description="Units that k keeps.")

    @model_validator(mode="after")
    def _fits(self) -> SparseSettings:
        if self.sparsity == "k" and self.active > self.code:
            raise ValueError(f"active must be at most code ({self.code}), got {self.active}")
        return self


class SparseTask(ImageTask):
    name = "sparse"
    model = "Sparse autoencoder: L1, KL or k-sparse, overcomplete"
    metric = "squared error of a pixel; share of units active, and dormant"
    anchor = "PCA with as many components as units are active"
    minutes: ClassVar[float] = 6
    Settings = SparseSettings

    def build(self) -> Fitting:
        s = self.settings
        model = SparseAutoencoder(
            *self.images.size, s.code, s.hidden, s.loss, s.sparsity, s.weight, s.target, s.active
        )
        return Fitting(model, lr=s.lr)

    def judge(self, model: Any) -> Judgement:
        test = self.images.test
        active, dormant = model.activity(test)
        components = max(1, round(active * self.settings.code))
        pca = image_task.fit_pca(self.images.train, components, self.settings.seed)
        bound = image_task.mean_squared(image_task.pca_reconstruct(pca, test), test)
        metrics = {
            "test error": batched(model.errors, test).mean().item(),
            "active units": active,
            "dormant units": dormant,
        }
        source = f"PCA, {pca.n_components_} components"
        return Judgement(metrics, [Anchor("test error", "below", bound, source)])

    def figures(self, model: Any) -> dict[str, Figure]:
        height, width = self.images.size
        weight = model.decoder[0][0].weight.detach()  # [first size, code]
        if weight.shape[0] != height * width:
            return super().figures(model)
        use = batched(model.encoder, self.images.test).mean(0)  # [code]
        most = weight.T[use.argsort(descending=True)[:48]].reshape(-1, height, width)
        low, high = most.amin((1, 2), keepdim=True), most.amax((1, 2), keepdim=True)
        features = (most - low) / (high - low).clamp_min(1e-12)
        rows = [("", part) for part in torch.split(features, image_task.SHOWN)]
        return {
            **super().figures(model),
            "What the most active units draw": pictures.image_grid(rows),
        }
