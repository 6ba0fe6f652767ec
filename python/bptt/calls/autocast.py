"""Autocast: the dtype that a layer computes in, and leaves its states in, is torch.nn's.

On an accelerator everything is cast to autocast's dtype. On a CPU torch.nn casts what it
multiplies; its states are made of operations that promote, and so a GRU and an LSTM that is packed
leave states of the dtype that they were given. Such layers compute in that dtype here: a state
collected under autocast is one that the layer takes outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def asked_dtype(device_type: str) -> torch.dtype | None:
    """The dtype autocast asks for on a device type, or None where autocast is off."""
    # Device types that autocast does not know (meta) make is_autocast_enabled raise.
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def layer_dtype(
    cell: str, x: Any, states: Sequence[Any] | None, by_steps: bool
) -> torch.dtype | None:
    """The dtype that a layer or cell computes in, or None where autocast is off.

    Args:
        cell: a name in `bptt.recurrence.cells.CELLS`.
        x: the input.
        states: the states given, the hidden one first, or None.
        by_steps: whether torch.nn would run an LSTM step by step: packed, or as a cell.
    """
    dtype = asked_dtype(x.device.type)
    if dtype is None or not _promotes(cell, x.device.type, by_steps):
        return dtype
    return torch.promote_types(dtype, _state_dtype(x, states))


def last_states(
    cell: str, projected: bool, x: Any, states: Sequence[Any] | None, last: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The states that a layer under autocast leaves, in torch.nn's dtypes.

    A projection is one more product, after which the hidden state alone is of autocast's dtype.
    """
    if not projected or cell not in ("lstm", "lstm_peephole") or x.device.type != "cpu":
        return last
    h_n, c_n = last
    return h_n, c_n.to(torch.promote_types(c_n.dtype, _state_dtype(x, states)))


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast what autocast casts: floating-point tensors except float64."""
    eligible = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if eligible and value.dtype != torch.float64 else value


def switched_off(device_type: str, enabled: bool) -> AbstractContextManager[Any]:
    """Switch autocast off for the engine, which has been given its dtype already."""
    return torch.autocast(device_type, enabled=False) if enabled else nullcontext()


def _promotes(cell: str, device_type: str, by_steps: bool) -> bool:
    return device_type == "cpu" and (
        cell.startswith("gru") or (by_steps and cell.startswith("lstm"))
    )


def _state_dtype(x: Any, states: Sequence[Any] | None) -> torch.dtype:
    """The dtype of the state that results are promoted with; zeros are of the input's."""
    state = x if not states else states[-1]
    dtype: torch.dtype = state.dtype
    # What autocast leaves alone, or a check will refuse, promotes nothing.
    return dtype if dtype.is_floating_point and dtype != torch.float64 else torch.float32
