"""accelerate: a converted model in a loop of one's own."""

import copy

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bptt
import gain


class Classifier(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.gru = nn.GRU(8, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 3)

    def forward(self, x):
        return self.head(self.gru(x)[0].mean(1))


def pair(rows=256, steps=60, hidden=64):
    """An epoch of eight batches from the same weights; the weights after it."""
    theirs = Classifier(hidden)
    ours = bptt.convert(copy.deepcopy(theirs))
    data = TensorDataset(torch.randn(rows, steps, 8), torch.randint(3, (rows,)))
    accelerator = Accelerator(cpu=True)

    def epoch(start):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(data, batch_size=32)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for x, labels in loader:
            loss = nn.functional.cross_entropy(model(x), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return model.gru.weight_hh_l0.detach(), model.head.weight.detach()

    return lambda: epoch(theirs), lambda: epoch(ours)


if __name__ == "__main__":
    gain.show(pair())
