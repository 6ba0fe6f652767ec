"""What a task is: data, a model with its losses, a judgement against anchors, pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import lightning.pytorch as L
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from .settings import Settings

Batch = dict[str, Tensor]


class Rows(Dataset[Batch]):
    """Named tensors with one row an example. Given a list of rows it returns them as a batch."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: Any) -> Batch:
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        return self[torch.tensor(indices)]

    def split(self, share: float, seed: int, most: int = 0) -> tuple[Rows, Rows]:
        """All rows but a share (at most `most` if that is not 0), and that share; by chance."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held = min(max(1, round(share * len(self))), len(self) - 1)
        kept = order[held:]
        return Rows(**self[kept[:most] if most else kept]), Rows(**self[order[:held]])


@dataclass(frozen=True)
class Anchor:
    """A bar that a result is held against.

    Attributes:
        metric: the name of a metric of the judgement.
        better: "below" or "above" the bound.
        bound: the number.
        source: what it is of.
    """

    metric: str
    better: Literal["below", "above"]
    bound: float
    source: str

    def met(self, metrics: dict[str, float]) -> bool:
        value = metrics[self.metric]
        return value < self.bound if self.better == "below" else value > self.bound


@dataclass(frozen=True)
class Judgement:
    """Metrics of a trained model on the test set, and what they are held against.

    Attributes:
        metrics: numbers by name.
        anchors: bars for some of them.
        notes: what tells how they were made, in words.
    """

    metrics: dict[str, float]
    anchors: list[Anchor] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


class Fitting(L.LightningModule):
    """Lightning's view of a model: named losses, Adam, a learning rate that rises and falls.

    The rate rises for a twentieth of the steps and falls to 0 as a cosine (torch's OneCycleLR).

    Args:
        model: has `losses(...)`, named scalars of which the sum is minimised.
        lr: the highest learning rate.
        arguments: the columns of a batch that `losses` takes, in order.
    """

    def __init__(self, model: nn.Module, *, lr: float, arguments: Sequence[str] = ("x",)) -> None:
        super().__init__()
        self.model, self.lr, self.arguments = model, lr, arguments

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named terms of the loss of a batch."""
        return self.model.losses(*(batch[name] for name in self.arguments))  # type: ignore[operator]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: Batch, index: int) -> Tensor:
        return self._loss(batch, "validation")

    def _loss(self, batch: Batch, part: str) -> Tensor:
        terms = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        named = {"loss": loss, **(terms if len(terms) > 1 else {})}
        self.log_dict(
            {f"{part}/{name}": value.detach() for name, value in named.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(next(iter(batch.values()))),
            sync_dist=True,
        )
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = max(4, int(self.trainer.estimated_stepping_batches))
        rising = max(0.05, 2 / steps)  # two steps at least, or OneCycleLR divides by 0
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, steps, pct_start=rising, cycle_momentum=False
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights lie, and its inputs go."""
    return next(model.parameters()).device


class Task(ABC):
    """One thing to train, named on the command line.

    A task's file holds all of it: options, data, model, judgement, pictures. `load` reads the data;
    after it, the other methods may be called.

    Args:
        settings: an instance of the class's `Settings`.
    """

    name: ClassVar[str]
    model: ClassVar[str]  # in words
    data: ClassVar[str]  # with --data, and without
    metric: ClassVar[str]
    anchor: ClassVar[str]
    minutes: ClassVar[float]  # on two cores, with the published data
    steps: ClassVar[int] = 6000  # of the optimizer, where epochs are left to the size of the data
    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def load(self) -> int:
        """Reads the data; returns how many examples there are to train on.

        Raises:
            BadInput: they cannot be used.
        """

    def prepare(self) -> None:
        """Reads the data, and fits to their size what the settings leave to it.

        Raises:
            BadInput: they cannot be used.
        """
        self.settings = self.settings.fitted_to(self.load(), self.steps)

    @abstractmethod
    def data_name(self) -> str:
        """What was read, for reports."""

    @abstractmethod
    def sets(self) -> tuple[Rows, Rows]:
        """What to train on and what to validate on."""

    @abstractmethod
    def build(self) -> Fitting:
        """The model, with weights from torch's random numbers."""

    def finish(self, model: Any) -> None:  # noqa: B027 - most tasks leave the model as it is
        """What is left to do to a trained model before it is saved and judged."""

    @abstractmethod
    def judge(self, model: Any) -> Judgement:
        """Metrics on the test set, and anchors."""

    @abstractmethod
    def figures(self, model: Any) -> dict[str, Figure]:
        """Pictures of what the model does, by title."""

    def tables(self, model: Any) -> dict[str, list[list[str]]]:
        """What the model does, in words: rows by title, the first with the columns' names."""
        return {}

    def glimpse(self, model: Any) -> dict[str, str]:
        """What the model says to a few examples: after each epoch, for the report."""
        return {}

    def vocabularies(self) -> dict[str, Any]:
        """What turns a user's text into numbers, for a JSON file in the run's folder."""
        return {}

    def use(self, vocabularies: dict[str, Any]) -> None:
        """Takes what `vocabularies` gave instead of reading data."""
        raise NotImplementedError

    def batches(self, rows: Rows, shuffle: bool) -> Sampler[list[int]] | None:
        """How rows make batches in this process, where that is not by chance."""
        return None

    def collate(self, batch: Any) -> Batch:
        """Changes a batch before it goes to a device."""
        return batch

    def reconstruct(self, model: Any, files: Sequence[Any]) -> tuple[Figure, list[str]]:
        """What `bptt reconstruct` shows: a picture, and a line for each example."""
        raise NotImplementedError

    def sample(self, model: Any, count: int) -> Figure | str:
        """What `bptt sample` shows; for generative models."""
        raise NotImplementedError

    @classmethod
    def can(cls, what: str) -> bool:
        """Whether a task has `reconstruct` or `sample`."""
        return getattr(cls, what) is not getattr(Task, what)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers on a CPU from a seed; what is drawn afterwards does not notice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def batched(function: Callable[..., Tensor], *columns: Tensor, size: int = 1024) -> Tensor:
    """function of rows of the columns, a batch at a time, its results one after another."""
    parts = zip(*(column.split(size) for column in columns), strict=True)
    return torch.cat([function(*part) for part in parts])
