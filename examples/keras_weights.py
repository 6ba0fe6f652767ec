"""Keras: weights of its LSTM and GRU in, and out again. KERAS_BACKEND=torch needs no TensorFlow.

Keras has kernels [I, G*H] and [H, G*H] where PyTorch has their transposes, other orders of the
GRU's gates (z, r, n for r, z, n), and one bias, or, of a GRU with reset_after, two.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import torch

import bptt
import gain

ORDER = {"LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2]}  # ours of Keras's gates, and the other way round


def turned(kind, tensor):
    """Rows [G*H, ...] in the other one's order."""
    return tensor.unflatten(0, (len(ORDER[kind]), -1))[ORDER[kind]].flatten(0, 1).contiguous()


def from_keras(theirs):
    """A layer with the weights of a built `keras.layers.LSTM` or `GRU`."""
    kind = type(theirs).__name__
    kernel, recurrent, bias = (torch.tensor(w) for w in theirs.get_weights())
    options = {"reset_after": theirs.reset_after} if kind == "GRU" else {}
    ours = getattr(bptt, kind)(kernel.shape[0], theirs.units, batch_first=True, **options)
    both = bias if bias.dim() == 2 else torch.stack([bias, torch.zeros_like(bias)])
    values = (kernel.t(), recurrent.t(), *both)
    for name, value in zip(ours.state_dict(), values, strict=True):
        ours.get_parameter(name).data = turned(kind, value)
    return ours


def to_keras(ours, theirs):
    """Give a built layer of Keras the weights of ours."""
    kind = type(ours).__name__
    w_ih, w_hh, b_ih, b_hh = (turned(kind, w.detach()) for w in ours.parameters())
    bias = torch.stack([b_ih, b_hh]) if len(theirs.get_weights()[2].shape) == 2 else b_ih + b_hh
    theirs.set_weights([w.numpy() for w in (w_ih.t(), w_hh.t(), bias)])


def pair(batch=16, steps=100, features=32, hidden=128, kind="LSTM", **options):
    """Keras's layer on torch, and ours with its weights."""
    theirs = getattr(keras.layers, kind)(hidden, return_sequences=True, **options)
    theirs.build((None, steps, features))
    theirs.set_weights([0.1 * torch.randn(w.shape).numpy() for w in theirs.get_weights()])
    ours, x = from_keras(theirs), torch.randn(batch, steps, features)

    def before():
        with torch.no_grad():
            return theirs(x)

    def after():
        with torch.no_grad():
            return ours(x)[0]

    return before, after


if __name__ == "__main__":
    gain.show(pair())
