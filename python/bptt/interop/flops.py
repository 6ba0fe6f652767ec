"""What torch.utils.flop_counter counts of the ops: each multiply-add of a product as two.

Elementwise operations count as nothing there, those of torch.nn's layers too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

Shape = Sequence[int]


def register() -> None:
    """Make the counter know the ops, and those counters that are at work.

    Importing it takes a while, so it is done when somebody watches the ops.
    """
    counters = sys.modules.get("torch.utils.flop_counter")
    if counters is None:  # then whoever watches is no counter
        return
    formulas = {
        torch.ops.bptt.recurrence_forward: _forward,
        torch.ops.bptt.recurrence_backward: _backward,
        torch.ops.bptt.matrix_product: _product,
    }
    for op, formula in formulas.items():
        if op not in counters.flop_registry:
            counters.register_flop_formula(op)(formula)
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        # A counter takes a copy of the registry when it is made.
        known = getattr(getattr(mode, "counter", mode), "flop_registry", None)
        if isinstance(known, dict):
            for op in formulas:
                known.setdefault(op, counters.flop_registry[op])


def _forward(
    backend: str,
    cell: str,
    gates_x: Shape | None,
    x: Shape | None,
    w_ih: Shape | None,
    b_ih: Shape | None,
    w_hh: Shape,
    b_hh: Shape | None,
    w_hr: Shape | None,
    *rest: Any,
    out_shape: Any = None,
    **options: Any,
) -> int:
    lead = gates_x if x is None else x
    assert lead is not None
    width = 0 if w_ih is None else w_ih[2]  # the input's product is part of the op
    directions, rows, state = w_hh
    count = directions * rows * (state + width)
    if w_hr is not None:
        count += _elements(w_hr)
    return 2 * lead[0] * lead[1] * count


def _backward(
    backend: str,
    cell: str,
    dy: Any,
    dh_n: Any,
    dc_n: Any,
    y: Shape,
    saved: Any,
    cells: Any,
    w_hh: Shape,
    w_hr: Shape | None,
    *rest: Any,
    out_shape: Any = None,
    **options: Any,
) -> int:
    # Gradients of the input and of the weights are products of their own.
    count = _elements(w_hh) + (0 if w_hr is None else _elements(w_hr))
    return 2 * y[0] * y[1] * count


def _product(a: Shape, b: Shape, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _elements(shape: Shape) -> int:
    return math.prod(shape)
