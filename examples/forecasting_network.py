"""pytorch-forecasting's RecurrentNetwork: lengths that may be zero are the layer's own.

Its GRU is a subclass of torch.nn's, which packs, and replaces the states of rows without a step.
`bptt.convert` leaves subclasses; this one is three lines.
"""

import copy

import numpy as np
import pandas as pd
import torch
from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet

import bptt
import gain


class Layer(bptt.GRU):
    def forward(self, x, hx=None, lengths=None, enforce_sorted=True):
        return super().forward(x, hx, lengths=lengths)


def data_of(series=20, steps=200):
    t = np.arange(steps)
    tables = [
        pd.DataFrame({"t": t, "series": str(k), "value": np.sin(t / (5 + k)) + 2})
        for k in range(series)
    ]
    return TimeSeriesDataSet(
        pd.concat(tables, ignore_index=True),
        time_idx="t",
        target="value",
        group_ids=["series"],
        min_encoder_length=10,
        max_encoder_length=60,
        max_prediction_length=20,
        time_varying_unknown_reals=["value"],
    )


def pair(hidden=64):
    """Forward and backward through a batch of windows."""
    data = data_of()
    theirs = RecurrentNetwork.from_dataset(data, cell_type="GRU", hidden_size=hidden, dropout=0)
    ours = copy.deepcopy(theirs)
    ours.rnn = Layer(theirs.rnn.input_size, hidden, theirs.rnn.num_layers, batch_first=True)
    ours.rnn.load_state_dict(theirs.rnn.state_dict())
    x, (target, _) = next(iter(data.to_dataloader(train=True, batch_size=64, shuffle=False)))

    def update(network):
        network.train()
        network.zero_grad()
        loss = network.loss(network(x)["prediction"], target)
        loss.backward()
        return loss.detach(), network.rnn.weight_hh_l0.grad

    return lambda: update(theirs), lambda: update(ours)


if __name__ == "__main__":
    torch.manual_seed(0)
    gain.show(pair())
