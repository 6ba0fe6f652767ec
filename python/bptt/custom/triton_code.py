"""A `Program` as functions of Triton under the contract of `kernels/cells.py`."""

from __future__ import annotations

import math
from textwrap import indent

from .printing import Language, write
from .program import GATES_H, GATES_X, GRADIENT, PREVIOUS, WEIGHT, Program

_GROUPS = {
    GATES_X: "gates_x", GATES_H: "gates_h", PREVIOUS: "states_prev", WEIGHT: "w_unit",
    GRADIENT: "dstates",
}  # fmt: skip


def _constant(value: float) -> str:
    return f'float("{value}")' if not math.isfinite(value) else repr(value)


TRITON = Language(
    operations={
        "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}",
        "neg": "-{0}", "exp": "tl.exp({0})", "log": "tl.log({0})", "log1p": "log_of_one_plus({0})",
        "expm1": "exponential_minus_one({0})", "tanh": "tanh({0})", "sigmoid": "sigmoid({0})",
        "abs": "tl.abs({0})", "sqrt": "tl.sqrt({0})", "erf": "tl.erf({0})", "sin": "tl.sin({0})",
        "cos": "tl.cos({0})", "pow": "tl.exp({1} * tl.log({0}))",
        "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
        "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
        "less": "tl.where({0} < {1}, 1.0, 0.0)", "less_equal": "tl.where({0} <= {1}, 1.0, 0.0)",
        "equal": "tl.where({0} == {1}, 1.0, 0.0)",
        "and": "{0} * {1}", "or": "tl.maximum({0}, {1})", "not": "1.0 - {0}",
        "where": "tl.where({0} > 0.0, {1}, {2})",
        "where_less": "tl.where({0} < {1}, {2}, {3})",
        "where_less_equal": "tl.where({0} <= {1}, {2}, {3})",
        "where_equal": "tl.where({0} == {1}, {2}, {3})",
    },
    constant=_constant,
    leaf=lambda group, place: f"{_GROUPS[group]}[{place}]",
    line="{name} = {value}",
)  # fmt: skip

_TEMPLATE = '''\
"""Written by bptt/custom/triton_code.py from the Python function {name}."""

import triton
import triton.language as tl

from bptt.kernels.activations import (
    exponential_minus_one,
    log_of_one_plus,
    sigmoid,
    tanh,
)


@triton.jit
def forward(gates_x, gates_h, states_prev, w_unit, saved, math):
    zero = tl.zeros_like(states_prev[0])
{forward}


@triton.jit
def backward(saved, states_prev, states, w_unit, dstates, math):
    zero = tl.zeros_like(states_prev[0])
{backward}


@triton.jit
def rebuild(saved, states_prev, states, math):
    return states


@triton.jit
def operand(saved, states_prev, states, math):
    return states[0]
'''


def module(name: str, program: Program, kept: list[int], reads_hidden: bool) -> str:
    """The source of a module with the functions `forward`, `backward`, `rebuild`, `operand`."""
    lines, value = write(program, TRITON, [*program.states, *kept], {})
    lines.append(f"return {_tuple(map(value, program.states))}, {_tuple(map(value, kept))}")
    given = {v: f"saved[{k}]" for k, v in enumerate(kept)}
    if reads_hidden:
        given[program.states[0]] = "states[0]"
    made, value = write(program, TRITON, program.gradients, given)
    groups = (program.dgates_x, program.dgates_h, program.dprevious, program.dweights)
    made.append("return (")
    made += [f"    {_tuple(map(value, group))}," for group in groups]
    made.append(")")
    return _TEMPLATE.format(
        name=name,
        forward=indent("\n".join(lines), "    "),
        backward=indent("\n".join(made), "    "),
    )


def _tuple(expressions: object) -> str:
    # A constant must be a block, as the others are.
    blocks = [e if not _is_number(e) else f"zero + {e}" for e in expressions]  # type: ignore[attr-defined]
    return f"({', '.join(blocks)}{',' if len(blocks) == 1 else ''})"


def _is_number(expression: str) -> bool:
    return expression.startswith("float(") or expression.lstrip("-")[:1].isdigit()
