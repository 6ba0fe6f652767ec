"""Kernels for the tests of the interpreter: right ones, and ones with a planted fault."""

import triton
import triton.language as tl

from bptt.kernels.meeting import meet


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


@triton.jit
def pass_around(p_values, counter, rounds, MEET: tl.constexpr):
    """Each program adds one to what its neighbour had after the round before."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    for k in range(rounds):
        now, before = (k % 2) * programs, ((k + 1) % 2) * programs
        neighbour = (program + 1) % programs
        value = tl.load(p_values + before + neighbour)
        tl.store(p_values + now + program, value + 1)
        if MEET:
            meet(counter, k + 1)


@triton.jit
def wait_for_nobody(counter):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < 1:
        pass
