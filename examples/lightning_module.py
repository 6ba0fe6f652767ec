"""Lightning: a LightningModule whose layer is bptt's trains as any other."""

import copy
import logging

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bptt
import gain


class Forecaster(lightning.LightningModule):
    """The next value of a series."""

    def __init__(self, hidden):
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def training_step(self, batch, index):
        (series,) = batch
        return nn.functional.mse_loss(self.head(self.lstm(series[:, :-1])[0]), series[:, 1:])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def pair(rows=256, steps=100, hidden=64):
    """An epoch of eight batches from the same weights; the weights after it."""
    theirs = Forecaster(hidden)
    ours = bptt.convert(copy.deepcopy(theirs))
    series = torch.sin(torch.rand(rows, 1, 1) + torch.arange(steps).view(1, -1, 1) / 5)
    loader = DataLoader(TensorDataset(series), batch_size=32)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def epoch(start):
        module = copy.deepcopy(start)
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet
        )
        trainer.fit(module, loader)
        return module.lstm.weight_hh_l0.detach(), module.head.weight.detach()

    return lambda: epoch(theirs), lambda: epoch(ours)


if __name__ == "__main__":
    gain.show(pair())
