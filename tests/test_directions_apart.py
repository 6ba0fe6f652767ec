"""Do directions that run one after the other give what they give in one recurrence?"""

import itertools

import pytest
import torch

import bptt
from bptt.calls import plain, stack

LAYERS = {
    "RNN": (bptt.RNN, {"nonlinearity": "relu"}),
    "GRU": (bptt.GRU, {"reset_after": False}),
    "LSTM": (bptt.LSTM, {"proj_size": 3, "peephole": True}),
    "LSTM, merged": (bptt.LSTM, {"merge_mode": "sum", "bias": False}),
}


@pytest.fixture
def runs(monkeypatch):
    """Which layers ran apart, for as long as `runs.apart` says so."""

    class Runs(list):
        apart = True

    seen, one_by_one = Runs(), stack._one_by_one

    def watched(*arguments):
        seen.append(arguments[3])
        return one_by_one(*arguments)

    monkeypatch.setattr(stack, "_are_apart", lambda call, *_: seen.apart and call.directions == 2)
    monkeypatch.setattr(stack, "_one_by_one", watched)
    monkeypatch.setattr(plain, "forward", lambda *_: None)  # has no copies to save
    return seen


@pytest.mark.parametrize("masks", ["none", "lengths", "resets"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name, masks, runs):
    cls, options = LAYERS[name]
    layer = cls(4, 6, num_layers=2, bidirectional=True, dtype=torch.float64, **options)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    masked = {
        "none": {},
        "lengths": {"lengths": torch.tensor([5, 0, 2])},
        "resets": {"resets": torch.rand(5, 3) < 0.3},
    }[masks]
    answers = []
    for runs.apart in (True, False):
        y, state = layer(x, **masked)
        made = [y, *(state if isinstance(state, tuple) else (state,))]
        loss = sum((t * t).sum() for t in made)
        found = torch.autograd.grad(loss, [x, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in found), x)
        answers.append([*made, *found, *second])
    assert runs == [0, 1]
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_bits_are_the_same(name, runs):
    cls, options = LAYERS[name]
    layer = cls(40, 50, bidirectional=True, **options)
    x, made = torch.randn(4, 5, 40), []
    with torch.no_grad():
        for runs.apart in (True, False):
            made.append(layer(x)[0])
    assert runs == [0]
    assert made[0].equal(made[1])


def test_large_weights_and_few_rows_run_apart(monkeypatch):
    seen, are_apart = [], stack._are_apart

    def watched(*arguments):
        seen.append(are_apart(*arguments))
        return seen[-1]

    monkeypatch.setattr(stack, "_are_apart", watched)
    for units, rows in itertools.product((16, 256), (1, 200)):
        layer = bptt.LSTM(16, units, bidirectional=True, peephole=True)  # not for calls.plain
        layer(torch.randn(rows, 1, 16))
    assert seen == [False, False, True, False]


class Output(bptt.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_an_exported_layer_is_one_node(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "layer.onnx"
    model = torch.nn.Sequential(Output(16, 256, bidirectional=True)).eval()
    torch.onnx.export(model, (torch.randn(1, 1, 16),), str(path), dynamo=dynamo, verbose=False)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("LSTM") == 1
