"""opacus: gradients of every sample by torch.func, of the fused layer.

opacus has an LSTM of its own, whose steps are linear layers with hooks. `vmap(grad)` gives the same
gradients of a plain layer; opacus takes them with `grad_sample_mode="no_op"`.
"""

import torch
from opacus import GradSampleModule
from opacus.layers import DPLSTM
from torch import nn
from torch.func import functional_call, grad, vmap

import bptt
import gain


class Classifier(nn.Module):
    def __init__(self, lstm):
        super().__init__()
        self.lstm, self.head = lstm, nn.Linear(lstm.hidden_size, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def pair(samples=32, steps=50, features=16, hidden=64):
    """Gradients of all weights for each sample; those of the head, [samples, 2, hidden]."""
    ours = Classifier(bptt.LSTM(features, hidden, batch_first=True))
    theirs = Classifier(DPLSTM(features, hidden, batch_first=True))
    theirs.lstm.load_state_dict(ours.lstm.state_dict())
    theirs.head.load_state_dict(ours.head.state_dict())
    hooked = GradSampleModule(theirs, loss_reduction="sum")
    x, labels = torch.randn(samples, steps, features), torch.randint(2, (samples,))

    def before():
        hooked.zero_grad()
        nn.functional.cross_entropy(hooked(x), labels, reduction="sum").backward()
        return theirs.head.weight.grad_sample.clone()

    def loss(parameters, row, label):
        out = functional_call(ours, parameters, (row[None],))
        return nn.functional.cross_entropy(out, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def after():
        parameters = {name: p.detach() for name, p in ours.named_parameters()}
        return each(parameters, x, labels)["head.weight"]

    return before, after


if __name__ == "__main__":
    gain.show(pair())
