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
from .plain_training import Training, trains

CELLS = frozenset({"rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm"})
_TENSORS = frozenset({Tensor})
_WEIGHTS = frozenset({Tensor, Parameter})
_STEPS = 64  # longer calls do not notice
_MOST_LENGTHS = 64  # to read one by one
# With more a step of a plain RNN is no faster than torch's operations.
FEW_ROWS = 64
_MANY_ROWS = frozenset({"gru", "gru_reset_before", "lstm"})
_EITHER = ("auto", "cpu")
_STATES = frozenset({Tensor, type(None)})

# Looked up once: a short call notices even that.
_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transform: Any = torch._C._functorch.peek_interpreter_stack
_is_tracing = torch._C._is_tracing
_is_autocast = torch.is_autocast_enabled
_forced = dispatch.this_thread


def _undisturbed() -> bool:
    """Whether a call is what it looks like: eager, without transforms, modes, autocast.

    Also that nobody asked for another backend than the cpu's.
    """
    return not (
        _function_modes()
        or _dispatch_modes()
        or _transform() is not None
        or forward_ad._current_level >= 0
        or _is_tracing()
        or _is_autocast("cpu")
        or _forced.name not in _EITHER
        or _forward_op is None
        or measured.rows_for("cpu")
    )


# It checks all shapes and dtypes itself, so nothing here does.
_forward_op: Any = torch.ops.bptt.plain_forward.default if dispatch.has_extension() else None


def leave_nothing_out(lengths: Any, input: Any, batch_first: bool) -> bool:
    """Whether lengths are a layer's input's steps, for every sequence: as if there were none.

    False also where that is not easily read.
    """
    if type(lengths) is not Tensor or type(input) is not Tensor or input.dim() != 3:
        return False
    batch, steps = input.shape[:2] if batch_first else input.shape[1::-1]
    if lengths.shape != (batch,) or not 0 < batch <= _MOST_LENGTHS:
        return False
    if lengths.dtype != torch.int64 or not (lengths.is_cpu and input.is_cpu and _undisturbed()):
        return False
    return all(length == steps for length in lengths.tolist())


def forward(
    cell: str, x: Any, hx: Any, weights: Sequence[Any], has_bias: bool, bidirectional: bool
) -> tuple[Tensor, Any] | None:
    """The output and the last states of layers; None where this is not for them.

    Args:
        cell: a name of `CELLS`.
        x: `[T, B, I]`.
        hx: what the user gave as initial states, or None.
        weights: flat, as torch.nn has them.
        has_bias: whether there are biases among them.
        bidirectional: whether there are weights of two directions.
    """
    if type(x) is not Tensor or not x.is_cpu or x.dim() != 3 or not _undisturbed():
        return None
    steps, rows, _ = x.shape
    if not 0 < steps <= _STEPS or not rows or not _WEIGHTS.issuperset(map(type, weights)):
        return None
    h0 = c0 = None
    if cell != "lstm":
        h0 = hx
        if hx is not None and type(hx) is not Tensor:
            return None
    elif hx is not None:
        if type(hx) is not tuple or len(hx) != 2 or not _TENSORS.issuperset(map(type, hx)):
            return None
        h0, c0 = hx
    made = _run(cell, x, h0, c0, weights, has_bias, bidirectional)
    if made is None:
        return None
    y, h_n, c_n = made
    return y, ((h_n, c_n) if cell == "lstm" else h_n)


def step(
    cell: str, x: Tensor, h: Any, c: Any, weights: Sequence[Any], has_bias: bool
) -> tuple[Any, Any, Any] | None:
    """The states after one step of a cell, (h, None, c); None where this is not for it.

    Args:
        cell: its name.
        x: `[B, I]`.
        h, c: the states before, each `[B, H]`, or None for zeros or for what the cell has not.
        weights: w_ih, w_hh and, with `has_bias`, b_ih and b_hh.
    """
    if cell not in CELLS or type(h) not in _STATES or type(c) not in _STATES:
        return None
    if not _WEIGHTS.issuperset(map(type, weights)) or not x.is_cpu or x.dim() != 2:
        return None
    rows, inputs = x.shape
    if not rows or not inputs or (rows > FEW_ROWS and cell not in _MANY_ROWS):
        return None
    if not _undisturbed():
        return None
    return _run(cell, x, h, c, weights, has_bias, False)


def _run(
    cell: str,
    x: Tensor,
    h0: Any,
    c0: Any,
    weights: Sequence[Any],
    has_bias: bool,
    bidirectional: bool,
) -> tuple[Any, Any, Any] | None:
    """y, h_n and c_n; None for those that the call has not, or for all where something is wrong."""
    training = torch.is_grad_enabled() and _asks_for_gradients(x, h0, c0, *weights)
    if training and not trains(cell, x):
        return None
    try:
        made: tuple[Any, Any, Any]
        if training:
            made = Training.applied((cell, has_bias, bidirectional), x, h0, c0, *weights)
        else:
            made = _forward_op(cell, x, weights, has_bias, h0, c0, bidirectional)
    except RuntimeError:
        return None  # the usual way says what it is
    return made


def _asks_for_gradients(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)
