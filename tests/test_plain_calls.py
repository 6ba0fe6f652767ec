"""Is the short way to a kernel the same as the usual one, and taken exactly where it may be?"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bptt
from bptt.calls import plain

LAYERS = {
    "RNN": (bptt.RNN, {}),
    "RNN, relu": (bptt.RNN, {"nonlinearity": "relu"}),
    "GRU": (bptt.GRU, {}),
    "GRU, reset before": (bptt.GRU, {"reset_after": False}),
    "LSTM": (bptt.LSTM, {}),
}
SHAPES = [(1, 1), (1, 5), (3, 1), (4, 4), (9, 3), (64, 2)]


@pytest.fixture
def ways(monkeypatch):
    """What `plain.forward` answered, call by call; with `usual` nothing."""
    seen, forward = [], plain.forward

    def watched(*arguments):
        answer = None if watched.usual else forward(*arguments)
        seen.append(answer is not None)
        return answer

    watched.usual = False
    monkeypatch.setattr(plain, "forward", watched)
    return watched, seen


def both_ways(ways, call):
    """A call's result by the short way and by the usual one."""
    watched, seen = ways
    seen.clear()
    short = call()
    assert seen == [True]
    watched.usual = True
    usual = call()
    watched.usual = False
    return short, usual


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "batch_first": True},
        {"bias": False},
        {"bidirectional": True},
        {"bidirectional": True, "num_layers": 3, "bias": False},
    ],
)
@pytest.mark.parametrize("name", LAYERS)
def test_both_ways_are_the_same_to_the_bit(name, options, ways):
    cls, more = LAYERS[name]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        layer = cls(5, 7, **more, **options).to(dtype).eval()
        for steps, batch in SHAPES:
            x = torch.randn(steps, batch, 5, dtype=dtype)
            given = x.transpose(0, 1) if options.get("batch_first") else x
            _, state = layer(given)  # some state
            for hx in (None, state):
                with torch.no_grad():
                    short, usual = both_ways(ways, lambda g=given, h=hx, f=layer: f(g, h))
                torch.testing.assert_close(short, usual, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_steps_of_a_stream(name, ways):
    cls, more = LAYERS[name]
    layer = cls(5, 7, num_layers=2, **more).double()
    x = torch.randn(9, 3, 5, dtype=torch.float64)
    whole, last = layer(x)
    with torch.no_grad():
        state, outputs = None, []
        for x_t in x:
            y, state = layer.step(x_t, state)
            outputs.append(y)
    trained = name != "GRU, reset before"  # whose gradients take two products
    assert ways[1] == [trained] + [True] * 9  # the first with gradients
    torch.testing.assert_close(torch.stack(outputs), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_strided_inputs_and_changed_weights(name, bidirectional, ways):
    layer = LAYERS[name][0](6, 8, bidirectional=bidirectional)
    theirs = getattr(nn, name)(6, 8, bidirectional=bidirectional)
    theirs.load_state_dict(layer.state_dict())
    wide = torch.randn(3, 2, 12)
    for x in (wide[..., ::2], wide[..., 6:], wide.transpose(0, 1)[..., :6]):
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), theirs(x))
    with torch.no_grad():
        for module in (layer, theirs):
            module.weight_hh_l0.mul_(2)
            module.bias_ih_l0.data = torch.ones_like(module.bias_ih_l0)
        torch.testing.assert_close(layer(x), theirs(x))
    assert all(ways[1])


def test_directions_that_share_their_weights(ways):
    layer = bptt.LSTM(4, 6, bidirectional=True).requires_grad_(False)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        setattr(layer, f"{name}_reverse", getattr(layer, name))
    x = torch.randn(5, 2, 4)
    y, _ = layer(x)
    mirrored, _ = layer(x.flip(0))
    assert ways[1] == [True, True]
    torch.testing.assert_close(y[..., 6:], mirrored[..., :6].flip(0), rtol=0, atol=0)


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_that_leave_nothing_out(batch_first, ways):
    layer = bptt.GRU(4, 6, bidirectional=True, batch_first=batch_first)
    x = torch.randn((2, 5, 4) if batch_first else (5, 2, 4))
    with torch.no_grad():
        whole = layer(x)
        torch.testing.assert_close(layer(x, lengths=torch.tensor([5, 5])), whole, rtol=0, atol=0)
        assert ways[1] == [True, True]
        y, _ = layer(x, lengths=torch.tensor([5, 4]))
        assert not y.equal(whole[0])
        with pytest.raises(ValueError, match="lengths must have shape"):
            layer(x, lengths=torch.tensor([5, 5, 5]))
        with pytest.raises(ValueError, match="lengths must lie between 0 and the 5 steps"):
            layer(x, lengths=torch.tensor([5, 6]))
    assert len(ways[1]) == 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_cells(name, bias, monkeypatch):
    steps, inner = [], plain.step

    def watched(*arguments):
        answer = inner(*arguments)
        steps.append(answer is not None)
        return answer

    monkeypatch.setattr(plain, "step", watched)
    cell = getattr(bptt, f"{name}Cell")(5, 7, bias=bias)
    theirs = getattr(nn, f"{name}Cell")(5, 7, bias=bias)
    theirs.load_state_dict(cell.state_dict())
    for rows in (1, 8, 64, 300):
        x, state = torch.randn(rows, 5), None
        for _ in range(3):
            with torch.no_grad():
                mine, wanted = cell(x, state), theirs(x, state)
            torch.testing.assert_close(mine, wanted)
            state = wanted
    fits = 9 + 3 * (name != "RNN")  # with many rows a plain RNN's is torch's
    assert sum(steps) == fits
    del steps[:]
    with torch.no_grad():
        cell(torch.randn(5))
        with pytest.raises(RuntimeError, match="input"):
            cell(torch.randn(4, 6))
    assert not any(steps)


def with_modes(kind, layer, x):
    if kind == "gradients of many rows":
        return layer(torch.randn(40, 52, 4))
    if kind == "gradients, half precision":
        return layer.bfloat16()(x.bfloat16())
    if kind == "vmap":
        return torch.func.vmap(layer, 1, 1)(x.unsqueeze(2))
    if kind == "autocast":
        with torch.no_grad(), torch.autocast("cpu"):
            return layer(x)
    if kind == "flops":
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            y = layer(x)
        assert counter.get_total_flops() > 0
        return y
    if kind == "reference":
        with torch.no_grad(), bptt.backend("reference"):
            return layer(x)
    if kind == "dual":
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            return layer(x)
    with torch.no_grad():
        if kind == "device":
            with torch.device("cpu"):
                return layer(x)
        if kind == "lengths":
            return layer(x, lengths=torch.tensor([2, 3]))
        if kind == "long":
            return layer(torch.randn(65, 2, 4))
        if kind == "unbatched":
            return layer(x[:, 0])
        return layer(x)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[(kind, {}) for kind in ("autocast", "flops", "reference", "dual")],
        ("gradients of many rows", {}),
        ("gradients, half precision", {}),
        *[(kind, {}) for kind in ("device", "lengths", "long", "unbatched", "vmap")],
        ("plain", {"bidirectional": True, "merge_mode": "sum"}),
        ("plain", {"proj_size": 3}),
        ("plain", {"peephole": True}),
        ("plain", {"dropout": 0.5, "num_layers": 2}),
        ("plain", {"zoneout": 0.1}),
        ("plain", {"layer_norm": True}),
        ("plain", {"learn_initial_state": True}),
    ],
)
def test_where_it_is_not_taken(kind, options, ways):
    with_modes(kind, bptt.LSTM(4, 6, **options), torch.randn(3, 2, 4))
    assert not any(ways[1])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda layer: layer(torch.randn(3, 2, 5)), RuntimeError),
        (lambda layer: layer(torch.randn(3, 2, 4).double()), (ValueError, RuntimeError)),
        (lambda layer: layer(torch.randn(3, 2, 4), torch.zeros(1, 2, 5)), RuntimeError),
        (lambda layer: layer(torch.randn(3, 2, 4), torch.zeros(1, 3, 6)), RuntimeError),
        (lambda layer: layer(torch.randn(3, 2, 4), torch.zeros(1, 2, 6).double()), Exception),
        (lambda layer: layer(torch.randn(0, 2, 4)), RuntimeError),
        (lambda layer: layer.to("meta")(torch.randn(3, 2, 4)), Exception),
    ],
)
def test_what_is_wrong_is_told_in_the_usual_words(call, error, ways):
    watched, seen = ways
    told = []
    for watched.usual in (False, True):
        with torch.no_grad(), pytest.raises(error) as raised:
            call(bptt.GRU(4, 6))
        told.append((raised.type, str(raised.value)))
    assert told[0] == told[1]
    assert not any(seen)


WEIGHTS = [torch.randn(24, 4), torch.randn(24, 6), torch.randn(24), torch.randn(24)]
GOOD = {
    "x": torch.randn(3, 2, 4),
    "weights": WEIGHTS,
    "has_bias": True,
    "h0": torch.randn(1, 2, 6),
    "c0": torch.randn(1, 2, 6),
}


def with_weight(place, tensor):
    return {"weights": [*WEIGHTS[:place], tensor, *WEIGHTS[place + 1 :]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(4)}, "x must have 3 dimensions"),
        ({"x": torch.randn(3, 4)}, r"h0 must be \[B, H\] = \[3, 6\], got \[1, 2, 6\]"),
        ({"x": torch.randn(3, 2, 0)}, "I and H above 0"),
        ({"x": torch.randn(3, 2, 5)}, r"w_ih must be \[G\*H, I\] = \[24, 5\], got \[24, 4\]"),
        (
            with_weight(1, torch.randn(23, 6)),
            r"w_hh must be \[G\*H, H\] = \[24, 6\], got \[23, 6\]",
        ),
        (with_weight(0, torch.randn(24, 4).double()), "w_ih must have dtype Float, got Double"),
        (with_weight(3, torch.randn(6)), r"b_hh must be \[G\*H\] = \[24\]"),
        ({"weights": WEIGHTS[:3]}, "weights must be 4 for each layer, got 3"),
        ({"weights": []}, "weights must be 4 for each layer, got 0"),
        ({"bidirectional": True}, "weights must be 8 for each layer, got 4"),
        (
            {"bidirectional": True, "weights": WEIGHTS * 2},
            r"h0 must be \[L\*D, B, H\] = \[2, 2, 6\]",
        ),
        (
            {"bidirectional": True, "weights": WEIGHTS * 2, "x": torch.randn(3, 4)},
            "x must have 3 dimensions",
        ),
        ({"weights": WEIGHTS * 2}, r"h0 must be \[L\*D, B, H\] = \[2, 2, 6\]"),
        ({"h0": torch.randn(2, 2, 6)}, r"h0 must be \[L\*D, B, H\] = \[1, 2, 6\]"),
        ({"x": torch.randn(3, 2, 4).half()}, "dtype Float, got Half|weights must|got Half|Half"),
    ],
)
def test_the_op_checks_its_arguments(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bptt.plain_forward("lstm", **{**GOOD, **change})


def test_a_cell_without_cell_states_takes_none():
    weights = [torch.randn(18, 4), torch.randn(18, 6), torch.randn(18), torch.randn(18)]
    with pytest.raises(RuntimeError, match="c0 must be None for cell gru"):
        torch.ops.bptt.plain_forward("gru", **{**GOOD, "weights": weights})


@pytest.mark.parametrize("cell", ["lstm_peephole", "slstm", "indrnn", "gru_layer_norm", "elman"])
def test_the_op_refuses_other_cells(cell):
    with pytest.raises(RuntimeError, match=f'cell "{cell}"'):
        torch.ops.bptt.plain_forward(cell, **GOOD)
