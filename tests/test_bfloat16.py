"""Are products of bfloat16, by whatever this processor has for them, those of the reference?

A machine without instructions for them has "plain", which takes the same way through the engine:
pairs of numbers, packed panels, rows that become pairs.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bptt
from bptt import _dev
from cases import ALL_CELLS, BF16, LSTMS, Case, check

KINDS = _dev.dots()  # "amx", "avx512_bf16" where this processor has them, and "plain"
# More than a run of pairs, of rows that become pairs, and of rows of a product.
LARGE = Case(steps=3, batch=139, inputs=34, hidden=37)


def use(kind, monkeypatch):
    monkeypatch.setenv("BPTT_CPU_BF16", kind)
    assert torch.ops.bptt.cpu_bfloat16_products() == kind


def words(numbers: torch.Tensor) -> np.ndarray:
    """Pairs along the last axis."""
    return numbers.to(BF16).view(torch.int32).numpy().view(np.uint32)


@pytest.mark.parametrize("width", [16, 32, 48, 64])
@pytest.mark.parametrize("height", [1, 3, 16, 17, 31, 32])
@pytest.mark.parametrize("pairs", [16, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_pairs(kind, pairs, height, width):
    rows, columns = torch.randn(height, 2 * pairs), torch.randn(width, 2 * pairs)
    panel = np.ascontiguousarray(words(columns).T)
    got = torch.from_numpy(_dev.dot_products(kind, words(rows), panel))
    exact = rows.to(BF16).double() @ columns.to(BF16).double().T
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    if kind == "amx":  # "plain" says what a tile register does
        assert got.equal(torch.from_numpy(_dev.dot_products("plain", words(rows), panel)))


@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_cell(cell, kind, masks, monkeypatch):
    use(kind, monkeypatch)
    proj = 21 if cell in LSTMS else 0
    case = Case(cell, steps=4, batch=17, inputs=7, hidden=37, directions=2, layers=2, masks=masks)
    check(replace(case, proj=proj), BF16)
    check(replace(case, recompute=True, hidden_gradients=True), BF16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [{}, {"inputs": 33}, {"masks": "lengths"}, {"inputs": 1, "hidden": 1}, {"hidden": 130}],
    ids=lambda change: ",".join(f"{k}={v}" for k, v in change.items()),
)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_many_rows(cell, change, kind, monkeypatch):
    """An even input joins the hidden state in a product, an odd one has a product of its own."""
    use(kind, monkeypatch)
    check(replace(LARGE, cell=cell, **change), BF16)


@given(
    st.sampled_from(["gru", "gru_reset_before", "lstm"]),
    st.integers(2, 6),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from(["none", "lengths"]),
)
def test_any_size(cell, steps, batch, inputs, hidden, masks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPTT_CPU_BF16", "plain")
        check(Case(cell, steps, batch, inputs, hidden, masks=masks), BF16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", ["none", "lengths"])
def test_threads_change_no_bit(kind, masks, monkeypatch):
    use(kind, monkeypatch)
    layer = bptt.LSTM(34, 150).to(BF16)
    x = torch.randn(5, 150, 34).to(BF16)
    lengths = torch.randint(0, 6, (150,)) if masks == "lengths" else None
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            y, _ = layer(leaf, lengths=lengths)
            answers.append([y, *torch.autograd.grad(y.sum(), [leaf, *layer.parameters()])])
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(a.equal(b) for a, b in zip(answers[0], other, strict=True))


def test_products_differ_from_those_in_float32(monkeypatch):
    """Else a variable that nobody reads would pass all tests above."""
    layer, x = bptt.GRU(64, 64).to(BF16), torch.randn(20, 64, 64).to(BF16)
    answers = []
    for kind in ("plain", "float32"):
        monkeypatch.setenv("BPTT_CPU_BF16", kind)
        answers.append(layer(x)[0])
    assert not answers[0].equal(answers[1])
    assert (answers[0] - answers[1]).abs().max() < 0.03


def test_what_is_not_finite_stays_so(monkeypatch):
    monkeypatch.setenv("BPTT_CPU_BF16", "plain")
    layer, x = bptt.LSTM(3, 5).to(BF16), torch.randn(3, 40, 3).to(BF16)
    x[0, 7, 1], x[1, 9, 0] = float("nan"), float("inf")
    with torch.no_grad():
        y, _ = layer(x)
    assert y[:, 7].isnan().all()
    others = [b for b in range(40) if b not in (7, 9)]
    assert y[:, others].isfinite().all()


def test_explain_names_what_multiplies(monkeypatch):
    layer, x = bptt.LSTM(3, 5).to(BF16), torch.zeros(2, 4, 3, dtype=BF16)
    monkeypatch.setenv("BPTT_CPU_BF16", "plain")
    assert "bfloat16 products by plain" in str(bptt.explain(layer, x))
    monkeypatch.setenv("BPTT_CPU_BF16", "float32")
    assert "bfloat16 products" not in str(bptt.explain(layer, x))


def test_an_unknown_name_is_an_error(monkeypatch):
    monkeypatch.setenv("BPTT_CPU_BF16", "int8")
    layer = bptt.LSTM(3, 5)
    layer(torch.zeros(2, 4, 3))  # none of its business
    with pytest.raises(RuntimeError, match=r"BPTT_CPU_BF16.*amx, avx512_bf16, plain, float32"):
        layer.to(BF16)(torch.zeros(2, 4, 3, dtype=BF16))
