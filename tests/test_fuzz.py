"""Can any input crash the process, or be computed wrongly instead of refused?

Thousands of random calls, most of them wrong in one or two places, run in a process of their own:
this file is its script. A call must give what the reference gives, or raise an exception that names
an argument. A crash is the end of that process, which the test sees.
"""

import faulthandler
import os
import random
import re
import subprocess
import sys
import traceback

import pytest
import torch

import bptt
from bptt.calls import plain_training
from bptt.recurrence import reference
from bptt.recurrence.cells import CELLS
from bptt.recurrence.gradients import Config, LoopInputs, forward_op, loop_gradients

CASES = 500  # per test, a few seconds
# Cells that `short_gradients` takes.
ONE_PRODUCT = [name for name, c in CELLS.items() if c.stages == 1 and not c.unit_weights]
EXCEPTIONS = (RuntimeError, ValueError, TypeError)  # NotImplementedError is a RuntimeError
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.1}


# --- what can be wrong with a tensor ------------------------------------------------------------


def resize(t, rng):
    """One axis longer, shorter or empty."""
    if t.dim() == 0:
        return t.unsqueeze(0)
    axis = rng.randrange(t.dim())
    size = rng.choice([0, max(t.shape[axis] - 1, 0), t.shape[axis] + 1])
    shape = list(t.shape)
    shape[axis] = size
    return torch.zeros(shape, dtype=t.dtype)


def rerank(t, rng):
    choices = [t.unsqueeze(rng.randrange(t.dim() + 1))]
    if t.dim() > 0:
        choices += [t.flatten(), t.sum() if t.dtype != torch.bool else t.any()]
    return rng.choice(choices)


def redtype(t, rng):
    dtypes = (*DTYPES, torch.float16, torch.complex64, torch.int64, torch.int8, torch.bool)
    return t.to(rng.choice([d for d in dtypes if d != t.dtype]))


def spread(t, rng):
    """The same values behind other strides."""
    ways = [t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t]
    if t.dim() > 1:
        ways.append(t.transpose(0, -1).contiguous().transpose(0, -1))
        ways.append(torch.cat([t, t])[: t.shape[0]])
    if t.numel() > 0 and t.is_floating_point():
        ways.append(torch._neg_view(-t))
    padded = torch.zeros(t.numel() + 3, dtype=t.dtype)
    padded[1 : 1 + t.numel()] = t.flatten()
    ways.append(padded[1 : 1 + t.numel()].view(t.shape))  # not aligned to a vector
    return rng.choice(ways)


def expand(t, rng):
    """One axis, or all, repeated without memory: other values, the same shape."""
    if t.numel() == 0 or t.dim() == 0:
        return t
    axis = rng.randrange(t.dim())
    some = t.narrow(axis, 0, 1).expand(t.shape)
    return rng.choice([some, t.flatten()[0].expand(t.shape)])


def special(t, rng):
    """NaN, infinities and values of any size."""
    if not t.is_floating_point() or t.numel() == 0:
        return t
    t = t.clone(memory_format=torch.contiguous_format)
    t.view(-1)[rng.randrange(t.numel())] = rng.choice([float("nan"), float("inf"), 1e30, -1e30])
    return t


CHANGES = (resize, rerank, redtype, spread, expand, special)


# --- the raw ops --------------------------------------------------------------------------------


FORWARD = [
    "backend",
    "cell",
    "gates_x",
    "x",
    "w_ih",
    "b_ih",
    "w_hh",
    "b_hh",
    "w_hr",
    "w_unit",
    "h0",
    "c0",
    "lengths",
    "resets",
    "reverse",
    "keep",
]
BACKWARD = [
    "backend",
    "cell",
    "dy",
    "dh_n",
    "dc_n",
    "y",
    "saved",
    "cells",
    "w_hh",
    "w_hr",
    "w_unit",
    "h0",
    "c0",
    "lengths",
    "resets",
    "reverse",
]


def valid_forward(rng):
    cell, dtype = rng.choice(list(CELLS)), rng.choice(DTYPES)
    spec = CELLS[cell]
    T, B = (rng.choice([0, 1, 1, 2, 3, 5, 9, 33]) for _ in range(2))
    D, G, I, H = rng.choice([1, 2, 2, 3]), len(spec.gates), rng.randint(1, 5), rng.randint(1, 35)
    R = rng.randint(1, H) if spec.projects and rng.random() < 0.3 else H
    projected, bias = rng.random() < 0.5, rng.random() < 0.5

    def tensor(*shape):
        return torch.randn(shape).mul(0.5).to(dtype)

    c0 = tensor(D, B, spec.cell_states * H) if spec.has_cell_state else None
    if cell == "slstm":  # the normaliser is a sum of exponentials, by which c is divided
        c0[..., H : 2 * H] = c0[..., H : 2 * H].abs() + 1
    return {
        "backend": "cpu",
        "cell": cell,
        "gates_x": tensor(T, B, D, G, H) if projected else None,
        "x": None if projected else tensor(T, B, I),
        "w_ih": None if projected else tensor(D, G * H, I),
        "b_ih": tensor(D, G * H) if bias else None,
        "w_hh": tensor(D, G * H, R if spec.stages else 0)
        / (R + 1) ** 0.5,  # or rounding errors would grow with the steps
        "b_hh": tensor(D, G * H) if bias else None,
        "w_hr": tensor(D, R, H) if R != H else None,
        "w_unit": tensor(D, len(spec.unit_weights) * H) if spec.unit_weights else None,
        "h0": tensor(D, B, R),
        "c0": c0,
        "lengths": torch.randint(0, T + 1, (B,)) if rng.random() < 0.4 else None,
        "resets": torch.rand(T, B) < 0.3 if rng.random() < 0.4 else None,
        "reverse": [rng.randint(0, 1) for _ in range(D)],
        "keep": rng.choice(["nothing", "states", "gates"]),
    }


def change_one(arguments, rng):
    """Change one argument, in place; returns its name and whether its values are as before."""
    name = rng.choice(list(arguments))
    value = arguments[name]
    others = [v for v in arguments.values() if isinstance(v, torch.Tensor)]
    if isinstance(value, torch.Tensor):
        if name == "lengths" and value.numel() and rng.random() < 0.5:
            value = value.clone()
            value[-1] = rng.choice([-1, 10**6, -(2**63), 2**63 - 1])
            arguments[name] = value
            return name, False
        if rng.random() < 0.15:
            arguments[name] = rng.choice([None, rng.choice(others), 1.5, "x"])
            return name, False
        change = rng.choice(CHANGES)
        arguments[name] = change(value, rng)
        return name, change is spread
    if value is None:
        arguments[name] = rng.choice(others)
    elif name == "reverse":
        arguments[name] = rng.choice([[], [*value, 0], value[:-1], [7] * len(value), None, "ab"])
    elif name == "keep":
        arguments[name] = rng.choice([True, None, "yes", ""])
    else:
        arguments[name] = rng.choice(["", "gpu", "lstm", "gru", f"{value}x", "\0" * 9, None, 5])
    return name, False


def expected_forward(a):
    """y, h_n and c_n by the reference in float64, for arguments that the op took."""
    a = {k: v.double() if _floating(v) else v for k, v in a.items()}
    gates_x = a["gates_x"]
    if gates_x is None:
        flat = torch.nn.functional.linear(a["x"], a["w_ih"].flatten(0, 1))
        gates_x = flat.unflatten(-1, (len(a["w_ih"]), len(CELLS[a["cell"]].gates), -1))
    if a["b_ih"] is not None:
        gates_x = gates_x + a["b_ih"].unflatten(1, gates_x.shape[-2:])
    if len(gates_x) == 0:
        return gates_x.new_empty(0), a["h0"], a["c0"]
    rest = [a[name] for name in FORWARD[6:14]]
    return reference.recurrence(a["cell"], gates_x, *rest, None, a["reverse"])


def _floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def assert_close(got, expected, dtype):
    for a, b in zip(got, expected, strict=False):
        if b is not None and a.numel() + b.numel() > 0:
            bound = BOUNDS[dtype]
            torch.testing.assert_close(
                a.double(), b.to(dtype).double(), rtol=bound, atol=bound, equal_nan=True
            )


def call(op, names, arguments, changed):
    """Outputs of the op, or None where it raised an exception that names an argument."""
    try:
        return op(*(arguments[name] for name in names))
    except EXCEPTIONS as error:
        text = str(error)
        # Of two tensors that disagree, or a tensor and the cell, the message may name either.
        values = [arguments[name] for name in changed]
        by_name = len(changed) == 1 and not isinstance(values[0], torch.Tensor)
        wanted = changed if by_name and values[0] not in list(CELLS) else names
        assert any(re.search(rf"\b{name}\b", text) for name in wanted), f"no name in: {text}"
        return None


def fuzz_forward(rng):
    arguments = valid_forward(rng)
    changes = [change_one(arguments, rng) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    outputs = call(torch.ops.bptt.recurrence_forward, FORWARD, arguments, [n for n, _ in changes])
    if outputs is None:
        assert not all(same for _, same in changes), "refused a valid call"
        return
    lead = arguments["x"] if arguments["gates_x"] is None else arguments["gates_x"]
    extreme = [t for t in arguments.values() if _floating(t) and not (t.abs() < 1e4).all()]
    if not extreme:
        assert_close(outputs[:3], expected_forward(arguments), lead.dtype)


def fuzz_backward(rng):
    forward = valid_forward(rng)
    forward["keep"] = "gates" if rng.random() < 0.9 else rng.choice(["nothing", "states"])
    y, h_n, c_n, saved, cells = torch.ops.bptt.recurrence_forward(*forward.values())
    arguments = {name: forward.get(name) for name in BACKWARD}
    arguments.update(y=y, saved=saved, cells=cells)
    for name, like in (("dy", y), ("dh_n", h_n), ("dc_n", c_n)):
        given = rng.random() < 0.8 and not (name == "dc_n" and forward["c0"] is None)
        arguments[name] = torch.randn_like(like) if given else None
    needed = forward["keep"] == "gates" or CELLS[forward["cell"]].saved == ()
    op = torch.ops.bptt.recurrence_backward
    before = op(*(arguments[name] for name in BACKWARD)) if needed else None
    changes = [change_one(arguments, rng) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    # Without what it needs the op may complain of that before anything else.
    outputs = call(op, BACKWARD, arguments, [n for n, _ in changes] if needed else [])
    if before is not None and all(same for _, same in changes):
        assert outputs is not None, "refused a valid call"
        assert_close(outputs, [b.double() for b in before], y.dtype)


def fuzz_short(rng):
    cell, dtype = rng.choice(ONE_PRODUCT), rng.choice([torch.float32, torch.float64])
    spec = CELLS[cell]
    T, B, I, H = rng.randint(1, 5), rng.choice([0, 1, 2, 9]), rng.randint(1, 5), rng.randint(1, 35)
    D, G = rng.choice([1, 2, 3]), len(spec.gates)
    reverse = tuple(rng.random() < 0.5 for _ in range(D))

    def tensor(*shape):
        return torch.randn(shape).mul(0.5).to(dtype)

    x, h0 = tensor(T, B, I), tensor(D, B, H)
    w_ih, w_hh = tensor(D, G * H, I), tensor(D, G * H, H)
    c0 = tensor(D, B, spec.cell_states * H) if spec.has_cell_state else None
    loop = LoopInputs(None, x, w_ih, None, w_hh, None, None, None, h0, c0, None, None)
    config = Config("cpu", cell, reverse)
    y, h_n, c_n, saved, cells = forward_op(config, loop, "gates")
    arguments = {
        "cell": cell, "dy": tensor(*y.shape), "dh_n": tensor(*h_n.shape),
        "dc_n": tensor(*c_n.shape) if spec.has_cell_state else None,
        "y": y, "saved": saved, "cells": cells, "x": x, "w_ih": w_ih, "w_hh": w_hh, "h0": h0,
        "c0": c0, "reverse": list(reverse), "needed": [rng.random() < 0.8 for _ in range(7)],
    }  # fmt: skip
    needed = arguments["needed"]
    names = ("x", "w_ih", "b_ih", "w_hh", "b_hh", "h0", "c0")
    wanted = [n for n in names if n != "c0" or spec.has_cell_state]
    douts = (*(arguments[name] for name in ("dy", "dh_n", "dc_n")), None)
    exact = loop_gradients(config, 1, wanted, douts, loop, (y, saved, cells))
    changes = [change_one(arguments, rng) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    op = torch.ops.bptt.short_gradients
    outputs = call(op, list(arguments), arguments, [n for n, _ in changes])
    if outputs is None:
        assert not all(same for _, same in changes), "refused a valid call"
        return
    if all(same for _, same in changes):
        for name, need, got in zip(names, needed, outputs, strict=True):
            if need and name in exact:
                expected = exact[name].squeeze(0) if name[0] in "wb" else exact[name]
                assert_close([got], [expected.double()], dtype)


def fuzz_plain(rng):
    cell = rng.choice(["rnn_tanh", "rnn_relu", "gru", "lstm"])
    dtype, bias = rng.choice([torch.float32, torch.float64]), rng.random() < 0.6
    T, B, I, H = rng.randint(1, 5), rng.choice([0, 1, 2, 9]), rng.randint(1, 5), rng.randint(1, 35)
    L, D, rows = rng.choice([1, 2, 3]), rng.choice([1, 2]), len(CELLS[cell].gates) * H

    def tensor(*shape):
        return torch.randn(shape).mul(0.5).to(dtype)

    arguments = {"x": tensor(T, B, I), "h0": None, "c0": None}
    if rng.random() < 0.7:
        arguments["h0"] = tensor(L * D, B, H)
        arguments["c0"] = tensor(L * D, B, H) if cell == "lstm" else None
    weights = {}
    for layer in range(L * D):
        shapes = {"w_ih": (rows, I if layer < D else D * H), "w_hh": (rows, H)}
        shapes |= {"b_ih": (rows,), "b_hh": (rows,)} if bias else {}
        scale = (H + 1) ** 0.5  # or rounding errors would grow with the steps
        weights |= {f"{name} of {layer}": tensor(*size) / scale for name, size in shapes.items()}
    given = [arguments[name] for name in ("h0", "c0")]
    op, plain_op = torch.ops.bptt.plain_training, torch.ops.bptt.plain_gradients
    y, h_n, c_n, kept = op(cell, arguments["x"], list(weights.values()), bias, *given, D == 2)
    arguments |= weights | {"y": y} | {f"kept {k}": t for k, t in enumerate(kept)}
    for name, like in (("dy", y), ("dh_n", h_n), ("dc_n", c_n)):
        wanted = rng.random() < 0.8 and (name != "dc_n" or cell == "lstm")
        arguments[name] = torch.randn_like(like) if wanted else None
    needed = [rng.random() < 0.8 for _ in range(3 + len(weights))]
    needed[2] &= cell == "lstm"
    inputs = [arguments["x"], *given, *weights.values()]
    douts = [arguments[name] for name in ("dy", "dh_n", "dc_n")]
    exact = exact_gradients((cell, bias, D == 2), inputs, douts)
    changes = [change_one(arguments, rng) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    a = arguments
    try:
        outputs = plain_op(
            cell, a["dy"], a["dh_n"], a["dc_n"], a["x"], [a[name] for name in weights], bias,
            a["h0"], a["c0"], a["y"], [t for n, t in a.items() if n.startswith("kept")], needed,
            D == 2,
        )  # fmt: skip
    except EXCEPTIONS as error:
        names = "dy|dh_n|dc_n|x|weights|w_ih|w_hh|b_ih|b_hh|h0|c0|y|kept|cell state"
        assert re.search(rf"\b({names})\b", str(error)), f"no name in: {error}"
        assert not all(same for _, same in changes), "refused a valid call"
        return
    assert [t is not None for t in outputs] == needed
    if all(same for _, same in changes):
        for got, expected in zip(outputs, exact, strict=True):
            if got is not None and expected is not None:
                assert_close([got], [expected], dtype)


def exact_gradients(what, inputs, douts):
    """By autograd through the usual ops, in float64."""
    inputs = [None if t is None else t.double().requires_grad_() for t in inputs]
    outputs = plain_training._usual(what, *inputs)
    pairs = [(o, d) for o, d in zip(outputs, douts, strict=False) if d is not None]
    if not pairs:
        return [None if t is None else torch.zeros_like(t) for t in inputs]
    wanted = [t for t in inputs if t is not None]
    grads = [d.double() for _, d in pairs]
    found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, grads, allow_unused=True))
    return [None if t is None else next(found) for t in inputs]


def fuzz_product(rng):
    M, K, N = (rng.choice([0, 1, 2, 5, 9, 70, 300, 400]) for _ in range(3))
    dtype = rng.choice([torch.float32, torch.float64])
    arguments = {
        "a": torch.randn(M, K).to(dtype),
        "b": torch.randn(K, N).to(dtype),
        "start": torch.randn(M, N).to(dtype) if rng.random() < 0.5 else None,
    }
    changes = [change_one(arguments, rng) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    names = list(arguments)
    output = call(torch.ops.bptt.matrix_product, names, arguments, [n for n, _ in changes])
    if output is None:
        assert not all(same for _, same in changes), "refused a valid call"
        return
    a, b, start = (None if v is None else v.double() for v in arguments.values())
    if not any((v.abs() > 1e4).any() for v in (a, b, start) if v is not None):
        assert_close([output], [a @ b + (0 if start is None else start)], output.dtype)


def fuzz_plan(rng):
    cell = rng.choice([*CELLS, "", "none"])
    sizes = [rng.choice([0, 1, 2, 3, 100, 2**31, 2**62, -1]) for _ in range(rng.choice([4, 5, 5]))]
    try:
        plan = torch.ops.bptt.cpu_plan(cell, rng.choice([0, 2, 4, 8, -1]), sizes)
    except EXCEPTIONS as error:
        assert re.search("cell|sizes|element_size", str(error)), error
    else:
        assert len(plan) == 4 and min(plan) >= 1


# --- the layers ---------------------------------------------------------------------------------


def fuzz_layers(rng):
    kind = rng.choice(["RNN", "GRU", "LSTM"])
    options = {
        "num_layers": rng.choice([1, 2]),
        "bidirectional": rng.random() < 0.5,
        "batch_first": rng.random() < 0.5,
        "bias": rng.random() < 0.7,
    }
    H, I, dtype = rng.randint(1, 9), rng.randint(1, 5), rng.choice(DTYPES)
    if kind == "LSTM":
        options.update(peephole=rng.random() < 0.3, proj_size=rng.choice([0, 0, H - 1]))
    layer = getattr(bptt, kind)(I, H, dtype=dtype, **options)
    T, B = rng.choice([0, 1, 2, 5]), rng.choice([0, 1, 2, 5])
    shape = (B, T) if layer.batch_first else (T, B)
    rows = layer.num_layers * (1 + layer.bidirectional)
    h0 = torch.randn(rows, B, layer.proj_size or H, dtype=dtype)
    hx = h0 if kind != "LSTM" else (h0, torch.randn(rows, B, H, dtype=dtype))
    arguments = {
        "input": torch.randn(*shape, I, dtype=dtype, requires_grad=rng.random() < 0.5),
        "hx": hx if rng.random() < 0.5 else None,
        "lengths": torch.randint(0, T + 1, (B,)) if rng.random() < 0.4 else None,
        "resets": torch.rand(shape) < 0.3 if rng.random() < 0.4 else None,
    }
    for _ in range(rng.choice([0, 1, 1, 2])):
        change_call(arguments, layer, rng)
    results, error = [], None
    for backend in ("cpu", "reference"):
        try:
            with bptt.backend(backend):
                output, final = layer(**arguments)
        except EXCEPTIONS as raised:
            error = raised
            continue
        results.append((output, *(final if isinstance(final, tuple) else (final,))))
    if error is not None and len(results) == 1:
        # The reference takes devices and dtypes that the engine refuses by name.
        assert re.search("forced backend 'cpu'", str(error)) or "cpu:" in str(error), error
        return
    if error is not None:
        named = "input|hx|hidden|lengths|resets|weight|bias|sequence length|Input|dtype"
        assert re.search(named, str(error)), f"no name in: {error!r}"
        return
    time_axis = int(layer.batch_first and arguments["input"].dim() == 3)
    assert arguments["input"].shape[time_axis] > 0, "took a sequence of no steps"
    tensors = [t for t in (arguments["input"], *_flat(arguments["hx"])) if _floating(t)]
    if all((t.abs() < 1e4).all() for t in [*tensors, *layer.parameters()]):
        assert_close(results[0], results[1], dtype)
    if arguments["input"].requires_grad:
        results[0][0].sum().backward()


def change_call(arguments, layer, rng):
    name = rng.choice([n for n, v in arguments.items() if v is not None] + ["weight"])
    if name == "weight":
        weight = rng.choice(list(layer.parameters()))
        change = rng.choice([special, spread, expand, resize, redtype])
        weight.data = change(weight.data, rng) if change is not redtype else weight.data.double()
        return
    value = arguments[name]
    if rng.random() < 0.1:
        arguments[name] = rng.choice([5, "x", [1.0], (), None, torch.tensor(3)])
    elif name == "lengths" and isinstance(value, torch.Tensor) and rng.random() < 0.5:
        arguments[name] = value + rng.choice([-1, 1, 10**9, -(2**62)])
    elif isinstance(value, tuple):
        place = rng.randrange(len(value)) if value else 0
        parts = [rng.choice(CHANGES)(v, rng) if k == place else v for k, v in enumerate(value)]
        arguments[name] = tuple(parts) if rng.random() < 0.9 else parts[:1]
    elif isinstance(value, torch.Tensor):
        change = rng.choice([*CHANGES, lambda t, _: t.to("meta")])
        arguments[name] = value if value.is_meta else change(value.detach(), rng)


def _flat(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


# --- the process --------------------------------------------------------------------------------

TARGETS = {
    "forward": fuzz_forward,
    "backward": fuzz_backward,
    "short": fuzz_short,
    "plain": fuzz_plain,
    "product": fuzz_product,
    "plan": fuzz_plan,
    "layers": fuzz_layers,
}


def main(target, seed, count):
    faulthandler.enable()
    failures = 0
    for k in range(count):
        torch.manual_seed(k)
        # Seeded by text, so that a case can be repeated alone.
        rng = random.Random(f"{target} {seed} {k}")
        torch.set_num_threads(rng.choice([1, 2]))
        try:
            TARGETS[target](rng)
        except Exception:
            failures += 1
            if failures <= 5:
                print(f"case {k}", traceback.format_exc(limit=-4), sep="\n")
    print(f"{count} cases, {failures} failures")
    return failures > 0


@pytest.mark.parametrize("target", ["forward", "backward", "short", "plain", "product", "layers"])
def test_no_input_crashes_or_is_computed_wrongly(target):
    environment = dict(os.environ, BPTT_POISON="1", MALLOC_PERTURB_="165", OMP_NUM_THREADS="2")
    command = [sys.executable, "-W", "ignore", __file__, target, "0", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert f"{CASES} cases, 0 failures" in done.stdout


@pytest.mark.parametrize("layer", [bptt.RNN, bptt.GRU, bptt.LSTM])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_weights_that_are_not_finite_pass_through_as_nan(layer, value, backend):
    layer = layer(3, 4)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(value)
    x = torch.zeros(5, 2, 3)  # zero times infinity, too, is NaN
    with bptt.backend(backend):
        output, final = layer(x)
    final = final[0] if isinstance(final, tuple) else final
    assert output.isnan().all() and final.isnan().all()
    output.sum().backward()
    assert layer.weight_hh_l0.grad.isnan().any()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
