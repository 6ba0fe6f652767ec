"""Task `detect`: where are faces in a picture? A classifier of patches, slid over it.

Beside skimage's patches, faces and others, parts of its pictures that show no face are there to
train on: what a window meets most is no face.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, binary_precision, binary_recall

from bptt.data.errors import BadInput
from bptt.models.detector import STRIDE, WINDOW, Detector, Found
from bptt.train.pictures import image_grid
from bptt.train.settings import Settings
from bptt.train.task import Anchor, Fitting, Judgement, Rows, Task

from .faces import faces

_TRAINED, _VALIDATION = 60, 10  # patches of each kind; the other 30 are for the test
_FACELESS = {
    "train": (
        *("brick", "cell", "chelsea", "clock", "coins", "grass", "gravel", "horse", "page"),
        *("hubble_deep_field", "immunohistochemistry", "logo", "moon", "retina", "rocket"),
    ),
    "validation": ("coffee", "text"),
}
_PART = WINDOW + 8 * STRIDE  # pixels of a part of a picture: 9 x 9 windows


class DetectSettings(Settings):
    channels: int = Field(16, ge=1, description="Of the first convolution.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Before the last layer.")
    parts: int = Field(4000, ge=1, description="Parts of pictures without faces to train on.")
    worst: float = Field(0.003, gt=0, le=1, description="Share of faceless windows that count.")
    lr: float = Field(2e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")
    batch: int = Field(32, ge=0, description="Patches in a batch, on each device.")


class DetectTask(Task):
    name = "detect"
    model = "Convolutional detector of faces; one to one, slid over a picture"
    data: ClassVar[str] = "patches of Labeled Faces in the Wild and pictures, from scikit-image"
    metric = "AUROC of held-out patches, precision and recall"
    anchor = "PCA and a support vector machine"
    minutes: ClassVar[float] = 3
    steps: ClassVar[int] = 3000
    Settings = DetectSettings

    def load(self) -> int:
        if self.settings.data is not None:
            raise BadInput("--data is not for this task: its patches are those of scikit-image")
        patches, labels = faces()
        known, held = patches[labels == 0], patches[labels == 1]
        cuts = [_TRAINED, _VALIDATION, len(known) - _TRAINED - _VALIDATION]
        names = ("train", "validation", "test")
        self.patches = {
            name: (
                torch.cat([face, other]),
                torch.cat([torch.ones(len(face)), torch.zeros(len(other))]),
            )
            for name, face, other in zip(names, known.split(cuts), held.split(cuts), strict=True)
        }
        return self.settings.parts

    def rows(self, part: str, count: int) -> Rows:
        """Patches again and again, each beside a part of a picture without faces."""
        x, labels = self.patches[part]
        each = torch.arange(count) % len(x)
        others = parts_of_pictures(_FACELESS[part], count, self.settings.seed)
        return Rows(x=x[each], faces=labels[each], others=others)

    def data_name(self) -> str:
        return "LFW patches"

    def vocabularies(self) -> dict[str, Any]:
        return {"window": WINDOW}

    def use(self, vocabularies: dict[str, Any]) -> None:
        pass

    def sets(self) -> tuple[Rows, Rows]:
        count = self.settings.examples or self.settings.parts
        return self.rows("train", count), self.rows("validation", 200)

    def build(self) -> Fitting:
        s = self.settings
        model = Detector(s.channels, dropout=s.dropout, worst=s.worst)
        return Fitting(model, lr=s.lr, arguments=("x", "faces", "others"))

    def judge(self, model: Any) -> Judgement:
        from sklearn.decomposition import PCA
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import SVC

        x, labels = self.patches["test"]
        true = labels.long()
        known, faces = self.patches["train"]
        vectors = make_pipeline(PCA(40, random_state=self.settings.seed), SVC())
        vectors.fit(known.flatten(1).numpy(), faces.numpy())
        by_svm = torch.from_numpy(vectors.decision_function(x.flatten(1).numpy())).sigmoid()
        p = model.probabilities(x)
        svm = binary_auroc(by_svm, true).item()
        metrics = {
            "AUROC": binary_auroc(p, true).item(),
            "precision": binary_precision(p, true).item(),
            "recall": binary_recall(p, true).item(),
            "AUROC of PCA and SVM": svm,
            "precision of PCA and SVM": binary_precision(by_svm, true).item(),
            "recall of PCA and SVM": binary_recall(by_svm, true).item(),
            "patches judged": float(len(x)),
        }
        return Judgement(metrics, [Anchor("AUROC", "above", svm - 1e-9, "PCA and SVM, or equal")])

    def figures(self, model: Any) -> dict[str, Figure]:
        from skimage.color import rgb2gray
        from skimage.data import astronaut

        picture = torch.from_numpy(rgb2gray(astronaut()).astype(np.float32))
        x, _ = self.patches["test"]
        surest = x[model.probabilities(x).argsort(descending=True)]
        rows = [("likeliest", surest[:12]), ("least likely", surest[-12:])]
        return {
            "A picture of skimage": drawn(picture, model.find(picture)),
            "Patches of the test part": image_grid(rows),
        }


def parts_of_pictures(names: Sequence[str], count: int, seed: int) -> Tensor:
    """Squares of any place and scale from skimage's pictures: [count, height, width]."""
    from skimage import data
    from skimage.color import rgb2gray

    pictures = []
    for name in names:
        read = getattr(data, name)()
        picture = rgb2gray(read[..., :3]) if read.ndim == 3 else read.astype(float)
        pictures.append(torch.from_numpy((picture / picture.max()).astype(np.float32)))
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(count):
        picture = pictures[generator.integers(len(pictures))]
        size = int(generator.integers(_PART, min(picture.shape), endpoint=True))
        top, left = (generator.integers(length - size + 1) for length in picture.shape)
        square = picture[None, None, top : top + size, left : left + size]
        parts.append(F.interpolate(square, (_PART, _PART), mode="bilinear", antialias=True)[0])
    return torch.cat(parts).clamp(0, 1)


def drawn(picture: Tensor, found: list[Found]) -> Figure:
    """A grey picture [height, width] with a box around every face found."""
    height, width = picture.shape
    figure = Figure(figsize=(7, 7 * height / width), layout="constrained")
    axis = figure.subplots()
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    for left, top, size, probability in found:
        axis.add_patch(Rectangle((left, top), size, size, fill=False, color="C1", lw=2))
        axis.text(left, top - 3, f"{probability:.2f}", color="C1", fontsize=9)
    axis.set_axis_off()
    return figure
