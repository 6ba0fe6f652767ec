"""The backend "torch": a layer on torch.nn's own kernels, cuDNN on a GPU and oneDNN on a CPU.

It takes what torch.nn takes. `auto` comes here only where a table says that it was measured to be
faster (`bptt.engines.measured`); gradients are autograd's.
"""

from __future__ import annotations

import warnings

import torch

from ..recurrence.control import PLAIN, Control
from ..recurrence.gradients import Config, LoopInputs
from ..recurrence.reference import Outputs

_FUNCTIONS = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "rnn_tanh", "rnn_relu": "rnn_relu"}


def reason_against(
    cell: str,
    loop: LoopInputs,
    reverse: tuple[bool, ...],
    grad_norms: bool = False,
    control: Control = PLAIN,
    keep_cells: bool = False,
) -> str | None:
    """Why torch.nn's kernels cannot take a layer, or None."""
    if grad_norms:
        return "torch.nn keeps no gradients of hidden states (grad_norms)"
    if control != PLAIN:
        return f"torch.nn has no {', '.join(control.asked())}"
    if keep_cells:
        return "torch.nn returns the last cell state alone"
    if cell not in _FUNCTIONS:
        return f"torch.nn has no {cell}"
    if loop.lengths is not None:
        return "torch.nn takes lengths only by packing, which waits for the device"
    if loop.resets is not None:
        return "torch.nn has no resets"
    if reverse not in ((False,), (False, True)):
        return "torch.nn has no such directions"
    if torch.compiler.is_compiling():
        return "torch.nn's recurrences break a graph of torch.compile"
    return None


def outputs(config: Config, loop: LoopInputs) -> Outputs:
    """The outputs of one layer."""
    weights = []
    for d in range(len(config.reverse)):
        names = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
        weights += [t[d] for t in (getattr(loop, name) for name in names) if t is not None]
    hx = loop.h0 if loop.c0 is None else (loop.h0, loop.c0)
    trains = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (loop.x, loop.h0, loop.c0, *weights)
    )
    function = getattr(torch._VF, _FUNCTIONS[config.cell])
    bidirectional = len(config.reverse) == 2
    with warnings.catch_warnings():
        # cuDNN copies weights that are not in one piece of memory; that is part of its time.
        warnings.filterwarnings("ignore", ".*single contiguous chunk of memory.*")
        y, *states = function(
            loop.x, hx, weights, loop.b_ih is not None, 1, 0.0, trains, bidirectional, False
        )
    y = y.unflatten(-1, (len(config.reverse), -1))
    return Outputs(y, states[0], states[1] if loop.c0 is not None else None, None)
