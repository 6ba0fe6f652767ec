"""What does `bptt.cell` refuse, and in what words?"""

import pytest
import torch
from torch.nn import functional as F

import bptt
import own_cells
from bptt.custom import native
from bptt.custom.program import CellError
from bptt.recurrence.cells import CELLS

OUTSIDE, MATRIX = torch.ones(3), torch.eye(3, dtype=torch.float64)


def branch(gates_x, gates_h, h):
    if h.sum() > 0:
        return h
    return gates_x[0]


def read(gates_x, gates_h, h):
    return h * h[0].item()


def reduced(gates_x, gates_h, h):
    return torch.tanh(gates_x[0]) + h.mean()


def shifted(gates_x, gates_h, h):
    return torch.roll(h, 1) + gates_x[0]


def drawn(gates_x, gates_h, h):
    return F.dropout(h, 0.5) + gates_x[0]


def in_place(gates_x, gates_h, h):
    h += gates_x[0]
    return h


def multiplied(gates_x, gates_h, h):
    return torch.mv(MATRIX, h) + gates_x[0]


def unknown(gates_x, gates_h, h):
    return torch.lgamma(h) + gates_x[0]


def held(gates_x, gates_h, h):
    return h + OUTSIDE * gates_x[0]


def two_states(gates_x, gates_h, h):
    return h, h


def no_tensor(gates_x, gates_h, h):
    return 1.0


def another_shape(gates_x, gates_h, h):
    return h.sum().exp() * 1.0


def no_state(gates_x, gates_h):
    return gates_x[0]


def anything(gates_x, gates_h, h, *more):
    return h


def broken(gates_x, gates_h, h):
    return gates_x[1] + h


def of_integers(gates_x, gates_h, h):
    return h * gates_x[0].int()


WORDS = {
    branch: ("line", "if h.sum() > 0", "sees one unit at a time"),
    read: ("return h * h[0].item()", "nothing that a step can do"),
    reduced: ("h.mean()", "sees one unit at a time", "compile_cell"),
    shifted: ("torch.roll(h, 1)", "elementwise"),
    drawn: ("F.dropout", "random number", "recurrent_dropout"),
    in_place: ("h += gates_x[0]", "x = x + 1"),
    multiplied: ("torch.mv(MATRIX, h)", "product of matrices", "gates_h"),
    unknown: ("torch.lgamma(h)", "lgamma"),
    held: ("OUTSIDE", "keyword-only argument"),
    two_states: ("must return its states", "1 of them, got 2"),
    no_tensor: ("state 0 must be a tensor, got float",),
    another_shape: ("sees one unit at a time",),
    no_state: ("1 to 4 states", "def cell(gates_x, gates_h, h"),
    anything: ("*more",),
    broken: ("gates_x[1] + h", "index out of range"),
    of_integers: ("floating point",),
}


@pytest.mark.parametrize("function", WORDS, ids=lambda f: f.__name__)
def test_says_where_and_what_instead(function):
    before = set(CELLS)
    with pytest.raises(CellError) as error:
        bptt.cell(gates=1)(function)
    assert issubclass(CellError, ValueError)
    for words in (function.__name__, *WORDS[function]):
        assert words in str(error.value)
    assert set(CELLS) == before


@pytest.mark.parametrize("gates", [0, 5, ()])
def test_numbers_of_gates(gates):
    with pytest.raises(ValueError, match="gates must be 1 to 4"):
        bptt.cell(gates=gates)


@pytest.mark.parametrize("gates", [True, 2.0, "i", None])
def test_kinds_of_gates(gates):
    with pytest.raises(TypeError, match="gates must be an int or names"):
        bptt.cell(gates=gates)


def test_products():
    with pytest.raises(ValueError, match="product must be one of 'dense', 'diagonal', 'none'"):
        bptt.cell(1, product="sparse")
    with pytest.raises(CellError, match=r"it is `def cell\(gates_x, h, "):
        bptt.cell(1, product="none")(lambda gates_x: gates_x[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simple_recurrent_unit", {"recurrent_dropout": 0.1}),
        ("simple_recurrent_unit", {"weight_drop": 0.1}),
        ("simple_recurrent_unit", {"num_heads": 2}),
        ("diagonal_lstm", {"num_heads": 2}),
    ],
)
def test_options_of_products_need_one(name, options):
    with own_cells.defined() as own, pytest.raises(ValueError, match=next(iter(options))):
        bptt.Recurrent(own[name], 3, 4, **options)


def test_decorates_functions_alone():
    with pytest.raises(TypeError, match="decorates a function"):
        bptt.cell(gates=1)(3)
    with pytest.raises(TypeError, match=r"decorated with bptt\.cell"):
        bptt.Recurrent(own_cells.gru, 3, 4)


@pytest.mark.parametrize(
    "options",
    [{"activation": "relu"}, {"gate_activation": "relu"}, {"cell_clip": 1.0}, {"layer_norm": True}],
    ids=lambda o: next(iter(o)),
)
def test_what_stands_in_the_cell_is_no_option(options):
    with own_cells.defined() as own, pytest.raises(ValueError, match=next(iter(options))):
        bptt.Recurrent(own["lstm_peephole"], 3, 4, **options)


def test_without_a_compiler_the_reference_loop_runs_and_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    native.compiler.cache_clear()
    monkeypatch.setattr(native, "_loaded", {})
    x = torch.randn(5, 2, 3)
    with own_cells.defined() as own:
        layer = bptt.Recurrent(own["gru"], 3, 4)
        with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler.*install g\\+\\+"):
            y, _ = layer(x)
        explained = bptt.explain(layer, x)
        assert explained.backend == "reference" and "no C++ compiler" in explained.reasons["cpu"]
        with bptt.backend("cpu"), pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
            layer(x)
        with bptt.backend("reference"):
            torch.testing.assert_close(y, layer(x)[0])
    native.compiler.cache_clear()


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("BPTT_CACHE", str(tmp_path))
    native.compiler.cache_clear()
    monkeypatch.setattr(native, "_loaded", {})
    with own_cells.defined() as own:
        layer = bptt.Recurrent(own["gru"], 3, 4)
        with pytest.warns(RuntimeWarning, match="the compiler failed"):
            layer(torch.randn(5, 2, 3))
    assert not list(tmp_path.glob("*.so"))
    native.compiler.cache_clear()


def test_a_library_that_holds_no_cell(tmp_path):
    path = tmp_path / "none.so"
    path.write_bytes(b"no library")
    with pytest.raises(RuntimeError, match="load_cell"):
        torch.ops.bptt.load_cell(str(path))
