"""A `Program` as a struct under the contract of `csrc/cells/cell.h`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from textwrap import indent

from .printing import Language, write
from .program import GATES_H, GATES_X, GRADIENT, PREVIOUS, WEIGHT, Program

_GROUPS = {
    GATES_X: "gates_x", GATES_H: "gates_h", PREVIOUS: "states_prev", WEIGHT: "w_unit",
    GRADIENT: "given",
}  # fmt: skip


def _constant(value: float) -> str:
    if math.isnan(value):
        text = '__builtin_nan("")'
    elif math.isinf(value):
        text = "__builtin_inf()" if value > 0 else "-__builtin_inf()"
    else:
        text = repr(value)
    return f"constant<V>({text})"


def _leaf(group: str, place: int) -> str:
    return f"{_GROUPS[group]}[{place}]"


def _either(group: str, place: int) -> str:
    return f"(gates_x[{place}] + gates_h[{place}])" if group == GATES_X else _leaf(group, place)


_ONE_ZERO = "V(1), V(0)"
CPP = Language(
    operations={
        "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}",
        "neg": "-{0}", "exp": "exponential({0})", "log": "logarithm({0})",
        "log1p": "logarithm_of_one_plus({0})", "expm1": "exponential_minus_one({0})",
        "tanh": "Tanh::forward({0})", "sigmoid": "Sigmoid::forward({0})", "abs": "magnitude({0})",
        "sqrt": "square_root({0})", "erf": "error_function({0})", "sin": "sine({0})",
        "cos": "cosine({0})", "pow": "power({0}, {1})",
        "maximum": "maximum({0}, {1})", "minimum": "minimum({0}, {1})",
        "less": f"where_less({{0}}, {{1}}, {_ONE_ZERO})",
        "less_equal": f"where_less_equal({{0}}, {{1}}, {_ONE_ZERO})",
        "equal": f"where_equal({{0}}, {{1}}, {_ONE_ZERO})",
        "and": "{0} * {1}", "or": "larger({0}, {1})", "not": "V(1) - {0}",
        "where": "where({0}, {1}, {2})",
        "where_less": "where_less({0}, {1}, {2}, {3})",
        "where_less_equal": "where_less_equal({0}, {1}, {2}, {3})",
        "where_equal": "where_equal({0}, {1}, {2}, {3})",
    },
    constant=_constant,
    leaf=_leaf,
    line="const V {name} = {value};",
    fused="settled({0})",
)  # fmt: skip

_FILE = """\
// Written by bptt/custom/cpp.py from the Python function {name}.
#include "engine/simd.h"
#include "engine/custom_math.h"
#include "cells/cell.h"

namespace bptt {{

{struct}
}}  // namespace bptt
"""

_STRUCT = """\
struct {struct} {{
  static constexpr int kGates = {gates}, kStates = {states}, kSaved = {saved};
  static constexpr int kUnitWeights = {weights}, kStages = {stages};
  static constexpr bool kSharedGates = {shared}, kFree = {free};{more}

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states,
                                       V* saved) {{
{forward}
  }}

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {{}}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {{
    return states[0];
  }}

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {{
{backward}
  }}
}};
"""

_PIECE = """\
#include "cell.inc"

#include "engine/custom_cell.h"

extern "C" __attribute__((visibility("default"))) const bptt::CustomCell* bptt_custom_cell() {
  return bptt::custom_cell<bptt::CustomStruct, STORAGE, CONTROLLED>(NAME);
}
"""
_STORAGE = {"float32": "float", "float64": "double", "bfloat16": "bptt::BFloat16"}
# Of the engine, besides what headers hold.
ENGINE_SOURCES = ("engine/team.cpp", "engine/plan.cpp")


def file(name: str, program: Program, kept: list[int], reads_hidden: bool, product: str) -> str:
    """A cell's struct as a file for the cpu backend; arguments as for `struct`."""
    text = struct("CustomStruct", program, kept, reads_hidden, product)
    return _FILE.format(name=name, struct=text)


def struct(
    name: str,
    program: Program,
    kept: list[int],
    reads_hidden: bool,
    product: str,
    more: Sequence[str] = (),
) -> str:
    """The struct of a cell.

    Args:
        name: of the struct.
        program: what it computes.
        kept, reads_hidden: what `partition.kept_values` gives.
        product: "dense", "diagonal" or "none": what the hidden state enters the gates through.
        more: further lines for it.
    """
    gates = len(program.dgates_x)
    language = CPP
    if product == "none":  # the engine may have put the input's part in either
        language = replace(CPP, leaf=_either)
    lines, value = write(program, language, [*program.states, *kept], {})
    # All of `saved` and `states` last: they may be where a step's inputs came from.
    lines += [f"saved[{k}] = {value(v)};" for k, v in enumerate(kept)]
    lines += [f"states[{k}] = {value(v)};" for k, v in enumerate(program.states)]
    given = {v: f"saved[{k}]" for k, v in enumerate(kept)}
    if reads_hidden:
        given[program.states[0]] = "states[0]"
    made, value = write(program, language, program.gradients, given)
    made.insert(0, f"V given[{len(program.states)}];")
    made[1:1] = [f"given[{k}] = dstates[{k}];" for k in range(len(program.states))]
    made += [f"dgates_x[{g}] = {value(v)};" for g, v in enumerate(program.dgates_x)]
    made += [f"dgates_h[{g}] = {value(v)};" for g, v in enumerate(program.dgates_h)]
    made += [f"dstates[{k}] = {value(v)};" for k, v in enumerate(program.dprevious)]
    made += [f"dw_unit[{k}] = dw_unit[{k}] + {value(v)};" for k, v in enumerate(program.dweights)]
    used = "(void)gates_h, (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given"
    unused = "(void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;"
    lines.insert(0, unused)
    made.append(used.replace("(void)gates_h, ", "") + ", (void)dw_unit;")
    return _STRUCT.format(
        struct=name,
        more="".join(f"\n  {line}" for line in more),
        gates=gates,
        states=len(program.states),
        saved=len(kept),
        weights=len(program.dweights) + (gates if product == "diagonal" else 0),
        stages=1 if product == "dense" else 0,
        shared="true" if program.dgates_x == program.dgates_h else "false",
        free="true" if product == "none" else "false",
        forward=indent("\n".join(lines), "    "),
        backward=indent("\n".join(made), "    "),
    )


def sources(name: str, text: str, dtype: str, controlled: bool) -> dict[str, str]:
    """The files of a library: a cell's loops for one dtype, with a `Control` or without.

    Args:
        name: what the engine knows the cell by.
        text: its struct.
        dtype: "float32", "float64" or "bfloat16".
        controlled: whether the loops do more than run the cell.
    """
    piece = _PIECE.replace("NAME", json.dumps(name)).replace("STORAGE", _STORAGE[dtype])
    piece = piece.replace("CONTROLLED", "true" if controlled else "false")
    return {"cell.inc": text, "piece.cpp": piece}
