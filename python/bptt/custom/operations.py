"""What operations of PyTorch are in a `Program`: as they are, or made of several.

A builder gets what reads operands and the operation's arguments by name, and returns a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from .program import CellError, Program


class Reader(Protocol):
    """What builders need of `tracing._Recorder`.

    Attributes:
        name: of the function, for messages.
        made: the program that operations are added to.
    """

    name: str
    made: Program

    def value(self, given: Any) -> int:
        """The value of an operand: of a tensor, or of a number."""


SAME = {
    "neg": "neg", "exp": "exp", "log": "log", "log1p": "log1p", "expm1": "expm1", "tanh": "tanh",
    "sigmoid": "sigmoid", "abs": "abs", "sqrt": "sqrt", "erf": "erf", "sin": "sin", "cos": "cos",
    "mul": "mul", "maximum": "maximum", "minimum": "minimum", "pow": "pow",
    "logical_and": "and", "logical_or": "or", "logical_not": "not",
    "bitwise_and": "and", "bitwise_or": "or", "bitwise_not": "not",
    "lt": "less", "le": "less_equal", "eq": "equal", "where": "where",
}  # fmt: skip
AS_THEY_ARE = (
    "alias", "clone", "detach", "expand", "lift_fresh_copy", "lift_fresh", "positive",
)  # fmt: skip


def _scaled(reader: Reader, arguments: dict[str, Any]) -> int:
    """The second operand of add and sub, times alpha."""
    value = reader.value(arguments["other"])
    alpha = arguments.get("alpha", 1)
    return value if alpha == 1 else reader.made.add("mul", value, reader.value(alpha))


def _add(reader: Reader, arguments: dict[str, Any]) -> int:
    return reader.made.add("add", reader.value(arguments["self"]), _scaled(reader, arguments))


def _sub(reader: Reader, arguments: dict[str, Any]) -> int:
    return reader.made.add("sub", reader.value(arguments["self"]), _scaled(reader, arguments))


def _div(reader: Reader, arguments: dict[str, Any]) -> int:
    if arguments.get("rounding_mode") is not None:
        raise CellError(f"{reader.name}: a step cannot have a division that rounds")
    return reader.made.add("div", reader.value(arguments["self"]), reader.value(arguments["other"]))


def _swapped(op: str) -> Callable[[Reader, dict[str, Any]], int]:
    def build(reader: Reader, arguments: dict[str, Any]) -> int:
        a, b = reader.value(arguments["self"]), reader.value(arguments["other"])
        return reader.made.add(op, b, a)

    return build


def _ne(reader: Reader, arguments: dict[str, Any]) -> int:
    a, b = reader.value(arguments["self"]), reader.value(arguments["other"])
    return reader.made.add("not", reader.made.add("equal", a, b))


def _clamp(reader: Reader, arguments: dict[str, Any]) -> int:
    value = reader.value(arguments["self"])
    for op, bound in (("maximum", arguments.get("min")), ("minimum", arguments.get("max"))):
        if bound is not None:
            value = reader.made.add(op, value, reader.value(bound))
    return value


def _relu(reader: Reader, arguments: dict[str, Any]) -> int:
    return reader.made.add("maximum", reader.value(arguments["self"]), reader.made.constant(0))


def _filled(value: float | None, name: str = "") -> Callable[[Reader, dict[str, Any]], int]:
    def build(reader: Reader, arguments: dict[str, Any]) -> int:
        return reader.made.constant(arguments[name] if value is None else value)

    return build


def _over(constant: float, op: str) -> Callable[[Reader, dict[str, Any]], int]:
    """constant / op(x), or constant / x."""

    def build(reader: Reader, arguments: dict[str, Any]) -> int:
        value = reader.value(arguments["self"])
        value = reader.made.add(op, value) if op else value
        return reader.made.add("div", reader.made.constant(constant), value)

    return build


def _sign(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x, zero = reader.made.add, reader.value(arguments["self"]), reader.made.constant(0)
    return add("sub", add("less", zero, x), add("less", x, zero))


def _isnan(reader: Reader, arguments: dict[str, Any]) -> int:
    x = reader.value(arguments["self"])
    return reader.made.add("not", reader.made.add("equal", x, x))


def _hardtanh(reader: Reader, arguments: dict[str, Any]) -> int:
    bounds = {"min": arguments["min_val"], "max": arguments["max_val"]}
    return _clamp(reader, {"self": arguments["self"], **bounds})


def _to_copy(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x, dtype = reader.made.add, reader.value(arguments["self"]), arguments["dtype"]
    if dtype == torch.bool:
        return add("not", add("equal", x, reader.made.constant(0)))
    if dtype is not None and not dtype.is_floating_point:
        raise CellError(f"{reader.name}: a step computes in floating point, not in {dtype}")
    return x


def _leaky(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x = reader.made.add, reader.value(arguments["self"])
    slope = reader.value(arguments["negative_slope"])
    return add("where", add("less", reader.made.constant(0), x), x, add("mul", x, slope))


def _elu(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x = reader.made.add, reader.value(arguments["self"])
    alpha, scale, inner = (reader.value(arguments[n]) for n in ("alpha", "scale", "input_scale"))
    below = add("mul", add("mul", alpha, scale), add("expm1", add("mul", x, inner)))
    positive = add("less", reader.made.constant(0), x)
    return add("where", positive, add("mul", x, scale), below)


def _gelu(reader: Reader, arguments: dict[str, Any]) -> int:
    made, x = reader.made, reader.value(arguments["self"])
    add, constant = made.add, made.constant
    if arguments["approximate"] == "tanh":
        cube = add("mul", constant(0.044715), add("pow", x, constant(3)))
        inner = add("mul", constant((2 / torch.pi) ** 0.5), add("add", x, cube))
        half = add("tanh", inner)
    else:
        half = add("erf", add("mul", x, constant(0.5**0.5)))
    return add("mul", add("mul", x, constant(0.5)), add("add", constant(1), half))


def _silu(reader: Reader, arguments: dict[str, Any]) -> int:
    x = reader.value(arguments["self"])
    return reader.made.add("mul", x, reader.made.add("sigmoid", x))


def _silu_backward(reader: Reader, arguments: dict[str, Any]) -> int:
    add, one, x = reader.made.add, reader.made.constant(1), reader.value(arguments["self"])
    s = add("sigmoid", x)
    slope = add("mul", s, add("add", one, add("mul", x, add("sub", one, s))))
    return add("mul", reader.value(arguments["grad_output"]), slope)


def _softplus(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x, beta = reader.made.add, reader.value(arguments["self"]), reader.value(arguments["beta"])
    scaled = add("mul", x, beta)
    linear = add("less", reader.value(arguments["threshold"]), scaled)
    return add("where", linear, x, add("div", add("log1p", add("exp", scaled)), beta))


def _softplus_backward(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x, grad = reader.made.add, reader.value(arguments["self"]), arguments["grad_output"]
    scaled = add("mul", x, reader.value(arguments["beta"]))
    linear = add("less", reader.value(arguments["threshold"]), scaled)
    slope = add("where", linear, reader.made.constant(1), add("sigmoid", scaled))
    return add("mul", reader.value(grad), slope)


def _below_zero(reader: Reader, x: int) -> int:
    """exp(-|x|), which never overflows."""
    return reader.made.add("exp", reader.made.add("neg", reader.made.add("abs", x)))


def _log_sigmoid(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x = reader.made.add, reader.value(arguments["self"])
    least = add("minimum", x, reader.made.constant(0))
    return add("sub", least, add("log1p", _below_zero(reader, x)))


def _log_sigmoid_backward(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x = reader.made.add, reader.value(arguments["self"])
    slope = add("sigmoid", add("neg", x))
    return add("mul", reader.value(arguments["grad_output"]), slope)


def _gelu_backward(reader: Reader, arguments: dict[str, Any]) -> int:
    made, x = reader.made, reader.value(arguments["self"])
    add, constant = made.add, made.constant
    one, half, square = constant(1), constant(0.5), add("mul", x, x)
    if arguments["approximate"] == "tanh":
        scale = constant((2 / torch.pi) ** 0.5)
        cube = add("mul", constant(0.044715), add("mul", x, square))
        t = add("tanh", add("mul", scale, add("add", x, cube)))
        inner = add("add", one, add("mul", constant(3 * 0.044715), square))
        rise = add("mul", add("mul", scale, inner), add("sub", one, add("mul", t, t)))
        share = add("mul", half, add("add", one, t))
        slope = add("add", share, add("mul", add("mul", half, x), rise))
    else:
        share = add("mul", half, add("add", one, add("erf", add("mul", x, constant(0.5**0.5)))))
        bell = add("exp", add("mul", constant(-0.5), square))
        density = add("mul", bell, constant((2 * torch.pi) ** -0.5))
        slope = add("add", share, add("mul", x, density))
    return add("mul", reader.value(arguments["grad_output"]), slope)


# The gradients that most cells have; torch's own decompositions of them import sympy, too.


def _sigmoid_backward(reader: Reader, arguments: dict[str, Any]) -> int:
    add, one = reader.made.add, reader.made.constant(1)
    y = reader.value(arguments["output"])
    slope = add("mul", y, add("sub", one, y))
    return add("mul", reader.value(arguments["grad_output"]), slope)


def _tanh_backward(reader: Reader, arguments: dict[str, Any]) -> int:
    add, one = reader.made.add, reader.made.constant(1)
    y = reader.value(arguments["output"])
    slope = add("sub", one, add("mul", y, y))
    return add("mul", reader.value(arguments["grad_output"]), slope)


def _threshold_backward(reader: Reader, arguments: dict[str, Any]) -> int:
    add, x = reader.made.add, reader.value(arguments["self"])
    off = add("less_equal", x, reader.value(arguments["threshold"]))
    grad = reader.value(arguments["grad_output"])
    return add("where", off, reader.made.constant(0), grad)


BUILDERS: dict[str, Callable[[Reader, dict[str, Any]], int]] = {
    "silu": _silu,
    "silu_backward": _silu_backward,
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "log_sigmoid_forward": _log_sigmoid,
    "log_sigmoid_backward": _log_sigmoid_backward,
    "gelu_backward": _gelu_backward,
    "sigmoid_backward": _sigmoid_backward,
    "tanh_backward": _tanh_backward,
    "threshold_backward": _threshold_backward,
    "add": _add,
    "sub": _sub,
    "rsub": lambda reader, a: _sub(reader, {**a, "self": a["other"], "other": a["self"]}),
    "div": _div,
    "gt": _swapped("less"),
    "ge": _swapped("less_equal"),
    "ne": _ne,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "relu": _relu,
    "zeros_like": _filled(0),
    "ones_like": _filled(1),
    "zeros": _filled(0),
    "ones": _filled(1),
    "full": _filled(None, "fill_value"),
    "full_like": _filled(None, "fill_value"),
    "scalar_tensor": _filled(None, "s"),
    "rsqrt": _over(1, "sqrt"),
    "reciprocal": _over(1, ""),
    "sign": _sign,
    "isnan": _isnan,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky,
    "elu": _elu,
    "gelu": _gelu,
    "_to_copy": _to_copy,
    "copy": lambda reader, a: reader.value(a["src"]),
}
