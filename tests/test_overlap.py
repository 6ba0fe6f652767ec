"""Do layers that run chunk by chunk, as they do at once on a GPU, give what they give in turn?

On a CPU the chunks run one after another, in the order in which a GPU's streams are given them.
"""

import pytest
import torch

from bptt.engines import overlap
from bptt.recurrence.op_checks import Sizes
from cases import F64, Case, call, make_inputs

CASES = [
    Case("lstm", layers=3, steps=11, masks="both"),
    Case("gru", layers=2, steps=8, masks="lengths"),
    Case("rnn_tanh", layers=4, steps=5, masks="resets"),
    Case("gru_reset_before", layers=2, steps=6, batch_first=True),
    Case("lstm_peephole", layers=2, steps=9, proj=3, states=False),
    Case("lstm", layers=2, steps=1),
]


def results(case):
    tensors = {n: t.requires_grad_() if t is not None and t.is_floating_point() else t
               for n, t in make_inputs(case).items()}  # fmt: skip
    outputs = [t for t in call(case, tensors) if t is not None]
    losses = [tensors["loss_y"], tensors["loss_h_n"], tensors["loss_c_n"]]
    loss = sum((t * w).nan_to_num().sum() for t, w in zip(outputs, losses, strict=False))
    leaves = {n: t for n, t in tensors.items()
              if t is not None and t.requires_grad and "loss" not in n}  # fmt: skip
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return outputs, grads


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.cell}-L{case.layers}-T{case.steps}"
)
def test_chunks_of_time(case, chunk, monkeypatch):
    expected, expected_grads = results(case)
    monkeypatch.setattr(overlap, "chunk_steps", lambda *_: chunk)
    outputs, grads = results(case)
    # A CPU sums the products of a short call in another order than those of a longer one.
    fewest = min(chunk, case.steps % chunk or chunk)
    exact = 1e-14 if fewest == 1 or fewest * case.batch <= 8 else 0.0
    for left, right in zip(outputs, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=exact, atol=exact, equal_nan=True)
    for left, right in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_layer_takes_a_chunk_in_the_wave_after_the_layer_below():
    order = []

    def run_layer(layer, piece, state):
        order.append((layer, int(piece.x[0, 0, 0])))
        return piece.x, state

    x = torch.arange(3, dtype=F64).view(3, 1, 1)
    states = [(torch.zeros(1, 1, 1), None)] * 2
    y, _ = overlap.run(run_layer, overlap.Slice(x, None, None), states, 1)
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert torch.equal(y, x)


class OnGpu:
    """What the choice looks at of a tensor on an H200."""

    is_cuda = True
    dtype = torch.bfloat16
    device = torch.device("cuda", 0)


def chosen(layers=2, steps=512, directions=1, hidden=64, like=OnGpu):
    sizes = Sizes(steps, 16, directions, hidden, hidden)
    return overlap.chunk_steps("gru", layers, sizes, like)


@pytest.fixture
def h200(monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", "64")
    monkeypatch.setattr(overlap.dispatch, "choose", lambda _: "cuda")
    monkeypatch.setattr(overlap.gpu, "device_limits", lambda _: (90, 132, 232448, 1980))
    monkeypatch.setattr(overlap.gpu.measured, "device_name", lambda _: "NVIDIA H200")


@pytest.mark.parametrize(
    ("changes", "chunk"),
    [
        ({}, 64),
        ({"layers": 4, "hidden": 256}, 64),
        ({"layers": 40, "hidden": 256}, 0),  # more blocks than processors
        ({"layers": 1}, 0),
        ({"directions": 2}, 0),  # the second direction starts at the end
        ({"steps": 64}, 0),
        ({"hidden": 4096}, 0),  # a launch per step
        ({"like": torch.zeros(1)}, 0),
    ],
)
def test_when_layers_overlap(changes, chunk, h200):
    assert chosen(**changes) == chunk


def test_off_unless_asked_for(h200, monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", "0")
    assert chosen() == 0
    monkeypatch.setattr(overlap, "_CHUNK", "yes")
    with pytest.raises(ValueError, match="BPTT_OVERLAP must be a number of steps, got 'yes'"):
        chosen()
