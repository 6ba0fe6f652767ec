"""Does a layer stand in for torch.nn's where other code takes hold of it: methods, tracers?"""

import logging
import subprocess
import sys

import pytest
import torch
import torch.utils.flop_counter
from torch import nn
from torch.distributed.fsdp import fully_shard

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


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_torch_jit_script_says_what_to_do(name):
    with pytest.raises(RuntimeError, match=rf"cannot compile bptt\.{name}.*bptt\.to_torch"):
        torch.jit.script(nn.Sequential(getattr(bptt, name)(5, 6)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
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
        model = fully_shard(nn.GRU(5, 6), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        with caplog.at_level(logging.WARNING, "bptt"):
            bptt.convert(model)
    finally:
        torch.distributed.destroy_process_group()
    assert "convert the model before sharding it" in caplog.text


# --- outputs changed in place -------------------------------------------------------------------

CHANGES = {
    "relu_": torch.relu_,
    "add a residual": lambda y: y.add_(torch.linspace(-1, 1, y.numel()).view_as(y)),
    "zero a step": lambda y: y[1].zero_(),
    "mask": lambda y: y.masked_fill_(y > 0, 0.0),
    "dropout": lambda y: nn.functional.dropout(y, 1.0, inplace=True),
}
IN_PLACE = {
    "RNN": ("RNN", {}),
    "GRU": ("GRU", {"num_layers": 2}),
    "GRU both ways": ("GRU", {"bidirectional": True, "batch_first": True}),
    "LSTM both ways": ("LSTM", {"bidirectional": True}),
}


def changed(layer, x, change):
    """Gradients of a loss of a changed output, and of the last states."""
    y, states = layer(x)
    change(y)
    states = states if isinstance(states, tuple) else (states,)
    for state in states:
        state.mul_(2)
    loss = y.square().sum() + sum(s.sum() for s in states)
    return torch.autograd.grad(loss, [x, *layer.parameters()])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", IN_PLACE)
def test_an_output_may_be_changed_in_place(name, change, compiled):
    theirs, ours = pair(IN_PLACE[name][0], 5, 6, dtype=torch.float64, **IN_PLACE[name][1])
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    run = changed
    if compiled:
        torch._dynamo.reset()

        def forward(x):
            y, states = ours(x)
            CHANGES[change](y)
            return y, states

        whole = torch.compile(forward, fullgraph=True, backend="aot_eager")

        def run(layer, x, change):
            y, states = whole(x) if layer is ours else layer(x)
            if layer is theirs:
                change(y)
            states = states if isinstance(states, tuple) else (states,)
            loss = y.square().sum() + sum(2 * s.sum() for s in states)
            return torch.autograd.grad(loss, [x, *layer.parameters()])

    expected = run(theirs, x, CHANGES[change])
    for got, wanted in zip(run(ours, x, CHANGES[change]), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_all_cell_states_may_be_changed_in_place_too():
    layer, x = bptt.LSTM(5, 6), torch.randn(4, 3, 5, requires_grad=True)

    def grads(scale):
        y, _, (cells,) = layer(x, return_cells=True)
        return torch.autograd.grad(y.sum() + scale(cells).sum(), x)[0]

    torch.testing.assert_close(grads(lambda c: c.mul_(3)), grads(lambda c: c * 3))


def test_an_input_changed_in_place_is_an_error_as_in_torch_nn():
    layer, x = bptt.GRU(5, 6), torch.randn(4, 3, 5)
    y, _ = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nobody_pays_for_changes_that_are_not_made(monkeypatch):
    layer = bptt.GRU(5, 6)
    y, _ = layer(torch.randn(4, 3, 5))
    monkeypatch.setattr(bptt.recurrence.gradients, "forward_op", None)
    y.sum().backward()


def test_a_second_backward_pass_says_what_torch_says():
    y, _ = bptt.GRU(5, 6)(torch.randn(4, 3, 5))
    y.sum().backward(retain_graph=False)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


# --- counted operations -------------------------------------------------------------------------


def counted(layer, x, backward):
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        y, _ = layer(x)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["1", "2x2"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_operations_are_counted(name, options):
    theirs, ours = pair(name, 5, 6, **options)
    x = torch.randn(4, 3, 5, requires_grad=True)
    weights = sum(w.numel() for n, w in ours.named_parameters() if n.startswith("weight"))
    forward = 2 * 4 * 3 * weights
    assert counted(ours, x, False) == forward
    assert counted(ours, x, True) == 3 * forward
    if name == "GRU":  # of the others it counts none or, without gradients of h_0, a step less
        assert counted(theirs, x, False) == forward


def test_operations_of_a_projection_are_counted():
    layer = bptt.LSTM(5, 6, proj_size=3)
    weights = 24 * 5 + 24 * 3 + 3 * 6
    assert counted(layer, torch.randn(4, 3, 5), False) == 2 * 4 * 3 * weights


def test_a_counter_that_was_there_first_counts_too():
    code = """
import torch, bptt
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    bptt.GRU(5, 6)(torch.ones(4, 3, 5))
print(counter.get_total_flops())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "4752\n"
