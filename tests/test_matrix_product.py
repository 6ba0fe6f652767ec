"""Is `bptt::matrix_product`, the gradients after the loop, start + a @ b for every a and b?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import bptt  # noqa: F401  registers the op
from cases import F32, F64

product = torch.ops.bptt.matrix_product
BOUNDS = {F32: 2**-23, F64: 2**-52}
# Sizes on either side of the engine's blocks: 64 columns of a panel, 256 rows, 384 of depth.
SIZES = [0, 1, 2, 7, 15, 17, 63, 65, 130, 255, 257, 300, 383, 385, 800]
LAYOUTS = ["dense", "transposed", "wide", "gaps", "one row"]


def matrix(rows, columns, dtype, layout):
    """A random matrix behind strides of `layout`."""
    if layout == "transposed":
        return torch.randn(columns, rows, dtype=dtype).t()
    if layout == "wide":  # a plane of [rows, D, columns]
        return torch.randn(rows, 3, columns, dtype=dtype)[:, 1]
    if layout == "gaps":  # no axis dense
        return torch.randn(rows, 2 * columns, dtype=dtype)[:, ::2]
    if layout == "one row":
        return torch.randn(1, columns, dtype=dtype).expand(rows, columns)
    return torch.randn(rows, columns, dtype=dtype)


def assert_product(a, b, start=None):
    got = product(a, b, start)
    wide = a.double() @ b.double() + (0 if start is None else start.double())
    # The usual bound of a sum in any order: depth times the resolution times the sum of magnitudes.
    size = a.double().abs() @ b.double().abs() + (0 if start is None else start.double().abs())
    bound = (a.shape[1] + 2) * BOUNDS[a.dtype] * size
    assert got.dtype == a.dtype and got.shape == wide.shape and got.is_contiguous()
    assert not got.isnan().any()
    assert ((got.double() - wide).abs() <= bound).all()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_sizes_and_strides(data):
    rows, depth, columns = (data.draw(st.sampled_from(SIZES)) for _ in range(3))
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    dtype = data.draw(st.sampled_from([F32, F64]))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    a, b = matrix(rows, depth, dtype, layouts[0]), matrix(depth, columns, dtype, layouts[1])
    start = matrix(rows, columns, dtype, layouts[2])
    assert_product(a, b)
    assert_product(a, b, start)


@pytest.mark.parametrize("layout", ["dense", "transposed"])
@pytest.mark.parametrize("depth", [1, 7, 65])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_large_results_of_little_depth(dtype, depth, layout):
    """From 8 MB on they are written past the caches."""
    a, b = matrix(2055, depth, dtype, layout), matrix(depth, 1040, dtype, "dense")
    assert_product(a, b)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_mask_multiplies_the_rows_of_b_in_turns(data):
    """To the bit what the product of the masked b is."""
    rows, depth, columns = (data.draw(st.sampled_from(SIZES)) for _ in range(3))
    period = data.draw(st.sampled_from([1, 2, 5, 32, 400, 1000]))
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    dtype = data.draw(st.sampled_from([F32, F64]))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    a, b = matrix(rows, depth, dtype, layouts[0]), matrix(depth, columns, dtype, layouts[1])
    mask = matrix(period, columns, dtype, layouts[2])
    start = data.draw(st.sampled_from([None, matrix(rows, columns, dtype, "dense")]))
    got = torch.ops.bptt.masked_product(a, b, start, mask)
    expected = product(a, b * mask[torch.arange(depth) % period], start)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(2, 4, dtype=F64), torch.ones(4)])
def test_a_mask_of_another_shape_or_dtype(mask):
    with pytest.raises(RuntimeError, match="masked_product: mask must"):
        torch.ops.bptt.masked_product(torch.ones(5, 6), torch.ones(6, 4), None, mask)
    with pytest.raises(RuntimeError, match="masked_product: mask must"):
        torch.ops.bptt.masked_product(torch.ones(5, 6), torch.ones(6, 4), None, torch.ones(0, 4))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_exact_where_every_sum_is(dtype):
    a, b = (torch.randint(-8, 9, s).to(dtype) for s in ((300, 801), (801, 131)))
    start = torch.randint(-8, 9, (300, 131)).to(dtype)
    for left in (a, a.t().contiguous().t()):
        assert torch.equal(product(left, b, start), (a.long() @ b.long() + start.long()).to(dtype))


@pytest.mark.parametrize("shape", [(1, 3200, 512), (512, 3200, 2048), (2048, 17, 9), (70, 900, 70)])
@pytest.mark.parametrize("layout", ["dense", "transposed"])
def test_threads_change_no_bit(shape, layout):
    rows, depth, columns = shape
    a, b = matrix(rows, depth, F32, layout), matrix(depth, columns, F32, "dense")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results += [product(a, b, None) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_value_that_is_not_finite_stays_in_its_row_and_column():
    a, b = torch.randn(40, 50), torch.randn(50, 70)
    a[3, 4], b[5, 6] = float("nan"), float("inf")
    finite = product(a, b, None).isfinite()
    expected = torch.ones(40, 70, dtype=torch.bool)
    expected[3], expected[:, 6] = False, False
    assert torch.equal(finite, expected)


@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        (((2, 3, 1), (3, 4), None), (F32, F32), r"a must have 2 dimensions, got shape \[2, 3, 1\]"),
        (((2, 3), (3,), None), (F32, F32), r"b must have 2 dimensions, got shape \[3\]"),
        (((2, 3), (4, 5), None), (F32, F32), r"b must be \[K, N\] = \[3, 5\], got \[4, 5\]"),
        (((2, 3), (3, 4), (4,)), (F32, F32), r"start must be \[M, N\] = \[2, 4\], got \[4\]"),
        (((2, 3), (3, 4), None), (F32, F64), r"b must have dtype Float, got Double"),
        (((2, 3), (3, 4), None), (torch.float16, F32), r"a must have dtype float32 or float64"),
    ],
)
def test_bad_input(shapes, dtypes, message):
    a, b, start = (None if s is None else torch.randn(s) for s in shapes)
    with pytest.raises(RuntimeError, match=message):
        product(a.to(dtypes[0]), b.to(dtypes[1]), start)


@pytest.mark.parametrize("start", [None, torch.randn(5, 4)])
def test_opcheck(start):
    opcheck(product, (torch.randn(5, 3), torch.randn(3, 4), start))


def test_gradient_of_the_op_itself():
    a, b, start = (torch.randn(s, dtype=F64).requires_grad_() for s in ((5, 3), (3, 4), (5, 4)))
    assert torch.autograd.gradcheck(product, (a, b, start))
    assert torch.autograd.gradgradcheck(product, (a, b, start))
