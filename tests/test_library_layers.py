"""Do the layers of `bptt.nn.library` follow their papers' equations, and draw weights as they do?

That such cells agree in every backend is what test_custom_cells.py asks of `bptt.cell`.
"""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import bptt
import own_cells
from cases import F64

T, B, I, H = 6, 3, 4, 5


def pre(layer, x_t, h, gates):
    """W_ih x + b_ih and W_hh h + b_hh (or u * h), a tensor for each gate."""
    gates_x = F.linear(x_t, layer.weight_ih_l0, layer.bias_ih_l0).chunk(gates, -1)
    if not hasattr(layer, "weight_hh_l0"):
        return gates_x, None
    w = layer.weight_hh_l0
    if w.dim() == 1:
        return gates_x, (w * h.repeat(1, gates) + layer.bias_hh_l0).chunk(gates, -1)
    return gates_x, F.linear(h, w, layer.bias_hh_l0).chunk(gates, -1)


def min_gru(layer, x_t, h):
    (z, n), _ = pre(layer, x_t, h, 2)
    return ((1 - z.sigmoid()) * h + z.sigmoid() * n,)


def min_lstm(layer, x_t, h):
    (f, i, n), _ = pre(layer, x_t, h, 3)
    f, i = f.sigmoid(), i.sigmoid()
    return (f / (f + i) * h + i / (f + i) * n,)


def sru(layer, x_t, h, c):
    (n, f, r, x), _ = pre(layer, x_t, h, 4)
    v_f, v_r = layer.weight_unit_l0.chunk(2)
    f, r = (f + v_f * c).sigmoid(), (r + v_r * c).sigmoid()
    c = f * c + (1 - f) * n
    return r * c + (1 - r) * x, c


def diagonal_gru(layer, x_t, h):
    (rx, zx, nx), (rh, zh, nh) = pre(layer, x_t, h, 3)
    r, z = (rx + rh).sigmoid(), (zx + zh).sigmoid()
    return ((1 - z) * (nx + r * nh).tanh() + z * h,)


def diagonal_lstm(layer, x_t, h, c):
    i, f, g, o = (a + b for a, b in zip(*pre(layer, x_t, h, 4), strict=True))
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def light_gru(layer, x_t, h):
    (zx, nx), (zh, nh) = pre(layer, x_t, h, 2)
    z = (zx + zh).sigmoid()
    return (z * h + (1 - z) * (nx + nh).relu(),)


def mgu(layer, x_t, h):
    (fx, nx), (fh, nh) = pre(layer, x_t, h, 2)
    f = (fx + fh).sigmoid()
    return ((1 - f) * h + f * (nx + f * nh).tanh(),)


LAYERS = {
    "MinGRU": (min_gru, 1), "MinLSTM": (min_lstm, 1), "SRU": (sru, 2),
    "DiagonalGRU": (diagonal_gru, 1), "DiagonalLSTM": (diagonal_lstm, 2),
    "LightGRU": (light_gru, 1), "MGU": (mgu, 1),
}  # fmt: skip
names = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def as_before():
    bptt.custom.library.cell_named.cache_clear()
    with own_cells.known_cells_as_before():
        yield
    bptt.custom.library.cell_named.cache_clear()


def check_equations(name, backend):
    torch.manual_seed(0)
    step, count = LAYERS[name]
    layer = getattr(bptt, name)(I, H, dtype=F64)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    states = tuple(torch.zeros(B, H, dtype=F64) for _ in range(count))
    expected = []
    for x_t in x:
        states = step(layer, x_t, *states)
        expected.append(states[0])
    with bptt.backend(backend):
        y, last = layer(x)
    torch.testing.assert_close(y, torch.stack(expected))
    for ours, theirs in zip(last if count > 1 else (last,), states, strict=True):
        torch.testing.assert_close(ours[0], theirs)
    leaves = [x, *layer.parameters()]
    ours = torch.autograd.grad(y.square().sum(), leaves)
    theirs = torch.autograd.grad(torch.stack(expected).square().sum(), leaves)
    torch.testing.assert_close(ours, theirs)


@names
def test_equations(name):
    check_equations(name, "reference")


FEW = ("SRU", "DiagonalGRU")  # others are like these
MORE = [pytest.param(name, marks=pytest.mark.exhaustive) for name in LAYERS if name not in FEW]


@pytest.mark.parametrize("name", [*FEW, *MORE])
def test_equations_on_the_fused_loop(name):
    check_equations(name, "cpu")


@names
def test_is_a_layer_like_others(name):
    layer = getattr(bptt, name)(I, H, num_layers=2, bidirectional=True, batch_first=True)
    assert repr(layer).startswith(f"{name}({I}, {H}, num_layers=2")
    with bptt.backend("reference"):
        y, _ = layer(torch.randn(B, T, I), lengths=torch.tensor([6, 0, 3]))
        assert y.shape == (B, T, 2 * H) and y[1].abs().sum() == 0
        again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
        assert again.cell is layer.cell
        with pytest.raises(RuntimeError, match=f"{name}: input.size"):
            layer(torch.randn(B, T, I + 1))


@pytest.mark.parametrize("name", ["MinGRU", "MinLSTM", "SRU"])
def test_weights_are_drawn_as_their_authors_do(name):
    layer = getattr(bptt, name)(64, 50)
    w = layer.weight_ih_l0.detach()
    if name == "SRU":
        halves = {0: 1.0, 1: 0.5, 2: 0.5, 3: 1.0}
        for gate, share in halves.items():
            assert w[50 * gate : 50 * (gate + 1)].var().item() == pytest.approx(share / 64, rel=0.1)
        assert layer.bias_ih_l0.abs().sum() == 0
        assert layer.weight_unit_l0.var().item() == pytest.approx(0.5, rel=0.4)
    else:
        assert 0.95 / 8 < w.abs().max() <= 1 / 8
        assert layer.bias_ih_l0.abs().max() <= 1 / math.sqrt(64)
    second = getattr(bptt, name)(64, 50, num_layers=2).weight_ih_l1
    assert second.shape == (w.shape[0], 50)


def test_import_makes_none():
    assert not bptt.custom.library.cell_named.cache_info().currsize


def test_the_cuda_kernels_have_the_structs_of_the_functions():
    """Those of `csrc/cells/library.h`, but for how they are laid out on the page."""
    from bptt.custom.library_header import header

    path = Path(__file__).resolve().parent.parent / "csrc" / "cells" / "library.h"
    assert "".join(path.read_text().split()) == "".join(header().split())
