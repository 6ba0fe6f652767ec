"""Does a call take device and dtype from its tensors alone, whatever torch's defaults are?

Every tensor that the package makes must name both. Under another default device a factory call that
names none makes a tensor that no other can meet; under another default dtype, one that promotes.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from cases import one_thread

T, B, I, H = 7, 4, 5, 6
EVERYTHING = {
    "zoneout": 0.2, "recurrent_dropout": 0.3, "weight_drop": 0.2, "truncate": 3,
    "clip_grad_value": 0.5, "clip_grad_norm": 1.0, "learn_initial_state": True,
}  # fmt: skip
LAYERS = {
    "rnn": (bptt.RNN, {}),
    "gru": (bptt.GRU, {"dropout": 0.3}),
    "lstm": (bptt.LSTM, {"dropout": 0.3}),
    "lstm-projected": (bptt.LSTM, {"proj_size": 3}),
    "lstm-peephole": (bptt.LSTM, {"peephole": True}),
    "gru-reset-before": (bptt.GRU, {"reset_after": False}),
    "lstm-everything": (bptt.LSTM, {**EVERYTHING, "cell_clip": 0.9}),
    "gru-everything": (bptt.GRU, EVERYTHING),
    "gru-norm": (bptt.GRU, {"layer_norm": True}),
    "lstm-heads": (bptt.LSTM, {"num_heads": 2}),
    "cifg": (bptt.CIFG, {}),
    "slstm": (bptt.SLSTM, {}),
    "indrnn": (bptt.IndRNN, {}),
}
CALLS = ("plain", "unbatched", "lengths", "resets", "packed", "unsorted", "recompute", "norms")
CELLS = {"rnn": bptt.RNNCell, "gru": bptt.GRUCell, "lstm": bptt.LSTMCell}


@pytest.fixture(params=["meta", "float64"])
def other_defaults(request):
    """A function that makes another device or dtype torch's default, until the test is over."""

    def begin():
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)

    yield begin
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value if item is not None for tensor in flat(item)]


def packed(x, lengths, enforce_sorted):
    return pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)


def make_call(kind, x):
    """The arguments of a call of a layer; tensors are made before the defaults change."""
    return {
        "plain": lambda: ((x,), {}),
        "unbatched": lambda: ((x[:, 0],), {}),
        "lengths": lambda: ((x,), {"lengths": torch.tensor([7, 1, 3, 2])}),
        "resets": lambda: ((x,), {"resets": torch.rand(T, B) < 0.3}),
        "packed": lambda: ((packed(x, [7, 3, 2, 1], True),), {}),
        "unsorted": lambda: ((packed(x, [1, 3, 7, 2], False),), {}),
        "recompute": lambda: ((x,), {}),
        "norms": lambda: ((x,), {"grad_norms": bptt.GradientNorms()}),
    }[kind]()


def run(layer, arguments, keywords):
    """Outputs and gradients of a call, and norms where they were asked for."""
    torch.manual_seed(1)
    outputs = [t for t in flat(layer(*arguments, **keywords)) if t.is_floating_point()]
    grads = torch.autograd.grad(sum(o.square().sum() for o in outputs), list(layer.parameters()),
                                allow_unused=True)  # fmt: skip
    norms = keywords.get("grad_norms")
    found = [*outputs, *(g for g in grads if g is not None), *(norms.layers if norms else ())]
    return [(t.device, t.dtype, t.detach()) for t in found]


def assert_equal(got, expected):
    for (device, dtype, tensor), (other_device, other_dtype, other) in zip(
        got, expected, strict=True
    ):
        assert (device, dtype) == (other_device, other_dtype)
        assert torch.equal(tensor, other)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*((kind, "cpu") for kind in CALLS), ("plain", "reference"), ("resets", "reference")],
)
@pytest.mark.parametrize("name", LAYERS)
def test_calls(name, kind, backend, other_defaults):
    cls, options = LAYERS[name]
    layer = cls(I, H, num_layers=2, bidirectional=True, recompute=kind == "recompute", **options)
    arguments, keywords = make_call(kind, torch.randn(T, B, I))
    with bptt.backend(backend), one_thread():
        expected = run(layer, arguments, keywords)
        other_defaults()
        assert_equal(run(layer, arguments, keywords), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_steps(name, other_defaults):
    cls, options = LAYERS[name]
    layer = cls(I, H, num_layers=2, **options)
    x = torch.randn(2, B, I)

    def steps():
        torch.manual_seed(1)
        y, state = layer.step(x[0])
        return flat((y, *flat(layer.step(x[1], state))))

    expected = steps()
    other_defaults()
    # Another default device is a mode, in which the shortest way is not taken: see README.
    torch.testing.assert_close(steps(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name, other_defaults):
    cell, x = CELLS[name](I, H), torch.randn(B, I)
    expected = flat(cell(x))
    other_defaults()
    torch.testing.assert_close(flat(cell(x)), expected, rtol=1e-6, atol=1e-6)  # as above


@pytest.mark.parametrize("name", ["gru", "lstm", "lstm-everything", "gru-norm"])
def test_gradients_of_gradients(name, other_defaults):
    cls, options = LAYERS[name]
    options = {k: v for k, v in options.items() if not k.startswith("clip_grad")}
    layer, x = cls(I, H, num_layers=2, **options), torch.randn(T, B, I, requires_grad=True)

    def second():
        torch.manual_seed(1)
        (grad,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    expected = second()
    other_defaults()
    torch.testing.assert_close(second(), expected)
