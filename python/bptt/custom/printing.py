"""A `Program` as lines of code; what each language writes is in `cpp.py` and `triton_code.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .program import CONSTANT, LEAF, Program


@dataclass(frozen=True)
class Language:
    """How a language writes a program.

    Attributes:
        operations: the expression of each operation, with {0}, {1}, ... for what it is on.
        constant: writes a number.
        leaf: writes a leaf, of its group and place.
        line: the line that names a value, with {name} and {value}.
        fused: what to write in place of a product that is a summand beside another, or None: in
            a * b + c * d a compiler may fuse either one with the sum.
    """

    operations: dict[str, str]
    constant: Callable[[float], str]
    leaf: Callable[[str, int], str]
    line: str
    fused: str | None = None


def write(
    program: Program, language: Language, outputs: Sequence[int], given: dict[int, str]
) -> tuple[list[str], Callable[[int], str]]:
    """The lines that make some values.

    Args:
        program: what to write.
        language: how to write it.
        outputs: the values to make.
        given: expressions of values that are there already.

    Returns:
        The lines, and a function from a value to its expression after them.
    """
    lines = []
    names: dict[int, str] = {}

    def expression(value: int) -> str:
        if value in given:
            return given[value]
        op, args = program.nodes[value]
        if op == CONSTANT:
            return language.constant(float(args[0]))  # type: ignore[arg-type]
        if op == LEAF:
            return language.leaf(str(args[0]), int(args[1]))  # type: ignore[call-overload]
        return names[value]

    for value in program.needed(outputs, frozenset(given)):
        op = program.nodes[value].op
        if op in (CONSTANT, LEAF) or value in given:
            continue
        taken = program.takes(value)
        operands = [expression(v) for v in taken]
        products = [program.nodes[v].op == "mul" for v in taken]
        if op in ("add", "sub") and all(products) and language.fused is not None:
            operands[0] = language.fused.format(operands[0])
        condition = program.nodes[taken[0]].op if op == "where" else ""
        fused = f"where_{condition}"
        if fused in language.operations:
            operands = [*map(expression, program.takes(taken[0])), *operands[1:]]
            op = fused
        names[value] = f"v{value}"
        text = language.operations[op].format(*operands)
        lines.append(language.line.format(name=names[value], value=text))
    return lines, expression
