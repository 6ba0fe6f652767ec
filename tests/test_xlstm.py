"""Does `bptt.SLSTM` with the weights of an sLSTMLayer of the package xlstm give its numbers?

Skipped where that package is not installed (extra `oracles`).
"""

import pytest
import torch
from torch import nn

import bptt
from bptt.interop.xlstm import slstm

B, T = 3, 9


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("xlstm.blocks.slstm.layer", reason="xlstm is not installed")


def layer_of(theirs, heads=2, convolution=0, **options):
    """An sLSTMLayer of 8 units with weights that are not zero."""
    torch.manual_seed(heads)
    layer = theirs.sLSTMLayer(
        theirs.sLSTMLayerConfig(
            embedding_dim=8, num_heads=heads, backend="vanilla", conv1d_kernel_size=convolution,
            dtype="float32", recurrent_weight_init="standard", **options,
        )
    )  # fmt: skip
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("convolution", [0, 4])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_same_states_and_gradients(theirs, heads, convolution, backend):
    layer = layer_of(theirs, heads, convolution)
    x = torch.randn(B, T, 8, requires_grad=True)
    seen = layer.conv_act_fn(layer.conv1d(x)) if convolution else x
    gates = [layer.fgate(seen), layer.igate(seen), layer.zgate(x), layer.ogate(x)]
    expected, state = layer.slstm_cell(torch.cat(gates, -1))  # [B, heads, T, 8 / heads]
    expected = expected.transpose(1, 2).flatten(2)

    ours = slstm(layer)
    with bptt.backend(backend):
        y, last = ours(torch.cat([seen, x], -1) if convolution else x)
        torch.testing.assert_close(y, expected)
        for mine, their in zip(last, state, strict=True):
            torch.testing.assert_close(mine[0], their)
        upstream = torch.randn_like(y)
        dx = torch.autograd.grad(expected, x, upstream, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(y, x, upstream), dx)


def test_a_model_s_output_stays_what_it_is(theirs):
    """The whole layer, its normalisation after our recurrence."""
    layer = layer_of(theirs)
    x = torch.randn(B, T, 8)
    y = slstm(layer)(x)[0].unflatten(2, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(layer.group_norm(y).transpose(1, 2).flatten(2), layer(x))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"gradient_recurrent_cut": True}, "gradient_recurrent_cut"),
     ({"gradient_recurrent_clipval": 1.0}, "gradient_recurrent_clipval"),
     ({"function": "lstm"}, "function")],
)  # fmt: skip
def test_what_bends_the_recurrence_is_refused(theirs, options, word):
    layer = layer_of(theirs)
    for name, value in options.items():
        setattr(layer.slstm_cell.config, name, value)
    with pytest.raises(ValueError, match=word):
        slstm(layer)


def test_another_layer_is_refused():
    with pytest.raises(TypeError, match="expected an sLSTMLayer of xlstm, got LSTM"):
        slstm(nn.LSTM(3, 4))
