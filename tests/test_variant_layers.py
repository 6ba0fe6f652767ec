"""Do the layers' options and variants work in every layout, stack and transform?

The cpu backend is held against the reference loop under one seed, as both draw the same masks; what
the reference itself computes is the question of test_variant_reference.py.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import func, nn
from torch.autograd import gradgradcheck
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt
from test_memory import saved_per_step, saved_storages

# torch's own, inside Dynamo, export and forward mode.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

T, B, I, H = 6, 3, 4, 6
F64 = torch.float64
LAYERS = {
    "rnn": (bptt.RNN, {"nonlinearity": "softsign"}),
    "rnn-heads": (bptt.RNN, {"num_heads": 2, "zoneout": 0.3, "weight_drop": 0.3}),
    "rnn-norm": (
        bptt.RNN,
        {"layer_norm": True, "nonlinearity": "relu", "recurrent_dropout": 0.3},
    ),
    "gru": (
        bptt.GRU,
        {"num_heads": 3, "zoneout": 0.2, "recurrent_dropout": 0.3, "activation": "softsign"},
    ),
    "gru-reset-before": (
        bptt.GRU,
        {"reset_after": False, "recurrent_dropout": 0.3, "weight_drop": 0.3, "clip_grad_norm": 0.3},
    ),
    "gru-norm": (bptt.GRU, {"layer_norm": True, "weight_drop": 0.2, "learn_initial_state": True}),
    "lstm": (
        bptt.LSTM,
        {"num_heads": 2, "zoneout": (0.2, 0.3), "cell_clip": 0.5, "truncate": 2,
         "gate_activation": "hard_sigmoid"},
    ),
    "lstm-norm": (
        bptt.LSTM,
        {"layer_norm": True, "zoneout": (0.2, 0.1), "recurrent_dropout": 0.2, "weight_drop": 0.2},
    ),
    "lstm-projected": (
        bptt.LSTM,
        {"proj_size": 2, "peephole": True, "zoneout": (0.2, 0.3), "recurrent_dropout": 0.2,
         "clip_grad_value": 0.2, "learn_initial_state": True},
    ),
    "cifg": (bptt.CIFG, {"num_heads": 3, "zoneout": (0.1, 0.2), "learn_initial_state": True}),
    "cifg-projected": (bptt.CIFG, {"proj_size": 4, "recurrent_dropout": 0.3, "cell_clip": 0.7}),
    "slstm": (
        bptt.SLSTM,
        {"num_heads": 2, "zoneout": 0.2, "recurrent_dropout": 0.3, "clip_grad_norm": 0.5},
    ),
    "indrnn": (bptt.IndRNN, {"zoneout": 0.3, "recurrent_dropout": 0.3, "weight_drop": 0.3}),
}  # fmt: skip
DRAWS = {"zoneout", "recurrent_dropout", "weight_drop"}
layers = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def _on_one_thread():
    torch.set_num_threads(1)  # the reference's operations are too small for two


def make(name, num_layers=1, *, dtype=F64, without=(), **more):
    cls, options = LAYERS[name]
    options = {k: v for k, v in options.items() if k not in without}
    layer = cls(I, H, num_layers, dtype=dtype, **options, **more)
    with torch.no_grad():
        for n, parameter in layer.named_parameters():
            if n.startswith(("initial", "gain", "bias_c")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def has_cells(layer):
    return isinstance(layer, (bptt.LSTM, bptt.CIFG, bptt.SLSTM))


def make_states(layer, batch=B):
    """A random initial state as the layer takes it; without a batch axis when it is None."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    middle = () if batch is None else (batch,)
    count = {bptt.LSTM: 2, bptt.CIFG: 2, bptt.SLSTM: 4}.get(type(layer), 1)
    dtype = layer.weight_ih_l0.dtype
    sizes = [layer.proj_size or H, *[H] * (count - 1)]
    states = [torch.randn(rows, *middle, size, dtype=dtype) for size in sizes]
    if count == 4:
        states[2] = states[2].abs() + 0.5
    return tuple(states) if count > 1 else states[0]


def flat(value):
    """Every tensor in nested tuples and PackedSequences."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in flat(item)]


def same(left, right, **tolerance):
    left, right = flat(left), flat(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def gradients(outputs, inputs):
    generator = torch.Generator().manual_seed(1)
    outputs = flat(outputs)
    weights = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    loss = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


LAYOUTS = ("batch", "batch_first", "unbatched", "packed", "masked")


def make_call(layer, layout):
    """Arguments and keywords of a call, and its leaves."""
    dtype = layer.weight_ih_l0.dtype
    batch, masks = B, {}
    if layout == "packed":
        rows = [torch.randn(n, I, dtype=dtype) for n in (3, T, 1)]
        x = pack_sequence(rows, enforce_sorted=False)
        x = x._replace(data=x.data.requires_grad_())
    elif layout == "unbatched":
        x, batch = torch.randn(T, I, dtype=dtype, requires_grad=True), None
    else:
        shape = (B, T, I) if layer.batch_first else (T, B, I)
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
    if layout == "masked":
        masks = {"lengths": torch.tensor([4, 0, T]), "resets": torch.rand(T, B) < 0.3}
    if has_cells(layer):
        masks["return_cells"] = True
    hx = make_states(layer, batch)
    hx = tuple(s.requires_grad_() for s in hx) if isinstance(hx, tuple) else hx.requires_grad_()
    return x, hx, masks, [*flat(x), *flat(hx), *layer.parameters()]


STACKS = {
    "one": {},
    "two, concat": {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
    "two, sum": {"num_layers": 2, "bidirectional": True, "merge_mode": "sum", "bias": False},
    "two, apart": {"num_layers": 2, "bidirectional": True, "merge_mode": None, "recompute": True},
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@layers
def test_backends_agree_in_every_layout_and_stack(name, layout, stack):
    layer = make(name, batch_first=layout == "batch_first", **STACKS[stack])
    x, hx, masks, leaves = make_call(layer, layout)
    answers = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(3)
        with bptt.backend(backend):
            outputs = layer(x, hx, **masks)
            answers.append((outputs, gradients(outputs, leaves)))
    same(answers[0], answers[1], rtol=1e-9, atol=1e-11)


@layers
def test_batch_first_turns_the_layout_alone(name):
    layer = make(name, 2, bidirectional=True).eval()
    x = torch.randn(T, B, I, dtype=F64)
    more = {"return_cells": True} if has_cells(layer) else {}
    y, last, *cells = layer(x, **more)
    layer.batch_first = True
    turned, same_last, *turned_cells = layer(x.transpose(0, 1), **more)
    same(last, same_last, rtol=0, atol=0)
    same(
        [y, *flat(cells)],
        [t.transpose(0, 1) for t in [turned, *flat(turned_cells)]],
        rtol=0,
        atol=0,
    )


@layers
def test_packed_sequences_equal_lengths(name):
    layer = make(name, 2, bidirectional=True).eval()
    lengths = [3, T, 1]
    rows = [torch.randn(n, I, dtype=F64) for n in lengths]
    x = nn.utils.rnn.pad_sequence(rows)
    more = {"return_cells": True} if has_cells(layer) else {}
    y, last, *cells = layer(x, lengths=torch.tensor(lengths), **more)
    packed, packed_last, *packed_cells = layer(pack_sequence(rows, enforce_sorted=False), **more)
    same(last, packed_last)
    unpacked = nn.utils.rnn.pad_packed_sequence(packed)[0]
    same(y, unpacked)
    for ours, theirs in zip(cells[0] if cells else (), packed_cells[0] if cells else (),
                            strict=True):  # fmt: skip
        same(ours, nn.utils.rnn.pad_packed_sequence(theirs)[0])


# --- parameters -----------------------------------------------------------------------------------

PARAMETERS = {
    "lstm-norm": {
        "weight_ih": (24, I), "weight_hh": (24, H), "bias_ih": (24,), "bias_hh": (24,),
        "gain_ih": (24,), "gain_hh": (24,), "gain_c": (H,), "bias_c": (H,),
    },
    "gru-norm": {
        "weight_ih": (18, I), "weight_hh": (18, H), "bias_ih": (18,), "bias_hh": (18,),
        "gain_ih": (18,), "gain_hh": (18,),
    },
    "rnn-norm": {
        "weight_ih": (H, I), "weight_hh": (H, H), "bias_ih": (H,), "bias_hh": (H,),
        "gain_hh": (H,),
    },
    "lstm": {"weight_ih": (24, I), "weight_hh": (24, 3), "bias_ih": (24,), "bias_hh": (24,)},
    "gru": {"weight_ih": (18, I), "weight_hh": (18, 2), "bias_ih": (18,), "bias_hh": (18,)},
    "cifg-projected": {
        "weight_ih": (18, I), "weight_hh": (18, 4), "bias_ih": (18,), "bias_hh": (18,),
        "weight_hr": (4, H),
    },
    "slstm": {"weight_ih": (24, I), "weight_hh": (24, 3), "bias_ih": (24,), "bias_hh": (24,)},
    "indrnn": {"weight_ih": (H, I), "weight_hh": (H,), "bias_ih": (H,), "bias_hh": (H,)},
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_and_shapes_of_parameters(name):
    layer = make(name, 2, bidirectional=True)
    width = 2 * (layer.proj_size or H)
    expected = {}
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        for n, shape in PARAMETERS[name].items():
            if n == "weight_ih" and "l1" in suffix:
                shape = (shape[0], width)
            expected[n + suffix] = shape
    if layer.learn_initial_state:
        expected["initial_h"] = (4, H)
    shapes = {n: tuple(p.shape) for n, p in layer.named_parameters()}
    assert shapes == expected
    assert layer._flat_weights_names == [n for n in expected if not n.startswith("initial")]


@pytest.mark.parametrize("name", PARAMETERS)
def test_without_bias_there_is_none(name):
    layer = make(name, bias=False)
    expected = [f"{n}_l0" for n in PARAMETERS[name] if not n.startswith("bias")]
    names = [n for n, _ in layer.named_parameters() if not n.startswith("initial")]
    assert names == expected


@layers
def test_initial_values(name):
    cls, options = LAYERS[name]
    layer = cls(I, 60, 2, bidirectional=True, **options)
    bound = 60**-0.5
    for n, p in layer.named_parameters():
        if n.startswith("gain"):
            assert (p == 1).all(), n
        elif n.startswith(("initial", "bias_c")):
            assert (p == 0).all(), n
        elif cls is bptt.IndRNN and n.startswith("weight_hh"):
            assert p.min() >= 0 and p.max() <= 1 and p.max() > 0.8
        else:
            assert p.abs().max() <= bound, n
            assert p.abs().max() > 0.8 * bound, n


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_options_without_weights_change_no_initial_value(name):
    cls, options = LAYERS[name][0], {"zoneout": 0.3, "weight_drop": 0.5, "truncate": 3}
    torch.manual_seed(0)
    theirs = getattr(nn, cls.__name__)(I, H, 2, bidirectional=True)
    torch.manual_seed(0)
    layer = cls(I, H, 2, bidirectional=True, **options)
    same(list(layer.state_dict().values()), list(theirs.state_dict().values()), rtol=0, atol=0)
    assert not any(layer.load_state_dict(theirs.state_dict()))


def reloaded(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def from_state_dict(layer):
    other = copy.deepcopy(layer)
    other.reset_parameters()
    assert not any(other.load_state_dict(layer.state_dict()))
    return other


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), reloaded, from_state_dict],
    ids=["deepcopy", "pickle", "save", "state_dict"],
)
@layers
def test_copies(name, duplicate):
    layer = make(name, 2, bidirectional=True)
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    x = torch.randn(T, B, I, dtype=F64)
    answers = []
    for module in (layer, other):
        torch.manual_seed(2)
        answers.append(module(x))
    same(*answers, rtol=0, atol=0)


def test_options_show_in_repr_when_set():
    layer = bptt.LSTM(I, H, layer_norm=True, zoneout=(0.1, 0.2), learn_initial_state=True)
    assert repr(layer) == (
        "LSTM(4, 6, layer_norm=True, zoneout=(0.1, 0.2), learn_initial_state=True)"
    )
    assert repr(bptt.IndRNN(I, H)) == "IndRNN(4, 6)"
    assert repr(bptt.IndRNN(I, H, nonlinearity="tanh")) == "IndRNN(4, 6, nonlinearity=tanh)"
    assert repr(bptt.SLSTM(I, H, num_heads=2)) == "SLSTM(4, 6, num_heads=2)"


@layers
def test_parametrized_recurrent_weights(name):
    layer, x = make(name).eval(), torch.randn(T, B, I, dtype=F64)
    plain = layer(x)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    same(layer(x), plain)
    gradients(layer(x), list(layer.parameters()))
    parametrize.remove_parametrizations(layer, "weight_hh_l0")

    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    parametrize.register_parametrization(layer, "weight_hh_l0", Halved())
    halved = {"weight_hh_l0": layer.weight_hh_l0.detach()}
    expected = func.functional_call(make(name).eval(), {
        **{n: p for n, p in layer.named_parameters() if "parametrizations" not in n}, **halved
    }, (x,))  # fmt: skip
    same(layer(x), expected)


@layers
def test_functions_equal_layers(name):
    layer = make(name, 2, bidirectional=True, merge_mode="ave")
    x, hx, masks, _ = make_call(layer, "masked")
    options = dict(LAYERS[name][1])
    options.pop("learn_initial_state", None)
    function = getattr(bptt.functional, type(layer).__name__.lower())
    for training in (True, False):
        layer.train(training)
        torch.manual_seed(5)
        expected = layer(x, hx, **masks)
        torch.manual_seed(5)
        ours = function(
            x, hx, layer._flat_weights, num_layers=2, bidirectional=True, merge_mode="ave",
            training=training, **options, **masks,
        )  # fmt: skip
        same(ours, expected, rtol=0, atol=0)


# --- learned initial states -----------------------------------------------------------------------

LEARNED = ("gru-norm", "lstm-projected", "cifg")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_initial_state_is_that_given_as_hx(name, layout):
    layer = make(name, 2, bidirectional=True, batch_first=layout == "batch_first").eval()
    x, _, masks, _ = make_call(layer, layout)
    learned = [p for n, p in layer.named_parameters() if n.startswith("initial")]
    assert len(learned) == (2 if has_cells(layer) else 1)
    given = learned if layout == "unbatched" else [s.unsqueeze(1).repeat(1, B, 1) for s in learned]
    outputs = layer(x, **masks)
    expected = layer(x, tuple(given) if len(given) > 1 else given[0], **masks)
    same(outputs, expected, rtol=0, atol=0)
    learned_gradients = gradients(outputs, learned)
    same(learned_gradients, gradients(expected, learned))
    assert all(bool(g.any()) for g in learned_gradients)


@pytest.mark.parametrize("name", LEARNED)
def test_a_given_state_goes_before_the_learned_one(name):
    layer = make(name)
    x, hx, _, _ = make_call(layer, "batch")
    outputs = layer(x, hx)
    learned = [p for n, p in layer.named_parameters() if n.startswith("initial")]
    assert not any(bool(g.any()) for g in gradients(outputs, learned))


def test_resets_set_a_learned_state_to_zero():
    layer = make("cifg").eval()
    x, resets = torch.randn(T, B, I, dtype=F64), torch.zeros(T, B, dtype=torch.bool)
    resets[0] = True
    zeros = torch.zeros(1, B, H, dtype=F64)
    same(layer(x, resets=resets), layer(x, (zeros, zeros)))


def test_a_learned_state_of_a_sequence_without_steps_comes_back():
    layer = make("gru-norm", 2).eval()
    _, h_n = layer(torch.randn(T, 2, I, dtype=F64), lengths=torch.tensor([0, T]))
    same(h_n[:, 0], layer.initial_h, rtol=0, atol=0)


# --- all cell states ------------------------------------------------------------------------------

CELL_LAYERS = tuple(
    n for n, (cls, _) in LAYERS.items() if cls in (bptt.LSTM, bptt.CIFG, bptt.SLSTM)
)


@pytest.mark.parametrize("name", CELL_LAYERS)
def test_all_cell_states_are_those_of_single_steps(name):
    layer = make(name, 2).eval()
    x, state, rows = torch.randn(T, B, I, dtype=F64), make_states(make(name, 2)), []
    _, last, cells = layer(x, state, return_cells=True)
    for x_t in x:
        _, state = layer(x_t.unsqueeze(0), state)
        rows.append(torch.cat(state[1:], -1))
    assert len(cells) == 2
    for k in range(2):
        same(cells[k], torch.stack([row[k] for row in rows]))
        same(cells[k][-1], torch.cat([s[k] for s in last[1:]], -1))


@pytest.mark.parametrize("name", CELL_LAYERS)
def test_all_cell_states_of_directions_and_lengths(name):
    layer = make(name, bidirectional=True).eval()
    x, hx, _, _ = make_call(layer, "batch")
    lengths = torch.tensor([4, 0, T])
    _, last, (cells,) = layer(x, hx, lengths=lengths, return_cells=True)
    inside = torch.arange(T).unsqueeze(1) < lengths
    assert not cells[~inside].any()
    width = cells.shape[-1] // 2
    for b, n in enumerate(lengths.tolist()):
        if n:
            ends = cells[n - 1, b, :width], cells[0, b, width:]
            same(torch.stack(ends), torch.cat([s[:, b] for s in last[1:]], -1))
    _, _, (whole,) = layer(x, hx, return_cells=True)
    same(cells[:4, 0, :width], whole[:4, 0, :width])


@pytest.mark.parametrize("name", CELL_LAYERS)
def test_gradients_through_all_cell_states(name):
    """A loss of c_1 alone, by the whole sequence and by its first two steps."""
    layer = make(name, without=("truncate",)).eval()
    x, hx, _, leaves = make_call(layer, "batch")
    whole = layer(x, hx, return_cells=True)[2][0][1]
    short = torch.cat(layer(x[:2], hx)[1][1:], -1)[0]
    same(whole, short)
    same(gradients([whole], leaves), gradients([short], leaves))


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["batch", "batch_first", "unbatched"])
@layers
def test_steps_equal_the_layer(name, layout):
    layer = make(name, 2, batch_first=layout == "batch_first").eval()
    batch = None if layout == "unbatched" else B
    x = torch.randn(T, *([] if batch is None else [B]), I, dtype=F64)
    for state in (None, make_states(layer, batch)):
        expected, last = layer(x.transpose(0, 1) if layer.batch_first else x, state)
        outputs = []
        for x_t in x:
            y_t, state = layer.step(x_t, state)
            outputs.append(y_t)
        y = torch.stack(outputs)
        same(y, expected.transpose(0, 1) if layer.batch_first else expected)
        same(state, last)


@layers
def test_steps_with_resets(name):
    layer = make(name, 2).eval()
    x, resets = torch.randn(T, B, I, dtype=F64), torch.rand(T, B) < 0.4
    expected, state = layer(x, resets=resets)[0], None
    for x_t, resets_t, y_t in zip(x, resets, expected, strict=True):
        y, state = layer.step(x_t, state, resets=resets_t)
        same(y, y_t)


@pytest.mark.parametrize("batch", [1, 4, 20])
@pytest.mark.parametrize("pieces", [[1, 7, 2, 10], [7, 3, 10]])
@layers
def test_chunked_calls_equal_one_long_call(name, pieces, batch):
    layer = make(name, 2, dtype=torch.float32).eval()
    x, state, outputs = torch.randn(20, batch, I), None, []
    with torch.no_grad(), bptt.backend("cpu"):
        expected, last = layer(x)
        for piece in x.split(pieces):
            y, state = layer(piece, state)
            outputs.append(y)
    exact = {"rtol": 0, "atol": 0}
    if layer.options.layer_norm or min(pieces) * batch <= 8 or 1 in pieces:
        # The product of a normalised layer's input is torch's, which takes another kernel for few
        # rows, as the engine does for a short call.
        exact = {"rtol": 1e-4, "atol": 1e-5}
    same(torch.cat(outputs), expected, **exact)
    same(state, last, **exact)


# --- randomness -----------------------------------------------------------------------------------

DRAWING = tuple(n for n, (_, options) in LAYERS.items() if DRAWS & options.keys())


@pytest.mark.parametrize("name", DRAWING)
def test_training_draws_and_evaluation_does_not(name):
    layer, x = make(name), torch.randn(T, B, I, dtype=F64)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    before = torch.get_rng_state()
    same(layer(x), layer(x), rtol=0, atol=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("cls", [bptt.RNN, bptt.GRU, bptt.LSTM, bptt.SLSTM, bptt.IndRNN])
def test_weight_drop_drops_its_share_and_their_gradients(cls):
    layer, plain = (cls(3, 64, bias=False, **o) for o in ({"weight_drop": 0.3}, {}))
    x, hx = torch.randn(5, 64, 3), None
    torch.manual_seed(1)
    seed = bptt.calls.variants.draw_seed(x.device)
    shape = (1, *layer.weight_hh_l0.shape, 1)[:3]
    kept = bptt.recurrence.random.kept(
        seed, 0.3, shape, x.dtype, bptt.recurrence.random.WEIGHT_DROP
    )
    kept = kept.reshape(layer.weight_hh_l0.shape)
    torch.manual_seed(1)
    outputs = layer(x, hx)
    (gradient,) = gradients(outputs, [layer.weight_hh_l0])
    assert not gradient[kept == 0].any()
    assert gradient[kept > 0].any()
    deviation = (0.3 * 0.7 / kept.numel()) ** 0.5
    assert abs((kept == 0).double().mean().item() - 0.3) < 6 * deviation
    weights = {n: p.detach() for n, p in layer.named_parameters()}
    weights["weight_hh_l0"] = (weights["weight_hh_l0"] * kept).requires_grad_()
    expected = func.functional_call(plain, weights, (x, hx))
    same(outputs, expected)
    same(gradient, gradients(expected, [weights["weight_hh_l0"]])[0] * kept, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DRAWING)
def test_directions_have_masks_of_their_own(name):
    """One step with equal weights and states: the directions differ by their masks alone."""
    layer, x = make(name, bidirectional=True), torch.randn(1, B, I, dtype=F64)
    with torch.no_grad():
        for n, p in layer.named_parameters():
            if n.endswith("_reverse"):
                p.copy_(layer.get_parameter(n.removesuffix("_reverse")))
    hx = make_states(layer)
    hx = tuple(s[:1].repeat(2, 1, 1) for s in (hx if isinstance(hx, tuple) else (hx,)))
    for training in (True, False):
        y = layer.train(training)(x, hx if len(hx) > 1 else hx[0])[0]
        assert torch.equal(*y.chunk(2, -1)) != training


@pytest.mark.parametrize("name", DRAWING)
def test_layers_have_masks_of_their_own(name, monkeypatch):
    seeds, draw = [], bptt.calls.variants.draw_seed
    monkeypatch.setattr(
        bptt.calls.variants, "draw_seed", lambda device: seeds.append(draw(device)) or seeds[-1]
    )
    make(name, 3)(torch.randn(T, B, I, dtype=F64))
    assert len(seeds) >= 3
    assert torch.cat(seeds).unique().numel() == len(seeds)


@layers
def test_recompute_gives_the_same_gradients(name):
    layer = make(name, 2, bidirectional=True)
    x, hx, masks, leaves = make_call(layer, "masked")
    answers = []
    for recompute in (False, True):
        layer.recompute = recompute
        torch.manual_seed(8)
        outputs = layer(x, hx, **masks)
        answers.append((outputs, gradients(outputs, leaves)))
    same(*answers)


# --- gradients, norms and memory ------------------------------------------------------------------


@layers
def test_gradient_norms(name):
    layer = make(name, 2, bidirectional=True)
    x, hx, masks, leaves = make_call(layer, "masked")
    answers = []
    for backend in ("cpu", "reference"):
        norms = bptt.GradientNorms()
        torch.manual_seed(8)
        with bptt.backend(backend):
            gradients(layer(x, hx, grad_norms=norms, **masks), leaves)
        assert [tuple(n.shape) for n in norms.layers] == [(T, B, 2)] * 2
        answers.append(norms.layers)
    same(*answers)


def test_gradient_norms_of_heads_are_those_of_the_whole_state():
    layer = bptt.GRU(I, H, num_heads=3, dtype=F64)
    whole = bptt.GRU(I, H, dtype=F64)
    blocks = [torch.block_diag(*gate.chunk(3)) for gate in layer.weight_hh_l0.detach().chunk(3)]
    params = {n: p.detach() for n, p in layer.named_parameters()}
    whole.load_state_dict({**params, "weight_hh_l0": torch.cat(blocks)})
    x, found = torch.randn(T, B, I, dtype=F64), []
    for module in (layer, whole):
        norms = bptt.GradientNorms()
        module(x, grad_norms=norms)[0].square().sum().backward()
        found.append(norms.layers)
    same(*found)


def test_gradients_of_an_input_before_frozen_weights():
    for name in LAYERS:
        layer = make(name).requires_grad_(False)
        x, hx = torch.randn(T, B, I, dtype=F64, requires_grad=True), make_states(layer)
        answers = []
        for backend in ("cpu", "reference"):
            torch.manual_seed(4)
            with bptt.backend(backend):
                answers.append(gradients(layer(x, hx), [x]))
        same(*answers)
        assert answers[0][0].any(), name


@pytest.mark.parametrize("name", ["rnn-norm", "gru-norm", "lstm-norm"])
def test_gradients_of_an_input_gain_alone(name):
    layer = make(name)
    wanted = "gain_ih_l0" if name != "rnn-norm" else "gain_hh_l0"
    for n, p in layer.named_parameters():
        p.requires_grad_(n == wanted)
    x, gain = torch.randn(T, B, I, dtype=F64), layer.get_parameter(wanted)
    answers = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(4)
        with bptt.backend(backend):
            answers.append(gradients(layer(x), [gain]))
    same(*answers)


@pytest.mark.parametrize("options", [{"zoneout": 0.3}, {"recurrent_dropout": 0.3}], ids=str)
@pytest.mark.parametrize("cls", [bptt.RNN, bptt.GRU, bptt.LSTM, bptt.CIFG, bptt.SLSTM, bptt.IndRNN])
def test_masks_are_not_kept(cls, options):
    """Neither per step nor once: beside what a plain layer keeps there is the seed.

    And the state of zeros that it started from, which a short call of a plain layer does not keep.
    """
    plain, layer = cls(5, 8), cls(5, 8, **options)
    assert saved_per_step(layer, 1, torch.float32) == saved_per_step(plain, 1, torch.float32)
    x = torch.randn(4, 3, 5)

    def kept(module):
        return sum(t.untyped_storage().nbytes() for t in saved_storages(module, x, {})[0].values())

    zeros = 3 * 8 * 4
    assert kept(layer) <= kept(plain) + zeros + 8


def test_the_mask_of_dropped_weights_is_not_kept():
    plain, layer = bptt.LSTM(5, 32), bptt.LSTM(5, 32, weight_drop=0.3)
    x = torch.randn(4, 3, 5)

    def kept(module):
        return sum(t.untyped_storage().nbytes() for t in saved_storages(module, x, {})[0].values())

    # The dropped weights take the place of the layer's; zeros: see above.
    zeros = 3 * 32 * 4
    assert kept(layer) <= kept(plain) + zeros + 8


@layers
def test_autocast(name):
    layer = make(name, 2, dtype=torch.float32, bidirectional=True)
    x, hx = torch.randn(T, B, I), make_states(layer)
    torch.manual_seed(3)
    expected = layer(x, hx)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x, hx)
    dtype = torch.float32 if name.startswith("gru") else torch.bfloat16
    assert low[0].dtype == dtype  # of states: test_autocast.py
    same([t.float() for t in flat(low)], flat(expected), rtol=0.1, atol=0.1)
    sum(t.float().sum() for t in flat(low)).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32
               for n, p in layer.named_parameters() if not n.startswith("initial"))  # fmt: skip


# --- transforms -----------------------------------------------------------------------------------

TRANSFORMED = ("rnn-heads", "gru", "lstm", "lstm-norm", "slstm", "indrnn")
transformed = pytest.mark.parametrize("name", TRANSFORMED)


def loss_of(layer, params, x):
    y, last = func.functional_call(layer, params, (x,))
    return y.square().sum() + sum(s.sin().sum() for s in flat(last))


def params_of(layer):
    return {n: p.detach() for n, p in layer.named_parameters()}


@transformed
def test_per_sample_gradients(name):
    layer = make(name, 2, bidirectional=True).eval()
    xs, params = torch.randn(3, T, B, I, dtype=F64), params_of(layer)
    gradient = func.grad(lambda p, x: loss_of(layer, p, x))
    got = func.vmap(gradient, in_dims=(None, 0))(params, xs)
    for k, x in enumerate(xs):
        alone = gradient(params, x)
        same([got[n][k] for n in params], [alone[n] for n in params], rtol=1e-9, atol=1e-11)


@transformed
def test_ensembles(name):
    layer = make(name).eval()
    models = [make(name).eval() for _ in range(3)]
    params, _ = func.stack_module_state(models)
    x = torch.randn(T, B, I, dtype=F64)
    got = func.vmap(lambda p: func.functional_call(layer, p, (x,)))(params)
    for k, model in enumerate(models):
        same([t[k] for t in flat(got)], model(x))


@pytest.mark.parametrize("name", DRAWING)
def test_vmap_draws_for_each_or_for_all(name):
    layer, x = make(name), torch.randn(T, B, I, dtype=F64)
    params = params_of(layer)
    xs = x.expand(3, T, B, I)

    def gradient(x):
        return func.grad(lambda p: loss_of(layer, p, x))(params)

    names = [n for n in params if not n.startswith("initial")]
    different = func.vmap(gradient, randomness="different")(xs)
    equal = func.vmap(gradient, randomness="same")(xs)
    for n in names:
        same(equal[n][0].expand_as(equal[n]), equal[n])
    n = "weight_ih_l0"
    assert different[n].unique(dim=0).shape[0] == 3
    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(gradient)(xs)


@layers
def test_jvp_is_the_transpose_of_vjp(name):
    """Truncation stops tangents, too; bounds of gradients are left out, as they are not linear."""
    layer = make(name, bidirectional=True, without=("clip_grad_norm", "clip_grad_value"))
    names, x = list(params_of(layer)), torch.randn(T, B, I, dtype=F64)

    def run(x, *values):
        torch.manual_seed(6)
        params = dict(zip(names, values, strict=True))
        return torch.cat([t.flatten() for t in flat(func.functional_call(layer, params, (x,)))])

    primals = (x, *params_of(layer).values())
    tangents = tuple(torch.randn_like(t) for t in primals)
    value, tangent = func.jvp(run, primals, tangents)
    plain, pull = func.vjp(run, *primals)
    same(value, plain)
    cotangent = torch.randn_like(plain)
    left = (cotangent * tangent).sum()
    right = sum((a * b).sum() for a, b in zip(pull(cotangent), tangents, strict=True))
    same(left, right)


def test_gradient_bounds_change_no_tangent():
    layer, x = make("slstm").eval(), torch.randn(T, B, I, dtype=F64)
    free = make("slstm", without=("clip_grad_norm",)).eval()
    free.load_state_dict(layer.state_dict())
    same(*(func.jvp(lambda x, m=m: m(x)[0], (x,), (x,))[1] for m in (layer, free)))


@pytest.mark.parametrize("name", ["lstm-norm", "gru-norm", "slstm", "indrnn", "cifg"])
def test_double_backward(name):
    """In training: the second pass draws the masks of the first."""
    layer = make(name, without=("clip_grad_norm", "truncate"))
    x = torch.randn(3, 2, I, dtype=F64, requires_grad=True)

    def run(x, w):
        torch.manual_seed(6)
        outputs = func.functional_call(layer, {"weight_hh_l0": w}, (x,))
        return torch.cat([t.flatten() for t in flat(outputs)])

    assert gradgradcheck(run, (x, layer.weight_hh_l0), fast_mode=True)


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["rnn-heads", "gru-norm", "lstm", "lstm-norm", "slstm", "indrnn"])
def test_compiled_training_draws_anew_at_each_call(name, fresh):
    layer = make(name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, hx, masks, leaves = make_call(layer, "masked")
    answers = []
    for module in (layer, compiled):
        torch.manual_seed(9)
        calls = [module(x, hx, **masks) for _ in range(2)]
        answers.append([(y, gradients(y, leaves)) for y in calls])
    same(answers[0], answers[1])
    first, second = (flat(y)[0] for y, _ in answers[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["rnn-heads", "lstm-norm"])
def test_a_compiled_step(name, fresh):
    layer = make(name, 2).eval()
    compiled = torch.compile(layer.step, fullgraph=True, backend="aot_eager")
    x, state = torch.randn(B, I, dtype=F64), make_states(layer)
    same(compiled(x, state), layer.step(x, state))


@pytest.mark.slow
def test_inductor_draws_masks_of_the_right_rate(fresh):
    layer = bptt.IndRNN(1, 200, bias=False, nonlinearity="identity", recurrent_dropout=0.3)
    nn.init.ones_(layer.weight_hh_l0)
    compiled = torch.compile(layer, fullgraph=True)
    x, hx = torch.zeros(2, 50, 1), torch.ones(1, 50, 200, requires_grad=True)
    runs = []
    for _ in range(3):
        y = compiled(x, hx)[0]
        (gradient,) = torch.autograd.grad(y.sum(), hx)
        dropped = y[0] == 0
        assert torch.equal(dropped, gradient[0] == 0)  # one mask for both passes
        assert abs(dropped.double().mean().item() - 0.3) < 6 * (0.21 / 10_000) ** 0.5
        runs.append(dropped)
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[1], runs[2])


@pytest.mark.parametrize("name", ["lstm-norm", "slstm"])
def test_export_keeps_steps_and_batch_free(name):
    layer = make(name, 2, dtype=torch.float32, bidirectional=True).eval()
    shapes = ({0: torch.export.Dim("steps"), 1: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(T, B, I),), dynamic_shapes=shapes)
        for steps, batch in ((T, B), (2, 7), (11, 1)):
            x = torch.randn(steps, batch, I)
            same(program.module()(x), layer(x))


# --- conversion -----------------------------------------------------------------------------------


@layers
def test_layers_with_options_stay_and_say_why(name):
    model = nn.Sequential(make(name))
    before = type(model[0])
    _, report = bptt.to_torch(model, report=True)
    assert type(model[0]) is before
    assert not report.changed
    (left,) = report.left
    assert left.kind == f"bptt.{before.__name__}"
    if before in (bptt.RNN, bptt.GRU, bptt.LSTM):
        for option in LAYERS[name][1]:
            assert option in left.why or option in ("proj_size", "nonlinearity")
    else:
        assert "none of the layers" in left.why
    _, report = bptt.convert(model, report=True)
    assert not report.changed
    assert not report.left
