"""Task `vae`: the variational autoencoder: its bound in two terms, and images drawn anew."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from bptt.models.variational import VariationalAutoencoder
from bptt.train import pictures
from bptt.train.task import Anchor, Fitting, Judgement, batched, seeded

from . import image_task
from .image_task import DenseSettings, ImageTask

_CLASSIFIED = 10000  # training images that the classifier sees
_DRAWN = 1000  # samples that it judges


class VaeSettings(DenseSettings):
    code: int = Field(16, ge=1, description="Size of the code.")
    loss: Literal["mse", "bce"] = Field("bce", description="Squared error or cross entropy.")
    beta: float = Field(1.0, ge=0, description="Weight of the divergence; 1 is the bound itself.")


class VaeTask(ImageTask):
    name = "vae"
    model = "Variational autoencoder, stochastic gradient variational Bayes"
    metric = "ELBO in its two terms; confidence of a classifier in samples"
    anchor = "the classifier's confidence in noise and in real images"
    minutes: ClassVar[float] = 5
    steps: ClassVar[int] = 8000
    Settings = VaeSettings

    def build(self) -> Fitting:
        s = self.settings
        model = VariationalAutoencoder(*self.images.size, s.code, s.hidden, s.loss, s.beta)
        return Fitting(model, lr=s.lr)

    def judge(self, model: Any) -> Judgement:
        test = self.images.test
        with seeded(self.settings.seed):
            terms = batched(lambda x: torch.stack(model.bound(x), 1), test).mean(0)
            samples = model.sample(_DRAWN)
        reconstruction, divergence = terms.tolist()
        metrics = {
            "ELBO": -reconstruction - divergence,
            "log p(x | z)": -reconstruction,
            "divergence": divergence,
            "test error": batched(model.errors, test).mean().item(),
        }
        anchors = []
        if self.images.classes > 1:
            classifier = self._classifier()
            metrics["confidence in samples"] = _confidence(classifier, samples)
            metrics["confidence in test images"] = _confidence(classifier, test)
            bound = _confidence(classifier, self._mixed(test))
            anchors.append(
                Anchor("confidence in samples", "above", bound, "each pixel of another image")
            )
        return Judgement(metrics, anchors)

    def _mixed(self, x: Tensor) -> Tensor:
        """Images whose every pixel is that of another of them: right pixel by pixel, and noise."""
        with seeded(self.settings.seed):
            order = torch.rand(len(x), x[0].numel()).argsort(0)  # [N, pixels]
        return x.flatten(1).gather(0, order).reshape(x.shape)

    def _classifier(self) -> MLPClassifier:
        """A small network from scikit-learn, trained on real images."""
        images = self.images
        network = MLPClassifier((128,), early_stopping=True, random_state=self.settings.seed)
        some = slice(_CLASSIFIED)
        return network.fit(image_task.flat(images.train[some]), images.train_labels[some].numpy())

    def figures(self, model: Any) -> dict[str, Figure]:
        test, labels = self.images.test, self.images.test_labels
        means = batched(lambda x: model.encoder(x)[0], test[:3000])
        shown = self.shown()
        pairs = [
            ("", model.interpolate(shown[i], shown[i + 1], image_task.SHOWN))
            for i in range(0, min(8, len(shown) - 1), 2)
        ]
        with seeded(self.settings.seed):
            samples = self.sample(model, 48)
        return {
            **super().figures(model),
            "Samples: codes drawn from N(0, I)": samples,
            "From one test image to another, through their codes": pictures.image_grid(pairs),
            "Means of the codes": pictures.latent_map(means, labels[:3000]),
        }

    def sample(self, model: Any, count: int) -> Figure:
        drawn = model.sample(count)
        return pictures.image_grid([("", part) for part in drawn.split(image_task.SHOWN)])


def _confidence(classifier: MLPClassifier, x: Tensor) -> float:
    """The mean probability of the likeliest class."""
    return float(classifier.predict_proba(image_task.flat(x)).max(1).mean())
