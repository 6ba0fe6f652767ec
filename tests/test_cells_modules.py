"""Do RNNCell, GRUCell and LSTMCell keep torch.nn's contract, and agree with the layers?"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bptt.nn as ours

B, I, H = 3, 5, 4
NAMES = ["RNNCell", "GRUCell", "LSTMCell"]
PLAIN = [
    *((name, options) for name in NAMES for options in ({}, {"bias": False})),
    ("RNNCell", {"nonlinearity": "relu"}),
]
EXTRA = [
    ("RNNCell", {"nonlinearity": "sigmoid"}),
    ("GRUCell", {"reset_after": False}),
    ("LSTMCell", {"peephole": True}),
]


def twins(name, options, dtype=torch.float64):
    cells = []
    for library in (ours, nn):
        torch.manual_seed(0)
        cells.append(getattr(library, name)(I, H, dtype=dtype, **options))
    return cells


def make_state(name, *batch, dtype=torch.float64):
    pair = [torch.randn(*batch, H, dtype=dtype, requires_grad=True) for _ in range(2)]
    return tuple(pair) if name == "LSTMCell" else pair[0]


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


def run(cell, x, hx):
    """Outputs of a cell, then gradients of a weighted sum of them in everything."""
    outputs = flat(cell(x, hx))
    loss = sum((k + 1) * (t**2).sum() for k, t in enumerate(outputs))
    leaves = [x, *([] if hx is None else flat(hx)), *cell.parameters()]
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(), (B,), (0,)], ids=["unbatched", "batch", "empty"])
@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_outputs_and_gradients_equal_torch(name, options, batch, with_state):
    cell, theirs = twins(name, options)
    x = torch.randn(*batch, I, dtype=torch.float64, requires_grad=True)
    hx = make_state(name, *batch) if with_state else None
    torch.testing.assert_close(run(cell, x, hx), run(theirs, x, hx))


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_parameters_repr_and_checkpoints(name, options):
    cell, theirs = twins(name, options)
    assert repr(cell) == repr(theirs)
    assert isinstance(cell, nn.RNNCellBase)
    assert list(cell.state_dict()) == list(theirs.state_dict())
    for mine, other in zip(cell.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    theirs.load_state_dict(cell.state_dict(), strict=True)
    cell.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize(("name", "options"), [*PLAIN, *EXTRA])
def test_steps_of_a_cell_equal_a_layer(name, options):
    cell = getattr(ours, name)(I, H, dtype=torch.float64, **options)
    layer = getattr(ours, name[:-4])(I, H, dtype=torch.float64, **options)
    layer.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})
    x, state = torch.randn(6, B, I, dtype=torch.float64), make_state(name, B)
    start = tuple(s.unsqueeze(0) for s in flat(state))
    outputs, final = layer(x, start if name == "LSTMCell" else start[0])
    for t in range(6):
        state = cell(x[t], state)
        torch.testing.assert_close(flat(state)[0], outputs[t])
    torch.testing.assert_close(flat(state), [s[0] for s in flat(final)])


@pytest.mark.parametrize(("name", "options"), EXTRA)
def test_extras(name, options):
    torch.manual_seed(0)
    cell = getattr(ours, name)(I, H, **options)
    shown = ", ".join(f"{k}={v}" for k, v in options.items())
    assert repr(cell) == f"{name}(5, 4, {shown})"
    for duplicate in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        x = torch.randn(B, I)
        torch.testing.assert_close(flat(duplicate(x)), flat(cell(x)), rtol=0, atol=0)
    parameters = dict(cell.named_parameters())
    torch.manual_seed(0)
    cell.reset_parameters()
    assert all(torch.equal(p, parameters[k]) for k, p in cell.named_parameters())
    if name == "LSTMCell":
        assert list(parameters)[-1] == "weight_peephole"
        assert cell.weight_peephole.shape == (3 * H,)
        cell.weight_peephole.data.zero_()
        cell(x)[0].sum().backward()
        assert cell.weight_peephole.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_older_than_the_options(name):
    cell = getattr(ours, name)(I, H)
    state = {k: v for k, v in cell.__dict__.items() if k not in ("peephole", "reset_after")}
    old = getattr(ours, name).__new__(getattr(ours, name))
    old.__setstate__(state)
    assert repr(old) == repr(cell)
    x = torch.randn(B, I)
    torch.testing.assert_close(flat(old(x)), flat(cell(x)), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_weight_norm_meta_and_dtype(name):
    cell, theirs = twins(name, {})
    x, hx = torch.randn(B, I, dtype=torch.float64, requires_grad=True), make_state(name, B)
    for module in (cell, theirs):
        parametrizations.weight_norm(module, "weight_hh")
    torch.testing.assert_close(run(cell, x, hx), run(theirs, x, hx))
    meta = getattr(ours, name)(I, H, device="meta")
    assert flat(meta(torch.randn(B, I, device="meta")))[0].shape == (B, H)
    filled = meta.to_empty(device="cpu").bfloat16()
    assert flat(filled(torch.randn(B, I).bfloat16()))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "options"), EXTRA)
def test_cells_compile_into_one_graph(name, options):
    cell = getattr(ours, name)(I, H, dtype=torch.float64, **options)
    torch._dynamo.reset()
    compiled = torch.compile(cell, fullgraph=True, backend="eager")
    x, hx = torch.randn(B, I, dtype=torch.float64), make_state(name, B)
    torch.testing.assert_close(flat(compiled(x, hx)), flat(cell(x, hx)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(0, H), (I, 0)])
def test_sizes_of_zero_work_where_torch_lets_them(name, sizes):
    cell, theirs = getattr(ours, name)(*sizes), getattr(nn, name)(*sizes)
    if sizes[1]:
        theirs.load_state_dict(cell.state_dict())
    x = torch.randn(B, sizes[0])
    torch.testing.assert_close(flat(cell(x)), flat(theirs(x)))
