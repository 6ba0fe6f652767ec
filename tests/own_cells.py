"""Cells that tests make by `bptt.cell`: some that the library has as well, and some it does not."""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch
from torch.nn import functional as F

import bptt
from bptt.recurrence.cells import CELLS

# Compiled cells stay between runs, and without much optimisation: what is asked is what they say.
os.environ.setdefault("BPTT_CACHE", os.path.join("build", "test-cells"))
os.environ.setdefault("BPTT_CELL_FLAGS", "-O1")


def gru(gates_x, gates_h, h):
    r = torch.sigmoid(gates_x[0] + gates_h[0])
    z = torch.sigmoid(gates_x[1] + gates_h[1])
    n = torch.tanh(gates_x[2] + r * gates_h[2])
    return n + z * (h - n)


def elman(gates_x, gates_h, h):
    return torch.tanh(gates_x[0] + gates_h[0])


def lstm_peephole(gates_x, gates_h, h, c, *, p_i, p_f, p_o):
    i, f, g, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
    i, f = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


def zoo(gates_x, gates_h, h, c, n, *, rate):
    """No cell anyone wants: it has what the others do not use."""
    a, b = gates_x[0] + gates_h[0], F.gelu(gates_x[1]) * gates_h[1].clamp(-2, 2)
    open_ = torch.where(a > b, F.softplus(a), torch.exp(-b.abs()))
    n = torch.maximum(n * torch.sigmoid(rate), torch.log1p(open_)) + 0.1
    c = F.silu(c) + torch.minimum(F.elu(b), torch.expm1(0.1 * a)) / (1 + open_**2)
    left = torch.logical_and(a < 1, ~(b <= -1)).to(a.dtype)
    h = torch.sin(c) * torch.log(n + 1.5) / torch.sqrt(n + 1) + 0.3 * left * h
    return h + F.leaky_relu(b, 0.2) * torch.rsqrt(1 + c * c), c, n


def diagonal_lstm(gates_x, gates_h, h, c, *, peep):
    i, f, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
    c = torch.sigmoid(f) * c + torch.tanh(i)
    return torch.sigmoid(o + peep * c) * c, c


def simple_recurrent_unit(gates_x, h, c, *, v_f, v_r):
    """Lei et al. 2018, with a projection as the highway's input."""
    f, r = torch.sigmoid(gates_x[0] + v_f * c), torch.sigmoid(gates_x[1] + v_r * c)
    c = f * c + (1 - f) * gates_x[2]
    return r * c + (1 - r) * gates_x[3], c


# By name: gates, function, product.
CELLS_OF_OURS = {
    "gru": (3, gru, "dense"),
    "lstm_peephole": (4, lstm_peephole, "dense"),
    "zoo": (2, zoo, "dense"),
    "diagonal_lstm": (3, diagonal_lstm, "diagonal"),
    "simple_recurrent_unit": (4, simple_recurrent_unit, "none"),
}


@contextmanager
def known_cells_as_before():
    """Forget what cells were made in the block: other tests go through all that are known."""
    before = set(CELLS)
    try:
        yield
    finally:
        for name in set(CELLS) - before:
            del CELLS[name]


@contextmanager
def defined():
    """The cells by name, for as long as the block."""
    with known_cells_as_before():
        yield {
            name: bptt.cell(gates, product=product)(function)
            for name, (gates, function, product) in CELLS_OF_OURS.items()
        }
