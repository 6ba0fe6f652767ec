"""A cell's step and its derivative as a list of elementwise operations on one hidden unit.

`tracing.py` makes a `Program` of a Python function; `partition.py` says what of it is kept between
the passes; `cpp.py` and `triton_code.py` write it down for the engines.

A value is a number in `nodes`. Equal operations on equal values are one value, and constants are
folded, so that two outputs are the same number exactly where they are the same expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# What a leaf is: its group and its place in it.
GATES_X, GATES_H, PREVIOUS, WEIGHT, GRADIENT = "gates_x", "gates_h", "prev", "w_unit", "dstates"
LEAF, CONSTANT = "leaf", "constant"

UNARY: dict[str, Callable[[float], float]] = {
    "neg": lambda x: -x,
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "expm1": math.expm1,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "abs": abs,
    "sqrt": math.sqrt,
    "erf": math.erf,
    "sin": math.sin,
    "cos": math.cos,
    "not": lambda x: float(not x),
}
BINARY: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "maximum": max,
    "minimum": min,
    # Comparisons are 1 where they hold, else 0; false where a number is NaN.
    "less": lambda a, b: float(a < b),
    "less_equal": lambda a, b: float(a <= b),
    "equal": lambda a, b: float(a == b),
    "and": lambda a, b: float(bool(a) and bool(b)),
    "or": lambda a, b: float(bool(a) or bool(b)),
}
_COMMUTE = ("add", "mul", "equal", "and", "or")


class CellError(ValueError):
    """A step function that cannot become a cell; the message says where and what to do."""


class Node(NamedTuple):
    """One operation.

    Attributes:
        op: a key of `UNARY` or `BINARY`, "where" (condition, then, else), LEAF or CONSTANT.
        args: values; of a leaf its group and place, of a constant its number.
    """

    op: str
    args: tuple[object, ...]


@dataclass
class Program:
    """A step of a cell and its derivative.

    Attributes:
        nodes: operations, each after those it takes values of.
        states: the values that forward leaves, the hidden state first.
        dgates_x, dgates_h: gradients of the gates' pre-activations.
        dprevious: gradients of the states before the step, but for what passes through `gates_h`.
        dweights: gradients of the unit weights.
    """

    nodes: list[Node] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    dgates_x: list[int] = field(default_factory=list)
    dgates_h: list[int] = field(default_factory=list)
    dprevious: list[int] = field(default_factory=list)
    dweights: list[int] = field(default_factory=list)
    _numbers: dict[Node, int] = field(default_factory=dict)

    @property
    def gradients(self) -> list[int]:
        """All that the backward pass makes."""
        return [*self.dgates_x, *self.dgates_h, *self.dprevious, *self.dweights]

    def leaf(self, group: str, place: int) -> int:
        return self._number(Node(LEAF, (group, place)))

    def constant(self, value: float) -> int:
        return self._number(Node(CONSTANT, (float(value),)))

    def add(self, op: str, *values: int) -> int:
        """The value of an operation: a new one, or one that is there already."""
        if op in _COMMUTE:
            values = tuple(sorted(values))
        known = [self.constant_of(v) for v in values]
        short = self._simpler(op, values, known)
        if short is not None:
            return short
        if op != "where" and all(k is not None for k in known):
            try:
                function: Callable[..., float] = UNARY[op] if op in UNARY else BINARY[op]
                return self.constant(function(*known))
            except (ArithmeticError, ValueError):
                pass  # what infinity or NaN it is, is left to the machine
        return self._number(Node(op, values))

    def constant_of(self, value: int) -> float | None:
        """The number that a value always is, or None."""
        op, args = self.nodes[value]
        return float(args[0]) if op == CONSTANT else None  # type: ignore[arg-type]

    def takes(self, value: int) -> tuple[int, ...]:
        """The values that an operation is on."""
        op, args = self.nodes[value]
        return () if op in (LEAF, CONSTANT) else args  # type: ignore[return-value]

    def group(self, value: int) -> str | None:
        """The group of a leaf; None of anything else."""
        op, args = self.nodes[value]
        return str(args[0]) if op == LEAF else None

    def needed(self, outputs: Sequence[int], given: frozenset[int] = frozenset()) -> list[int]:
        """The operations that make the outputs, in order; those of `given` need not be made."""
        wanted: set[int] = set()
        open_ = [v for v in outputs if v not in given]
        while open_:
            value = open_.pop()
            if value not in wanted:
                wanted.add(value)
                open_ += [v for v in self.takes(value) if v not in given]
        return sorted(wanted)

    def _simpler(self, op: str, values: tuple[int, ...], known: list[float | None]) -> int | None:
        """An operation that is one of its own values, or less."""
        if op == "add" and 0.0 in known:
            return values[1 - known.index(0.0)]
        if op == "mul" and 1.0 in known:
            return values[1 - known.index(1.0)]
        if (op, known[-1]) in (("sub", 0.0), ("div", 1.0)):
            return values[0]
        if op == "pow":
            return self._power(values[0], known[1])
        if op == "neg" and self.nodes[values[0]].op == "neg":
            return self.takes(values[0])[0]
        if op == "where":
            if values[1] == values[2]:
                return values[1]
            if known[0] is not None:
                return values[1] if known[0] else values[2]
        return None

    def _power(self, base: int, exponent: float | None) -> int | None:
        """Small whole powers as products; None for others."""
        if exponent is None or exponent not in (-2, -1, -0.5, 0, 0.5, 1, 2, 3, 4):
            return None
        if exponent < 0:
            return self.add(
                "div", self.constant(1), self.add("pow", base, self.constant(-exponent))
            )
        if exponent == 0.5:
            return self.add("sqrt", base)
        if exponent == 0:
            return self.constant(1)
        product = base
        for _ in range(int(exponent) - 1):
            product = self.add("mul", product, base)
        return product

    def _number(self, node: Node) -> int:
        if node not in self._numbers:
            self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[node]
