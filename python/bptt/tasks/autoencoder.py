"""Task `autoencoder`: the undercomplete autoencoder against as many principal components."""

from __future__ import annotations

from typing import Any, ClassVar

from matplotlib.figure import Figure

from bptt.models.autoencoder import Autoencoder
from bptt.train import pictures
from bptt.train.task import Anchor, Fitting, Judgement, batched

from . import image_task
from .image_task import DenseSettings, ImageTask

_PROBED = 20000  # training images that the linear classifiers see


class AutoencoderTask(ImageTask):
    name = "autoencoder"
    model = "Undercomplete autoencoder, linear layers"
    metric = "squared error of a pixel; accuracy of a linear classifier of codes"
    anchor = "PCA of the same size"
    minutes: ClassVar[float] = 2
    Settings = DenseSettings

    def build(self) -> Fitting:
        s = self.settings
        model = Autoencoder(*self.images.size, s.code, s.hidden, s.loss)
        return Fitting(model, lr=s.lr)

    def judge(self, model: Any) -> Judgement:
        images, code = self.images, self.settings.code
        pca = image_task.fit_pca(images.train, code, self.settings.seed)
        pca_error = image_task.mean_squared(
            image_task.pca_reconstruct(pca, images.test), images.test
        )
        metrics = {
            "test error": batched(model.errors, images.test).mean().item(),
            "compression": self.compression(),
        }
        source = f"PCA, {pca.n_components_} components"
        anchors = [Anchor("test error", "below", pca_error, source)]
        if images.classes > 1:
            train, labels = images.train[:_PROBED], images.train_labels[:_PROBED]
            metrics["probe accuracy"] = image_task.probe_accuracy(
                batched(model.encoder, train).numpy(),
                labels,
                batched(model.encoder, images.test).numpy(),
                images.test_labels,
            )
            bound = image_task.probe_accuracy(
                pca.transform(image_task.flat(train)),
                labels,
                pca.transform(image_task.flat(images.test)),
                images.test_labels,
            )
            anchors.append(Anchor("probe accuracy", "above", bound, source))
        return Judgement(metrics, anchors)

    def figures(self, model: Any) -> dict[str, Figure]:
        codes = batched(model.encoder, self.images.test[:3000])
        labels = self.images.test_labels[:3000]
        return {**super().figures(model), "Codes": pictures.latent_map(codes, labels)}
