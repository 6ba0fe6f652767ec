"""Under autocast, are outputs and states of the dtypes that torch.nn gives them?"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt

T, B, I, H = 4, 3, 5, 6
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LAYERS = {
    "rnn": ("RNN", {}),
    "gru": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "lstm": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "lstm-projected": ("LSTM", {"proj_size": 3}),
}
CELLS = ("RNNCell", "GRUCell", "LSTMCell")


def flat(value):
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


def pair(name, options):
    theirs, ours = getattr(nn, name)(I, H, **options), getattr(bptt, name)(I, H, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def zeros_like_last(layer, x, dtype):
    """A state for a call of a layer."""
    last = tuple(torch.randn_like(s).to(dtype) for s in flat(layer(x)[1]))
    return last if isinstance(layer, nn.LSTM) else last[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("given", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("state", [None, F32, BF16], ids=["zeros", "float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["batch", "unbatched", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, layout, state, given):
    theirs, ours = pair(*LAYERS[name])
    x = torch.randn(T, B, I)
    inputs = {"batch": x, "unbatched": x[:, 0], "packed": pack_padded_sequence(x, [4, 3, 2])}
    exact, hx = inputs[layout], None
    if state is not None:
        hx = zeros_like_last(theirs, exact, state)
    with torch.autocast("cpu", BF16):
        low = exact.to(given)
        mine = ours(low, hx)
        if layout == "packed" or name != "lstm":
            expected = theirs(low, hx)
        else:  # oneDNN has it on some processors alone
            expected = [t.to(BF16) for t in flat(mine)]
    assert [t.dtype for t in flat(mine)] == [t.dtype for t in flat(expected)]
    if hx is None:
        for got, wanted in zip(flat(mine), flat(theirs(exact)), strict=True):
            torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.05)
    sum(t.float().sum() for t in flat(mine)).backward()
    assert all(p.grad is not None and p.grad.dtype == F32 for p in ours.parameters())


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gru", "rnn"])
def test_the_dtype_that_autocast_asks_for(name, dtype):
    theirs, ours = pair(*LAYERS[name])
    with torch.autocast("cpu", dtype):
        got, expected = flat(ours(torch.randn(T, B, I))), flat(theirs(torch.randn(T, B, I)))
    assert [t.dtype for t in got] == [t.dtype for t in expected]


@pytest.mark.parametrize("name", ["gru", "rnn"])
def test_states_collected_under_autocast_are_used_as_in_torch_nn(name):
    theirs, ours = pair(*LAYERS[name])
    x = torch.randn(T, B, I)
    for layer in (theirs, ours):
        with torch.autocast("cpu", BF16):
            _, state = layer(x)
        if name == "gru":
            layer(x, state)
        else:
            with pytest.raises((RuntimeError, ValueError)):
                layer(x, state)


@pytest.mark.parametrize("given", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("state", [None, F32, BF16], ids=["zeros", "float32", "bfloat16"])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, state, given):
    theirs, ours = pair(name, {})
    x, hx = torch.randn(B, I), None
    if state is not None:
        hx = torch.randn(B, H).to(state)
        hx = (hx, hx) if name == "LSTMCell" else hx
    with torch.autocast("cpu", BF16):
        got, expected = flat(ours(x.to(given), hx)), flat(theirs(x.to(given), hx))
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    for mine, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0.05, atol=0.05)


def test_explain_knows_the_dtype_of_the_layer():
    x = torch.randn(T, B, I, dtype=F16)
    with torch.autocast("cpu", BF16):
        assert bptt.explain(bptt.GRU(I, H).half(), x).backend == "cpu"
