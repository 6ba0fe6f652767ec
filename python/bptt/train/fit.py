"""One training by Lightning, begun anew or from its last epoch, to the same weights bit for bit.

All that is drawn (order of the data, noise, masks, dropout) is a function of the seed, the step and
the process, and the step is part of a checkpoint. A run that was killed goes back to the end of the
last epoch that is on disk and draws from there what it would have drawn.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
    Timer,
)
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, DistributedSampler

from bptt.data.errors import BadInput

from .files import WholeCheckpoints
from .folder import Run
from .settings import Settings
from .task import Batch, Fitting, Rows, Task

WATCHED = "validation/loss"
TELL_EVERY = 10.0  # seconds


def rank() -> int:
    """Which of several processes this is; the first one writes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class StepSeeds(Callback):
    """What is drawn in a step depends on seed, step and process, and on nothing before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        place = trainer.global_step * trainer.world_size + trainer.global_rank + 1
        torch.manual_seed((self.seed << 32) + place)


class History(Callback):
    """The curves of a run: every epoch's metrics, kept in its checkpoints."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append({name: float(v) for name, v in trainer.callback_metrics.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])


class Glimpses(Callback):
    """What the model says to a few examples after each epoch, kept in its checkpoints."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.epochs: list[dict[str, str]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank > 0:
            return
        model: Any = pl_module.model
        training = model.training
        self.epochs.append(self.task.glimpse(model.eval()))
        model.train(training)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])


class EpochLines(Callback):
    """Where there is no terminal for a bar: a line an epoch, and some within a long one."""

    def __init__(self) -> None:
        self.told = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self.told > TELL_EVERY:
            share = (batch_idx + 1) / trainer.num_training_batches
            self._tell(trainer, f"{share:.0%}, loss {float(outputs['loss']):.5g}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tell(trainer, f"validation loss {float(trainer.callback_metrics[WATCHED]):.5g}")

    def _tell(self, trainer: L.Trainer, what: str) -> None:
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        print(f"{epoch}: {what}", file=sys.stderr, flush=True)
        self.told = time.monotonic()


class Fitted:
    """What training left: a model with its best weights, its curves, and how long it took.

    Attributes:
        module: in evaluation mode, on the CPU.
        history: metrics of every epoch.
        glimpses: what it said to a few examples after every epoch.
        seconds: of training, over all starts.
    """

    def __init__(
        self,
        module: Fitting,
        history: list[dict[str, float]],
        glimpses: list[dict[str, str]],
        seconds: float,
    ) -> None:
        self.module, self.history = module, history
        self.glimpses, self.seconds = glimpses, seconds


def loader(task: Task, rows: Rows, *, shuffle: bool) -> DataLoader[Batch]:
    """Batches of this process; their order is a function of seed and epoch (Lightning tells it)."""
    settings: Settings = task.settings
    batches = task.batches(rows, shuffle)
    if batches is not None:
        return DataLoader(rows, batch_sampler=batches, collate_fn=task.collate)
    sampler: DistributedSampler[Batch] = DistributedSampler(
        rows, num_replicas=settings.devices, rank=rank(), shuffle=shuffle, seed=settings.seed
    )
    return DataLoader(rows, batch_size=settings.batch, sampler=sampler, collate_fn=task.collate)


def fit(task: Task, run: Run, *, progress: bool = True) -> Fitted:
    """Trains a task, whose data are loaded, in a run's folder.

    Raises:
        BadInput: a checkpoint is damaged, or the loss is no longer finite.
        OSError: a file cannot be written.
    """
    settings: Settings = task.settings
    torch.manual_seed(settings.seed)
    module = task.build()
    if settings.compile:
        module.model.compile()
    history, glimpses, timer = History(), Glimpses(task), Timer()
    stopping = EarlyStopping(WATCHED, patience=settings.patience, check_on_train_epoch_end=True)
    saved = run.read_checkpoint(run.last) if run.last.is_file() else None
    callbacks = [StepSeeds(settings.seed), history, glimpses, timer, stopping]
    if settings.average:
        callbacks.append(EMAWeightAveraging(decay=settings.average))
    with _quiet():
        trainer = _trainer(settings, run, callbacks, progress)
    if saved is None or not _stopped(saved, stopping):
        train, validation = task.sets()
        with _quiet():
            trainer.fit(
                module,
                loader(task, train, shuffle=True),
                loader(task, validation, shuffle=False),
                ckpt_path=run.last if saved else None,
                weights_only=True,
            )
    else:  # it stopped early, and was killed before its result was written
        history.load_state_dict(saved["callbacks"][history.state_key])
        glimpses.load_state_dict(saved["callbacks"][glimpses.state_key])
        timer.load_state_dict(saved["callbacks"][timer.state_key])
    for epoch, metrics in enumerate(history.epochs, start=1):
        if not math.isfinite(metrics[WATCHED]):
            raise BadInput(
                f"the loss is {metrics[WATCHED]} after epoch {epoch}: give a lower --lr, or a "
                f"--clip, and another folder with --run than {run.path}"
            )
    best = run.read_checkpoint(run.best)
    module.load_state_dict(best["state_dict"])
    module.cpu().float().eval()
    return Fitted(module, history.epochs, glimpses.epochs, timer.time_elapsed("train"))


def _trainer(settings: Settings, run: Run, callbacks: list[Callback], progress: bool) -> L.Trainer:
    checkpoints = ModelCheckpoint(
        run.checkpoints,
        filename="best",
        monitor=WATCHED,
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    terminal = progress and sys.stderr.isatty()
    shown: Callback = RichProgressBar(leave=False) if terminal else EpochLines()
    return L.Trainer(
        max_epochs=settings.epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        precision=settings.precision,
        logger=TensorBoardLogger(run.path, name="tensorboard", version=""),
        callbacks=[*callbacks, checkpoints, *([shown] if progress else [])],
        plugins=[WholeCheckpoints()],
        use_distributed_sampler=False,  # ours is one already
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=terminal,
        log_every_n_steps=1,
        gradient_clip_val=settings.clip or None,
        deterministic="warn",
    )


def _stopped(saved: dict[str, Any], stopping: EarlyStopping) -> bool:
    """Whether a checkpoint is of an epoch after which training stopped early."""
    state = saved["callbacks"].get(stopping.state_key, {})
    return bool(state.get("wait_count", 0) >= state.get("patience", 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice that does not fit, such as workers for data that lie in memory."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in ("does not have many workers", "exists and is not empty", "LeafSpec"):
                warnings.filterwarnings("ignore", f".*{advice}.*")
            yield
    finally:
        log.setLevel(level)
