"""What a cell keeps of its forward pass for the backward pass: as little as pays.

A value that the backward pass needs is either kept, a plane of memory to write and to read, or
computed again from what is there: the states before the step, the unit weights, other kept values.
The cheapest choice is a minimum cut (Jain et al., "Checkmate", 2020, has the setting; torch's own
partitioner the idea). Values are nodes of capacity "to keep", and whatever falls on the backward
side pays what it costs to compute again.
"""

from __future__ import annotations

import networkx

from .program import CONSTANT, GRADIENT, PREVIOUS, WEIGHT, Program

# In units of a plain operation on a value in a register, roughly as a CPU has them.
_KEEP = 40.0
_AGAIN = {"exp": 12.0, "tanh": 15.0, "sigmoid": 13.0, "expm1": 12.0, "log": 15.0, "log1p": 18.0}
_AGAIN_BY_LANES = dict.fromkeys(("erf", "sin", "cos", "pow"), 200.0)
_AGAIN_OTHER = {"div": 4.0, "sqrt": 5.0}


def kept_values(program: Program) -> tuple[list[int], bool]:
    """The values to keep, and whether the backward pass reads the hidden state that forward made.

    The hidden state costs nothing to keep, as it is the output; but what becomes of it (zoneout)
    may hide it, so that it is read only where nothing else is kept.
    """
    hidden = program.states[0]
    if not _cut(program, frozenset([hidden])):
        return [], True
    return _cut(program, frozenset()), False


def _cut(program: Program, given: frozenset[int]) -> list[int]:
    late = _after(program, GRADIENT)
    needed = program.needed(program.gradients)
    free = {v for v in needed if _is_free(program, v)} | given
    graph = networkx.DiGraph()
    graph.add_node("forward")
    graph.add_node("backward")
    for value in needed:
        if value in free:
            continue
        before, after = (value, "before"), (value, "after")
        if value in late:
            graph.add_edge(before, "backward")  # no capacity: without bound
        else:
            graph.add_edge(before, after, capacity=_KEEP)
            again = {"capacity": _cost(program, value)} if program.takes(value) else {}
            graph.add_edge("forward", before, **again)
        for taken in program.takes(value):
            if taken not in free and taken not in late:
                graph.add_edge((taken, "after"), before)
    _, (early, _) = networkx.minimum_cut(graph, "forward", "backward")
    return sorted(
        value
        for value in needed
        if value not in free and (value, "before") in early and (value, "after") not in early
    )


def _cost(program: Program, value: int) -> float:
    op = program.nodes[value].op
    return (_AGAIN | _AGAIN_BY_LANES | _AGAIN_OTHER).get(op, 1.0)


def _is_free(program: Program, value: int) -> bool:
    if program.nodes[value].op == CONSTANT:
        return True
    return program.group(value) in (PREVIOUS, WEIGHT)


def _after(program: Program, group: str) -> set[int]:
    """The values that depend on leaves of a group."""
    late: set[int] = set()
    for value in range(len(program.nodes)):
        if program.group(value) == group or not late.isdisjoint(program.takes(value)):
            late.add(value)
    return late
