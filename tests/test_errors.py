"""Does bad input raise torch.nn's exception type, with a message that says what is wrong?

Each case runs on torch.nn first: where it raises, the type must be (or include) torch.nn's.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt.nn as ours
from bptt import functional

T, B, I, H = 5, 3, 4, 6
LAYERS = ["RNN", "GRU", "LSTM"]
CELLS = ["RNNCell", "GRUCell", "LSTMCell"]
X = torch.zeros(T, B, I)
PACKED = pack_sequence([torch.zeros(3, I), torch.zeros(2, I)])


def failure(call):
    """What a call raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


def assert_fails_like_torch(mine, theirs, words):
    expected, error = failure(theirs), failure(mine)
    assert error is not None, "accepted"
    if expected is not None:
        assert isinstance(error, type(expected)), f"{error!r} instead of {expected!r}"
    for word in words:
        assert word in str(error), f"{word!r} not in {error!s}"


def state(name, *shape, **options):
    zeros = torch.zeros(*shape, **options)
    return (zeros, zeros.clone()) if name.startswith("LSTM") else zeros


# Each case: a name, the arguments after the layer (given the layer's name), words of the message.
LAYER_CASES = {
    "rank 1": (lambda n: (X[0, 0],), ["2D or 3D", "1D"]),
    "rank 4": (lambda n: (X[None],), ["2D or 3D", "4D"]),
    "features": (lambda n: (torch.zeros(T, B, 7),), ["input_size", "Expected 4", "got 7"]),
    "float64": (lambda n: (X.double(),), ["input dtype", "torch.float64", "torch.float32"]),
    "integers": (lambda n: (X.long(),), ["input dtype", "torch.int64"]),
    "complex": (lambda n: (X.to(torch.complex64),), ["input dtype", "torch.complex64"]),
    "no steps": (
        lambda n: (X[:0],),
        ["Expected sequence length to be larger than 0 in RNN"],
    ),
    "no steps, unbatched": (
        lambda n: (X[:0, 0],),
        ["Expected sequence length to be larger than 0 in RNN"],
    ),
    "no steps, no batch": (lambda n: (X[:0, :0],), ["Expected sequence length"]),
    "device": (lambda n: (X.to("meta"),), ["same device", "meta", "cpu"]),
    "input None": (lambda n: (None,), ["input", "NoneType"]),
    "input list": (lambda n: ([1.0, 2.0],), ["input", "list"]),
    "input array": (lambda n: (X.numpy(),), ["input", "ndarray"]),
    "hx size": (lambda n: (X, state(n, 1, B, 7)), ["Expected hidden", "(1, 3, 6)", "[1, 3, 7]"]),
    "hx batch": (lambda n: (X, state(n, 1, 4, H)), ["Expected hidden", "[1, 4, 6]"]),
    "hx layers": (lambda n: (X, state(n, 2, B, H)), ["Expected hidden", "[2, 3, 6]"]),
    "hx 2-D": (lambda n: (X, state(n, B, H)), ["batched 3-D input", "2-D"]),
    "hx 1-D": (lambda n: (X, state(n, H)), ["batched 3-D input", "1-D"]),
    "hx 3-D, unbatched": (lambda n: (X[:, 0], state(n, 1, 1, H)), ["unbatched 2-D", "3-D"]),
    "hx size, unbatched": (lambda n: (X[:, 0], state(n, 2, H)), ["Expected hidden"]),
    "hx float64": (lambda n: (X, state(n, 1, B, H, dtype=torch.float64)), ["hidden", "float64"]),
    "hx integers": (lambda n: (X, state(n, 1, B, H, dtype=torch.long)), ["hidden", "int64"]),
    "hx device": (lambda n: (X, state(n, 1, B, H, device="meta")), ["hidden", "meta", "cpu"]),
    "hx number": (lambda n: (X, 3.0), ["hx", "float"]),
    "hx string": (lambda n: (X, "zeros"), ["hx", "str"]),
    "hx array": (lambda n: (X, X.numpy()), ["hx", "ndarray"]),
    "hx one in a tuple": (lambda n: (X, (torch.zeros(1, B, H),)), ["hx", "tensor"]),
    "hx three": (lambda n: (X, (torch.zeros(1, B, H),) * 3), ["hx"]),
    "hx with None": (lambda n: (X, (torch.zeros(1, B, H), None)), ["hx"]),
    "packed features": (
        lambda n: (pack_sequence([torch.zeros(3, 7)]), None),
        ["input_size", "Expected 4", "got 7"],
    ),
    "packed float64": (lambda n: (pack_sequence([X[:, 0].double()]),), ["dtype", "float64"]),
    "packed hx": (lambda n: (PACKED, state(n, 1, 3, H)), ["Expected hidden", "[1, 3, 6]"]),
    "packed 1-D": (lambda n: (PackedSequence(X[0, 0], torch.tensor([2, 2])),), ["dimensions"]),
    "packed 3-D": (lambda n: (PackedSequence(X, torch.tensor([3, 2])),), ["dimensions"]),
    "packed rows": (
        lambda n: (PackedSequence(torch.zeros(4, I), torch.tensor([3, 2])),),
        ["batch_sizes", "4 rows", "[3, 2]"],
    ),
    "packed rising": (
        lambda n: (PackedSequence(torch.zeros(5, I), torch.tensor([2, 3])),),
        ["batch_sizes", "never rise"],
    ),
    "packed negative": (
        lambda n: (PackedSequence(torch.zeros(2, I), torch.tensor([4, -2])),),
        ["batch_sizes"],
    ),
    "packed float sizes": (
        lambda n: (PackedSequence(torch.zeros(2, I), torch.tensor([2.0])),),
        ["batch_sizes", "int64", "float32"],
    ),
}


@pytest.mark.parametrize("case", LAYER_CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_arguments(name, case):
    arguments, words = LAYER_CASES[case]
    arguments = arguments(name)
    layer, theirs = (getattr(library, name)(I, H) for library in (ours, nn))
    assert_fails_like_torch(lambda: layer(*arguments), lambda: theirs(*arguments), words)


def test_the_state_of_an_lstm_is_a_pair_and_of_the_others_is_not():
    hidden = torch.zeros(1, B, H)
    assert_fails_like_torch(
        lambda: ours.LSTM(I, H)(X, hidden),
        lambda: nn.LSTM(I, H)(X, hidden),
        ["hx", "pair", "(h_0, c_0)", "[1, 3, 6]"],
    )
    for name in ("RNN", "GRU"):
        mine, theirs = getattr(ours, name)(I, H), getattr(nn, name)(I, H)
        assert_fails_like_torch(
            lambda m=mine: m(X, (hidden, hidden)),
            lambda m=theirs: m(X, (hidden, hidden)),
            ["hx", "tensor", "tuple"],
        )


def test_projected_state_sizes():
    good, bad = torch.zeros(1, B, 2), torch.zeros(1, B, H)
    for hx, word in (((bad, bad), "hidden[0] size (1, 3, 2)"), ((good, good), "hidden[1]")):
        assert_fails_like_torch(
            lambda hx=hx: ours.LSTM(I, H, proj_size=2)(X, hx),
            lambda hx=hx: nn.LSTM(I, H, proj_size=2)(X, hx),
            [word],
        )


CONSTRUCTOR_CASES = {
    "no sizes": ((), {}),
    "string": (("4", H), {}),
    "zero": ((0, H), {}),
    "float": ((I, 6.0), {}),
    "negative": ((I, -1), {}),
    "no layers": ((I, H, 0), {}),
    "half a layer": ((I, H, 1.5), {}),
    "dropout 2": ((I, H), {"dropout": 2.0}),
    "dropout string": ((I, H), {"dropout": "much"}),
    "dropout bool": ((I, H), {"dropout": True}),
    "bias": ((I, H), {"bias": 1}),
    "batch_first": ((I, H), {"batch_first": "yes"}),
    "projection": ((I, H), {"proj_size": H}),
    "negative projection": ((I, H), {"proj_size": -1}),
    "unknown": ((I, H), {"colour": "red"}),
    "nonlinearity": ((I, H), {"nonlinearity": "cube"}),
    "integer dtype": ((I, H), {"dtype": torch.long}),
}


@pytest.mark.parametrize("case", CONSTRUCTOR_CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_constructor_arguments(name, case):
    args, kwargs = CONSTRUCTOR_CASES[case]
    assert_fails_like_torch(
        lambda: getattr(ours, name)(*args, **kwargs),
        lambda: getattr(nn, name)(*args, **kwargs),
        [],
    )


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_projection_is_for_lstm_only_even_when_zero(name):
    with pytest.raises(ValueError, match="proj_size"):
        getattr(ours, name)(I, H, proj_size=0)


@pytest.mark.parametrize("name", LAYERS)
def test_merge_modes(name):
    with pytest.raises(ValueError, match=r"merge_mode must be one of 'concat'.*got 'max'"):
        getattr(ours, name)(I, H, bidirectional=True, merge_mode="max")
    with pytest.raises(ValueError, match=r"merge_mode.*bidirectional=False"):
        getattr(ours, name)(I, H, merge_mode="sum")
    with pytest.raises(ValueError, match=r"merge_mode.*bidirectional=False"):
        getattr(ours, name)(I, H, merge_mode=None)


# --- weights that do not fit --------------------------------------------------------------------

WEIGHT_CASES = {
    "shape": ("weight_hh_l1", torch.zeros(3, 3), ["weight_hh_l1", "6]", "[3, 3]"]),
    "input width": ("weight_ih_l1", torch.zeros(H, 3), ["weight_ih_l1", "shape"]),
    "bias": ("bias_hh_l0_reverse", torch.zeros(3), ["bias_hh_l0_reverse", "[3]"]),
    "dtype": ("weight_hh_l0", "double", ["weight_hh_l0", "float32", "float64"]),
    "first dtype": ("weight_ih_l0", "double", ["dtype", "float32", "float64"]),
    "device": ("bias_ih_l1_reverse", "meta", ["bias_ih_l1_reverse", "meta"]),
    "missing": ("bias_ih_l0", None, ["bias_ih_l0", "NoneType"]),
    "first missing": ("weight_ih_l0", None, ["weight_ih_l0", "NoneType"]),
    "rank": ("weight_ih_l0", torch.zeros(H), ["weight_ih_l0"]),
}


@pytest.mark.parametrize("case", WEIGHT_CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_weights(name, case):
    which, value, words = WEIGHT_CASES[case]
    layer = getattr(ours, name)(I, H, 2, bidirectional=True)
    old = getattr(layer, which)
    if isinstance(value, str):
        value = old.detach().double() if value == "double" else old.detach().to(value)
    setattr(layer, which, value if value is None else nn.Parameter(value))
    error = failure(lambda: layer(X))
    assert isinstance(error, (RuntimeError, TypeError))
    assert all(word in str(error) for word in words), error


FUNCTION_CASES = {
    "too few": (lambda w: w[:3], {}, ValueError, ["weights must hold 4 tensors", "got 3"]),
    "too many": (lambda w: [*w, w[0]], {}, ValueError, ["4 tensors", "got 5"]),
    "none": (lambda w: [], {}, TypeError, ["weight_ih_l0"]),
    "numbers": (lambda w: [1, 2, 3, 4], {}, TypeError, ["weight_ih_l0", "int"]),
    "layers": (lambda w: w, {"num_layers": 2}, ValueError, ["8 tensors", "got 4"]),
    "layers 0": (lambda w: w, {"num_layers": 0}, ValueError, ["num_layers", "got 0"]),
    "layers float": (lambda w: w, {"num_layers": 1.0}, TypeError, ["num_layers", "float"]),
    "direction": (lambda w: w, {"bidirectional": True}, ValueError, ["2 directions"]),
    "dropout": (lambda w: w, {"dropout": 1.5, "training": True}, ValueError, ["dropout", "1.5"]),
    "merge": (lambda w: w, {"merge_mode": "sum"}, ValueError, ["merge_mode"]),
    "rows": (lambda w: [w[0][:7], *w[1:]], {}, RuntimeError, ["weight_ih_l0", "4*H", "7"]),
    "no rows": (lambda w: [w[0][:0], *w[1:]], {}, RuntimeError, ["weight_ih_l0", "0"]),
    "peephole": (
        lambda w: [*w, torch.zeros(7)],
        {"peephole": True},
        RuntimeError,
        ["weight_peephole_l0", "[18]", "[7]"],
    ),
    "projection": (
        lambda w: [*w, torch.zeros(2, H)],
        {"proj_size": 2},
        RuntimeError,
        ["weight_hh_l0", "[24, 2]"],
    ),
    "wide projection": (lambda w: [*w, w[0]], {"proj_size": 9}, ValueError, ["proj_size", "9"]),
    "negative projection": (lambda w: w, {"proj_size": -1}, ValueError, ["proj_size", "-1"]),
}


@pytest.mark.parametrize("case", FUNCTION_CASES)
def test_functional_arguments(case):
    change, options, kind, words = FUNCTION_CASES[case]
    weights = [p.detach() for p in ours.LSTM(I, H).parameters()]
    error = failure(lambda: functional.lstm(X, None, change(weights), **options))
    assert isinstance(error, kind), repr(error)
    assert all(word in str(error) for word in words), error


def test_functional_names():
    weights = [p.detach() for p in ours.RNN(I, H).parameters()]
    with pytest.raises(ValueError, match="nonlinearity 'cube'"):
        functional.rnn(X, None, weights, nonlinearity="cube")
    integers = [w.long() for w in weights]
    with pytest.raises(ValueError, match=r"floating-point.*torch.int64"):
        functional.rnn(X.long(), None, integers)


# --- lengths and resets -------------------------------------------------------------------------

LENGTH_CASES = {
    "list": ([1, 2, 3], TypeError, ["lengths", "list"]),
    "float": (torch.ones(B), ValueError, ["lengths", "integer", "float32"]),
    "bool": (torch.ones(B, dtype=torch.bool), ValueError, ["lengths", "integer", "bool"]),
    "too many": (torch.ones(4, dtype=torch.long), ValueError, ["lengths", "[3]", "[4]"]),
    "2-D": (torch.ones(B, 1, dtype=torch.long), ValueError, ["lengths", "[3]", "[3, 1]"]),
    "scalar": (torch.tensor(2), ValueError, ["lengths", "[3]", "[]"]),
    "device": (torch.ones(B, dtype=torch.long, device="meta"), RuntimeError, ["lengths", "meta"]),
    "negative": (torch.tensor([1, -1, 2]), ValueError, ["lengths", "5 steps", "-1"]),
    "too long": (torch.tensor([1, 6, 2]), ValueError, ["lengths", "5 steps", "6"]),
    "int32 too long": (torch.tensor([9, 0, 2]).int(), ValueError, ["lengths", "9"]),
}


@pytest.mark.parametrize("case", LENGTH_CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_lengths(name, case):
    lengths, kind, words = LENGTH_CASES[case]
    error = failure(lambda: getattr(ours, name)(I, H)(X, lengths=lengths))
    assert isinstance(error, kind), repr(error)
    assert all(word in str(error) for word in words), error


RESET_CASES = {
    "list": (X, [[True]], TypeError, ["resets", "list"]),
    "integers": (X, torch.zeros(T, B, dtype=torch.long), ValueError, ["resets", "bool", "int64"]),
    "turned": (X, torch.zeros(B, T).bool(), ValueError, ["resets", "[T, B] = [5, 3]", "[3, 5]"]),
    "1-D": (X, torch.zeros(T).bool(), ValueError, ["resets", "[5, 3]", "[5]"]),
    "unbatched 2-D": (X[:, 0], torch.zeros(T, 1).bool(), ValueError, ["resets", "[T] = [5]"]),
    "device": (X, torch.zeros(T, B, device="meta").bool(), RuntimeError, ["resets", "meta"]),
}


@pytest.mark.parametrize("case", RESET_CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_resets(name, case):
    x, resets, kind, words = RESET_CASES[case]
    error = failure(lambda: getattr(ours, name)(I, H)(x, resets=resets))
    assert isinstance(error, kind), repr(error)
    assert all(word in str(error) for word in words), error


def test_resets_follow_batch_first():
    layer = ours.GRU(I, H, batch_first=True)
    x = X.transpose(0, 1)
    assert layer(x, resets=torch.zeros(B, T, dtype=torch.bool))[0].shape == (B, T, H)
    with pytest.raises(ValueError, match=r"\[B, T\] \(batch_first\) = \[3, 5\], got \[5, 3\]"):
        layer(x, resets=torch.zeros(T, B, dtype=torch.bool))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("option", ["lengths", "resets"])
def test_packed_sequences_bring_their_own_lengths(name, option):
    value = {"lengths": torch.tensor([1, 2]), "resets": torch.zeros(3, 2, dtype=torch.bool)}[option]
    with pytest.raises(ValueError, match=f"{option} cannot be combined with a PackedSequence"):
        getattr(ours, name)(I, H)(PACKED, **{option: value})


def test_unknown_keywords():
    with pytest.raises(TypeError, match="colour"):
        ours.LSTM(I, H)(X, colour="red")


def test_autocast_does_not_hide_a_wrong_dtype():
    for name in LAYERS:
        layer, theirs = getattr(ours, name)(I, H), getattr(nn, name)(I, H)
        for x in (X.double(), X.long()):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert_fails_like_torch(
                    lambda x=x, m=layer: m(x), lambda x=x, m=theirs: m(x), ["dtype"]
                )


# --- cells --------------------------------------------------------------------------------------

CELL_CASES = {
    "rank 0": (lambda n: (X[0, 0, 0],), ["1D or 2D", "0D"]),
    "rank 3": (lambda n: (X,), ["1D or 2D", "3D"]),
    "features": (lambda n: (torch.zeros(B, 7),), ["input_size", "7", "4"]),
    "float64": (lambda n: (X[0].double(),), ["input dtype", "float64"]),
    "integers": (lambda n: (X[0].long(),), ["input dtype", "int64"]),
    "device": (lambda n: (X[0].to("meta"),), ["input", "meta", "cpu"]),
    "None": (lambda n: (None,), ["input", "NoneType"]),
    "hx size": (lambda n: (X[0], state(n, B, 7)), ["hidden0", "hidden_size", "7"]),
    "hx batch": (lambda n: (X[0], state(n, 4, H)), ["batch size", "3", "4"]),
    "hx 1-D": (lambda n: (X[0], state(n, H)), ["hidden0", "batched 2-D input", "[6]"]),
    "hx 2-D": (lambda n: (X[0, 0], state(n, 1, H)), ["hidden0", "unbatched 1-D", "[1, 6]"]),
    "hx 3-D": (lambda n: (X[0], state(n, 1, B, H)), ["1D or 2D", "3D"]),
    "hx float64": (lambda n: (X[0], state(n, B, H, dtype=torch.float64)), ["float64"]),
    "hx device": (lambda n: (X[0], state(n, B, H, device="meta")), ["meta"]),
    "hx number": (lambda n: (X[0], 1.0), ["hx", "float"]),
    "hx string": (lambda n: (X[0], "zeros"), ["hx", "str"]),
    "hx one": (lambda n: (X[0], (torch.zeros(B, H),)), ["hx"]),
    "hx three": (lambda n: (X[0], (torch.zeros(B, H),) * 3), ["hx"]),
}


@pytest.mark.parametrize("case", CELL_CASES)
@pytest.mark.parametrize("name", CELLS)
def test_cell_arguments(name, case):
    arguments, words = CELL_CASES[case]
    arguments = arguments(name)
    cell, theirs = (getattr(library, name)(I, H) for library in (ours, nn))
    assert_fails_like_torch(lambda: cell(*arguments), lambda: theirs(*arguments), words)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("args", [(), ("4", H), (I, 6.0), (I, -1)], ids=str)
def test_cell_constructors(name, args):
    assert_fails_like_torch(
        lambda: getattr(ours, name)(*args), lambda: getattr(nn, name)(*args), []
    )


def test_an_lstm_cell_wants_a_pair_and_an_rnn_cell_a_known_nonlinearity():
    hidden = torch.zeros(B, H)
    assert_fails_like_torch(
        lambda: ours.LSTMCell(I, H)(X[0], hidden),
        lambda: nn.LSTMCell(I, H)(X[0], hidden),
        ["hx", "pair"],
    )
    assert_fails_like_torch(
        lambda: ours.RNNCell(I, H, nonlinearity="cube")(X[0]),
        lambda: nn.RNNCell(I, H, nonlinearity="cube")(X[0]),
        ["nonlinearity", "cube"],
    )


@pytest.mark.parametrize("name", CELLS)
def test_cell_weights(name):
    cell = getattr(ours, name)(I, H)
    for which, value, word in (
        ("weight_hh", nn.Parameter(torch.zeros(3, 3)), "[3, 3]"),
        ("bias_hh", nn.Parameter(torch.zeros(3).double()), "float64"),
        ("weight_ih", None, "NoneType"),
    ):
        broken = copy.deepcopy(cell)
        setattr(broken, which, value)
        error = failure(lambda m=broken: m(X[0]))
        assert isinstance(error, (RuntimeError, TypeError)), repr(error)
        assert which in str(error), error
        assert word in str(error), error
