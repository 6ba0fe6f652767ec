"""Activations by name, and their gradients written in their results: see `csrc/cells/activation.h`.

The names are those of `bptt.recurrence.control.ACTIVATIONS`, and compile-time constants.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Of the magnitude, so that exp never overflows; near zero the quotient loses its digits to
    # cancellation, and the odd Taylor polynomial has them.
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    large = (1.0 - e) / (1.0 + e)
    s = x * x
    small = a * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315))))
    magnitude = tl.where(a < 0.1, small, large)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def log_sigmoid(x):
    return tl.where(x < 0, x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def log_of_one_plus(x):
    """log(1 + x); what rounding takes from the sum is given back in first order."""
    u = 1.0 + x
    lost = x - (u - 1.0)
    return tl.where(u == x, tl.log(u), tl.log(u) + tl.where(u == 0, 0.0, lost / u))


@triton.jit
def exponential_minus_one(x):
    # Near zero the difference loses its digits to cancellation; with y = tanh(x / 2) it does not.
    y = tanh(0.5 * x)
    return tl.where(tl.abs(x) < 1, 2.0 * y / (1.0 - y), tl.exp(x) - 1.0)


@triton.jit
def limited(x, least, most):
    """x within bounds; a NaN passes."""
    return tl.where(x < least, least, tl.where(x > most, most, x))


@triton.jit
def limited_backward(y, dy, least, most):
    """The gradient of `limited`, whose result is y; none at the bounds."""
    return tl.where((y > least) & (y < most), dy, 0.0)


@triton.jit
def activate(x, NAME: tl.constexpr):
    y = x
    if NAME == "sigmoid":
        y = sigmoid(x)
    elif NAME == "hard_sigmoid":
        y = limited((x + 3.0) / 6.0, 0.0, 1.0)
    elif NAME == "tanh":
        y = tanh(x)
    elif NAME == "hard_tanh":
        y = limited(x, -1.0, 1.0)
    elif NAME == "relu":
        # A NaN is not below zero and passes.
        y = tl.where(x < 0, 0.0, x)
    elif NAME == "softsign":
        y = x / (1.0 + tl.abs(x))
    else:
        tl.static_assert(NAME == "identity")
    return y


@triton.jit
def activate_backward(y, dy, NAME: tl.constexpr):
    dx = dy
    if NAME == "sigmoid":
        dx = dy * y * (1.0 - y)
    elif NAME == "hard_sigmoid":
        dx = limited_backward(y, dy / 6.0, 0.0, 1.0)
    elif NAME == "tanh":
        dx = dy * (1.0 - y * y)
    elif NAME == "hard_tanh":
        dx = limited_backward(y, dy, -1.0, 1.0)
    elif NAME == "relu":
        dx = tl.where(y > 0, dy, 0.0)
    elif NAME == "softsign":
        rest = 1.0 - tl.abs(y)
        dx = dy * rest * rest
    else:
        tl.static_assert(NAME == "identity")
    return dx
