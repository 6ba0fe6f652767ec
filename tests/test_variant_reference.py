"""Do cell variants and controls follow their definitions, written out here once more?

Everything is float64, on the reference loop and on the cpu backend. Definitions are plain loops
over `torch` operations that share nothing with bptt; randomness is held against published vectors
of its generator, against its rates, and against gradcheck, which needs the same masks in both
passes.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import bptt
from bptt import _dev
from bptt.calls import variants
from bptt.recurrence import ops, random
from bptt.recurrence.control import Control
from bptt.recurrence.gradients import LoopInputs
from cases import F64
from variants import CONTROLS, EVERY_CELL, Variant, fitting, is_weighed, make_variant

T, B, I, H = 5, 3, 4, 6
BACKENDS = ("reference", "cpu")
backends = pytest.mark.parametrize("backend", BACKENDS)
CLASSES = {
    "rnn": bptt.RNN,
    "gru": bptt.GRU,
    "lstm": bptt.LSTM,
    "cifg": bptt.CIFG,
    "slstm": bptt.SLSTM,
    "indrnn": bptt.IndRNN,
}
STATES = {"rnn": "h", "gru": "h", "lstm": "hc", "cifg": "hc", "slstm": "hcnm", "indrnn": "h"}


@pytest.fixture(autouse=True)
def _on_one_thread():
    torch.set_num_threads(1)  # the reference's operations are too small for two


# --- one step of each layer, from its weights by name and its states ------------------------------


def products(x, h, w):
    return F.linear(x, w["weight_ih"], w["bias_ih"]), F.linear(h, w["weight_hh"], w["bias_hh"])


def gates_of(x, h, w, count):
    return sum(products(x, h, w)).chunk(count, -1)


def lstm(x, states, w, gate=torch.sigmoid, act=torch.tanh):
    h, c = states
    i, f, g, o = gates_of(x, h, w, 4)
    c = gate(f) * c + gate(i) * act(g)
    return gate(o) * act(c), c


def cifg(x, states, w, gate=torch.sigmoid, act=torch.tanh):
    h, c = states
    f, g, o = gates_of(x, h, w, 3)
    c = gate(f) * c + (1 - gate(f)) * act(g)
    return gate(o) * act(c), c


def gru(x, states, w, gate=torch.sigmoid, act=torch.tanh):
    (h,) = states
    from_x, from_h = (p.chunk(3, -1) for p in products(x, h, w))
    r, z = gate(from_x[0] + from_h[0]), gate(from_x[1] + from_h[1])
    n = act(from_x[2] + r * from_h[2])
    return ((1 - z) * n + z * h,)


def rnn(x, states, w, gate=None, act=torch.tanh):
    return (act(sum(products(x, states[0], w))),)


def indrnn(x, states, w, gate=None, act=torch.relu):
    (h,) = states
    return (act(F.linear(x, w["weight_ih"], w["bias_ih"]) + w["weight_hh"] * h + w["bias_hh"]),)


def slstm(x, states, w, gate=torch.sigmoid, act=torch.tanh):
    """Equations 8 to 17 of the paper, whose first step has nothing to keep."""
    h, c, n, m = states
    i, f, z, o = gates_of(x, h, w, 4)
    log_f = F.logsigmoid(f)
    m_next = torch.where(n == 0, i, torch.maximum(log_f + m, i))
    i, f = torch.exp(i - m_next), torch.where(n == 0, 0.0, torch.exp(log_f + m - m_next))
    c, n = f * c + i * act(z), f * n + i
    return gate(o) * (c / n), c, n, m_next


def layer_norm(size, gain, bias):
    made = nn.LayerNorm(size, dtype=F64)
    made.weight, made.bias = nn.Parameter(gain), nn.Parameter(bias)
    return lambda a: torch.func.functional_call(made, {"weight": gain, "bias": bias}, (a,))


def lstm_layer_norm(x, states, w):
    h, c = states
    norm_ih = layer_norm(4 * H, w["gain_ih"], w["bias_ih"])
    norm_hh = layer_norm(4 * H, w["gain_hh"], w["bias_hh"])
    norm_c = layer_norm(H, w["gain_c"], w["bias_c"])
    i, f, g, o = (norm_ih(x @ w["weight_ih"].T) + norm_hh(h @ w["weight_hh"].T)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(norm_c(c)), c


def gru_layer_norm(x, states, w):
    (h,) = states
    norm_ih = layer_norm(3 * H, w["gain_ih"], w["bias_ih"])
    norm_hh = layer_norm(3 * H, w["gain_hh"], w["bias_hh"])
    from_x = norm_ih(x @ w["weight_ih"].T).chunk(3, -1)
    from_h = norm_hh(h @ w["weight_hh"].T).chunk(3, -1)
    r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
    return ((1 - z) * torch.tanh(from_x[2] + r * from_h[2]) + z * h,)


def rnn_layer_norm(x, states, w):
    norm = layer_norm(H, w["gain_hh"], w["bias_ih"] + w["bias_hh"])
    return (torch.tanh(norm(x @ w["weight_ih"].T + states[0] @ w["weight_hh"].T)),)


STEPS = {"rnn": rnn, "gru": gru, "lstm": lstm, "cifg": cifg, "slstm": slstm, "indrnn": indrnn}
NORMALIZED_STEPS = {"rnn": rnn_layer_norm, "gru": gru_layer_norm, "lstm": lstm_layer_norm}


# --- layers, and the same by a loop -------------------------------------------------------------


def make_layer(name, directions=2, **options):
    """A layer of one level, float64, with parameters that are all different from one another."""
    layer = CLASSES[name](I, H, bidirectional=directions == 2, dtype=F64, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.6)
    return layer


def make_states(name, directions=2, batch=B):
    """Random states; for an sLSTM a normaliser above 0, and one row empty."""
    states = [torch.randn(directions, batch, H, dtype=F64) for _ in STATES[name]]
    if name == "slstm":
        states[2] = states[2].abs() + 0.3
        for state in states:
            state[:, 0] = 0.0
    return [state.requires_grad_() for state in states]


def as_hx(states):
    return states[0] if len(states) == 1 else tuple(states)


def flat(result):
    output, last = result
    return [output, *(last if isinstance(last, tuple) else (last,))]


def by_loop(layer, step, x, states, visit=lambda states, before: states):
    """What the layer returns, by a loop over `step`; `visit` may change the states it leaves."""
    outputs, last = [], []
    for d in range(2 if layer.bidirectional else 1):
        suffix = "_l0_reverse" if d else "_l0"
        w = {
            n.removesuffix(suffix): p
            for n, p in layer.named_parameters()
            if n.endswith("_l0" + suffix[3:]) and (d == 1) == n.endswith("_reverse")
        }
        now, ys = tuple(s[d] for s in states), []
        for x_t in x.flip(0) if d else x:
            now = visit(step(x_t, now, w), now)
            ys.append(now[0])
        outputs.append(torch.stack(ys).flip(0) if d else torch.stack(ys))
        last.append(now)
    return [torch.cat(outputs, -1), *(torch.stack(s) for s in zip(*last, strict=True))]


def gradients(outputs, inputs):
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=F64) for y in outputs]
    loss = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def same(left, right, rtol=1e-9, atol=1e-11):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def assert_follows(backend, layer, name, step, visit=lambda states, before: states):
    """Values and gradients of a layer are those of the loop over `step`."""
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    states = make_states(name, 2 if layer.bidirectional else 1)
    leaves = [x, *states, *layer.parameters()]
    with bptt.backend(backend):
        ours = flat(layer(x, as_hx(states)))
        our_gradients = gradients(ours, leaves)
    expected = by_loop(layer, step, x, states, visit)
    same(ours, expected)
    same(our_gradients, gradients(expected, leaves))


@backends
@pytest.mark.parametrize("name", STEPS)
def test_layers_follow_their_equations(name, backend):
    assert_follows(backend, make_layer(name), name, STEPS[name])


@backends
@pytest.mark.parametrize("name", NORMALIZED_STEPS)
def test_layer_normalisation_is_that_of_nn_layer_norm(name, backend):
    assert_follows(backend, make_layer(name, layer_norm=True), name, NORMALIZED_STEPS[name])


@backends
@pytest.mark.parametrize("name", NORMALIZED_STEPS)
def test_layer_normalisation_without_bias(name, backend):
    layer = make_layer(name, layer_norm=True, bias=False)
    zeros = {"bias_ih": 0.0, "bias_hh": 0.0, "bias_c": torch.zeros(H, dtype=F64)}
    gates = layer.weight_hh_l0.shape[0]
    for key in ("bias_ih", "bias_hh"):
        zeros[key] = torch.zeros(gates, dtype=F64)
    assert_follows(
        backend, layer, name, lambda x, states, w: NORMALIZED_STEPS[name](x, states, {**zeros, **w})
    )


@backends
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_normalised_products_have_no_scale(name, backend):
    layer = make_layer(name, layer_norm=True, bias=False)
    x = 5 * torch.randn(T, B, I, dtype=F64)
    with bptt.backend(backend), torch.no_grad():
        expected = layer(x)[0]
        for parameter in (p for n, p in layer.named_parameters() if n.startswith("weight")):
            parameter.mul_(1000.0)
        # Up to the 1e-5 that stands beside the variance.
        same([layer(x)[0]], [expected], rtol=1e-3, atol=1e-3)


# --- sLSTM ----------------------------------------------------------------------------------------


def textbook_slstm(x, states, w):
    """Exponential gating without a stabiliser: equations 8 to 14, m is not looked at."""
    h, c, n, m = states
    i, f, z, o = gates_of(x, h, w, 4)
    i, f = torch.exp(i), torch.sigmoid(f)
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.sigmoid(o) * (c / n), c, n, m


@backends
def test_a_stabilised_slstm_is_the_textbook_one(backend):
    layer = make_layer("slstm")
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    states = [torch.zeros(2, B, H, dtype=F64) for _ in range(4)]
    leaves = [x, *layer.parameters()]
    with bptt.backend(backend):
        y, (_, c, n, m) = layer(x)
        our_gradients = gradients([y], leaves)
    expected_y, _, expected_c, expected_n, _ = by_loop(layer, textbook_slstm, x, states)
    same([y, c * m.exp(), n * m.exp()], [expected_y, expected_c, expected_n])
    same(our_gradients, gradients([expected_y], leaves))


@backends
def test_a_shifted_stabiliser_changes_no_output_of_an_slstm(backend):
    layer = make_layer("slstm")
    x = torch.randn(T, B, I, dtype=F64)
    h, c, n, m = (s.detach() for s in make_states("slstm"))
    # Exponentials of the old state count: its stabiliser is kept large enough to matter.
    m = m + 2.0
    with bptt.backend(backend):
        expected = layer(x, (h, c, n, m))[0]
        shifted = layer(x, (h, c * torch.exp(torch.tensor(-3.0)), n * torch.exp(torch.tensor(-3.0)),
                            m + 3.0))[0]  # fmt: skip
    same([shifted], [expected], rtol=1e-6, atol=1e-7)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("size", [200.0, -200.0])
def test_an_slstm_stays_finite_on_large_inputs(size, dtype, backend):
    layer = bptt.SLSTM(I, H, bidirectional=True, dtype=dtype)
    sign = torch.randn(8, B, I).sign().to(dtype)
    same_sign = torch.full((8, B, I), size, dtype=dtype)
    for inputs in (same_sign.clone().requires_grad_(), (same_sign * sign).requires_grad_()):
        with bptt.backend(backend):
            y, states = layer(inputs)
            grads = torch.autograd.grad(y.sum(), [inputs, *layer.parameters()])
        assert all(bool(t.isfinite().all()) for t in (y, *states, *grads))
        assert y.abs().max() <= 1 + 1e-6


# --- heads ----------------------------------------------------------------------------------------


def dense(blocks, heads, gates):
    """Block-diagonal weights `[G*H, H/N]` as a matrix `[G*H, H]`."""
    parts = (torch.block_diag(*gate.chunk(heads)) for gate in blocks.chunk(gates))
    return torch.cat(list(parts))


@backends
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("heads", [2, 3, H])
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "cifg", "slstm"])
def test_heads_are_blocks_of_a_dense_layer(name, heads, directions, backend):
    layer = make_layer(name, directions, num_heads=heads)
    whole = make_layer(name, directions)
    gates = layer.weight_ih_l0.shape[0] // H
    params = {
        n: dense(p, heads, gates) if n.startswith("weight_hh") else p
        for n, p in layer.named_parameters()
    }
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    states = make_states(name, directions)
    masks = {"lengths": torch.tensor([T, 0, 4]), "resets": torch.rand(T, B) < 0.2}
    leaves = [x, *states, *layer.parameters()]
    with bptt.backend(backend):
        ours = flat(layer(x, as_hx(states), **masks))
        our_gradients = gradients(ours, leaves)
        expected = flat(torch.func.functional_call(whole, params, (x, as_hx(states)), masks))
        same(ours, expected)
        same(our_gradients, gradients(expected, leaves))


# --- activations ----------------------------------------------------------------------------------

ACTIVATIONS = {
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "hard_sigmoid": lambda x: torch.clamp(x + 3, 0, 6) / 6,
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "hard_tanh": lambda x: torch.clamp(x, -1, 1),
    "relu": lambda x: torch.clamp(x, min=0),
    "softsign": lambda x: x / (1 + x.abs()),
    "identity": lambda x: x,
}


@backends
@pytest.mark.parametrize("chosen", ACTIVATIONS)
@pytest.mark.parametrize("name", STEPS)
def test_named_activations(name, chosen, backend):
    act = ACTIVATIONS[chosen]
    if name in ("rnn", "indrnn"):
        layer = make_layer(name, nonlinearity=chosen)
        assert_follows(backend, layer, name, lambda x, s, w: STEPS[name](x, s, w, None, act))
        return
    layer = make_layer(name, activation=chosen)
    # An sLSTM's cell state goes out through its normaliser alone, and so its activation is z's.
    assert_follows(backend, layer, name, lambda x, s, w: STEPS[name](x, s, w, act=act))
    layer = make_layer(name, gate_activation=chosen)
    assert_follows(backend, layer, name, lambda x, s, w: STEPS[name](x, s, w, gate=act))


@backends
def test_a_clipped_cell_state(backend):
    def step(x, states, w):
        h, c = states
        i, f, g, o = gates_of(x, h, w, 4)
        c = torch.clamp(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g), -0.4, 0.4)
        return torch.sigmoid(o) * torch.tanh(c), c

    layer = make_layer("lstm", cell_clip=0.4)
    assert_follows(backend, layer, "lstm", step)
    with bptt.backend(backend):
        clipped = layer(torch.randn(T, B, I, dtype=F64))[1][1].abs()
    assert clipped.max() == 0.4
    assert clipped.min() < 0.4


# --- the generator --------------------------------------------------------------------------------

# Random123's known answers for philox4x32-7: counters, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]


def as_signed(words):
    """The key of 64 bits whose lower word is the first, as int64 holds it."""
    key = words[0] | words[1] << 32
    return key - (1 << 64) if key >> 63 else key


@pytest.mark.parametrize(("counters", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_its_published_words(counters, key, words):
    ours = random.philox(torch.tensor([as_signed(key)]), counters)
    assert tuple(int(word) for word in ours) == words
    assert tuple(_dev.random_words(key[0] | key[1] << 32, list(counters))) == words


def test_philox_in_python_is_that_of_the_engine():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 2**32, (50, 6), generator=generator, dtype=torch.int64)
    for *counters, low, high in draws.tolist():
        ours = random.philox(torch.tensor([as_signed((low, high))]), counters)
        assert [int(w) for w in ours] == _dev.random_words(low | high << 32, counters)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 70), (2, 5, 16), (3, 1, 1), (1, 300, 33), (2, 0, 4)])
@pytest.mark.parametrize("kind", [random.RECURRENT_DROPOUT, random.WEIGHT_DROP])
def test_masks_of_the_op_are_those_of_torch(kind, shape, dtype):
    for probability in (0.0, 0.3, 1.0):
        ours = random.kept(torch.tensor([-77]), probability, shape, dtype, kind)
        assert ours.dtype == dtype
        expected = random.kept_by_torch(torch.tensor([-77]), probability, shape, dtype, kind)
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((torch.tensor([1.0]), 0.3, [1, 2, 3], 1, False), "seed"),
        ((torch.tensor([1, 2]), 0.3, [1, 2, 3], 1, False), "seed"),
        ((torch.tensor([1]), 1.3, [1, 2, 3], 1, False), "probability"),
        ((torch.tensor([1]), math.nan, [1, 2, 3], 1, False), "probability"),
        ((torch.tensor([1]), 0.3, [2, 3], 1, False), "shape"),
        ((torch.tensor([1]), 0.3, [1, -2, 3], 1, False), "shape"),
        ((torch.tensor([1]), 0.3, [1, 2, 3], 0, False), "draw"),
    ],
)
def test_masks_of_bad_arguments(arguments, word):
    with pytest.raises(RuntimeError, match=f"kept: {word} must"):
        torch.ops.bptt.kept(*arguments)


def test_rows_and_states_have_words_of_their_own():
    seed, row, unit = torch.tensor([7]), torch.arange(10).unsqueeze(1), torch.arange(5)
    words = random.zoneout_words(seed, row, unit, 3, 1)
    assert torch.stack(words).unique().numel() == 2 * 10 * 5
    for kind, halves in zip((random.ZONEOUT, random.ZONEOUT_CELLS), words, strict=True):
        first, second = (random.philox(seed, (unit, g, 3, 4 * 1 + kind)) for g in range(2))
        assert torch.equal(halves[4] >> 16, first[2] & 0xFFFF)
        assert torch.equal(halves[5] >> 16, first[2] >> 16)
        assert torch.equal(halves[9] >> 16, second[0] >> 16)


def test_a_place_has_its_own_draw():
    seed = torch.tensor([12345])
    places = [
        random.draw(seed, kind, 4, 5, time, direction)[0]
        for kind in range(3)
        for time in range(3)
        for direction in range(3)
    ]
    assert torch.stack(places).unique().numel() == 27 * 20


@pytest.mark.parametrize("probability", [0.1, 0.5, 1 / 3, 10_000_000.3 / 2**24, 1.0])
def test_a_draw_happens_below_its_probability_and_not_above(probability):
    first = min(probability * 2**24, 2**24)
    last_in = -int(-first // 1) - 1  # the largest integer below `first`
    words = torch.tensor([0, last_in << 8, (last_in << 8) + 255, (last_in + 1) << 8])
    assert random.happens(words, probability).tolist() == [True, True, True, False]
    assert not random.happens(words, 0.0).any()


# --- what is drawn --------------------------------------------------------------------------------

RATES = (0.1, 0.3, 0.75)


def assert_rate(happened, probability):
    """The share of a mask is its probability, within six standard deviations."""
    deviation = (probability * (1 - probability) / happened.numel()) ** 0.5
    assert abs(happened.double().mean().item() - probability) < 6 * deviation


@backends
@pytest.mark.parametrize("p", RATES)
def test_the_rate_of_zoneout(p, backend):
    layer = bptt.LSTM(3, 32, bidirectional=True, zoneout=(p, 1 - p), dtype=F64)
    with bptt.backend(backend), torch.no_grad():
        y, _, (cells,) = layer(torch.randn(40, 16, 3, dtype=F64), return_cells=True)
    for states, rate in ((y, p), (cells, 1 - p)):
        held = states[1:] == states[:-1]  # of both directions
        assert_rate(held, rate)
        # Neither units nor sequences nor steps share a draw.
        for axis in range(3):
            assert 0 < held.double().mean(axis).std() < 3 * (p * (1 - p) / held.shape[axis]) ** 0.5


@backends
def test_states_of_an_slstm_are_held_together(backend):
    layer = bptt.SLSTM(3, 8, dtype=F64)
    control = Control(zoneout_c=0.5, sampled=True)
    x, seed = torch.randn(5, 4, 3, dtype=F64), torch.tensor([3])
    weights = [p.unsqueeze(0) for p in layer.parameters()]
    h0, c0 = torch.zeros(1, 4, 8, dtype=F64), torch.ones(1, 4, 24, dtype=F64)
    with bptt.backend(backend), torch.no_grad():
        cells = ops.recurrence("slstm", x, *weights, None, None, h0, c0, None, None, (False,),
                               control=control, seed=seed, keep_cells=True).cells  # fmt: skip
    held = (cells[1:] == cells[:-1]).unflatten(-1, (3, 8))
    assert torch.equal(held[..., 0, :], held[..., 1, :])
    assert torch.equal(held[..., 0, :], held[..., 2, :])
    assert 0 < held.double().mean() < 1


@backends
@pytest.mark.parametrize("name", STEPS)
def test_a_zoneout_of_one_holds_the_state_for_ever(name, backend):
    both = (1.0, 1.0) if name in ("lstm", "cifg") else 1.0
    layer, states = make_layer(name, zoneout=both), make_states(name)
    for training in (True, False):
        with bptt.backend(backend):
            y, last = layer.train(training)(torch.randn(T, B, I, dtype=F64), as_hx(states))
        assert torch.equal(y, torch.cat(list(states[0]), -1).expand(T, B, 2 * H))
        kept = last if isinstance(last, tuple) else (last,)
        for state, given in zip(kept[: len(kept) if isinstance(both, tuple) else 1], states,
                                strict=False):  # fmt: skip
            assert torch.equal(state, given)


@backends
@pytest.mark.parametrize("name", STEPS)
def test_zoneout_in_evaluation_is_the_mean(name, backend):
    rates = (0.2, 0.7) if name in ("lstm", "cifg") else (0.2,)

    def visit(states, before):
        mixed = [p * b + (1 - p) * s for p, s, b in zip(rates, states, before, strict=False)]
        return (*mixed, *states[len(mixed) :])

    layer = make_layer(name, zoneout=rates if len(rates) == 2 else rates[0]).eval()
    assert_follows(backend, layer, name, STEPS[name], visit)


@backends
@pytest.mark.parametrize("name", STEPS)
def test_zoneout_in_training_holds_what_was_drawn(name, backend):
    """The masks of each step are those of `random.zoneout`, and gradients those of `where`."""
    layer = make_layer(name, directions=1, zoneout=0.4)
    torch.manual_seed(4)
    seed = variants_seed()
    stays = random.zoneout(seed, 0.4, (T, B, 1, H))[:, :, 0].unbind()
    times = iter(stays)

    def visit(states, before):
        return torch.where(next(times), before[0], states[0]), *states[1:]

    torch.manual_seed(4)
    x = torch.randn(T, B, I, dtype=F64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    states = [s.detach() for s in make_states(name, 1)]
    torch.manual_seed(4)
    with bptt.backend(backend):
        ours = flat(layer(x, as_hx(states)))
    expected = by_loop(layer, STEPS[name], x, states, visit)
    same(ours, expected)
    leaves = [x, *layer.parameters()]
    with bptt.backend(backend):
        same(gradients(ours, leaves), gradients(expected, leaves))


def variants_seed():
    return variants.draw_seed(torch.device("cpu"))


@backends
@pytest.mark.parametrize("name", STEPS)
def test_recurrent_dropout_is_one_mask_on_the_way_into_products(name, backend):
    layer = make_layer(name, directions=1, recurrent_dropout=0.4)
    torch.manual_seed(4)
    kept = random.kept(variants_seed(), 0.4, (1, B, H), F64)[0]
    assert set(kept.flatten().tolist()) == {0.0, 1 / 0.6}

    def step(x, states, w):
        h, *rest = states
        if name != "gru":
            return STEPS[name](x, (h * kept, *rest), w)
        from_x, _ = (p.chunk(3, -1) for p in products(x, h, w))
        from_h = F.linear(h * kept, w["weight_hh"], w["bias_hh"]).chunk(3, -1)
        r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
        return ((1 - z) * torch.tanh(from_x[2] + r * from_h[2]) + z * h,)

    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    states = make_states(name, 1)
    leaves = [x, *states, *layer.parameters()]
    torch.manual_seed(4)
    with bptt.backend(backend):
        ours = flat(layer(x, as_hx(states)))
        our_gradients = gradients(ours, leaves)
    expected = by_loop(layer, step, x, states)
    same(ours, expected)
    same(our_gradients, gradients(expected, leaves))


@backends
@pytest.mark.parametrize("p", RATES)
def test_the_rate_of_recurrent_dropout(p, backend):
    layer = bptt.IndRNN(1, 100, bias=False, nonlinearity="identity", recurrent_dropout=p, dtype=F64)
    nn.init.ones_(layer.weight_hh_l0)
    with bptt.backend(backend), torch.no_grad():
        y, _ = layer(torch.zeros(4, 100, 1, dtype=F64), torch.ones(1, 100, 100, dtype=F64))
    # One mask to the power of the steps: what is dropped once is dropped at all of them.
    assert_rate(y[0] == 0, p)
    same([y], [torch.stack([y[0] ** k for k in range(1, 5)])])


@backends
def test_a_recurrent_dropout_of_one_cuts_all_recurrence(backend):
    layer = make_layer("rnn", 1, recurrent_dropout=1.0)
    x = torch.randn(T, B, I, dtype=F64)
    with bptt.backend(backend):
        expected = torch.tanh(x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0)
        same([layer(x, torch.randn(1, B, H, dtype=F64))[0]], [expected])


DRAWING = {
    "zoneout": {"zoneout": 0.5},
    "recurrent_dropout": {"recurrent_dropout": 0.5},
    "weight_drop": {"weight_drop": 0.5},
}


@backends
@pytest.mark.parametrize("which", DRAWING)
def test_masks_repeat_under_a_seed_and_differ_between_calls(which, backend):
    layer, x = make_layer("gru", **DRAWING[which]), torch.randn(T, B, I, dtype=F64)
    with bptt.backend(backend), torch.no_grad():
        torch.manual_seed(6)
        first, second = layer(x)[0], layer(x)[0]
        torch.manual_seed(6)
        again = layer(x)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def joined(outputs):
    """One tensor of all: finite differences of each output are taken apart from one another."""
    return torch.cat([y.flatten() for y in outputs if y is not None])


@pytest.mark.parametrize("which", DRAWING)
@pytest.mark.parametrize("name", STEPS)
def test_both_passes_see_one_mask(name, which):
    layer, states = make_layer(name, **DRAWING[which]), make_states(name)
    if name == "slstm":  # a normaliser of 0 has no derivative
        states = [(s.detach() + (k == 2)).requires_grad_() for k, s in enumerate(states)]
    x = torch.randn(3, B, I, dtype=F64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]

    def run(x, *rest):
        torch.manual_seed(7)
        hx, weights = rest[: len(states)], rest[len(states) :]
        params = dict(zip(names, weights, strict=True))
        return joined(flat(torch.func.functional_call(layer, params, (x, as_hx(hx)))))

    assert gradcheck(run, (x, *states, *layer.parameters()), fast_mode=True)


# --- where gradients stop -------------------------------------------------------------------------


def outputs_of(variant, tensors, control, reverse, **replaced):
    t = LoopInputs(**{n: tensors[n] for n in LoopInputs._fields})._replace(**replaced)
    return ops.recurrence(
        variant.cell, t.x, t.w_ih, t.w_hh, t.b_ih, t.b_hh, t.w_hr, t.w_unit, t.h0, t.c0, t.lengths,
        t.resets, (reverse,), control=control, seed=t.seed, gates_x=t.gates_x,
    )  # fmt: skip


def in_chunks(variant, tensors, k, reverse):
    """Chunks of k steps, each a call of its own on detached states."""
    steps, lengths = variant.steps, tensors["lengths"]
    starts = range(0, steps, k)
    states, pieces = {"h0": tensors["h0"], "c0": tensors["c0"]}, []
    for start in reversed(starts) if reverse else starts:
        end = min(start + k, steps)
        # The first step, in the order of time here, that has a past in another chunk.
        if start != (starts[-1] if reverse else 0):
            border = end if reverse else start
            for name, state in states.items():
                if state is not None:
                    through = state.detach()
                    if lengths is not None:
                        crossing = (lengths > border)[:, None]
                        through = torch.where(crossing, through, state)
                    states[name] = through
        given = dict(states)
        for name in ("x", "gates_x", "resets"):
            given[name] = None if tensors[name] is None else tensors[name][start:end]
        given["lengths"] = None if lengths is None else (lengths - start).clamp(0, end - start)
        y, h_n, c_n, _ = outputs_of(variant, tensors, Control(), reverse, **given)
        states = {"h0": h_n, "c0": c_n}
        pieces.append(y)
    y = torch.cat(pieces[::-1] if reverse else pieces)
    return [t for t in (y, states["h0"], states["c0"]) if t is not None]


@backends
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_peephole", "slstm", "lstm_layer_norm"])
def test_truncation_detaches_states_between_chunks(cell, k, masks, reverse, backend):
    variant = Variant(cell, masks=masks)
    tensors = {
        n: x.requires_grad_() if is_weighed(n, x) else x for n, x in make_variant(variant).items()
    }
    leaves = [x for n, x in tensors.items() if is_weighed(n, x)]
    with bptt.backend(backend):
        y, h_n, c_n, _ = outputs_of(variant, tensors, Control(truncate=k), reverse)
        ours = [t for t in (y, h_n, c_n) if t is not None]
        our_gradients = gradients(ours, leaves)
    with bptt.backend("reference"):
        expected = in_chunks(variant, tensors, k, reverse)
        same(ours, expected)
        same(our_gradients, gradients(expected, leaves))


@backends
@pytest.mark.parametrize(
    "bounds",
    [{"clip_grad_value": 0.1}, {"clip_grad_norm": 0.4},
     {"clip_grad_value": 0.3, "clip_grad_norm": 0.5}],
    ids=lambda b: "+".join(b),
)  # fmt: skip
@pytest.mark.parametrize("name", STEPS)
def test_bounds_of_gradients_are_hooks_on_every_state(name, bounds, backend):
    value, norm = bounds.get("clip_grad_value"), bounds.get("clip_grad_norm")
    bounded = []

    def hook(gradient):
        held = gradient if value is None else gradient.clamp(-value, value)
        if norm is not None:
            size = held.norm(dim=-1, keepdim=True)
            held = torch.where(size > norm, held * norm / size, held)
        bounded.append(not torch.equal(held, gradient))
        return held

    def visit(states, before):
        h = states[0].clone()
        h.register_hook(hook)
        return h, *states[1:]

    assert_follows(backend, make_layer(name, **bounds), name, STEPS[name], visit)
    assert any(bounded)


# --- against finite differences -------------------------------------------------------------------

HONEST = (
    "activations", "other-activations", "cell-bound", "zoneout", "zoneout-mean",
    "recurrent-dropout",
)  # fmt: skip
SMALL = {"steps": 3, "batch": 3, "inputs": 2, "hidden": 3, "directions": 2, "masks": "both"}


def as_function(variant, backend):
    """The variant's recurrence as a function of its tensors, and tensors to call it with."""
    variant = replace(variant, control=fitting(variant.cell, variant.control))
    tensors = make_variant(variant)
    if variant.cell == "slstm":
        tensors["c0"].unflatten(-1, (3, -1))[..., 1, :] += 0.5  # no normaliser is 0
    names = [n for n, x in tensors.items() if is_weighed(n, x) and x.numel() > 0]

    def run(*values):
        full = {**tensors, **dict(zip(names, values, strict=True))}
        t = LoopInputs(**{n: full[n] for n in LoopInputs._fields})
        with bptt.backend(backend):
            outputs = ops.recurrence(
                variant.cell, t.x, t.w_ih, t.w_hh, t.b_ih, t.b_hh, t.w_hr, t.w_unit, t.h0, t.c0,
                t.lengths, t.resets, (False, True), variant.recompute, None, variant.control,
                t.seed, variant.keep_cells, gates_x=t.gates_x,
            )  # fmt: skip
        return joined(outputs)

    return run, tuple(tensors[n].clone().requires_grad_() for n in names)


@backends
@pytest.mark.parametrize("control", HONEST)
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_first_derivatives(cell, control, backend):
    variant = Variant(cell, CONTROLS[control], keep_cells=True, **SMALL)
    run, tensors = as_function(variant, backend)
    assert gradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("control", ["zoneout", "recurrent-dropout"])
@pytest.mark.parametrize("cell", EVERY_CELL)
def test_first_derivatives_with_gates_rebuilt(cell, control):
    variant = Variant(cell, CONTROLS[control], recompute=True, keep_cells=True, **SMALL)
    run, tensors = as_function(variant, "cpu")
    assert gradcheck(run, tensors, fast_mode=True)


@backends
@pytest.mark.parametrize("control", ["plain", "activations", "zoneout", "recurrent-dropout"])
@pytest.mark.parametrize(
    "cell", ["cifg", "slstm", "indrnn", "rnn_layer_norm", "gru_layer_norm", "lstm_layer_norm"]
)
def test_second_derivatives(cell, control, backend):
    variant = Variant(cell, CONTROLS.get(control, Control()), **SMALL)
    run, tensors = as_function(variant, backend)
    assert gradgradcheck(run, tensors, fast_mode=True)
