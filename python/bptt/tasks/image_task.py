"""What the tasks on images share: reading them, baselines, pictures of reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import AfterValidator, Field
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.regression import mean_squared_error

from bptt.data.errors import BadInput
from bptt.data.images import Images, load_images, read_pictures
from bptt.models.reconstruction import share_kept
from bptt.train import pictures
from bptt.train.settings import Settings
from bptt.train.task import Rows, Task, batched

SHOWN = 12  # images in a row of a picture


def _positive(sizes: list[int]) -> list[int]:
    if any(size < 1 for size in sizes):
        raise ValueError("expected sizes of 1 or more")
    return sizes


Sizes = Annotated[list[int], AfterValidator(_positive)]


class ImageSettings(Settings):
    code: int = Field(16, ge=1, description="Size of the code.")
    loss: Literal["mse", "bce"] = Field("mse", description="Squared error or cross entropy.")


class DenseSettings(ImageSettings):
    hidden: Sizes = Field(
        [512, 256], description="Sizes between pixels and code; repeat it for each."
    )


class ImageTask(Task):
    """A task on grey images: Fashion-MNIST, or what `--data` names; digits without."""

    data: ClassVar[str] = "Fashion-MNIST (--data); scikit-learn's digits"
    images: Images

    def load(self) -> int:
        self.images = load_images(self.settings.data)
        if len(self.images.train) < 2:
            raise BadInput(f"--data {self.settings.data}: 2 images or more are needed to train on")
        return len(self.images.train)

    def data_name(self) -> str:
        return self.images.name

    def sets(self) -> tuple[Rows, Rows]:
        rows = Rows(x=self.images.train)
        return rows.split(0.1, self.settings.seed, self.settings.examples)

    def shown(self) -> Tensor:
        """Some images of the test set, one of each label first."""
        labels = self.images.test_labels
        firsts = [int((labels == label).nonzero()[0]) for label in labels.unique()]
        others = [i for i in range(len(labels)) if i not in firsts]
        return self.images.test[(firsts + others)[:SHOWN]]

    def compression(self) -> float:
        """Pixels of an image over numbers of its code."""
        return share_kept(self.images.size, self.settings.code)

    def figures(self, model: Any) -> dict[str, Figure]:
        shown = self.shown()
        made = batched(model.reconstruct, shown)
        rows = [("input", shown), ("output", made)]
        return {"Test images and their reconstructions": pictures.image_grid(rows)}

    def reconstruct(self, model: Any, files: Sequence[Any]) -> tuple[Figure, list[str]]:
        named = [one for file in files for one in read_images(file, self.images.size)]
        if not named:
            named = [(f"test image {i}", image) for i, image in enumerate(self.shown())]
        x = torch.stack([image for _, image in named])
        errors = batched(model.errors, x)
        width = max(len(name) for name, _ in named)
        lines = [
            f"{name:{width}}  error {error:.5f}"
            for (name, _), error in zip(named, errors.tolist(), strict=True)
        ]
        made = batched(model.reconstruct, x)
        shown = [("input", x[:SHOWN]), ("output", made[:SHOWN])]
        return pictures.image_grid(shown), lines


def read_images(path: Path, size: tuple[int, int]) -> list[tuple[str, Tensor]]:
    """Named grey images of a picture, or of an .npy file [height, width] or [N, height, width].

    Raises:
        BadInput: it is missing, neither, or of another size.
    """
    images = read_pictures(path)
    if tuple(images.shape[1:]) != size:
        came = f"{images.shape[2]}x{images.shape[1]}"
        raise BadInput(f"{path}: the model takes images of {size[1]}x{size[0]}, got {came}")
    names = [f"{path}[{i}]" for i in range(len(images))] if len(images) > 1 else [str(path)]
    return list(zip(names, images, strict=True))


def flat(x: Tensor) -> np.ndarray:
    """Images as rows of numbers, for scikit-learn."""
    return x.flatten(1).numpy()


def fit_pca(train: Tensor, components: int, seed: int) -> PCA:
    """Principal components of images; fewer where there are fewer images or pixels."""
    most = min(len(train), train[0].numel())
    return PCA(min(components, most), svd_solver="auto", random_state=seed).fit(flat(train))


def pca_reconstruct(pca: PCA, x: Tensor) -> Tensor:
    """Images through the components and back."""
    made = pca.inverse_transform(pca.transform(flat(x)))
    return torch.from_numpy(made).float().reshape(x.shape)


def mean_squared(a: Tensor, b: Tensor) -> float:
    return mean_squared_error(a.flatten(), b.flatten()).item()


def area(scores: Tensor, anomalous: Tensor) -> float:
    """AUROC of anomaly scores [N] of 0 and above, for bool [N]."""
    # torchmetrics takes other values than these for logits, and large ones would become equal.
    within = scores.double() / (1 + scores.double())
    return binary_auroc(within, anomalous.long()).item()


def probe_accuracy(
    train: np.ndarray, train_labels: Tensor, test: np.ndarray, test_labels: Tensor
) -> float:
    """Share of test labels that a linear classifier of codes gets right."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    probe.fit(train, train_labels.numpy())
    return float(probe.score(test, test_labels.numpy()))
