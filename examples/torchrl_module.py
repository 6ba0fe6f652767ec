"""TorchRL's LSTMModule: `bptt.convert`, and its resets go to the kernel.

In recurrent mode TorchRL cuts a batch where episodes begin, pads the pieces and runs them as rows
of a larger batch. A converted module is given masks instead, and cuts nothing.
"""

import copy

import torch
from tensordict import TensorDict
from torchrl.modules import LSTMModule, set_recurrent_mode

import bptt
import gain


def pair(rows=16, steps=100, features=32, hidden=128):
    """Forward and backward through a batch of rollouts."""
    theirs = LSTMModule(
        input_size=features,
        hidden_size=hidden,
        in_keys=["observation", "h", "c"],
        out_keys=["y", ("next", "h"), ("next", "c")],
    )
    ours = bptt.convert(copy.deepcopy(theirs))
    starts = torch.rand(rows, steps, 1) < 0.02
    starts[:, 0] = True
    data = TensorDict(
        {
            "observation": torch.randn(rows, steps, features),
            "is_init": starts,
            "h": torch.zeros(rows, steps, 1, hidden),
            "c": torch.zeros(rows, steps, 1, hidden),
        },
        [rows, steps],
    )

    def update(module):
        module.zero_grad()
        with set_recurrent_mode(True):
            y = module(data.clone())["y"]
        y.square().mean().backward()
        return y.detach(), module.lstm.weight_hh_l0.grad

    return lambda: update(theirs), lambda: update(ours)


if __name__ == "__main__":
    gain.show(pair())
