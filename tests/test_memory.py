"""How much does a layer keep for its backward pass?

Counted are the values that autograd holds on to, per time step, sequence and direction, in units of
H: what grows with T, less the input, which the caller holds. The layer's output is kept as well,
as the history of the hidden state; it is the caller's too, and a storage that several saved tensors
share counts once. So an RNN keeps its output, 1H, and nothing else; a GRU 4H beside it; an LSTM 5H
beside it. In bfloat16 the cell state, one of the five, is kept in float32.
"""

import pytest
import torch

import bptt
from cases import BF16, DTYPES, F32

B, I, H = 3, 5, 8
LAYERS = {
    "rnn": (bptt.RNN, {}, 0),
    "gru": (bptt.GRU, {}, 4),
    "gru-reset-before": (bptt.GRU, {"reset_after": False}, 4),
    "lstm": (bptt.LSTM, {}, 5),
    "lstm-peephole": (bptt.LSTM, {"peephole": True}, 5),
}


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def saved_storages(layer, x, masks):
    """The storages that autograd keeps for a call, by address, and the call's output."""
    kept = {}

    def pack(tensor):
        # Held here, so that no address is given out twice.
        kept[storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x, **masks)[0]
    return kept, y


def count(kept):
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())


def saved_per_step(layer, directions, dtype, masks=False):
    """Values kept per step, sequence and direction: beside input and output, and in the output."""
    beside, output = [], []
    for steps in (4, 12):
        x = torch.randn(steps, B, I, dtype=dtype)
        options = {"resets": torch.rand(steps, B) < 0.2} if masks else {}
        kept, y = saved_storages(layer, x, options)
        kept.pop(storage(x), None)
        own = kept.pop(storage(y), None)
        beside.append(count(kept))
        output.append(0 if own is None else count({0: own}))
    grown = 8 * B * directions
    return (beside[1] - beside[0]) / grown, (output[1] - output[0]) / grown


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", LAYERS)
def test_one_layer(name, dtype, directions):
    cls, options, planes = LAYERS[name]
    layer = cls(I, H, bidirectional=directions == 2, dtype=dtype, **options)
    beside, output = saved_per_step(layer, directions, dtype)
    assert beside <= planes * H
    assert output == H


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", LAYERS)
def test_recompute_keeps_the_states_alone(name, dtype):
    cls, options, _ = LAYERS[name]
    layer = cls(I, H, bidirectional=True, recompute=True, dtype=dtype, **options)
    beside, output = saved_per_step(layer, 2, dtype)
    assert beside == (H if cls is bptt.LSTM else 0)
    assert output == H


@pytest.mark.parametrize("name", LAYERS)
def test_auto_recomputes_where_the_gates_are_large(name, monkeypatch):
    cls, options, planes = LAYERS[name]
    layer = cls(I, H, bidirectional=True, recompute="auto", **options)
    beside, _ = saved_per_step(layer, 2, F32)
    assert beside <= planes * H
    assert beside > H or planes == 0
    monkeypatch.setattr(bptt.recurrence.ops, "RECOMPUTE_BYTES", 0)
    beside, _ = saved_per_step(layer, 2, F32)
    assert beside == (H if cls is bptt.LSTM else 0)


def test_the_size_of_the_gates():
    x, w_hh = torch.empty(100, 64, 8, dtype=BF16), torch.empty(2, 4 * 512, 512, dtype=BF16)
    assert bptt.recurrence.ops.gates_bytes("lstm", x, w_hh) == 100 * 64 * 2 * 4 * 512 * 2


@pytest.mark.parametrize("wrong", ["always", 2, None])
def test_unknown_recompute_is_refused(wrong):
    message = f'recompute must be True, False or "auto", got {wrong!r}'
    with pytest.raises(ValueError, match=message):
        bptt.GRU(I, H, recompute=wrong)
    with pytest.raises(ValueError, match=message):
        bptt.functional.gru(torch.zeros(2, B, I), None, list(bptt.GRU(I, H).parameters()),
                            recompute=wrong)  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_a_stack_keeps_no_more(name):
    cls, options, planes = LAYERS[name]
    layer = cls(I, H, 3, bidirectional=True, **options)
    beside, output = saved_per_step(layer, 2, F32)
    # The outputs of the two layers below are inputs above, and nobody else's.
    assert beside <= 3 * planes * H + 2 * H
    assert output == H


@pytest.mark.parametrize("name", LAYERS)
def test_resets_cost_one_value_a_step(name):
    cls, options, planes = LAYERS[name]
    beside, _ = saved_per_step(cls(I, H, **options), 1, F32, masks=True)
    assert beside <= planes * H + 1


def test_the_cell_state_of_bfloat16_is_the_only_wide_tensor():
    layer = bptt.LSTM(I, H, dtype=BF16)
    kept, _ = saved_storages(layer, torch.randn(4, B, I, dtype=BF16), {})
    wide = [t.shape for t in kept.values() if t.dtype == F32]
    assert wide == [(4, B, 1, H)]


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_kept_without_gradients(name):
    cls, options, _ = LAYERS[name]
    layer = cls(I, H, 2, bidirectional=True, **options)
    with torch.no_grad():
        kept, y = saved_storages(layer, torch.randn(4, B, I), {})
    assert not kept and y.grad_fn is None
    layer.requires_grad_(False)
    kept, y = saved_storages(layer, torch.randn(4, B, I), {})
    assert not kept and y.grad_fn is None


def test_the_op_makes_no_saved_tensors_without_gradients():
    layer, sizes = bptt.LSTM(I, H), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.namespace == "bptt":
                sizes.append([t.numel() for t in out])
            return out

    with torch.no_grad(), Watch():
        layer(torch.randn(4, B, I))
    assert sizes == [[4 * B * H, B * H, B * H, 0, 0]]
