"""Are outputs and gradients of the cpu backend those of the float64 reference, and of torch.nn?

The bounds for each dtype stand in `cases.assert_close`.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt import _dev
from bptt.recurrence import gradients, ops, reference
from cases import ALL_CELLS, BF16, DTYPES, F16, F32, F64, LSTMS, Case, call, check, make_inputs, run

MASKS = ("none", "lengths", "resets", "both")


def names(dtype):
    return str(dtype).removeprefix("torch.")


# --- against the reference ------------------------------------------------------------------------


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_cell_direction_mask_and_dtype(cell, dtype, directions, masks):
    check(Case(cell, directions=directions, masks=masks), dtype)


@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_float16_is_stored_and_computed_in_float32(cell, masks):
    proj = 5 if cell in LSTMS else 0
    check(Case(cell, directions=2, layers=2, masks=masks, proj=proj, strided=True), F16)
    check(Case(cell, masks=masks, recompute=True, hidden_gradients=True), F16)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("proj", [1, 3, 8])
@pytest.mark.parametrize("cell", LSTMS)
def test_projection(cell, proj, dtype, masks):
    check(Case(cell, directions=2, proj=proj, masks=masks), dtype)


@pytest.mark.parametrize("cell", ALL_CELLS)
@pytest.mark.parametrize(
    "change",
    [
        {"bias": False},
        {"states": False},
        {"batch_first": True, "masks": "both"},
        {"strided": True, "masks": "both"},
        {"layers": 2, "directions": 2, "masks": "both"},
        {"layers": 2, "bias": False, "batch_first": True},
        {"steps": 1, "batch": 1, "inputs": 1, "hidden": 1},
        {"batch": 0},
        {"batch": 1, "masks": "lengths"},
    ],
    ids=lambda change: ",".join(f"{k}={v}" for k, v in change.items()),
)
def test_options_and_edges(cell, change):
    for dtype in (F64, F32):
        check(replace(Case(cell), **change), dtype)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_recompute(cell, dtype, masks):
    check(Case(cell, directions=2, layers=2, masks=masks, recompute=True), dtype)


@pytest.mark.parametrize(
    "change",
    [{"proj": 3, "masks": "both"}, {"bias": False, "states": False}, {"steps": 1}, {"batch": 0}],
    ids=lambda change: ",".join(change),
)
@pytest.mark.parametrize("cell", LSTMS)
def test_recompute_with_options_and_at_edges(cell, change):
    check(replace(Case(cell, directions=2, recompute=True), **change))


@pytest.mark.parametrize("cell", LSTMS)
def test_projection_in_two_strided_layers(cell):
    check(Case(cell, layers=2, directions=2, proj=4, masks="both", strided=True, batch_first=True))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_instruction_set(cell, dtype, isa, monkeypatch):
    if isa not in _dev.instruction_sets():
        pytest.skip(f"this machine or build has no {isa}")
    monkeypatch.setenv("BPTT_CPU_ISA", isa)
    assert torch.ops.bptt.cpu_instruction_set() == isa
    proj = 5 if cell in LSTMS else 0
    # 37 units: two full vectors and a rest of 5 in the widest.
    check(Case(cell, steps=4, batch=7, hidden=37, proj=proj, directions=2, masks="both"), dtype)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 2), (1, 7), (1, 16), (2, 1)])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_few_rows(cell, steps, batch, isa, monkeypatch):
    """In a step of up to eight rows the weights are not packed; of up to 64, if they are large."""
    if isa not in _dev.instruction_sets():
        pytest.skip(f"this machine or build has no {isa}")
    monkeypatch.setenv("BPTT_CPU_ISA", isa)
    proj = 19 if cell in LSTMS else 0
    small = Case(cell, steps=steps, batch=batch, hidden=37, inputs=21, proj=proj, directions=2)
    for dtype in DTYPES:
        check(replace(small, masks="both"), dtype)
    check(replace(small, hidden=150, inputs=130), F32)  # 16 rows are few
    if batch == 16:
        check(replace(small, batch=61, hidden=321, inputs=290, proj=0, directions=1), F32)


@st.composite
def sizes(draw):
    """T, B, I and H, each from 1 to 129, whose product is bounded so that examples stay short."""
    budget, drawn = 1 << 17, {}
    for name in draw(st.permutations(["steps", "batch", "inputs", "hidden"])):
        drawn[name] = draw(st.integers(1, min(129, budget)))
        budget = max(1, budget // drawn[name])
    return drawn


@st.composite
def problems(draw):
    cell = draw(st.sampled_from(ALL_CELLS))
    case = Case(
        cell,
        **draw(sizes()),
        directions=draw(st.sampled_from([1, 2])),
        masks=draw(st.sampled_from(MASKS)),
        states=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        strided=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    if cell in LSTMS and case.hidden > 1 and draw(st.booleans()):
        case = replace(case, proj=draw(st.integers(1, case.hidden - 1)))
    # A relu without bias has no way to stay clear of its kink: float64 only, below.
    if cell != "rnn_relu":
        case = replace(case, bias=draw(st.booleans()))
    return case


@given(problems(), st.sampled_from([1, 2]), st.booleans())
@example(Case("lstm", steps=1, batch=1, hidden=129, directions=2), 1, False)
def test_any_problem_in_float64(case, layers, bias):
    check(replace(case, layers=layers, bias=bias))


@given(problems())
def test_any_problem_in_float32(case):
    check(case, F32)


@settings(max_examples=30)
@given(problems())
def test_any_problem_in_bfloat16(case):
    check(case, BF16)


@pytest.mark.parametrize("multiplies", [False, True])
def test_bfloat16_gradients_with_instructions_for_it_and_without(monkeypatch, multiplies):
    monkeypatch.setattr(gradients, "_cpu_multiplies_bfloat16", lambda: multiplies)
    layer = bptt.LSTM(9, 17, bidirectional=True)
    x = torch.randn(12, 5, 9)

    def answers(dtype):
        copy, leaf = deepcopy(layer).to(dtype), x.to(torch.bfloat16).to(dtype).requires_grad_()
        with torch.no_grad():
            for to, weight in zip(copy.parameters(), layer.parameters(), strict=True):
                to.copy_(weight.to(torch.bfloat16))
        y, _ = copy(leaf)
        return torch.autograd.grad(y.sum(), [leaf, *copy.parameters()])

    for got, exact in zip(answers(torch.bfloat16), answers(torch.float64), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - exact).norm() < 0.02 * exact.norm()


# --- what lengths, resets and directions mean, without the reference ------------------------------


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_lengths_give_what_each_sequence_gives_alone(cell, directions):
    case = Case(cell, steps=7, batch=5, directions=directions, masks="lengths")
    inputs = make_inputs(case)
    lengths = inputs["lengths"].tolist()
    assert 0 in lengths and case.steps in lengths and lengths != sorted(lengths)
    with bptt.backend("cpu"):
        y, h_n, c_n = call(case, inputs)
        for b, length in enumerate(lengths):
            row = slice(b, b + 1)
            assert (y[length:, b] == 0).all()
            if length == 0:
                assert torch.equal(h_n[:, b], inputs["h0"][:, b])
                assert c_n is None or torch.equal(c_n[:, b], inputs["c0"][:, b])
                continue
            alone = {**inputs, "lengths": None, "x": inputs["x"][:length, row]}
            for name in ("h0", "c0"):
                alone[name] = None if inputs[name] is None else inputs[name][:, row]
            y_alone, h_alone, c_alone = call(case, alone)
            torch.testing.assert_close(y[:length, row], y_alone, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(h_n[:, row], h_alone, rtol=1e-12, atol=1e-12)
            if c_n is not None:
                torch.testing.assert_close(c_n[:, row], c_alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_a_reset_starts_a_sequence_anew(cell):
    case = Case(cell, steps=7, batch=3, directions=2, states=False)
    inputs = make_inputs(case)
    cut = 3
    forward, backward = torch.zeros(2, case.steps, case.batch, dtype=torch.bool)
    forward[cut] = backward[cut - 1] = True
    with bptt.backend("cpu"):
        first, last = ({**inputs, "x": x} for x in (inputs["x"][:cut], inputs["x"][cut:]))
        pieces = torch.cat([call(case, first)[0], call(case, last)[0]])
        ahead = call(case, {**inputs, "resets": forward})[0]
        behind = call(case, {**inputs, "resets": backward})[0]
    size = case.state
    torch.testing.assert_close(ahead[..., :size], pieces[..., :size], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(behind[..., size:], pieces[..., size:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_any_number_of_directions_either_way(cell):
    spec, t, b, i, h = bptt.recurrence.cells.CELLS[cell], 4, 3, 2, 5
    reverse = (True, False, True)
    d, rows = len(reverse), len(spec.gates) * h
    x = torch.randn(t, b, i, dtype=F64)
    w_ih, w_hh = torch.randn(d, rows, i, dtype=F64), torch.randn(d, rows, h, dtype=F64)
    b_ih, b_hh = torch.randn(2, d, rows, dtype=F64)
    peephole = torch.randn(d, 3 * h, dtype=F64) if spec.unit_weights else None
    h0 = torch.randn(d, b, h, dtype=F64)
    c0 = torch.randn(d, b, h, dtype=F64) if spec.has_cell_state else None
    with bptt.backend("cpu"):
        ours = ops.recurrence(
            cell, x, w_ih, w_hh, b_ih, b_hh, None, peephole, h0, c0, None, None, reverse
        )
    gates_x = torch.einsum("tbi,dgi->tbdg", x, w_ih) + b_ih
    gates_x = gates_x.unflatten(-1, (-1, h))
    theirs = reference.recurrence(
        cell, gates_x, w_hh, b_hh, None, peephole, h0, c0, None, None, None, reverse
    )
    for left, right in zip(ours, theirs, strict=True):
        if right is not None:
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


# --- against torch.nn -----------------------------------------------------------------------------

LAYERS = {
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
}


def torch_nn(case, inputs, dtype):
    """Outputs and gradients of torch.nn's layer on the same tensors, named as `run` names them."""
    cls, options = LAYERS[case.cell]
    options = {**options, "proj_size": case.proj} if case.proj else options
    layer = cls(
        case.inputs,
        case.hidden,
        case.layers,
        bias=case.bias,
        batch_first=case.batch_first,
        bidirectional=case.directions == 2,
        dtype=dtype,
        **options,
    )
    weights = [name for name in inputs if name.partition("_l")[2][:1].isdigit()]
    with torch.no_grad():
        for parameter, name in zip(layer.parameters(), weights, strict=True):
            parameter.copy_(inputs[name])
    x = inputs["x"].to(dtype).requires_grad_()
    states = [n for n in ("h0", "c0") if inputs[n] is not None]
    hx = [inputs[n].to(dtype).requires_grad_() for n in states]
    given = None if not hx else tuple(hx) if case.cell == "lstm" else hx[0]
    y, final = layer(x.transpose(0, 1) if case.batch_first else x, given)
    y = y.transpose(0, 1) if case.batch_first else y
    final = final if isinstance(final, tuple) else (final,)
    outputs = dict(zip(("y", "h_n", "c_n"), (y, *final), strict=False))
    loss = sum((t * inputs[f"loss_{n}"].to(dtype)).sum() for n, t in outputs.items())
    grads = torch.autograd.grad(loss, [x, *hx, *layer.parameters()])
    answer = {n: t.detach().to(F64) for n, t in outputs.items()}
    answer.update({f"d_{n}": g.to(F64) for n, g in zip(["x", *states, *weights], grads)})  # noqa: B905
    return answer


CHANGES = {
    "plain": {},
    "no bias or state": {"bias": False, "states": False},
    "batch first": {"batch_first": True, "hidden": 33},
}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("cell", "change"),
    [(cell, change) for cell in LAYERS for change in CHANGES.values()] + [("lstm", {"proj": 4})],
)
def test_equal_to_torch_nn_on_the_same_weights(cell, directions, layers, change):
    case = replace(Case(cell, directions=directions, layers=layers), **change)
    inputs = make_inputs(case)
    ours, theirs = run(case, inputs, "cpu"), torch_nn(case, inputs, F64)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-11, atol=1e-12, msg=name)


# --- long sequences -------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_seventy_thousand_steps(cell):
    case = Case(cell, steps=70_000, batch=1, inputs=1, hidden=2)
    inputs = make_inputs(case)
    # In pieces short enough for what the other tests have shown to be right.
    outputs, state = [], (inputs["h0"], inputs["c0"])
    x = inputs["x"].clone().requires_grad_()
    with bptt.backend("cpu"):
        y, *final = call(case, {**inputs, "x": x})
        (dx,) = torch.autograd.grad((y * inputs["loss_y"]).sum(), x)
        for piece in x.split(1000):
            y_piece, *state = call(case, {**inputs, "x": piece, "h0": state[0], "c0": state[1]})
            outputs.append(y_piece)
        y_pieces = torch.cat(outputs)
        (dx_pieces,) = torch.autograd.grad((y_pieces * inputs["loss_y"]).sum(), x)
    assert y.isfinite().all()
    torch.testing.assert_close(y, y_pieces, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(final[0], state[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dx, dx_pieces, rtol=1e-12, atol=1e-12)
