"""Does a bad option raise the right type, and name the layer, the option and what came?"""

import pytest
import torch

import bptt
from bptt import functional

T, B, I, H = 5, 3, 4, 6
X = torch.zeros(T, B, I)
EVERY = ("RNN", "GRU", "LSTM", "CIFG", "SLSTM", "IndRNN")
GATED = ("GRU", "LSTM", "CIFG", "SLSTM")
NAN, INF = float("nan"), float("inf")

# The option, values that are refused, the layers that refuse them, the exception, words of it.
REFUSED = [
    ("layer_norm", ("yes", 1, None), EVERY, TypeError, ["bool"]),
    ("layer_norm", (True,), ("CIFG", "SLSTM", "IndRNN"), ValueError, ["RNN, GRU, LSTM"]),
    ("learn_initial_state", (1, "zeros"), EVERY, TypeError, ["bool"]),
    ("learn_initial_state", (True,), ("SLSTM",), ValueError, ["c, n and m"]),
    ("num_heads", (0, -2, 2.0, True, "2", None), EVERY, ValueError, ["int of 1 or more"]),
    ("num_heads", (4, 12), ("RNN", *GATED), ValueError, ["divide hidden_size = 6"]),
    ("num_heads", (2,), ("IndRNN",), ValueError, ["a head for each unit"]),
    ("gate_activation", ("cube", 3, ["tanh"]), GATED, ValueError, ["one of", "hard_sigmoid"]),
    ("activation", ("", "Tanh"), GATED, ValueError, ["one of", "softsign"]),
    ("activation", ("relu",), ("RNN", "IndRNN"), ValueError, ["nonlinearity", "relu"]),
    ("gate_activation", ("relu",), ("RNN", "IndRNN"), ValueError, ["nonlinearity", "relu"]),
    ("zoneout", (-0.1, 1.5, NAN, True, "half", None, [0.1, 0.2]), EVERY, ValueError, ["[0, 1]"]),
    ("zoneout", ((0.1,), (0.1, 0.2, 0.3), ()), EVERY, ValueError, ["a probability"]),
    ("zoneout", ((0.1, 2.5), (2.5, 0.1)), ("LSTM", "CIFG"), ValueError, ["[0, 1], got 2.5"]),
    ("zoneout", ((0.1, 0.2),), ("RNN", "GRU", "SLSTM", "IndRNN"), ValueError, ["(0.1, 0.2)"]),
    ("recurrent_dropout", (-0.1, 1.01, NAN, True, (0.1, 0.1)), EVERY, ValueError, ["[0, 1]"]),
    ("weight_drop", (-1, 2, "much", None), EVERY, ValueError, ["[0, 1]"]),
    ("cell_clip", (0, -1.0, NAN, INF, True, "3"), ("LSTM", "CIFG"), ValueError, ["above 0"]),
    ("cell_clip", (1.0,), ("RNN", "GRU", "SLSTM", "IndRNN"), ValueError, ["one cell state"]),
    ("truncate", (0, -1, 2.0, True, "3"), EVERY, ValueError, ["int of 1 or more"]),
    ("clip_grad_value", (0, -0.5, INF, "1"), EVERY, ValueError, ["above 0"]),
    ("clip_grad_norm", (0.0, NAN, True, torch.ones(())), EVERY, ValueError, ["above 0"]),
]
CASES = [
    pytest.param(kind, option, value, error, words, id=f"{kind}-{option}-{value!r}")
    for option, values, kinds, error, words in REFUSED
    for value in values
    for kind in kinds
]


def weights_of(kind, **options):
    return list(getattr(bptt, kind)(I, H, **options).parameters())


@pytest.mark.parametrize(("kind", "option", "value", "error", "words"), CASES)
def test_bad_values(kind, option, value, error, words):
    calls = [lambda: getattr(bptt, kind)(I, H, **{option: value})]
    if option != "learn_initial_state":
        function = getattr(functional, kind.lower())
        calls.append(lambda: function(X, None, weights_of(kind), **{option: value}))
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        came = [] if value is True or isinstance(value, tuple) else [repr(value)]
        for word in (f"{kind}: {option}", *came, *words):
            assert word in str(caught.value), word


TOGETHER = [
    ("LSTM", {"layer_norm": True, "proj_size": 2}, ["layer_norm and proj_size"]),
    ("LSTM", {"layer_norm": True, "peephole": True}, ["layer_norm and peephole"]),
    ("GRU", {"layer_norm": True, "reset_after": False}, ["layer_norm and reset_after=False"]),
    ("RNN", {"layer_norm": True, "num_heads": 2}, ["layer_norm and num_heads"]),
    ("LSTM", {"num_heads": 2, "proj_size": 2}, ["num_heads", "proj_size", "got 2"]),
    ("CIFG", {"num_heads": 3, "proj_size": 2}, ["num_heads", "proj_size", "got 3"]),
]


@pytest.mark.parametrize(("kind", "options", "words"), TOGETHER, ids=str)
def test_options_that_exclude_each_other(kind, options, words):
    function = getattr(functional, kind.lower())
    for call in (
        lambda: getattr(bptt, kind)(I, H, **options),
        lambda: function(X, None, weights_of(kind), **options),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        for word in (f"{kind}: ", *words):
            assert word in str(caught.value)


@pytest.mark.parametrize("kind", EVERY)
def test_unknown_keywords(kind):
    foreign = "peephole" if kind != "LSTM" else "reset_after"
    for name in ("zone_out", foreign):
        match = f"{kind} got an unexpected keyword argument '{name}'"
        with pytest.raises(TypeError, match=match):
            getattr(bptt, kind)(I, H, **{name: 0.1})
        with pytest.raises(TypeError, match=match):
            getattr(functional, kind.lower())(X, None, weights_of(kind), **{name: 0.1})


@pytest.mark.parametrize("kind", ["GRU", "RNN", "SLSTM", "IndRNN"])
def test_no_projection(kind):
    with pytest.raises(ValueError, match="proj_size"):
        getattr(bptt, kind)(I, H, proj_size=2)


@pytest.mark.parametrize("kind", ["RNN", "IndRNN"])
def test_unknown_nonlinearities(kind):
    with pytest.raises(ValueError, match="nonlinearity 'cube'"):
        getattr(bptt, kind)(I, H, nonlinearity="cube")


@pytest.mark.parametrize("kind", ["RNN", "GRU", "IndRNN"])
def test_all_cell_states_of_a_layer_without(kind):
    with pytest.raises(ValueError, match=f"{kind}: return_cells needs a layer with a cell state"):
        getattr(bptt, kind)(I, H)(X, return_cells=True)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_state_of_an_slstm_is_four_tensors(count):
    layer, hx = bptt.SLSTM(I, H), (torch.zeros(1, B, H),) * count
    for call in (lambda: layer(X, hx), lambda: layer.step(X[0], hx)):
        with pytest.raises(TypeError, match=r"SLSTM: hx must be .*\(h_0, c_0, n_0, m_0\), got"):
            call()
    with pytest.raises(TypeError, match=r"SLSTM: hx must be .* got a torch\.float32 tensor"):
        layer(X, hx[0])


def test_state_sizes_of_new_layers():
    wrong = torch.zeros(1, B, 7)
    good = torch.zeros(1, B, H)
    with pytest.raises(RuntimeError, match=r"IndRNN: Expected hidden size \(1, 3, 6\), got"):
        bptt.IndRNN(I, H)(X, wrong)
    with pytest.raises(RuntimeError, match=r"SLSTM: Expected hidden\[2\] size \(1, 3, 6\), got"):
        bptt.SLSTM(I, H)(X, (good, good, wrong, good))
    with pytest.raises(RuntimeError, match=r"CIFG: Expected hidden\[0\] size \(1, 3, 2\), got"):
        bptt.CIFG(I, H, proj_size=2)(X, (good, good))


@pytest.mark.parametrize("kind", EVERY)
def test_steps_of_two_directions(kind):
    with pytest.raises(ValueError, match=f"{kind}: step needs a layer of one direction"):
        getattr(bptt, kind)(I, H, bidirectional=True).step(X[0])


STEP_CASES = {
    "sequence": (lambda: (X,), {}, ValueError, ["1D or 2D", "3D"]),
    "number": (lambda: (1.0,), {}, TypeError, ["input", "float"]),
    "features": (lambda: (torch.zeros(B, 7),), {}, RuntimeError, ["Expected 4", "got 7"]),
    "float64": (lambda: (X[0].double(),), {}, ValueError, ["dtype", "float64"]),
    "state of one": (lambda: (X[0], torch.zeros(1, H)), {}, RuntimeError, ["batched", "2-D"]),
    "state size": (lambda: (X[0], torch.zeros(1, B, 7)), {}, RuntimeError, ["Expected hidden"]),
    "resets shape": (
        lambda: (X[0],), {"resets": torch.zeros(2, dtype=torch.bool)}, ValueError, ["resets", "[2]"]
    ),
    "resets dtype": (lambda: (X[0],), {"resets": torch.zeros(B)}, ValueError, ["resets", "bool"]),
    "resets list": (lambda: (X[0],), {"resets": [True]}, ValueError, ["resets", "list"]),
}  # fmt: skip


@pytest.mark.parametrize("case", STEP_CASES)
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.1}, {"learn_initial_state": True}], ids=str)
def test_arguments_of_a_step(options, case):
    arguments, masks, error, words = STEP_CASES[case]
    with pytest.raises(error) as caught:
        bptt.GRU(I, H, **options).step(*arguments(), **masks)
    for word in ("GRU", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("input", "error", "word"),
    [(None, TypeError, "NoneType"), (X[0, 0], ValueError, "1D"), (X[None], ValueError, "4D")],
    ids=["None", "1-D", "4-D"],
)
def test_inputs_of_a_layer_with_a_learned_state(input, error, word):
    with pytest.raises(error, match=word):
        bptt.GRU(I, H, learn_initial_state=True)(input)


@pytest.mark.parametrize(
    ("kind", "options", "which", "shape"),
    [
        ("LSTM", {"layer_norm": True}, "gain_c_l0", (7,)),
        ("GRU", {"layer_norm": True}, "gain_hh_l0", (6,)),
        ("GRU", {"num_heads": 2}, "weight_hh_l0", (18, 6)),
        ("IndRNN", {}, "weight_hh_l0", (6, 6)),
        ("CIFG", {}, "weight_ih_l0", (24, 4)),
    ],
    ids=str,
)
def test_weights_of_another_shape(kind, options, which, shape):
    layer = getattr(bptt, kind)(I, H, **options)
    setattr(layer, which, torch.nn.Parameter(torch.zeros(shape)))
    wrong = "weight_hh_l0" if which == "weight_ih_l0" else which  # the first one sets the sizes
    with pytest.raises(RuntimeError, match=f"{kind}: {wrong} must be a torch.float32"):
        layer(X)


def test_weights_of_a_function_are_counted_and_named():
    with pytest.raises(ValueError, match=r"8 tensors .*gain_ih, gain_hh, gain_c, bias_c\), got 4"):
        functional.lstm(X, None, weights_of("LSTM"), layer_norm=True)
