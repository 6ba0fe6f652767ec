"""Cells to try: `bptt check --cell docs/course/cells.py:ugrnn`."""

import torch

import bptt


@bptt.cell(gates=("g", "c"))
def ugrnn(gates_x, gates_h, h):
    """The update gate RNN: Collins, Sohl-Dickstein and Sussillo, 2016."""
    g = torch.sigmoid(gates_x[0] + gates_h[0])
    c = torch.tanh(gates_x[1] + gates_h[1])
    return g * h + (1 - g) * c


@bptt.cell(gates=2)
def light_gru(gates_x, gates_h, h):
    """Ravanelli et al., 2018, without its batch normalisation."""
    z = torch.sigmoid(gates_x[0] + gates_h[0])
    return z * h + (1 - z) * torch.relu(gates_x[1] + gates_h[1])
