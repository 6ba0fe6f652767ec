"""Are the norms of gradients through time those of dL/dh_t, and is asking for them always answered?

The yardstick is a loop of its own below: one sequence at a time, a step at a time, every h_t kept
with its gradient. The fused GPU kernels are held against the same reference in tests/kernels and
tests/simulated.
"""

import copy
import warnings

import pytest
import torch
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import bptt
from bptt.recurrence.cells import CELLS
from cases import ALL_CELLS, BF16, F32, F64, LSTMS, Case, HiddenGradients, check, make_inputs, run

# Of torch's own, while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

BACKENDS = ("reference", "cpu")
LAYERS = (bptt.RNN, bptt.GRU, bptt.LSTM)
OPTIONS = [
    {"layers": 2, "directions": 2, "masks": "both"},
    {"masks": "lengths", "states": False},
    {"masks": "resets", "bias": False, "directions": 2},
    {"batch_first": True, "strided": True},
    {"steps": 1, "batch": 1, "hidden": 1},
    {"recompute": True, "batch": 5},
]


# --- dL/dh_t, one step of one sequence at a time ------------------------------------------------


def step(spec, weights, x, states):
    """One step of one sequence: x [I], states of [R] and [H]."""
    gates, peephole = len(spec.gates), weights.get("peephole")

    def recur(operand, which=slice(None)):
        product = linear(operand, weights["w_hh"], weights.get("b_hh")).chunk(gates)
        return product[which]

    gates_x = linear(x, weights["w_ih"], weights.get("b_ih")).chunk(gates)
    states = spec.step(gates_x, recur, states, None if peephole is None else peephole.chunk(3))
    if "w_hr" in weights:
        states = (linear(states[0], weights["w_hr"]), *states[1:])
    return states


def hidden_gradients(case):
    """dL/dh_t [T, B, D, R] of every layer, for the loss of `cases.run`."""
    inputs, spec = make_inputs(case), CELLS[case.cell]
    inputs = {
        n: t.requires_grad_() if t is not None and "_l" in n else t for n, t in inputs.items()
    }
    T, B, D = case.steps, case.batch, case.directions
    lengths = [T] * B if inputs["lengths"] is None else inputs["lengths"].tolist()
    below = {(t, b): inputs["x"][t, b] for b in range(B) for t in range(lengths[b])}
    kept, loss = {}, 0
    for layer in range(case.layers):
        above = {place: [] for place in below}
        for d in range(D):
            end = f"_l{layer}_d{d}"
            weights = {n.removesuffix(end): t for n, t in inputs.items() if n.endswith(end)}
            row = layer * D + d
            for b in range(B):
                initial = (torch.zeros(case.state, dtype=F64), torch.zeros(case.hidden, dtype=F64))
                if case.states:
                    initial = tuple(
                        inputs[n][row, b] for n in ("h0", "c0") if inputs[n] is not None
                    )
                states = initial[: len(spec.states)]
                for t in reversed(range(lengths[b])) if d else range(lengths[b]):
                    if inputs["resets"] is not None and inputs["resets"][t, b]:
                        states = tuple(torch.zeros_like(s) for s in states)
                    states = step(spec, weights, below[t, b], states)
                    states[0].retain_grad()
                    kept[layer, t, b, d] = states[0]
                    above[t, b].append(states[0])
                for state, name in zip(states, ("h_n", "c_n"), strict=False):
                    loss = loss + (state * inputs[f"loss_{name}"][row, b]).sum()
        below = {place: torch.cat(outputs) for place, outputs in above.items()}
    loss = loss + sum((y * inputs["loss_y"][t, b]).sum() for (t, b), y in below.items())
    loss.backward()
    answers = torch.zeros(case.layers, T, B, D, case.state, dtype=F64)
    for place, h in kept.items():
        answers[place] = h.grad
    return answers


def assert_hidden_gradients(case, backend):
    expected = hidden_gradients(case)
    ours = run(case, make_inputs(case), backend)
    for layer in range(case.layers):
        torch.testing.assert_close(ours[f"d_hidden{layer}"], expected[layer], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradients_of_hidden_states(cell, options, backend):
    assert_hidden_gradients(Case(cell, hidden_gradients=True, **options), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", LSTMS)
def test_gradients_of_projected_states(cell, backend):
    case = Case(cell, proj=4, layers=2, directions=2, masks="both", hidden_gradients=True)
    assert_hidden_gradients(case, backend)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_dtype(cell, dtype):
    case = Case(cell, batch=9, hidden=40, directions=2, masks="both", hidden_gradients=True)
    check(case, dtype)


def test_a_projected_layer_that_is_not_asked_gives_the_same_weight_gradients():
    asked = Case("lstm", proj=4, masks="both", hidden_gradients=True)
    ours = run(asked, make_inputs(asked), "cpu")
    theirs = run(Case("lstm", proj=4, masks="both"), make_inputs(asked), "cpu")
    for name, tensor in theirs.items():
        assert torch.equal(tensor.nan_to_num(7), ours[name].nan_to_num(7)), name


def test_unasked_the_op_makes_no_such_tensor():
    layer, x = bptt.GRU(3, 4), torch.randn(5, 2, 3)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.bptt.recurrence_backward.default:
                seen.append(out[-1].numel())
            return out

    for norms in (None, bptt.GradientNorms()):
        y = layer(x, grad_norms=norms)[0]
        with Watch():
            y.sum().backward()
    assert seen == [0, 5 * 2 * 4]


# --- layouts --------------------------------------------------------------------------------------


def norms_of(layer, x, hx=None, **options):
    """The norms for the loss that is the sum of all outputs, and those with weights by step."""
    norms = bptt.GradientNorms()
    y = layer(x, hx, grad_norms=norms, **options)[0]
    (y.data if hasattr(y, "batch_sizes") else y).pow(2).sum().backward()
    return norms.layers


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layouts(kind, backend):
    torch.manual_seed(1)
    layer = kind(3, 4, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(5, 3, 3), torch.tensor([2, 5, 3])
    with bptt.backend(backend):
        plain = norms_of(layer, x)
        assert [n.shape for n in plain] == [(5, 3, 2)] * 2
        assert all(n.dtype == F32 and not n.requires_grad and (n > 0).all() for n in plain)
        masked = norms_of(layer, x, lengths=lengths)
        packed = norms_of(layer, pack_padded_sequence(x, lengths, enforce_sorted=False))
        pieces = [x[: lengths[b], b] for b in range(3)]
        also = norms_of(layer, pack_sequence(pieces, enforce_sorted=False))
        single = norms_of(layer, x[:, 1])
        layer.batch_first = True
        first = norms_of(layer, x.transpose(0, 1))
    for k in range(2):
        torch.testing.assert_close(first[k], plain[k])
        torch.testing.assert_close(single[k], plain[k][:, 1:2])
        torch.testing.assert_close(packed[k], masked[k])
        torch.testing.assert_close(also[k], masked[k])
        assert (masked[k][2:, 0] == 0).all() and (masked[k][:2, 0] > 0).all()


def test_the_functions_take_them_too():
    layer, x = bptt.LSTM(3, 4), torch.randn(5, 2, 3)
    norms = bptt.GradientNorms()
    y, _ = bptt.functional.lstm(x, None, list(layer.parameters()), grad_norms=norms)
    y.pow(2).sum().backward()
    torch.testing.assert_close(norms.layers, norms_of(layer, x))


def test_norms_are_norms():
    layer, x = bptt.GRU(3, 4).double(), torch.randn(5, 2, 3).double()
    kept = HiddenGradients()
    layer(x, grad_norms=kept)[0].pow(2).sum().backward()
    (norms,) = norms_of(layer, x)
    assert norms.dtype == F64
    torch.testing.assert_close(norms, kept.layers[0].square().sum(-1).sqrt())


def test_what_has_almost_vanished_is_not_zero():
    layer, x = bptt.RNN(3, 4), torch.randn(5, 2, 3)
    norms = bptt.GradientNorms()
    y, _ = layer(x, grad_norms=norms)
    (y[-1].sum() * 1e-30).backward()  # whose square float32 does not hold
    assert (norms.layers[0] > 0).all() and (norms.layers[0] < 1e-29).all()


def test_autocast():
    layer, x = bptt.LSTM(3, 4), torch.randn(5, 2, 3)
    norms = bptt.GradientNorms()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = layer(x, grad_norms=norms)
    y.float().pow(2).sum().backward()
    assert norms.layers[0].dtype == F32
    torch.testing.assert_close(norms.layers, norms_of(layer, x), rtol=0.1, atol=0.05)


# --- more than one backward pass ------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_backward_pass_replaces_the_values(backend):
    layer, x, norms = bptt.GRU(3, 4), torch.randn(5, 2, 3), bptt.GradientNorms()
    with bptt.backend(backend):
        y, _ = layer(x, grad_norms=norms)
        y.sum().backward(retain_graph=True)
        (first,) = norms.layers
        before = first.clone()
        (3 * y.sum()).backward()
        torch.testing.assert_close(norms.layers[0], 3 * before)
        assert torch.equal(first, before)
        layer(x, grad_norms=norms)
    with pytest.raises(RuntimeError, match="no gradient has come to layer 0 yet"):
        _ = norms.layers


def test_of_two_calls_the_later_backward_pass_shows():
    one, two = bptt.GRU(3, 4), bptt.RNN(4, 6, num_layers=2)
    x, norms = torch.randn(5, 2, 3), bptt.GradientNorms()
    y, _ = two(one(x, grad_norms=norms)[0], grad_norms=norms)
    y.sum().backward()
    torch.testing.assert_close(len(norms.layers), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_double_backward(kind, backend):
    torch.manual_seed(2)
    layer, x = kind(3, 4).double(), torch.randn(5, 2, 3, dtype=F64, requires_grad=True)

    def penalty(norms):
        y, _ = layer(x, grad_norms=norms)
        (dx,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum(), layer.weight_hh_l0)[0]

    norms = bptt.GradientNorms()
    with bptt.backend(backend):
        torch.testing.assert_close(penalty(norms), penalty(None))
    assert not norms.layers[0].requires_grad and norms.layers[0].shape == (5, 2, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_gradient_will_do(backend):
    layer, x, norms = bptt.LSTM(3, 4), torch.randn(5, 2, 3), bptt.GradientNorms()
    with bptt.backend(backend):
        for wanted in (layer.weight_hh_l0, layer.bias_ih_l0):
            y, _ = layer(x, grad_norms=norms)
            torch.autograd.grad(y.pow(2).sum(), wanted)
            torch.testing.assert_close(norms.layers, norms_of(layer, x))


def test_checkpointing():
    layer, x, norms = bptt.GRU(3, 4, num_layers=2), torch.randn(5, 2, 3), bptt.GradientNorms()
    y = checkpoint(lambda: layer(x, grad_norms=norms)[0], use_reentrant=False)
    y.pow(2).sum().backward()
    torch.testing.assert_close(norms.layers, norms_of(layer, x))


# --- where it cannot work -------------------------------------------------------------------------


def test_reading_too_early():
    norms = bptt.GradientNorms()
    with pytest.raises(RuntimeError, match=r"no forward pass was given .* grad_norms= .*backward"):
        _ = norms.layers
    assert repr(norms) == "GradientNorms(no forward pass was given this object)"
    y, _ = bptt.GRU(3, 4, num_layers=2)(torch.randn(5, 2, 3), grad_norms=norms)
    with pytest.raises(RuntimeError, match=r"no gradient has come to layer 0, 1 yet"):
        _ = norms.layers
    y.sum().backward()
    assert repr(norms) == "GradientNorms(layers=[[5, 2, 1], [5, 2, 1]])"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forward_without_gradients(backend):
    layer, x, norms = bptt.GRU(3, 4, num_layers=2), torch.randn(5, 2, 3), bptt.GradientNorms()
    with bptt.backend(backend):
        with torch.no_grad(), pytest.raises(ValueError, match="a forward without gradients"):
            layer(x, grad_norms=norms)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_("l1" in name)
        with pytest.raises(ValueError, match="layer 0 will get no gradient"):
            layer(x, grad_norms=norms)
        layer(x.requires_grad_(), grad_norms=norms)[0].sum().backward()
    assert len(norms.layers) == 2


def test_something_else_than_norms():
    with pytest.raises(TypeError, match=r"GRU: grad_norms must be a bptt.GradientNorms, got list"):
        bptt.GRU(3, 4)(torch.randn(5, 2, 3), grad_norms=[])


@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms(backend):
    layer, x, norms = bptt.GRU(3, 4), torch.randn(5, 2, 3), bptt.GradientNorms()

    def loss(x):
        return layer(x, grad_norms=norms)[0].sum()

    message = "not under torch.func, vmap or forward-mode AD"
    with bptt.backend(backend):
        with pytest.raises(RuntimeError, match=message):
            torch.func.grad(loss)(x)
        with pytest.raises(RuntimeError, match=message):
            torch.func.vmap(loss)(x.unsqueeze(0))
        with warnings.catch_warnings(), pytest.raises(RuntimeError, match=message):
            warnings.simplefilter("ignore")
            torch.func.jvp(loss, (x,), (x,))
        y, _ = layer(x, grad_norms=norms)
        directions = torch.eye(y.numel()).view(-1, *y.shape)

        def pull(direction, **options):
            weight = layer.weight_hh_l0
            return torch.autograd.grad(y, weight, direction, retain_graph=True, **options)

        with pytest.raises(RuntimeError, match="runs under vmap"):
            pull(directions, is_grads_batched=True)
        with pytest.raises(RuntimeError, match="runs under vmap"):
            torch.func.vmap(pull)(directions)


def test_the_torch_backend_refuses():
    layer, x = bptt.GRU(3, 4), torch.randn(5, 2, 3)
    with bptt.backend("torch"), pytest.raises(RuntimeError, match="no gradients of hidden states"):
        layer(x, grad_norms=bptt.GradientNorms())


def test_compiled_calls():
    """A full graph has no place for norms; without one the layer runs in eager mode."""
    layer, x, norms = bptt.GRU(3, 4), torch.randn(5, 2, 3), bptt.GradientNorms()

    def model(x):
        return 2 * layer(x, grad_norms=norms)[0]

    with pytest.raises(RuntimeError, match=r"grad_norms does not work under torch\.compile"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()
    torch.compile(model, backend="aot_eager")(x).square().sum().backward()
    (ours,) = norms.layers
    model(x).square().sum().backward()
    torch.testing.assert_close(ours, norms.layers[0])


def test_export_is_refused():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norms = bptt.GRU(3, 4), bptt.GradientNorms()

        def forward(self, x):
            return self.layer(x, grad_norms=self.norms)[0]

    with pytest.raises(RuntimeError, match=r"does not work under torch\.compile or torch\.export"):
        torch.export.export(Model(), (torch.randn(5, 2, 3),))


def test_copies_are_independent():
    layer, norms = bptt.GRU(3, 4), bptt.GradientNorms()
    layer(torch.randn(5, 2, 3), grad_norms=norms)[0].sum().backward()
    copied = copy.deepcopy(norms)
    layer(torch.randn(6, 2, 3), grad_norms=norms)[0].sum().backward()
    assert len(copied.layers[0]) == 5 and len(norms.layers[0]) == 6
