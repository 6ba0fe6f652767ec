"""The short way from a layer to its kernel: no masks, no options, on a CPU.

A call of a step or a few takes microseconds in the kernel, and arranging it in the usual way would
take several times as long. Here one op takes the weights as torch.nn keeps them and checks them
itself, and another makes all gradients of all layers (`plain_training`). Whatever is not quite
plain, or wrong, goes the usual way, which has the words for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ..engines import dispatch, measured
from .plain_training import Training, outputs_of, trains

CELLS = frozenset({"rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm"})
_TYPES = (Tensor, Parameter)
_STEPS = 64  # longer calls do not notice
# With more a step of a plain RNN is no faster than torch's operations.
FEW_ROWS = 64
_MANY_ROWS = frozenset({"gru", "gru_reset_before", "lstm"})


def _undisturbed() -> bool:
    """Whether a call is what it looks like: eager, without transforms, modes, autocast.

    Also that nobody asked for another backend than the cpu's.
    """
    return not (
        torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch.is_autocast_enabled("cpu")
        or dispatch.forced_backend() not in ("auto", "cpu")
        or not dispatch.has_extension()
        or measured.rows_for("cpu")
    )


def _states(hx: Any, count: int, shape: tuple[int, ...]) -> tuple[Tensor | None, ...] | None:
    """The states of `count` kinds to start from, None for zeros; None for other shapes."""
    if hx is None:
        return None, None
    states = (hx,) if count == 1 else hx
    if type(states) is not tuple or len(states) != count:
        return None
    if any(type(state) is not Tensor or state.shape != shape for state in states):
        return None
    return states if count == 2 else (hx, None)


def forward(
    cell: str, layers: int, x: Any, hx: Any, weights: Sequence[Any], has_bias: bool
) -> tuple[Tensor, Any] | None:
    """The output and the last states of layers of one direction; None where this is not for them.

    Args:
        cell: a name of `CELLS`.
        layers: L.
        x: `[T, B, I]`.
        hx: what the user gave as initial states, or None.
        weights: flat, as torch.nn has them.
        has_bias: whether there are biases among them.
    """
    if type(x) is not Tensor or not x.is_cpu or not _undisturbed():
        return None
    if x.dim() != 3 or not 0 < x.shape[0] <= _STEPS or not x.numel():
        return None
    if any(type(w) not in _TYPES for w in weights):
        return None
    count = 2 if cell == "lstm" else 1
    states = _states(hx, count, (layers, x.shape[1], weights[1].shape[-1]))
    if states is None:
        return None
    found = _run(cell, x, states, weights, has_bias)
    if found is None:
        return None
    y, *last = found
    return y, tuple(last) if count == 2 else last[0]


def step(
    cell: str, x: Tensor, hx: tuple[Any, ...] | None, weights: Sequence[Any], has_bias: bool
) -> tuple[Tensor, ...] | None:
    """The states after one step of a cell; None where this is not for it.

    Args:
        cell: a name of `CELLS`.
        x: `[B, I]`.
        hx: the states before, each `[B, H]`, or None for zeros.
        weights: w_ih, w_hh and, with `has_bias`, b_ih and b_hh.
    """
    if not x.is_cpu or not x.numel() or any(type(w) not in _TYPES for w in weights):
        return None
    rows = x.shape[0]  # len of a tensor asks torch's modes
    if (rows > FEW_ROWS and cell not in _MANY_ROWS) or not _undisturbed():
        return None
    states: tuple[Any, ...] = (None, None)
    if hx is not None:
        shape = (rows, weights[1].shape[-1])
        if any(type(state) is not Tensor or state.shape != shape for state in hx):
            return None
        states = hx if len(hx) == 2 else (*hx, None)
    return _run(cell, x, states, weights, has_bias)


def _run(
    cell: str, x: Tensor, states: Sequence[Any], weights: Sequence[Any], has_bias: bool
) -> tuple[Tensor, ...] | None:
    training = torch.is_grad_enabled() and _asks_for_gradients(x, *states, *weights)
    if training and not trains(cell, x):
        return None
    try:
        if training:
            return Training.applied(cell, has_bias, x, *states, *weights)
        made = torch.ops.bptt.plain_forward.default(cell, x, weights, has_bias, *states)
    except RuntimeError:
        return None  # something is wrong; the usual way says what
    return outputs_of(cell, x, *made)


def _asks_for_gradients(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)
