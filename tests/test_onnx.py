"""Does torch.onnx.export write each layer as one node that computes the same in onnxruntime?"""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import bptt

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    # torch's own: the older exporter and what it is made of.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*Constant folding.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*exporter.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*batch_size other than 1.*:UserWarning"),
]

I, H = 5, 6
T, B = 7, 3  # exported with these, run with others
LAYERS = {
    "rnn": (bptt.RNN, {}),
    "rnn-relu": (bptt.RNN, {"nonlinearity": "relu", "bias": False}),
    "rnn-sigmoid": (bptt.RNN, {"nonlinearity": "sigmoid", "num_layers": 2}),
    "gru": (bptt.GRU, {"bidirectional": True, "num_layers": 2, "dropout": 0.5}),
    "gru-reset-before": (bptt.GRU, {"reset_after": False, "batch_first": True}),
    "gru-sum": (bptt.GRU, {"bidirectional": True, "merge_mode": "sum", "bias": False}),
    "lstm": (bptt.LSTM, {"bidirectional": True, "batch_first": True}),
    "lstm-peephole": (bptt.LSTM, {"peephole": True, "num_layers": 2}),
    "lstm-activations": (
        bptt.LSTM,
        {"gate_activation": "hard_sigmoid", "activation": "softsign", "bidirectional": True},
    ),
    "gru-identity": (bptt.GRU, {"activation": "identity"}),
    "gru-clipped": (bptt.GRU, {"truncate": 3, "clip_grad_norm": 1.0, "recurrent_dropout": 0.5}),
}
CALLS = ("input", "state", "lengths")


class Plain(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)


class WithLengths(Plain):
    def forward(self, x, lengths):
        return self.rnn(x, lengths=lengths)


class WithState(Plain):
    def forward(self, x, h):
        return self.rnn(x, h)


class WithStates(Plain):
    def forward(self, x, h, c):
        return self.rnn(x, (h, c))


def model_of(rnn, call):
    if call == "input":
        return Plain(rnn).eval()
    if call == "lengths":
        return WithLengths(rnn).eval()
    return (WithStates if isinstance(rnn, bptt.LSTM) else WithState)(rnn).eval()


def inputs_of(rnn, call, steps, batch):
    shape = (batch, steps, I) if rnn.batch_first else (steps, batch, I)
    x = torch.randn(shape, dtype=rnn.weight_ih_l0.dtype)
    if call == "input":
        return (x,)
    if call == "lengths":
        return x, torch.tensor([steps, *range(1, batch)])
    rows = rnn.num_layers * (2 if rnn.bidirectional else 1)
    count = 2 if isinstance(rnn, bptt.LSTM) else 1
    return (x, *(torch.randn(rows, batch, H, dtype=x.dtype) for _ in range(count)))


def exported(model, inputs, dynamo):
    """The model as ONNX, with any number of steps and sequences."""
    file = io.BytesIO()
    names = [f"input_{k}" for k in range(len(inputs))]
    axes = [{0: "first", 1: "second"}]
    batch = "first" if model.rnn.batch_first else "second"
    axes += [{0: batch} if t.dim() == 1 else {1: batch} for t in inputs[1:]]
    if dynamo:
        shapes = tuple(dict.fromkeys(known, torch.export.Dim.DYNAMIC) for known in axes)
        options = {"dynamic_shapes": shapes, "verbose": False}
    else:
        options = {"dynamic_axes": dict(zip(names, axes, strict=True))}
    torch.onnx.export(model, inputs, file, dynamo=dynamo, input_names=names, **options)
    return file.getvalue()


def recurrent_nodes(content):
    nodes = onnx.load_from_string(content).graph.node
    return [node for node in nodes if node.op_type in ("RNN", "GRU", "LSTM", "Loop", "Scan")]


def run(content, inputs):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "traced"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
def test_onnxruntime_computes_the_same(name, call, dynamo):
    cls, options = LAYERS[name]
    rnn = cls(I, H, **options)
    model = model_of(rnn, call)
    content = exported(model, inputs_of(rnn, call, T, B), dynamo)
    assert [node.op_type for node in recurrent_nodes(content)] == [cls.__name__] * rnn.num_layers
    inputs = inputs_of(rnn, call, T + 2, B + 1)
    with torch.no_grad():
        expected = flat(model(*inputs))
    for got, wanted in zip(run(content, inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "traced"])
def test_float16(dynamo):
    rnn = bptt.GRU(I, H).half()
    content = exported(model_of(rnn, "input"), inputs_of(rnn, "input", T, B), dynamo)
    inputs = inputs_of(rnn, "input", T, B)
    with torch.no_grad():
        expected = rnn(*inputs)[0]
    got = run(content, inputs)[0]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-2, atol=1e-2)


def test_a_converted_model():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(I, H, bidirectional=True)
            self.head = nn.Linear(2 * H, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0]).log_softmax(-1)

    model = bptt.convert(Tagger().eval())
    x = torch.randn(T, B, I)
    for dynamo in (True, False):
        content = exported(model, (x,), dynamo)
        with torch.no_grad():
            np.testing.assert_allclose(run(content, (x,))[0], model(x), rtol=1e-5, atol=1e-5)


LACKING = {
    "projection": (bptt.LSTM(I, H, proj_size=2), {}, "a projection"),
    "resets": (bptt.GRU(I, H), {"resets": torch.zeros(T, B, dtype=torch.bool)}, "resets"),
    "cells": (bptt.LSTM(I, H), {"return_cells": True}, "return_cells"),
    "layer norm": (bptt.GRU(I, H, layer_norm=True), {}, "the cell gru_layer_norm"),
    "heads": (bptt.GRU(I, H, num_heads=2, bidirectional=True), {}, "num_heads"),
    "zoneout": (bptt.GRU(I, H, zoneout=0.5), {}, "zoneout"),
    "cell bound": (bptt.LSTM(I, H, cell_clip=1.0), {}, "cell_clip"),
    "hard tanh": (bptt.GRU(I, H, activation="hard_tanh"), {}, "hard_tanh"),
    "slstm": (bptt.SLSTM(I, H), {}, "the cell slstm"),
    "bfloat16": (bptt.GRU(I, H).bfloat16(), {}, "bfloat16"),
}


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "traced"])
@pytest.mark.parametrize("name", LACKING)
def test_what_onnx_lacks_is_named(name, dynamo):
    rnn, keywords, words = LACKING[name]

    class Call(Plain):
        def forward(self, x):
            return self.rnn(x, **keywords)[0]

    model, x = Call(rnn).eval(), torch.randn(T, B, I, dtype=rnn.weight_ih_l0.dtype)
    with pytest.raises(Exception, match=f"no recurrent operator with.*{words}"):
        torch.onnx.export(model, (x,), io.BytesIO(), dynamo=dynamo, verbose=False)


def test_a_packed_sequence_is_refused_in_words():
    class Packs(Plain):
        def forward(self, x):
            return self.rnn(pack_padded_sequence(x, torch.tensor([7, 4, 2])))[1]

    with pytest.raises(RuntimeError, match="a PackedSequence cannot be exported to ONNX"):
        torch.onnx.export(
            Packs(bptt.GRU(I, H)).eval(), (torch.randn(T, B, I),), io.BytesIO(), dynamo=False
        )
