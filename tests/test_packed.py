"""Are packed sequences run as torch.nn runs them, in as little memory?

A layer cuts a packed batch into segments (`bptt.calls.packed`); the lengths here make one, two or
many.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from bptt.calls.packed import SPARE_OF_ALL, SPARE_OF_SEGMENT, SPARE_WITHOUT_GRADIENTS, cut
from test_memory import saved_storages

LENGTHS = {
    "equal": [6, 6, 6],
    "one-long": [40, *[3] * 12],
    "falling": [31, 30, 22, 17, 16, 9, 8, 8, 5, 4, 3, 2, 1, 1],
    "two": [9, 1],
}
LAYERS = ("RNN", "GRU", "LSTM")
F64 = torch.float64


def packed_batch(lengths, features=5, dtype=F64):
    x = torch.randn(max(lengths), len(lengths), features, dtype=dtype)
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def mixed(lengths):
    """The lengths in another order: a packed sequence sorts them."""
    order = torch.randperm(len(lengths)).tolist()
    return [lengths[k] for k in order]


def pair(name, *args, **kwargs):
    theirs = getattr(nn, name)(*args, **kwargs)
    ours = getattr(bptt, name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states_of(layer, batch):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.randn(rows, batch, layer.proj_size or layer.hidden_size, dtype=F64)
    if not isinstance(layer, nn.LSTM):
        return h
    return h, torch.randn(rows, batch, layer.hidden_size, dtype=F64)


def flat(states):
    return states if isinstance(states, tuple) else (states,)


def answers(layer, batch, hx, seed=3):
    """Outputs, last states and every gradient of a loss that weighs them."""
    leaf = batch.data.clone().requires_grad_()
    hx = [s.clone().requires_grad_() for s in flat(hx)]
    torch.manual_seed(seed)
    y, last = layer(batch._replace(data=leaf), tuple(hx) if len(hx) > 1 else hx[0])
    outputs = [y.data, *flat(last)]
    weights = torch.Generator().manual_seed(seed)
    loss = sum((o * torch.randn(o.shape, generator=weights, dtype=o.dtype)).sum() for o in outputs)
    return [*outputs, *torch.autograd.grad(loss, [leaf, *hx, *layer.parameters()])]


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "num_layers": 2}], ids=["1", "2x2"]
)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_torch_nn(name, lengths, options):
    theirs, ours = pair(name, 5, 6, dtype=F64, **options)
    batch, hx = packed_batch(mixed(lengths)), states_of(theirs, len(lengths))
    for got, expected in zip(answers(ours, batch, hx), answers(theirs, batch, hx), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_projected_lstm():
    theirs, ours = pair("LSTM", 5, 6, proj_size=4, bidirectional=True, dtype=F64)
    batch, hx = packed_batch(mixed(LENGTHS["falling"])), states_of(theirs, 14)
    for got, expected in zip(answers(ours, batch, hx), answers(theirs, batch, hx), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_draws_the_masks_of_torch_nn(name, lengths):
    theirs, ours = pair(name, 5, 6, num_layers=3, dropout=0.5, bidirectional=True, dtype=F64)
    batch, hx = packed_batch(mixed(lengths)), states_of(theirs, len(lengths))
    for got, expected in zip(answers(ours, batch, hx), answers(theirs, batch, hx), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("options", [{"merge_mode": "sum"}, {"merge_mode": None}])
def test_merged_directions(options):
    layer = bptt.GRU(5, 6, num_layers=2, bidirectional=True, dtype=F64, **options)
    lengths = mixed(LENGTHS["falling"])
    batch = packed_batch(lengths)
    x, _ = nn.utils.rnn.pad_packed_sequence(batch)
    y, h_n = layer(batch)
    expected, expected_h = layer(x, lengths=torch.tensor(lengths))
    torch.testing.assert_close(h_n, expected_h)
    for half, whole in zip(
        *(
            (out,) if isinstance(out, torch.Tensor | PackedSequence) else out
            for out in (y, expected)
        ),
        strict=True,
    ):
        torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(half)[0], whole)


def test_gradients_of_gradients():
    layer = bptt.LSTM(3, 4, dtype=F64)
    batch = packed_batch(LENGTHS["falling"][-6:], features=3)

    def run(data):
        return layer(batch._replace(data=data))[0].data

    data = batch.data.requires_grad_()
    assert torch.autograd.gradcheck(run, data)
    assert torch.autograd.gradgradcheck(run, data)


def test_options_of_the_loop_see_whole_sequences():
    layer = bptt.LSTM(5, 6, bidirectional=True, truncate=4, zoneout=(0.2, 0.3), dtype=F64)
    lengths = LENGTHS["one-long"]
    batch = packed_batch(lengths)
    x, _ = nn.utils.rnn.pad_packed_sequence(batch)
    torch.manual_seed(1)
    y, _, cells = layer(batch, return_cells=True)
    torch.manual_seed(1)
    expected, _, expected_cells = layer(x, lengths=torch.tensor(lengths), return_cells=True)
    torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(y)[0], expected)
    torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(cells[0])[0], expected_cells[0])


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients(name, lengths):
    """Segments are longer then, and hold more that is not valid."""
    theirs, ours = pair(name, 5, 6, bidirectional=True, num_layers=2, dtype=F64)
    batch = packed_batch(mixed(lengths))
    hx = states_of(theirs, len(lengths))
    with torch.no_grad():
        (expected, last), (y, got) = (layer(batch, hx) for layer in (theirs, ours))
    torch.testing.assert_close([y.data, *flat(got)], [expected.data, *flat(last)])


@pytest.mark.parametrize("part", [SPARE_OF_SEGMENT, SPARE_WITHOUT_GRADIENTS])
@given(st.lists(st.integers(0, 60), min_size=1, max_size=80))
def test_segments_cover_every_row_and_have_few_to_spare(part, heights):
    sizes = sorted(heights, reverse=True)
    segments = cut(sizes, part)
    assert [size for s in segments for size in s.steps] == sizes
    first = 0
    for s in segments:
        assert s.first == first
        first += s.rows
        spare = len(s.steps) * s.batch - s.rows
        assert spare <= max(part * s.rows, SPARE_OF_ALL * sum(sizes))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lengths", ["one-long", "log-normal", "uniform"])
def test_memory_is_that_of_the_valid_rows(lengths, name, bidirectional):
    features = 32
    random = torch.Generator().manual_seed(0)
    batches = {
        "one-long": [1000, *[20] * 63],
        "log-normal": torch.empty(48).log_normal_(3, 1, generator=random).int().clamp(1).tolist(),
        "uniform": torch.randint(1, 120, (48,), generator=random).tolist(),
    }
    batch = packed_batch(batches[lengths], features, torch.float32)
    kept = []
    for layer in pair(name, features, features, bidirectional=bidirectional):
        storages, y = saved_storages(layer, batch, {})
        held = {t.untyped_storage().data_ptr(): t for t in (batch.data, y.data)}
        kept.append(sum(t.untyped_storage().nbytes() for t in {**storages, **held}.values()))
    theirs, ours = kept
    assert ours <= 1.3 * theirs
