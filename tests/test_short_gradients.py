"""Gradients of short calls, which one op makes: are they those of long ones?

Plain layers have an op for all of them at once (`calls.plain`), others one for each.
"""

import pytest
import torch

import bptt
from bptt.calls import plain_training
from bptt.recurrence import autograd, short

LAYERS = {"rnn": bptt.RNN, "gru": bptt.GRU, "lstm": bptt.LSTM}
BOUND = {torch.float32: 5e-5, torch.float64: 1e-12}


@pytest.fixture
def taken(monkeypatch):
    """Calls of the two ops."""
    calls = []

    def counted(inner):
        def call(*arguments):
            calls.append(arguments)
            return inner(*arguments)

        return call

    monkeypatch.setattr(autograd, "short_gradients", counted(short.short_gradients))
    monkeypatch.setattr(plain_training, "_gradients", counted(plain_training._gradients))
    return calls


def results(layer, x, state, wanted):
    y, last = layer(x, state)
    last = last if isinstance(last, tuple) else (last,)
    loss = sum((t * torch.linspace(-1, 1, t.numel()).to(t).view(t.shape)).sum() for t in (y, *last))
    return torch.autograd.grad(loss, wanted)


def problem(cell, bidirectional, steps, batch, dtype):
    layer = LAYERS[cell](5, 7, num_layers=2, bidirectional=bidirectional).to(dtype)
    # Of strides that nobody expects, where steps and batch allow any.
    x = torch.randn(batch, steps, 5, dtype=dtype).transpose(0, 1).requires_grad_()
    planes = 4 if bidirectional else 2
    state = [torch.randn(planes, batch, 7, dtype=dtype, requires_grad=True) for _ in range(2)]
    return layer, x, tuple(state) if cell == "lstm" else state[0]


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 64), (256, 1), (5, 3)])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("cell", LAYERS)
def test_short_and_long_agree(cell, bidirectional, steps, batch, dtype, taken, monkeypatch):
    layer, x, state = problem(cell, bidirectional, steps, batch, dtype)
    wanted = [x, *(state if cell == "lstm" else [state]), *layer.parameters()]
    ours_all = results(layer, x, state, wanted)
    calls = 2 if steps > 64 else 1  # two layers
    assert len(taken) == calls
    monkeypatch.setattr(short, "SHORT_ROWS", 0)
    monkeypatch.setattr(plain_training, "_MOST_ROWS", 0)
    for ours, long in zip(ours_all, results(layer, x, state, wanted), strict=True):
        assert ours.shape == long.shape and ours.dtype == dtype
        bound = BOUND[dtype] * max(1.0, long.abs().max().item())
        torch.testing.assert_close(ours, long, rtol=0, atol=bound)
    assert len(taken) == calls


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("cell", LAYERS)
def test_each_alone(cell, bidirectional, taken):
    """Whatever is asked for, nothing else is looked at."""
    layer, x, state = problem(cell, bidirectional, 3, 2, torch.float64)
    everything = [x, *(state if cell == "lstm" else [state]), *layer.parameters()]
    together = results(layer, x, state, everything)
    for k, tensor in enumerate(everything):
        for other in everything:
            other.requires_grad_(other is tensor)
        alone = results(layer, x, state, [tensor])[0]
        torch.testing.assert_close(alone, together[k], rtol=1e-12, atol=1e-12)
    assert taken


@pytest.mark.parametrize(
    ("change", "call"),
    [
        ({}, {"lengths": torch.tensor([3, 1])}),
        ({}, {"resets": torch.zeros(3, 2, dtype=torch.bool)}),
        ({"zoneout": 0.2}, {}),
        ({"proj_size": 2}, {}),
        ({"dtype": torch.bfloat16}, {}),
        ({"recompute": True}, {}),
    ],
    ids=["lengths", "resets", "zoneout", "projection", "bfloat16", "recompute"],
)
def test_what_takes_the_long_way(change, call, taken):
    layer = bptt.LSTM(3, 4, **change)
    x = torch.randn(3, 2, 3, dtype=change.get("dtype", torch.float32))
    layer(x, **call)[0].sum().backward()
    assert not taken and layer.weight_hh_l0.grad is not None


def test_a_long_call_and_a_second_derivative_take_the_long_way(taken):
    layer = bptt.GRU(3, 4)
    layer(torch.randn(257, 1, 3))[0].sum().backward()
    assert not taken
    loss = layer(torch.randn(2, 1, 3))[0].sum()
    torch.autograd.grad(loss, layer.parameters(), create_graph=True)
    assert not taken


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_bits_do_not_depend_on_the_number_of_threads(bidirectional):
    layer, x, state = problem("lstm", bidirectional, 5, 12, torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(layer, x, state, [x, *layer.parameters()]))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 2, 6)}, r"w_ih must be \[D, G\*H, I\]"),
        ({"x": torch.zeros(3, 1, 5)}, r"x must be \[T, B, I\]"),
        ({"y": torch.zeros(0, 2, 1, 4), "x": torch.zeros(0, 2, 5)}, "y must have steps"),
        ({"needed": [True]}, "needed must have 7 flags, got 1"),
        ({"y": torch.zeros(3, 2, 1, 4, dtype=torch.bfloat16)}, "float32 or float64"),
        ({"h0": torch.zeros(1, 3, 4)}, r"h0 must be \[D, B, R\]"),
        ({"reverse": []}, "reverse must have D = 1 flags, got 0"),
        ({"cell": "lstm"}, "must"),
        ({"cell": "none"}, 'unknown cell "none"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(change, message):
    given = {
        "cell": "rnn_tanh", "dy": torch.ones(3, 2, 1, 4), "dh_n": None, "dc_n": None,
        "y": torch.zeros(3, 2, 1, 4), "saved": torch.zeros(0), "cells": torch.zeros(0),
        "x": torch.zeros(3, 2, 5), "w_ih": torch.zeros(1, 4, 5), "w_hh": torch.zeros(1, 4, 4),
        "h0": torch.zeros(1, 2, 4), "c0": None, "reverse": [False], "needed": [True] * 7,
    }  # fmt: skip
    torch.ops.bptt.short_gradients(*given.values())
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bptt.short_gradients(*{**given, **change}.values())
