"""Does torch.nn still lack what the README says it lacks?

A test that fails here on a new torch means that a row of the README's table is out of date.
"""

import pytest
import torch
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning"),
]

LAYERS = ("RNN", "GRU", "LSTM")
X = torch.randn(4, 3, 5)


def make(name):
    return getattr(nn, name)(5, 6)


@pytest.mark.parametrize("name", LAYERS)
def test_dynamo_refuses_its_layers_in_a_full_graph(name):
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(make(name), fullgraph=True, backend="eager")(X)


@pytest.mark.parametrize("name", LAYERS)
def test_export_makes_the_number_of_steps_a_constant(name):
    free = torch.export.Dim.DYNAMIC
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
        torch.export.export(make(name), (X,), dynamic_shapes=({0: free, 1: free},))


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_has_no_rule_for_its_layers(name):
    layer = make(name)
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda x: layer(x)[0])(torch.stack([X, X]))
    models = [make(name), make(name)]
    parameters, _ = torch.func.stack_module_state(models)
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (X,))[0])(parameters)


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_per_sample_gradients_fail(name):
    layer = make(name)

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))[0].sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    with pytest.raises(RuntimeError, match="broadcast shape"):
        grads(dict(layer.named_parameters()), torch.randn(2, 4, 1, 5))


def test_an_lstm_has_no_forward_mode():
    layer = make("LSTM")
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda x: layer(x)[0], (X,), (X,))
