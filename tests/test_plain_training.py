"""Training by the short way: is it the usual way's, whatever one does with its gradients?"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bptt
from bptt.calls import plain_training

LAYERS = {
    "RNN": (bptt.RNN, {}),
    "RNN, relu": (bptt.RNN, {"nonlinearity": "relu"}),
    "GRU": (bptt.GRU, {}),
    "LSTM": (bptt.LSTM, {}),
}
SHAPES = [(1, 1), (1, 40), (4, 4), (20, 7)]


@pytest.fixture
def ways(monkeypatch):
    """Set `usual` and nothing goes the short way; `seen` counts its forward passes."""
    inner = plain_training.Training.applied

    class Ways:
        usual, seen = False, 0

    def applied(*inputs):
        if Ways.usual:
            raise RuntimeError("not now")
        Ways.seen += 1
        return inner(*inputs)

    monkeypatch.setattr(plain_training.Training, "applied", applied)
    return Ways


def tensors(y, last):
    return (y, *last) if isinstance(last, tuple) else (y, last)


def loss_of(outputs):
    weighted = (o * torch.linspace(-1, 1, o.numel()).to(o).view(o.shape) for o in outputs)
    return sum(w.sum() for w in weighted)


def states_of(layer, batch, dtype):
    directions = 2 if layer.bidirectional else 1
    shape = (layer.num_layers * directions, batch, layer.hidden_size)
    made = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2)]
    return tuple(made) if isinstance(layer, bptt.LSTM) else made[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "batch_first": True},
        {"bias": False},
        {"bidirectional": True},
        {"bidirectional": True, "num_layers": 2, "bias": False},
    ],
)
@pytest.mark.parametrize("name", LAYERS)
def test_both_ways_agree(name, options, ways):
    cls, more = LAYERS[name]
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        layer = cls(5, 19, **more, **options).to(dtype)
        for steps, batch in SHAPES:
            x = torch.randn(steps, batch, 5, dtype=dtype, requires_grad=True)
            given = x.transpose(0, 1) if options.get("batch_first") else x
            for hx in (None, states_of(layer, batch, dtype)):
                leaves = [x, *layer.parameters()]
                leaves += [] if hx is None else tensors(*hx) if isinstance(hx, tuple) else [hx]
                found = []
                for ways.usual in (False, True):
                    outputs = tensors(*layer(given, hx))
                    found.append((outputs, torch.autograd.grad(loss_of(outputs), leaves)))
                (short, short_grads), (usual, usual_grads) = found
                torch.testing.assert_close(short, usual, rtol=0, atol=0)
                for ours, theirs in zip(short_grads, usual_grads, strict=True):
                    scale = max(1.0, theirs.abs().max().item())
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound * scale)
    assert ways.seen == 2 * 2 * len(SHAPES)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_torch(name, bidirectional, ways):
    cls, more = LAYERS[name]
    more = {**more, "num_layers": 2, "bidirectional": bidirectional}
    layer = cls(6, 9, **more).double()
    theirs = getattr(nn, cls.__name__)(6, 9, **more).double()
    theirs.load_state_dict(layer.state_dict())
    wide = torch.randn(3, 2, 12, dtype=torch.float64, requires_grad=True)
    for piece in (slice(None, None, 2), slice(6, None)):
        found = []
        for module in (layer, theirs):
            outputs = tensors(*module(wide[..., piece]))
            found.append(torch.autograd.grad(loss_of(outputs), [wide, *module.parameters()]))
        torch.testing.assert_close(*found)
    assert ways.seen == 2


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_not_finite_reaches_weights_of_a_state_of_zeros(name, steps, ways):
    """Zeros times infinity are no number, though the product with zeros is left out."""
    cls, options = LAYERS[name]
    layer = cls(5, 6, **options)
    x, dy, found = torch.randn(steps, 4, 5), torch.ones(steps, 4, 6), []
    dy[0, 1] = float("inf")
    for ways.usual in (False, True):
        y, _ = layer(x)
        found.append(torch.autograd.grad(y, list(layer.parameters()), dy))
    assert ways.seen == 1
    assert found[0][1].isnan().any()
    for short, usual in zip(*found, strict=True):
        assert short.isfinite().equal(usual.isfinite())


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_second_derivatives(name, layers, bidirectional, ways):
    layer = LAYERS[name][0](2, 3, num_layers=layers, bidirectional=bidirectional).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = states_of(layer, 2, torch.float64)
    states = hx if isinstance(hx, tuple) else (hx,)

    def call(x, *states):
        return tensors(*layer(x, states if len(states) > 1 else states[0]))

    assert torch.autograd.gradcheck(call, (x, *states))
    assert torch.autograd.gradgradcheck(call, (x, *states))
    y, _ = layer(x)  # of weights, with an output that nobody used
    first = torch.autograd.grad(y.square().sum(), list(layer.parameters()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), x)[0]
    assert ways.seen > 3
    ways.usual = True
    y, _ = layer(x)
    first = torch.autograd.grad(y.square().sum(), list(layer.parameters()), create_graph=True)
    usual = torch.autograd.grad(sum(g.square().sum() for g in first), x)[0]
    torch.testing.assert_close(second, usual)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_many_gradients_at_once(name, ways):
    layer = LAYERS[name][0](2, 3, num_layers=2).double()
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x)
    assert ways.seen == 1
    units = torch.eye(y.numel(), dtype=torch.float64).view(-1, *y.shape)
    together = torch.autograd.grad(y, x, units, is_grads_batched=True, retain_graph=True)[0]
    alone = [torch.autograd.grad(y, x, unit, retain_graph=True)[0] for unit in units]
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_cells(name, bias, ways):
    cell = getattr(bptt, f"{name}Cell")(5, 7, bias=bias).double()
    theirs = getattr(nn, f"{name}Cell")(5, 7, bias=bias).double()
    theirs.load_state_dict(cell.state_dict())
    for rows in (1, 6):
        x = torch.randn(3, rows, 5, dtype=torch.float64, requires_grad=True)
        found = []
        for module in (cell, theirs):
            state = None
            for x_t in x:
                state = module(x_t, state)
            outputs = state if isinstance(state, tuple) else (state,)
            grads = torch.autograd.grad(loss_of(outputs), [x, *module.parameters()])
            found.append((outputs, grads))
        torch.testing.assert_close(*found)
    assert ways.seen == 6

    def call(x, *states):
        out = cell(x, states if len(states) > 1 else states[0])
        return out if isinstance(out, tuple) else (out,)

    states = [torch.randn(2, 7, dtype=torch.float64, requires_grad=True) for _ in outputs]
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, *states))


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_an_output_changed_in_place(name, ways):
    """As torch.nn's layers on a CPU do not mind it, ours do not."""
    layer = LAYERS[name][0](2, 3).double()
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for change in (lambda y: y.relu_(), torch.relu):
        y, _ = layer(x)
        found.append(torch.autograd.grad(change(y).sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*found)
    assert ways.seen == 2


def test_an_input_changed_in_place(ways):
    layer = bptt.GRU(2, 3)
    for changed in (layer.weight_hh_l0, x := torch.randn(4, 2, 2)):
        y, _ = layer(x)
        with torch.no_grad():
            changed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    y, _ = layer(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()
    assert ways.seen == 3


def test_saved_tensors_can_be_moved_and_calls_repeated(ways):
    layer = bptt.LSTM(2, 3, num_layers=2)
    x = torch.randn(4, 2, 2, requires_grad=True)
    wanted = [x, *layer.parameters()]
    found = [torch.autograd.grad(layer(x)[0].sum(), wanted)]
    with torch.autograd.graph.save_on_cpu():
        found.append(torch.autograd.grad(layer(x)[0].sum(), wanted))
    y = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    found.append(torch.autograd.grad(y.sum(), wanted))
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=0, atol=0)
    assert ways.seen == 4


def test_what_nobody_asks_for_is_not_made(ways):
    layer = bptt.LSTM(2, 3).requires_grad_(False)
    assert not layer(torch.randn(4, 2, 2))[0].requires_grad
    assert ways.seen == 0
    layer.bias_hh_l0.requires_grad_()
    y, (h_n, c_n) = layer(torch.randn(4, 2, 2))
    c_n.sum().backward()
    assert [p.grad is not None for p in layer.parameters()] == [False] * 3 + [True]
    assert y.requires_grad and h_n.requires_grad
    assert ways.seen == 1


WEIGHTS = [torch.randn(24, 4), torch.randn(24, 6), torch.randn(24), torch.randn(24)]
MORE = [torch.randn(24, 6), torch.randn(24, 6), torch.randn(24), torch.randn(24)]
KEPT = [torch.randn(3, 2, 24), torch.randn(3, 2, 6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"dy": torch.randn(3, 2, 5)}, r"dy must be \[T, B, D\*H\] = \[3, 2, 6\], got \[3, 2, 5\]"),
        ({"dh_n": torch.randn(1, 2, 6)}, r"dh_n must be \[L\*D, B, H\] = \[2, 2, 6\]"),
        ({"dc_n": torch.randn(2, 2, 6).double()}, "dc_n must have dtype Float, got Double"),
        ({"x": torch.randn(3, 2, 5)}, r"w_ih must be \[G\*H, I\] = \[24, 5\], got \[24, 4\]"),
        ({"x": torch.randn(0, 2, 4)}, "x must have steps"),
        ({"weights": WEIGHTS}, "needed must have 7 flags, got 11"),
        ({"weights": WEIGHTS * 2}, r"w_ih must be \[G\*H, I\] = \[24, 6\], got \[24, 4\]"),
        ({"y": torch.randn(3, 2, 7)}, r"y must be \[T, B, D\*H\]"),
        ({"kept": KEPT}, "kept must be what plain_training returned, 5 tensors, got 2"),
        ({"kept": [*KEPT, torch.randn(3, 2, 6), KEPT[1], KEPT[1]]}, r"\[T, B, D\*A\*H\]"),
        ({"needed": [True] * 7}, "needed must have 11 flags, got 7"),
        ({"cell": "gru_reset_before"}, "takes two products in a step|must be"),
        ({"cell": "elman"}, 'unknown cell "elman"'),
        ({"x": torch.randn(2, 4)}, "x must have 3 dimensions"),
        (
            {"x": torch.randn(2, 4), "weights": WEIGHTS, "needed": [True] * 7},
            r"dy must be \[B, H\] = \[2, 6\]",
        ),
        (
            {
                "x": torch.randn(2, 4),
                "weights": WEIGHTS,
                "needed": [True] * 7,
                "dy": None,
                "dh_n": torch.randn(2, 6),
            },
            "dh_n must be None for one step",
        ),
        ({"x": torch.randn(3, 2, 4).bfloat16()}, "must have dtype BFloat16|float32 or float64"),
    ],
)
def test_the_op_checks_its_arguments(change, message):
    given = {
        "cell": "lstm", "dy": torch.randn(3, 2, 6), "dh_n": None, "dc_n": None,
        "x": torch.randn(3, 2, 4), "weights": WEIGHTS + MORE, "has_bias": True, "h0": None,
        "c0": None, "y": torch.randn(3, 2, 6), "kept": [*KEPT, torch.randn(3, 2, 6), *KEPT],
        "needed": [True] * 11, **change,
    }  # fmt: skip
    op = torch.ops.bptt.plain_gradients
    if not message:
        assert [g.shape for g in op(**given)[3:]] == [w.shape for w in WEIGHTS + MORE]
        return
    with pytest.raises(RuntimeError, match=message):
        op(**given)
