"""Kernels for the tests of the interpreter: right ones, and ones with a planted fault."""

import triton
import triton.language as tl


@triton.jit
def bf16_product(p_a, p_b, p_out, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(p_a + i * N + j), tl.load(p_b + i * N + j))
    tl.store(p_out + i * N + j, product)


@triton.jit
def cast(p_in, p_out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(p_out + i, tl.load(p_in + i).to(p_out.dtype.element_ty))


@triton.jit
def bf16_sum(p_in, p_out, N: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(p_in + i)
    tl.store(p_out + i, value + value)


@triton.jit
def copy(p_in, p_out, loads, stores, N: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(p_in + i, mask=i < loads, other=0.0)
    tl.store(p_out + i, value, mask=i < stores)


@triton.jit
def who_came_last(p_out):
    tl.store(p_out, tl.program_id(0))
