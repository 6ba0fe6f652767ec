"""Does a layer stand in for torch.nn's where other code takes hold of it: methods, tracers?"""

import logging

import pytest
import torch
from torch import nn

import bptt

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")


def pair(name, *args, **kwargs):
    """torch.nn's layer, and bptt's with the same weights."""
    theirs = getattr(nn, name)(*args, **kwargs)
    ours = getattr(bptt, name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


# --- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_every_public_name_of_torch_nn_is_there(name):
    theirs, ours = pair(name, 5, 6)
    missing = [n for n in dir(theirs) if not n.startswith("_") and not hasattr(ours, n)]
    assert missing == []


def states_of(name, batch=3, rows=2, width=6):
    states = tuple(torch.randn(rows, batch, width) for _ in range(2))
    return states if name == "LSTM" else states[0]


@pytest.mark.parametrize("name", LAYERS)
def test_checks_of_arguments_behave_alike(name):
    theirs, ours = pair(name, 5, 6, bidirectional=True)
    x, packed = torch.randn(4, 3, 5), torch.tensor([3, 2])
    for layer in (theirs, ours):
        layer.check_forward_args(x, states_of(name), None)
        layer.check_forward_args(torch.randn(5, 5), states_of(name), packed)
    wrong = [
        (x, states_of(name, batch=2)),
        (x, states_of(name, width=7)),
        (torch.randn(4, 3, 4), states_of(name)),
        (torch.randn(4, 5), states_of(name)),
        (x.double(), states_of(name)),
    ]
    for arguments in wrong:
        with pytest.raises(Exception) as expected:
            theirs.check_forward_args(*arguments, None)
        with pytest.raises(expected.type) as got:
            ours.check_forward_args(*arguments, None)
        assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_and_permutations_are_those_of_torch_nn(name):
    projection = {"proj_size": 4} if name == "LSTM" else {}
    theirs, ours = pair(name, 5, 6, bidirectional=True, **projection)
    for x, sizes in ((torch.randn(4, 3, 5), None), (torch.randn(5, 5), torch.tensor([3, 2]))):
        assert ours.get_expected_hidden_size(x, sizes) == theirs.get_expected_hidden_size(x, sizes)
        if name == "LSTM":
            assert ours.get_expected_cell_size(x, sizes) == theirs.get_expected_cell_size(x, sizes)
    states, order = states_of(name), torch.tensor([2, 0, 1])
    for permutation in (order, None):
        expected = theirs.permute_hidden(states, permutation)
        torch.testing.assert_close(ours.permute_hidden(states, permutation), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_subclass_that_checks_and_permutes(name):
    def make(base):
        class Mine(base):
            def forward(self, x, hx):
                self.check_forward_args(x, hx, None)
                return super().forward(x, self.permute_hidden(hx, torch.tensor([1, 0, 2])))

        return Mine(5, 6)

    theirs, ours = make(getattr(nn, name)), make(getattr(bptt, name))
    ours.load_state_dict(theirs.state_dict())
    x, states = torch.randn(4, 3, 5), states_of(name, rows=1)
    torch.testing.assert_close(ours(x, states), theirs(x, states))


def test_an_slstm_checks_four_states():
    layer, x = bptt.SLSTM(5, 6), torch.randn(4, 3, 5)
    layer.check_forward_args(x, (torch.randn(1, 3, 6),) * 4, None)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[3\] size \(1, 3, 6\)"):
        layer.check_forward_args(x, (*(torch.randn(1, 3, 6),) * 3, torch.randn(1, 2, 6)), None)


# --- _flat_weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_assigned_to_flat_weights_is_used(name):
    theirs, ours = pair(name, 5, 6)
    x = torch.randn(4, 3, 5)
    for layer in (theirs, ours):
        layer._flat_weights = [2 * w.detach() for w in layer._flat_weights]
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(ours.weight_ih_l0, 2 * theirs.weight_ih_l0)


def test_parameters_assigned_to_flat_weights_stay_parameters():
    layer = bptt.GRU(5, 6)
    new = [nn.Parameter(torch.zeros_like(w)) for w in layer._flat_weights]
    layer._flat_weights = new
    assert list(layer.parameters()) == new
    assert layer(torch.ones(4, 3, 5))[0].abs().max() == 0


def test_flat_weights_of_another_number_are_refused():
    layer = bptt.GRU(5, 6)
    with pytest.raises(ValueError, match=r"must hold 4 tensors .*, got 3"):
        layer._flat_weights = layer._flat_weights[:3]


# --- torch.fx -----------------------------------------------------------------------------------


class Net(nn.Module):
    """A recurrent module whose caller gives it a state or does not."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, hx=None):
        out = self.rnn(x, hx)
        return out[0] if isinstance(self.rnn, nn.RNNBase | nn.LSTMCell | bptt.LSTMCell) else out


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_torch_fx_keeps_a_module_whole(name):
    theirs, ours = pair(name, 5, 6)
    traced = torch.fx.symbolic_trace(Net(ours))
    expected = torch.fx.symbolic_trace(Net(theirs))
    assert [(n.op, n.target) for n in traced.graph.nodes] == [
        (n.op, n.target) for n in expected.graph.nodes
    ]
    x = torch.randn(3, 5) if name in CELLS else torch.randn(4, 3, 5)
    torch.testing.assert_close(traced(x), Net(ours)(x))
    assert torch.fx.symbolic_trace(traced).code == traced.code


def test_torch_fx_keeps_the_keywords_of_a_call():
    class Lengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = bptt.LSTM(5, 6)

        def forward(self, x, lengths):
            out = self.rnn(x, lengths=lengths, return_cells=True)
            return out[0] + out[2][0]

    net, x, lengths = Lengths(), torch.randn(4, 3, 5), torch.tensor([4, 1, 2])
    traced = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(traced(x, lengths), net(x, lengths))


def test_torch_fx_cannot_look_into_a_layer():
    with pytest.raises(torch.fx.proxy.TraceError, match=r"bptt\.GRU is one node to torch.fx"):
        torch.fx.symbolic_trace(bptt.GRU(5, 6))


# --- functionalize, TorchScript, FSDP -----------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_functionalize(name):
    layer, x = getattr(bptt, name)(5, 6, bidirectional=True), torch.randn(4, 3, 5)

    def loss(x):
        return layer(x)[0].square().sum()

    functional = torch.func.functionalize(loss)
    torch.testing.assert_close(functional(x), loss(x))
    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.autograd.grad(functional(x), x)[0], expected)
    torch.testing.assert_close(torch.func.grad(functional)(x), expected)
    graph = torch.fx.experimental.proxy_tensor.make_fx(functional)(x.detach()).graph
    ops = [n.target for n in graph.nodes if str(n.target).startswith("bptt.recurrence")]
    assert ops == [torch.ops.bptt.recurrence_forward.default], "it is the kernel that was traced"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_torch_jit_script_says_what_to_do(name):
    with pytest.raises(RuntimeError, match=rf"cannot compile bptt\.{name}.*bptt\.to_torch"):
        torch.jit.script(nn.Sequential(getattr(bptt, name)(5, 6)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_torch_jit_trace_without_gradients_is_for_any_shape():
    layer = bptt.LSTM(5, 6, num_layers=2, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"cannot record the gradients.*bptt\.to_torch"):
        torch.jit.trace(layer, torch.randn(4, 3, 5))
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(4, 3, 5))
        x = torch.randn(7, 2, 5)
        torch.testing.assert_close(traced(x), layer(x))


def test_convert_after_fully_shard_says_to_convert_first(caplog):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        model = torch.distributed.fsdp.fully_shard(
            nn.GRU(5, 6), mesh=torch.distributed.init_device_mesh("cpu", (1,))
        )
        with caplog.at_level(logging.WARNING, "bptt"):
            bptt.convert(model)
    finally:
        torch.distributed.destroy_process_group()
    assert "convert the model before sharding it" in caplog.text
