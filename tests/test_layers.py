"""Do the layers keep torch.nn's contract, and do their extras do what they say?"""

import copy
import inspect
import io
import itertools
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import bptt.nn as ours
from bptt import functional
from bptt.calls import checks
from bptt.recurrence import ops

T, B, I, H = 7, 3, 5, 4
PAIRS = {name: (getattr(ours, name), getattr(nn, name)) for name in ("RNN", "GRU", "LSTM")}
LAYERS = sorted(PAIRS)


def twins(name, *args, seed=0, **options):
    """One layer of ours and one of torch.nn, each built right after seeding."""
    layers = []
    for cls in PAIRS[name]:
        torch.manual_seed(seed)
        layers.append(cls(*args, **options))
    return layers


def states(name, layer, batch=B, dtype=torch.float64):
    """A random initial state for a layer; without a batch axis when `batch` is None."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    middle = () if batch is None else (batch,)
    hidden = torch.randn(rows, *middle, layer.proj_size or layer.hidden_size, dtype=dtype)
    if name != "LSTM":
        return hidden
    return hidden, torch.randn(rows, *middle, layer.hidden_size, dtype=dtype)


def flat(value):
    """Every tensor in nested tuples and PackedSequences."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if value is None or isinstance(value, torch.Tensor):
        return [] if value is None else [value]
    return [t for item in value for t in flat(item)]


def gradients(layer, outputs, inputs):
    """Gradients of a fixed weighted sum of the outputs, in inputs and parameters."""
    torch.manual_seed(1)
    loss = sum((t * torch.randn(t.shape, dtype=t.dtype)).sum() for t in outputs)
    return torch.autograd.grad(loss, [*inputs, *layer.parameters()])


def assert_same(left, right, **tolerance):
    left, right = flat(left), flat(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "bias": False},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
CASES = [
    pytest.param(name, options, id="-".join([name, *(f"{k}={v}" for k, v in options.items())]))
    for name, options in [
        *itertools.product(LAYERS, OPTIONS),
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
        ("LSTM", {"proj_size": 2}),
        ("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
    ]
]


# --- construction -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_parameters_equal_torch_bitwise(name, options):
    layer, theirs = twins(name, I, H, **options)
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for (key, a), b in zip(layer.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert layer._flat_weights_names == theirs._flat_weights_names
    assert layer._all_weights == theirs._all_weights
    assert [[w.shape for w in ws] for ws in layer.all_weights] == [
        [w.shape for w in ws] for ws in theirs.all_weights
    ]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_repr_and_attributes_equal_torch(name, options):
    layer, theirs = twins(name, I, H, **options)
    assert repr(layer) == repr(theirs)
    for key in (*nn.RNNBase.__constants__, "training"):
        assert getattr(layer, key) == getattr(theirs, key), key
    assert isinstance(layer, nn.RNNBase)


@pytest.mark.parametrize("name", LAYERS)
def test_constructor_takes_torch_positions(name):
    stated = [
        p
        for p in inspect.signature(PAIRS[name][0]).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    expected = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    expected += ["bidirectional", *(["proj_size"] if name == "LSTM" else []), "device", "dtype"]
    if name == "RNN":
        expected.insert(3, "nonlinearity")
    assert [p.name for p in stated] == expected
    extra = ("relu",) if name == "RNN" else ()
    layer, theirs = twins(name, I, H, 2, *extra, False, True, 0.25, True)
    assert repr(layer) == repr(theirs)
    assert_same(layer.state_dict().values(), theirs.state_dict().values(), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_checkpoints_interchange(name):
    layer, theirs = twins(name, I, H, 2, bidirectional=True)
    for source, target in ((layer, theirs), (theirs, layer)):
        with torch.no_grad():
            for p in source.parameters():
                p.normal_()
        assert not any(target.load_state_dict(source.state_dict(), strict=True))
        assert_same(source.state_dict().values(), target.state_dict().values(), rtol=0, atol=0)


def test_dropout_in_a_single_layer_warns_like_torch():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        ours.LSTM(I, H, dropout=0.5)


@pytest.mark.parametrize("name", LAYERS)
def test_reset_parameters_repeats_the_constructor(name):
    extras = {"peephole": True} if name == "LSTM" else {}
    torch.manual_seed(3)
    layer = PAIRS[name][0](I, H, 2, bidirectional=True, merge_mode="sum", **extras)
    before = copy.deepcopy(layer.state_dict())
    torch.manual_seed(3)
    layer.reset_parameters()
    assert_same(layer.state_dict().values(), before.values(), rtol=0, atol=0)


def test_overridden_reset_parameters_sees_every_parameter():
    class Constant(ours.LSTM):
        def reset_parameters(self):
            for p in self.parameters():
                nn.init.constant_(p, 0.5)

    layer = Constant(I, H, 2, bidirectional=True, peephole=True, merge_mode="ave")
    assert all(bool((p == 0.5).all()) for p in layer.parameters())
    assert len(list(layer.parameters())) == 20


# --- forward and backward against torch.nn ------------------------------------------------------


def make_input(layout, batch_first):
    """An input, and the batch size its initial state has."""
    torch.manual_seed(2)
    if layout == "unbatched":
        return torch.randn(T, I, dtype=torch.float64, requires_grad=True), None
    if layout == "packed":
        rows = [torch.randn(n, I, dtype=torch.float64) for n in (4, T, 1)]
        packed = pack_sequence(rows, enforce_sorted=False)
        return packed._replace(data=packed.data.requires_grad_()), 3
    shape = (B, T, I) if batch_first else (T, B, I)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True), B


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("layout", ["batch", "unbatched", "packed"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_outputs_and_gradients_equal_torch(name, options, layout, with_state):
    layer, theirs = twins(name, I, H, dtype=torch.float64, **options)
    x, batch = make_input(layout, layer.batch_first)
    hx = states(name, layer, batch) if with_state else None
    leaves = [t.requires_grad_() for t in flat(x) + flat(hx)]
    mine, expected = layer(x, hx), theirs(x, hx)
    assert_same(mine, expected)
    assert_same(gradients(layer, flat(mine), leaves), gradients(theirs, flat(expected), leaves))
    if layout == "packed":
        assert all(torch.equal(a, b) for a, b in zip(mine[0][1:], expected[0][1:], strict=True))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lengths", [[T, 4, 1], [T, T, T], [T]])
def test_sorted_packed_input(name, lengths):
    layer, theirs = twins(name, I, H, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, len(lengths), I, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor(lengths))
    mine, expected = layer(packed), theirs(packed)
    assert_same(mine, expected)
    assert mine[0].sorted_indices is None
    assert torch.equal(mine[0].batch_sizes, expected[0].batch_sizes)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_masks_equal_torch_under_one_seed(name):
    layer, theirs = twins(name, I, H, 3, dropout=0.4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    runs = []
    for module in (layer, theirs, layer):
        torch.manual_seed(5)
        runs.append(module(x))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2], rtol=0, atol=0)
    assert not torch.equal(runs[0][0], layer(x)[0])  # the generator has moved on


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_and_training_are_read_at_each_call(name):
    layer, theirs = twins(name, I, H, 2, dropout=0.5, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    plain = theirs.eval()(x)
    assert_same(layer.eval()(x), plain)
    layer.train().dropout = 0.0
    assert_same(layer(x), plain)
    layer.dropout = 1.0
    layer.bias_ih_l1.data.zero_(), layer.bias_hh_l1.data.zero_()
    silenced = layer(x)[0]
    layer.weight_ih_l1.data.zero_()
    layer.dropout = 0.0
    assert_same(silenced, layer(x)[0])  # dropping everything is a zero input to layer 1


@pytest.mark.parametrize("name", LAYERS)
def test_no_dropout_after_the_last_layer(name):
    layer = PAIRS[name][0](I, H, 1)
    layer.dropout = 0.9
    x = torch.randn(T, B, I)
    assert_same(layer.train()(x), layer.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_backward_in_eval_mode(name):
    layer = PAIRS[name][0](I, H, 2).eval()
    layer(torch.randn(T, B, I))[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch(name, batch_first):
    layer, theirs = twins(name, I, H, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn((0, T, I) if batch_first else (T, 0, I), requires_grad=True)
    mine, expected = layer(x), theirs(x)
    assert [t.shape for t in flat(mine)] == [t.shape for t in flat(expected)]
    sum(t.sum() for t in flat(mine)).backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_strides_do_not_matter(name):
    layer, theirs = twins(name, I, H, 2, dtype=torch.float64)
    x = torch.randn(I, T, B, 2, dtype=torch.float64)[..., 0].permute(1, 2, 0)
    hx = states(name, layer)
    if name == "LSTM":
        hx = tuple(s.transpose(0, 1).contiguous().transpose(0, 1) for s in hx)
    else:
        hx = hx[:, :1].expand(-1, B, -1)
    assert_same(layer(x, hx), theirs(x, hx))


@pytest.mark.parametrize("name", LAYERS)
def test_batch_first_input_reaches_the_engine_uncopied(name, monkeypatch):
    seen = []
    run = ops.recurrence
    monkeypatch.setattr(
        ops, "recurrence", lambda *args, **rest: seen.append(args[1]) or run(*args, **rest)
    )
    x = torch.randn(300, T, I)  # many rows: a short call has a way of its own
    PAIRS[name][0](I, H, batch_first=True)(x)
    assert seen[0].shape == (T, 300, I)
    assert seen[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize("name", LAYERS)
def test_nan_weights_pass_through(name):
    layer, theirs = twins(name, I, H)
    for module in (layer, theirs):
        module.weight_hh_l0.data[0, 0] = float("nan")
    x = torch.randn(T, B, I)
    assert_same(layer(x)[0].isnan(), theirs(x)[0].isnan())
    assert layer(x)[0].isnan().any()


def test_float32_results_agree_too():
    for name in LAYERS:
        layer, theirs = twins(name, I, H, 2, bidirectional=True)
        x = torch.randn(T, B, I)
        assert_same(layer(x), theirs(x))


# --- weights are looked up at each call ---------------------------------------------------------


@pytest.fixture(params=LAYERS)
def pair(request):
    return (*twins(request.param, I, H, dtype=torch.float64), request.param)


X = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I)


def test_assigned_weights_are_used(pair):
    layer, theirs, _ = pair
    new = torch.randn_like(layer.weight_hh_l0)
    for module in (layer, theirs):
        module.weight_hh_l0 = nn.Parameter(new.clone())
    assert_same(layer(X), theirs(X))
    assert layer._flat_weights[1] is layer.weight_hh_l0


def test_functional_call(pair):
    layer, theirs, _ = pair
    swapped = {k: torch.randn_like(v) for k, v in layer.named_parameters()}
    mine = torch.func.functional_call(layer, swapped, (X,))
    assert_same(mine, torch.func.functional_call(theirs, swapped, (X,)))
    assert not torch.allclose(mine[0], layer(X)[0])


def test_tied_weights(pair):
    _, _, name = pair
    layer, theirs = twins(name, I, H, bidirectional=True, dtype=torch.float64)
    for module in (layer, theirs):
        module.weight_hh_l0_reverse = module.weight_hh_l0
    assert_same(layer(X), theirs(X))
    mine, expected = (gradients(m, flat(m(X)), []) for m in (layer, theirs))
    assert len(mine) == 7
    assert_same(mine, expected)


@pytest.mark.parametrize(
    "normalise", [parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "legacy"]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm(pair, normalise):
    layer, theirs, _ = pair
    plain = layer(X)[0]
    for module in (layer, theirs):
        normalise(module, "weight_hh_l0")
        normalise(module, "weight_ih_l0")
    assert_same(layer(X)[0], plain)
    assert_same(layer(X), theirs(X))
    mine, expected = (gradients(m, flat(m(X)), []) for m in (layer, theirs))
    assert_same(mine, expected)
    with torch.no_grad():
        for module in (layer, theirs):
            for p in module.parameters():
                p.mul_(1.5)
    assert_same(layer(X), theirs(X))
    assert not torch.allclose(layer(X)[0], plain)


def test_parametrization(pair):
    layer, theirs, _ = pair

    evaluations = []

    class Double(nn.Module):
        def forward(self, weight):
            evaluations.append(weight)
            return 2 * weight

    for module in (layer, theirs):
        parametrize.register_parametrization(module, "weight_hh_l0", Double())
    assert_same(layer(X), theirs(X))
    evaluations.clear()
    layer.bias_hh_l0 = nn.Parameter(layer.bias_hh_l0.detach().clone())
    assert not evaluations
    layer(X)
    assert len(evaluations) == 1
    # A parametrized torch.nn layer cannot be copied after a conversion; ours can.
    copied = copy.deepcopy(layer.to(torch.float32).to(torch.float64))
    assert_same(copied(X), layer(X))
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer).__module__.startswith("bptt")
    assert_same(layer(X), theirs(X))


def test_hooks_run(pair):
    layer, _, _ = pair
    seen = []
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    layer.register_forward_hook(lambda m, args, out: seen.append(out))
    layer.register_full_backward_hook(lambda m, gi, go: seen.append(gi))
    x = X.clone().requires_grad_()
    output, _ = layer(x)
    output.sum().backward()
    assert len(seen) == 2
    assert torch.allclose(seen[1][0] * 2, x.grad)


def test_flatten_parameters_does_nothing_and_nothing_warns(pair):
    layer, _, _ = pair
    pointers = [p.data_ptr() for p in layer.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.flatten_parameters()
        layer(X)
    assert pointers == [p.data_ptr() for p in layer.parameters()]


# --- copies, devices, dtypes --------------------------------------------------------------------


def extended(name, **options):
    extras = {
        "RNN": {"nonlinearity": "sigmoid"},
        "GRU": {"reset_after": False},
        "LSTM": {"peephole": True, "proj_size": 2},
    }
    return PAIRS[name][0](I, H, 2, bidirectional=True, merge_mode="sum", **extras[name], **options)


def saved_and_loaded(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["copy", "deepcopy", "pickle", "save"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_copies(name, duplicate):
    layer = extended(name)
    other = duplicate(layer)
    x = torch.randn(T, B, I)
    assert repr(other) == repr(layer)
    assert_same(other(x), layer(x), rtol=0, atol=0)
    other.weight_ih_l0 = nn.Parameter(torch.zeros_like(layer.weight_ih_l0))
    if duplicate is not copy.copy:  # which shares the table of parameters
        assert layer.weight_ih_l0.any()


@pytest.mark.parametrize("name", LAYERS)
def test_a_pickle_older_than_the_options_loads_with_their_defaults(name):
    layer = PAIRS[name][0](I, H, bidirectional=True)
    state = layer.__getstate__()
    for key in ("merge_mode", "peephole", "reset_after", "proj_size"):
        state.pop(key, None)
    old = PAIRS[name][0].__new__(PAIRS[name][0])
    old.__setstate__(state)
    x = torch.randn(T, B, I)
    assert repr(old) == repr(layer)
    assert_same(old(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device(name):
    layer = extended(name, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    assert layer(torch.randn(T, B, I, device="meta"))[0].shape == (T, B, layer.proj_size or H)
    real = extended(name)
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(real.state_dict())
    x = torch.randn(T, B, I)
    assert_same(layer(x), real(x), rtol=0, atol=0)
    skipped = nn.utils.skip_init(PAIRS[name][0], I, H)
    assert [p.shape for p in skipped.parameters()] == [
        p.shape for p in PAIRS[name][1](I, H).parameters()
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_to_another_dtype(name):
    layer, theirs = twins(name, I, H, 2)
    layer, theirs = layer.to(torch.float64), theirs.to(torch.float64)
    assert_same(layer(X), theirs(X))
    assert layer(X)[0].dtype == torch.float64
    layer.bfloat16()
    assert layer(X.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_leaves_float64_alone_and_can_be_switched_off(name):
    layer, double = PAIRS[name][0](I, H), PAIRS[name][0](I, H).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double(X)[0].dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert layer(X.float())[0].dtype == torch.float32


# --- lengths and resets -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_equal_packing(name, batch_first, dtype):
    layer, theirs = twins(
        name, I, H, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64
    )
    lengths = torch.tensor([3, T, 1], dtype=dtype)
    x = torch.randn(T, B, I, dtype=torch.float64)
    x[3:, 0], x[1:, 2] = float("nan"), float("inf")  # padding must not matter
    x = (x.transpose(0, 1) if batch_first else x).requires_grad_()
    hx = states(name, layer)
    packed = pack_padded_sequence(x, lengths.long(), batch_first, enforce_sorted=False)
    expected, expected_state = theirs(packed, hx)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first)
    output, state = layer(x, hx, lengths=lengths)
    assert_same([output, state], [expected, expected_state])
    mine = gradients(layer, flat([output, state]), [x])
    assert_same(mine, gradients(theirs, flat([expected, expected_state]), [x]))


@pytest.mark.parametrize("name", LAYERS)
def test_a_length_of_zero_keeps_the_initial_state(name):
    layer = PAIRS[name][0](I, H, 2, bidirectional=True, dtype=torch.float64)
    hx = states(name, layer)
    output, state = layer(X, hx, lengths=torch.tensor([0, T, 2]))
    assert not output[:, 0].any()
    assert_same([s[:, 0] for s in flat(state)], [s[:, 0] for s in flat(hx)], rtol=0, atol=0)
    assert_same([s[:, 1] for s in flat(state)], [s[:, 1] for s in flat(layer(X, hx)[1])])


@pytest.mark.parametrize("name", LAYERS)
def test_one_sequence_takes_a_scalar_length(name):
    layer = PAIRS[name][0](I, H, 2, bidirectional=True, dtype=torch.float64)
    output, state = layer(X[:, 0], lengths=torch.tensor(3))
    short, short_state = layer(X[:3, 0])
    assert_same([output[:3], state], [short, short_state])
    assert not output[3:].any()


@pytest.mark.parametrize("layout", ["time", "batch_first", "unbatched"])
@pytest.mark.parametrize("name", LAYERS)
def test_resets_cut_a_sequence_in_two(name, layout):
    layer = PAIRS[name][0](
        I, H, bidirectional=True, batch_first=layout == "batch_first", dtype=torch.float64
    )
    cut = 4
    before = torch.zeros(T, dtype=torch.bool)
    before[cut] = True  # the forward direction starts anew at step 4 ...
    after = before.roll(-1)  # ... and, for a clean cut in reverse, so must step 3
    whole, _ = layer(X[:, 0])
    for mark, half, span in (
        (before, slice(None, H), slice(cut, T)),
        (after, slice(H, None), slice(0, cut)),
    ):
        if layout == "unbatched":
            output, _ = layer(X[:, 0], resets=mark)
        else:
            resets = torch.stack([mark, torch.zeros_like(mark), mark], 1)
            if layout == "batch_first":
                output, _ = layer(X.transpose(0, 1), resets=resets.transpose(0, 1))
                output = output.transpose(0, 1)
            else:
                output, _ = layer(X, resets=resets)
            assert_same(output[:, 1], layer(X[:, 1])[0])  # a sequence without resets
            output = output[:, 0]
        expected, _ = layer(X[span, 0])
        assert_same(output[span, half], expected[:, half])
        assert not torch.allclose(output[span, half], whole[span, half])


# --- options torch.nn does not have -------------------------------------------------------------


def one_way(layer, number, suffix):
    """A one-directional layer with one direction's weights of a layer in a bidirectional stack."""
    width = getattr(layer, f"weight_ih_l{number}").shape[1]
    single = type(layer)(width, layer.hidden_size, dtype=torch.float64)
    single.load_state_dict(
        {k: getattr(layer, k.replace("_l0", f"_l{number}{suffix}")) for k in single.state_dict()}
    )
    return single


MERGES = {
    "concat": lambda f, b: torch.cat([f, b], 2),
    "sum": lambda f, b: f + b,
    "mul": lambda f, b: f * b,
    "ave": lambda f, b: (f + b) / 2,
}


@pytest.mark.parametrize("mode", [*MERGES, None])
@pytest.mark.parametrize("name", LAYERS)
def test_merge_modes_merge_at_every_layer(name, mode):
    layer = PAIRS[name][0](I, H, 2, bidirectional=True, merge_mode=mode, dtype=torch.float64)
    inner, y, finals = MERGES[mode or "concat"], X, []
    for number in range(2):
        forward, forward_state = one_way(layer, number, "")(y)
        backward, backward_state = one_way(layer, number, "_reverse")(y.flip(0))
        backward = backward.flip(0)
        finals += [flat(forward_state), flat(backward_state)]
        y = inner(forward, backward)
    output, state = layer(X)
    assert_same(output, (forward, backward) if mode is None else y)
    assert_same(state, [torch.cat(column) for column in zip(*finals, strict=True)])


@pytest.mark.parametrize("name", LAYERS)
def test_a_pair_of_outputs_in_every_layout(name):
    layer = PAIRS[name][0](I, H, bidirectional=True, merge_mode=None, dtype=torch.float64)
    plain = PAIRS[name][0](I, H, bidirectional=True, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    packed = pack_sequence([X[:, 0], X[:3, 1]])
    for x in (X, X[:, 0], packed):
        expected = plain(x)[0]
        data = expected.data if isinstance(expected, PackedSequence) else expected
        assert_same(layer(x)[0], list(data.split(H, -1)))
    assert all(isinstance(half, PackedSequence) for half in layer(packed)[0])
    layer.batch_first = True
    assert_same(layer(X.transpose(0, 1))[0], [t.transpose(0, 1) for t in plain(X)[0].split(H, -1)])


def test_merged_layers_draw_weights_in_the_usual_range():
    layer = ours.GRU(64, 64, 2, bidirectional=True, merge_mode="mul")
    assert layer.weight_ih_l1.shape == (192, 64)
    assert 0.12 < layer.weight_ih_l1.abs().max() <= 1 / 8


def sigmoid_rnn(x, h, w):
    return torch.sigmoid(x @ w[0].T + w[2] + h @ w[1].T + w[3])


def gru_reset_before(x, h, w):
    x_r, x_z, x_n = (x @ w[0].T + w[2]).chunk(3, 1)
    (w_r, w_z, w_n), (b_r, b_z, b_n) = w[1].chunk(3), w[3].chunk(3)
    r, z = torch.sigmoid(x_r + h @ w_r.T + b_r), torch.sigmoid(x_z + h @ w_z.T + b_z)
    return (1 - z) * torch.tanh(x_n + (r * h) @ w_n.T + b_n) + z * h


def peephole_lstm(x, state, w):
    h, c = state
    i, f, g, o = (x @ w[0].T + w[2] + h @ w[1].T + w[3]).chunk(4, 1)
    p_i, p_f, p_o = w[-1].chunk(3)
    c_next = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    h_next = torch.sigmoid(o + p_o * c_next) * torch.tanh(c_next)
    return (h_next if len(w) == 5 else h_next @ w[4].T), c_next


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        (lambda: ours.RNN(I, H, nonlinearity="sigmoid"), sigmoid_rnn),
        (lambda: ours.GRU(I, H, reset_after=False), gru_reset_before),
        (lambda: ours.LSTM(I, H, peephole=True), peephole_lstm),
        (lambda: ours.LSTM(I, H, peephole=True, proj_size=2), peephole_lstm),
    ],
    ids=["sigmoid", "reset_before", "peephole", "peephole+projection"],
)
def test_extra_cells_follow_their_equations(layer, step):
    layer = layer().double()
    name = type(layer).__name__
    state = start = states(name, layer)
    weights = layer._flat_weights
    state = tuple(s[0] for s in state) if name == "LSTM" else state[0]
    outputs = []
    for x in X:
        state = step(x, state, weights)
        outputs.append(flat(state)[0])
    output, final = layer(X, start)
    assert_same(output, torch.stack(outputs))
    assert_same(final, [s.unsqueeze(0) for s in flat(state)])


def test_peepholes_come_after_torch_parameters():
    layer, theirs = twins("LSTM", I, H, 2, bidirectional=True)
    torch.manual_seed(0)
    extended = ours.LSTM(I, H, 2, bidirectional=True, peephole=True)
    names = list(extended.state_dict())
    assert names[:16] == list(theirs.state_dict())
    assert names[16:] == [
        f"weight_peephole_l{k}{suffix}" for k in range(2) for suffix in ("", "_reverse")
    ]
    assert extended.weight_peephole_l1.shape == (3 * H,)
    assert_same([extended.get_parameter(k) for k in names[:16]], list(theirs.parameters()))
    assert extended._all_weights[1][-1] == "weight_peephole_l0_reverse"
    with torch.no_grad():
        for name in names[16:]:
            assert 0 < extended.get_parameter(name).abs().max() <= H**-0.5
            extended.get_parameter(name).zero_()
    assert_same(extended(X.float()), layer(X.float()))


def test_extras_show_in_repr_only_when_used():
    assert repr(ours.RNN(I, H, nonlinearity="relu")) == "RNN(5, 4)"
    assert repr(ours.RNN(I, H, nonlinearity="sigmoid")) == "RNN(5, 4, nonlinearity=sigmoid)"
    assert repr(ours.GRU(I, H, reset_after=False)) == "GRU(5, 4, reset_after=False)"
    assert repr(ours.LSTM(I, H, bidirectional=True, merge_mode=None, peephole=True)) == (
        "LSTM(5, 4, bidirectional=True, merge_mode=None, peephole=True)"
    )


# --- functional and compiled --------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_functions_equal_layers(name):
    layer = extended(name).double()
    hx = states(name, layer)
    options = {"merge_mode": "sum", "num_layers": 2, "bidirectional": True}
    for key in ("nonlinearity", "reset_after", "peephole", "proj_size"):
        if hasattr(layer, key) and (name == "LSTM" or key in ("nonlinearity", "reset_after")):
            options[key] = getattr(layer, key)
    function = getattr(functional, name.lower())
    mine = function(X, hx, layer._flat_weights, **options)
    assert_same(mine, layer(X, hx), rtol=0, atol=0)


@pytest.mark.slow
def test_a_layer_trains_compiled_into_one_graph_of_any_length():
    layer = ours.LSTM(I, H, bidirectional=True, batch_first=True, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (4, T):
        x = X[:steps].transpose(0, 1).clone().requires_grad_()
        hx = states("LSTM", layer)
        lengths, resets = torch.tensor([2, 4, 0]), x[:, :, 0] > 0.5
        mine = compiled(x, hx, lengths=lengths, resets=resets)
        expected = layer(x, hx, lengths=lengths, resets=resets)
        assert_same(mine, expected)
        assert_same(gradients(layer, flat(mine), [x]), gradients(layer, flat(expected), [x]))


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_and_extras_compile_into_one_graph(name):
    layer = extended(name)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, expected = compiled(x), layer(x)
    assert (
        mine[0].dtype == expected[0].dtype == (torch.float32 if name == "GRU" else torch.bfloat16)
    )
    assert_same(mine, expected)


def test_lengths_nobody_can_read_are_clamped():
    lengths = torch.tensor([-3, T + 100, 2])
    within = torch.func.vmap(lambda n: checks.lengths_within("GRU", n, T))(lengths)
    assert within.tolist() == [0, T, 2]


def test_compiled_lengths_out_of_range_are_clamped():
    layer = ours.GRU(I, H, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    mine = compiled(X, lengths=torch.tensor([-3, T + 100, 2]))
    assert_same(mine, layer(X, lengths=torch.tensor([0, T, 2])))
