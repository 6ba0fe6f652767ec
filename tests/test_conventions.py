"""Do weights of ONNX and of Keras, permuted by gate name, give ONNX's and Keras's numbers?

Both are written here from their specifications, in numpy and one sequence at a time, and share
nothing with bptt. Where the package onnx is installed, its reference evaluator judges our ONNX.

Source: ONNX operators GRU and LSTM (opset 22), https://onnx.ai/onnx/operators/; Keras layers GRU,
LSTM and Bidirectional, https://keras.io/api/layers/recurrent_layers/.
"""

import numpy as np
import pytest
import torch

import bptt
from bptt.recurrence.cells import CELLS

T, B, I, H = 6, 3, 4, 5
TOLERANCE = {"rtol": 1e-12, "atol": 1e-13}
ONNX_GATES = {"gru": ("z", "r", "n"), "lstm": ("i", "o", "f", "g")}  # it writes h and c for n and g
ONNX_PEEPHOLES = ("i", "o", "f")
KERAS_GATES = {"gru": ("z", "r", "n"), "lstm": ("i", "f", "g", "o")}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def split(array, names):
    """Cut the first axis into one equal part per name."""
    return dict(zip(names, np.split(array, len(names)), strict=True))


def permuted(array, theirs, ours):
    """A [len(theirs)*H, ...] array with its parts in our order, as a tensor."""
    parts = split(array, theirs)
    return torch.from_numpy(np.concatenate([parts[name] for name in ours]))


@pytest.fixture
def random():
    return np.random.default_rng(7)


# --- ONNX -----------------------------------------------------------------------------------------


# Those of ONNX with the alpha and beta that make them ours.
ONNX_ACTIVATIONS = {
    "Sigmoid": sigmoid,
    "HardSigmoid": lambda x: np.maximum(0, np.minimum(1, x / 6 + 0.5)),
    "Tanh": np.tanh,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Relu": lambda x: np.maximum(0, x),
}


def onnx_direction(
    kind, x, w, r, b, h, c=None, p=None, linear_before_reset=0, input_forget=0, activations=()
):
    """One direction of ONNX's GRU or LSTM on one sequence.

    x [T, I]; w [G*H, I]; r [G*H, H]; b [2*G*H]; p [3*H]; h, c [H]. Returns y [T, H] and the final
    h and c.
    """
    gates = ONNX_GATES[kind]
    chosen = activations or ("Sigmoid", "Tanh", "Tanh")
    at_gates, at_candidate, at_output = (ONNX_ACTIVATIONS[n] for n in (*chosen, "Tanh")[:3])
    w, r = split(w, gates), split(r, gates)
    wb, rb = (split(half, gates) for half in np.split(b, 2))
    p = None if p is None else split(p, ONNX_PEEPHOLES)
    outputs = []
    for x_t in x:
        gate_x = {g: w[g] @ x_t + wb[g] for g in gates}
        gate_h = {g: r[g] @ h + rb[g] for g in gates}
        if kind == "gru":
            z, reset = (at_gates(gate_x[g] + gate_h[g]) for g in ("z", "r"))
            if linear_before_reset:
                candidate = at_candidate(gate_x["n"] + reset * gate_h["n"])
            else:
                candidate = at_candidate(gate_x["n"] + r["n"] @ (reset * h) + rb["n"])
            h = (1 - z) * candidate + z * h
        else:
            i = at_gates(gate_x["i"] + gate_h["i"] + p["i"] * c)
            f = at_gates(gate_x["f"] + gate_h["f"] + p["f"] * c)
            f = 1 - i if input_forget else f
            c = f * c + i * at_candidate(gate_x["g"] + gate_h["g"])
            o = at_gates(gate_x["o"] + gate_h["o"] + p["o"] * c)
            h = o * at_output(c)
        outputs.append(h)
    return np.stack(outputs), h, c


def onnx_layer(kind, tensors, **options):
    """A bidirectional ONNX operator: Y [T, D, B, H], Y_h [D, B, H], Y_c [D, B, H] (LSTM)."""
    y, y_h, y_c = np.zeros((T, 2, B, H)), np.zeros((2, B, H)), np.zeros((2, B, H))
    for d in range(2):
        for row in range(B):
            x = tensors["X"][:, row][:: -1 if d else 1]
            is_lstm = kind == "lstm"
            out, h, c = onnx_direction(
                kind,
                x,
                tensors["W"][d],
                tensors["R"][d],
                tensors["B"][d],
                tensors["initial_h"][d, row],
                tensors["initial_c"][d, row] if is_lstm else None,
                tensors["P"][d] if is_lstm else None,
                **options,
            )
            y[:, d, row], y_h[d, row] = out[:: -1 if d else 1], h
            if is_lstm:
                y_c[d, row] = c
    return (y, y_h, y_c) if kind == "lstm" else (y, y_h)


def onnx_tensors(kind, random):
    gates = len(ONNX_GATES[kind]) * H
    shapes = {
        "X": (T, B, I),
        "W": (2, gates, I),
        "R": (2, gates, H),
        "B": (2, 2 * gates),
        "initial_h": (2, B, H),
    }
    if kind == "lstm":
        shapes.update(initial_c=(2, B, H), P=(2, 3 * H))
    return {name: random.normal(size=shape) for name, shape in shapes.items()}


def ours_from_onnx(kind, tensors, **options):
    """bptt on ONNX's tensors, with outputs in ONNX's shapes."""
    theirs, ours = ONNX_GATES[kind], CELLS[kind].gates
    weights = []
    for d in range(2):
        halves = np.split(tensors["B"][d], 2)
        for array in (tensors["W"][d], tensors["R"][d], *halves):
            weights.append(permuted(array, theirs, ours))
        if kind == "lstm":
            peepholes = CELLS["lstm_peephole"].unit_weights
            weights.append(permuted(tensors["P"][d], ONNX_PEEPHOLES, peepholes))
    x, h = (torch.from_numpy(tensors[name]) for name in ("X", "initial_h"))
    if kind == "lstm":
        hx = (h, torch.from_numpy(tensors["initial_c"]))
        y, states = bptt.functional.lstm(
            x, hx, weights, bidirectional=True, peephole=True, **options
        )
    else:
        y, *states = bptt.functional.gru(x, h, weights, bidirectional=True, **options)
    return (y.unflatten(2, (2, H)).transpose(1, 2).numpy(), *(s.numpy() for s in states))


def assert_all_equal(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right, **TOLERANCE)


@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_onnx_gru(random, linear_before_reset):
    tensors = onnx_tensors("gru", random)
    ours = ours_from_onnx("gru", tensors, reset_after=bool(linear_before_reset))
    assert_all_equal(ours, onnx_layer("gru", tensors, linear_before_reset=linear_before_reset))


def test_onnx_lstm_with_peepholes(random):
    tensors = onnx_tensors("lstm", random)
    assert_all_equal(ours_from_onnx("lstm", tensors), onnx_layer("lstm", tensors))


@pytest.mark.parametrize("candidate", ["Softsign", "Relu"])
@pytest.mark.parametrize("gates", ["Sigmoid", "HardSigmoid"])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_onnx_activations(random, kind, gates, candidate):
    """One name for candidates and outputs, as here; HardSigmoid with alpha 1/6."""
    tensors = onnx_tensors(kind, random)
    names = {"Sigmoid": "sigmoid", "HardSigmoid": "hard_sigmoid", "Relu": "relu"}
    options = {"gate_activation": names[gates], "activation": names.get(candidate, "softsign")}
    theirs = onnx_layer(kind, tensors, activations=(gates, candidate, candidate))
    if kind == "gru":
        options["reset_after"] = False
    assert_all_equal(ours_from_onnx(kind, tensors, **options), theirs)


def test_onnx_lstm_with_coupled_gates(random):
    """Its attribute input_forget couples f = 1 - i; CIFG's i = 1 - f, of the negated weights."""
    tensors = onnx_tensors("lstm", random)
    tensors["P"][:] = 0.0
    weights = []
    for d in range(2):
        halves = np.split(tensors["B"][d], 2)
        for array in (tensors["W"][d], tensors["R"][d], *halves):
            parts = split(array, ONNX_GATES["lstm"])
            weights.append(torch.from_numpy(np.concatenate([-parts["i"], parts["g"], parts["o"]])))
    x, h, c = (torch.from_numpy(tensors[name]) for name in ("X", "initial_h", "initial_c"))
    y, states = bptt.functional.cifg(x, (h, c), weights, bidirectional=True)
    ours = (y.unflatten(2, (2, H)).transpose(1, 2).numpy(), *(s.numpy() for s in states))
    assert_all_equal(ours, onnx_layer("lstm", tensors, input_forget=1))


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("gru", {"linear_before_reset": 0}), ("gru", {"linear_before_reset": 1}), ("lstm", {})],
)
def test_our_onnx_is_that_of_its_reference_evaluator(random, kind, attributes):
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    order = ["X", "W", "R", "B", "", "initial_h"] + (["initial_c", "P"] if kind == "lstm" else [])
    outputs = ["Y", "Y_h"] + (["Y_c"] if kind == "lstm" else [])
    tensors = onnx_tensors(kind, random)
    node = onnx.helper.make_node(
        kind.upper(), order, outputs, hidden_size=H, direction="bidirectional", **attributes
    )
    double = onnx.TensorProto.DOUBLE
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info(n, double, t.shape) for n, t in tensors.items()],
        [onnx.helper.make_tensor_value_info(n, double, None) for n in outputs],
    )
    opset = [onnx.helper.make_opsetid("", 22)]
    model = onnx.helper.make_model(graph, opset_imports=opset)
    theirs = ReferenceEvaluator(model).run(None, tensors)
    assert_all_equal(onnx_layer(kind, tensors, **attributes), theirs)


# --- Keras ----------------------------------------------------------------------------------------


def keras_hard_sigmoid(x):
    """Keras 3; Keras 2 had 0.2 x + 0.5."""
    return np.clip(x / 6 + 0.5, 0, 1)


def keras_gru(x, kernel, recurrent, bias, reset_after):
    """x [T, I], kernel [I, 3H], recurrent [H, 3H]; bias [2, 3H] with reset_after, else [3H]."""
    h, outputs = np.zeros(H), []
    bias_x, bias_h = bias if reset_after else (bias, np.zeros(3 * H))
    for x_t in x:
        x_z, x_r, x_n = np.split(x_t @ kernel + bias_x, 3)
        h_z, h_r, h_n = np.split(h @ recurrent + bias_h, 3)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        if reset_after:
            candidate = np.tanh(x_n + r * h_n)
        else:
            candidate = np.tanh(x_n + (r * h) @ recurrent[:, 2 * H :])
        h = z * h + (1 - z) * candidate
        outputs.append(h)
    return np.stack(outputs)


def keras_lstm(x, kernel, recurrent, bias, gate_activation=None, activation=None):
    """x [T, I], kernel [I, 4H], recurrent [H, 4H], bias [4H].

    Its recurrent_activation and activation have our names here: "hard_sigmoid", "softsign".
    """
    gate = keras_hard_sigmoid if gate_activation else sigmoid
    act = (lambda a: a / (1 + np.abs(a))) if activation else np.tanh
    h, c, outputs = np.zeros(H), np.zeros(H), []
    for x_t in x:
        i, f, g, o = np.split(x_t @ kernel + h @ recurrent + bias, 4)
        c = gate(f) * c + gate(i) * act(g)
        h = gate(o) * act(c)
        outputs.append(h)
    return np.stack(outputs)


KERAS_LAYERS = {
    "gru, reset after": ("gru", keras_gru, {"reset_after": True}),
    "gru, reset before": ("gru", keras_gru, {"reset_after": False}),
    "lstm": ("lstm", keras_lstm, {}),
    "lstm, activations": (
        "lstm",
        keras_lstm,
        {"gate_activation": "hard_sigmoid", "activation": "softsign"},
    ),
}
MERGES = {
    "concat": lambda f, b: np.concatenate([f, b], axis=-1),
    "sum": lambda f, b: f + b,
    "mul": lambda f, b: f * b,
    "ave": lambda f, b: (f + b) / 2,
    None: lambda f, b: (f, b),
}


@pytest.mark.parametrize("mode", MERGES)
@pytest.mark.parametrize("layer", KERAS_LAYERS)
def test_keras_layers_in_its_bidirectional(random, layer, mode):
    kind, keras, options = KERAS_LAYERS[layer]
    theirs, ours = KERAS_GATES[kind], CELLS[kind].gates
    rows = len(theirs) * H
    x = random.normal(size=(B, T, I))  # Keras puts the batch first
    weights, outputs = [], []
    for d in range(2):
        step = -1 if d else 1
        kernel, recurrent = random.normal(size=(I, rows)), random.normal(size=(H, rows))
        bias = random.normal(size=(2, rows) if options.get("reset_after") else rows)
        outputs.append(
            np.stack([keras(row[::step], kernel, recurrent, bias, **options)[::step] for row in x])
        )
        bias_x, bias_h = bias if bias.ndim == 2 else (bias, np.zeros(rows))
        weights += [permuted(a, theirs, ours) for a in (kernel.T, recurrent.T, bias_x, bias_h)]
    function = getattr(bptt.functional, kind)
    y, _ = function(
        torch.from_numpy(x),
        None,
        weights,
        bidirectional=True,
        batch_first=True,
        merge_mode=mode,
        **options,
    )
    expected = MERGES[mode](*outputs)
    if mode is None:
        assert_all_equal(tuple(t.numpy() for t in y), expected)
    else:
        np.testing.assert_allclose(y.numpy(), expected, **TOLERANCE)
