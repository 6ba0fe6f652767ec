"""What lies past a length: never read without gradients, and lengths that leave nothing out."""

import pytest
import torch

import bptt

LAYERS = {
    "RNN": (bptt.RNN, {}),
    "GRU": (bptt.GRU, {"bidirectional": True}),
    "GRU, reset before": (bptt.GRU, {"reset_after": False, "num_layers": 2}),
    "LSTM": (bptt.LSTM, {"proj_size": 3, "peephole": True}),
    "LSTM, normalised": (bptt.LSTM, {"layer_norm": True}),
    "LSTM, zoneout": (bptt.LSTM, {"zoneout": 0.3, "bidirectional": True}),
    "SRU": (bptt.SRU, {}),
    "IndRNN": (bptt.IndRNN, {}),
}


@pytest.mark.parametrize("sizes", [(9, 6, 5, 7), (20, 40, 33, 70)], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_is_not_read_without_gradients(name, dtype, backend, sizes):
    steps, batch, inputs, units = sizes
    cls, options = LAYERS[name]
    layer = cls(inputs, units, dtype=dtype, **options).eval()
    x, lengths = torch.randn(steps, batch, inputs, dtype=dtype), torch.arange(batch) * 5 % steps
    lengths[1] = steps
    past = torch.arange(steps)[:, None] >= lengths
    answers = []
    with torch.no_grad(), bptt.backend(backend):
        for filling in (0.0, float("nan"), float("inf")):
            filled = x.masked_fill(past[..., None], filling)
            y, state = layer(filled, lengths=lengths)
            answers.append((y, *(state if isinstance(state, tuple) else (state,))))
    for other in answers[1:]:
        for ours, theirs in zip(other, answers[0], strict=True):
            assert not ours.isnan().any() and ours.equal(theirs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_of_all_steps_change_no_bit(name, training):
    cls, options = LAYERS[name]
    layer = cls(5, 7, **options).train(training)
    x = torch.randn(9, 3, 5, requires_grad=True)
    answers = []
    for masked in ({}, {"lengths": torch.full((3,), 9)}, {"mask": torch.ones(9, 3).bool()}):
        torch.manual_seed(1)
        y, _ = layer(x, **masked)
        answers.append([y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])])
    for other in answers[1:]:
        assert all(a.equal(b) for a, b in zip(other, answers[0], strict=True))
