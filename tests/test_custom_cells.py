"""Do cells made by `bptt.cell` agree with the float64 loop over their function?

What a function must not do, and what is said then, is in test_custom_errors.py.
"""

import copy
import pickle

import pytest
import torch
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import bptt
import own_cells
from bptt.recurrence.cells import CELLS
from bptt.recurrence.control import PLAIN
from cases import BF16, F32, F64, OpCounter
from variants import CONTROLS, Variant, check_variant

pytestmark = [  # torch's own
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

T, B, I, H = 5, 3, 4, 6
NAMES = tuple(own_cells.CELLS_OF_OURS)
cells = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def own():
    with own_cells.defined() as made:
        yield made


@pytest.fixture
def layer(own, name):
    return bptt.Recurrent(own[name], I, H, bidirectional=True, dtype=F64)


def control_for(control, cell=None):
    """A setting without what is the cell's own business, and what it does not have."""
    chosen = CONTROLS[control]._replace(gates="", states="", cell_bound=0.0)
    if cell is not None and not cell.spec.has_cell_state:
        chosen = chosen._replace(zoneout_c=0.0)
    if cell is not None and cell.spec.free:
        chosen = chosen._replace(recurrent_dropout=0.0)
    return chosen


@pytest.mark.parametrize("masks", ["none", "lengths", "both"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@cells
def test_agrees_with_its_function(own, name, dtype, masks):
    check_variant(Variant(own[name].name, directions=2, masks=masks), "cpu", dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 2, 33), (2, 17, 3, 16), (4, 8, 40, 70)])
@cells
def test_agrees_in_other_shapes(own, name, shape):
    steps, batch, inputs, hidden = shape
    variant = Variant(own[name].name, PLAIN, steps, batch, inputs, hidden)
    check_variant(variant, "cpu", F32)


@pytest.mark.parametrize("control", [c for c in CONTROLS if control_for(c) != PLAIN])
@cells
def test_agrees_with_what_a_loop_does_besides(own, name, control):
    control = control_for(control, own[name])
    check_variant(Variant(own[name].name, control, directions=2, masks="both"), "cpu")


@cells
def test_recompute_and_all_cell_states(own, name):
    keep = CELLS[own[name].name].has_cell_state
    check_variant(Variant(own[name].name, masks="both", recompute=True, keep_cells=keep), "cpu")
    check_variant(Variant(own[name].name, masks="both", hidden_gradients=True), "cpu")


@pytest.mark.parametrize(
    ("ours", "theirs"), [("gru", bptt.GRU), ("lstm_peephole", bptt.LSTM)], ids=["gru", "lstm"]
)
def test_equals_the_built_in_cell(own, ours, theirs):
    options = {"num_layers": 2, "bidirectional": True}
    layer = bptt.Recurrent(own[ours], I, H, **options)
    other = theirs(I, H, **options, **({"peephole": True} if theirs is bptt.LSTM else {}))
    weights = {k.replace("unit", "peephole"): v for k, v in layer.state_dict().items()}
    other.load_state_dict(weights)
    x = torch.randn(T, B, I)
    (y, last), (expected, expected_last) = layer(x), other(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(last, expected_last, rtol=0, atol=1e-6)
    for module, output in ((layer, y), (other, expected)):
        output.square().sum().backward()
        module.grads = [p.grad for p in module.parameters()]
    for gradient, wanted in zip(layer.grads, other.grads, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)
    # As much is kept for the backward pass: no plane more than by hand.
    assert len(CELLS[layer.cell.name].saved) == len(CELLS[other._cell_name].saved)


def test_an_output_that_tells_its_derivative_is_all_that_is_kept():
    with own_cells.known_cells_as_before():
        cell = bptt.cell(gates=1)(own_cells.elman)
        assert cell.spec.saved == () and cell.spec.shared_gates


@cells
def test_gradients_of_gradients_and_forward_mode(layer, name):
    x = torch.randn(3, 2, I, dtype=F64, requires_grad=True)
    call = lambda x: layer(x)[0]  # noqa: E731
    assert gradcheck(call, (x,))
    if name != "zoo":  # its kinks have no second derivative
        assert gradgradcheck(call, (x,))
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(call(forward_ad.make_dual(x.detach(), tangent))).tangent
    _, expected = func.jvp(call, (x.detach(),), (tangent,))
    torch.testing.assert_close(dual, expected)


@cells
def test_gradients_of_each_sample(layer, name):
    params = {k: p.detach() for k, p in layer.named_parameters()}
    xs = torch.randn(B, T, I, dtype=F64)

    def loss(params, x):
        return func.functional_call(layer, params, (x,))[0].square().sum()

    with OpCounter() as counter:
        each = func.vmap(func.grad(loss), in_dims=(None, 0))(params, xs)
    assert counter.calls["recurrence_forward"] > 0
    for k in range(B):
        alone = func.grad(loss)(params, xs[k])
        for key, gradient in alone.items():
            torch.testing.assert_close(each[key][k], gradient)


def test_compiles_whole(own):
    torch._dynamo.reset()
    layer = bptt.Recurrent(own["lstm_peephole"], I, H, num_layers=2)
    x = torch.randn(T, B, I)
    expected = layer(x)[0]
    expected.sum().backward()
    wanted = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)[0]
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    for p, gradient in zip(layer.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    torch._dynamo.reset()


@cells
def test_options_of_every_layer(own, name):
    torch.manual_seed(0)
    options = {"zoneout": 0.2, "truncate": 2, "clip_grad_norm": 1.0}
    if own[name].product != "none":
        options |= {"recurrent_dropout": 0.2, "weight_drop": 0.1}
    if own[name].product == "dense":
        options["num_heads"] = 2
    layer = bptt.Recurrent(
        own[name], I, H, 2, batch_first=True, dropout=0.1, learn_initial_state=True,
        merge_mode="sum", bidirectional=True, **options,
    )  # fmt: skip
    x, lengths = torch.randn(B, T, I), torch.tensor([5, 0, 2])
    y, last = layer(x, lengths=lengths)
    y.sum().backward()
    assert y.shape == (B, T, H) and all(p.grad is not None for p in layer.parameters())
    layer.eval()
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 4, 2], batch_first=True)
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)
    padded, _ = layer(x, lengths=torch.tensor([5, 4, 2]))
    torch.testing.assert_close(out, padded)
    states = last if isinstance(last, tuple) else (last,)
    assert len(states) == len(own[name].spec.states)


@cells
def test_steps_are_the_sequence(own, name):
    layer = bptt.Recurrent(own[name], I, H, 2)
    x, state = torch.randn(T, B, I), None
    expected, last = layer(x)
    outputs = []
    for x_t in x:
        y, state = layer.step(x_t, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs), expected)
    torch.testing.assert_close(state, last)


def test_what_has_no_product_has_no_weights_of_one(own):
    layer = bptt.Recurrent(own["simple_recurrent_unit"], I, H)
    names = ["weight_ih_l0", "bias_ih_l0", "weight_unit_l0"]
    assert [name for name, _ in layer.named_parameters()] == names
    diagonal = bptt.Recurrent(own["diagonal_lstm"], I, H)
    assert diagonal.weight_hh_l0.shape == (3 * H,) and diagonal.weight_unit_l0.shape == (H,)
    bare = bptt.Recurrent(own["simple_recurrent_unit"], I, H, bias=False)
    assert [name for name, _ in bare.named_parameters()] == names[::2]


def test_equals_indrnn(own):
    with own_cells.known_cells_as_before():
        cell = bptt.cell(1, product="diagonal")(lambda x, y, h: torch.relu(x[0] + y[0]))
        layer, other = bptt.Recurrent(cell, I, H), bptt.IndRNN(I, H)
        other.load_state_dict(layer.state_dict())
        x = torch.randn(T, B, I)
        torch.testing.assert_close(layer(x)[0], other(x)[0], rtol=0, atol=1e-6)


def test_is_a_module_like_others(own):
    layer = bptt.Recurrent(own["lstm_peephole"], I, H)
    assert layer.weight_unit_l0.shape == (3 * H,) and layer.weight_hh_l0.shape == (4 * H, H)
    again = copy.deepcopy(layer)
    assert again.cell is layer.cell
    assert repr(layer) == f"Recurrent(lstm_peephole, {I}, {H})"
    text = str(bptt.explain(layer, torch.randn(T, B, I)))
    assert "backend cpu" in text and "not torch: torch.nn has no lstm_peephole" in text


with own_cells.known_cells_as_before():

    @bptt.cell(gates=1)
    def pickled(gates_x, gates_h, h):
        return torch.tanh(gates_x[0] + gates_h[0])


def test_pickles_by_name(monkeypatch):
    monkeypatch.setitem(CELLS, pickled.name, pickled.spec)
    layer = bptt.Recurrent(pickled, I, H)
    again = pickle.loads(pickle.dumps(layer))
    assert again.cell is pickled
    assert set(again.state_dict()) == set(layer.state_dict())
