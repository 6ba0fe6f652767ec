"""The cells RNNCell, GRUCell and LSTMCell: one time step under torch.nn's contract.

One step has no loop to fuse, so cells run their equations, from the table in
`bptt.recurrence.cells`, as ordinary PyTorch operations, whatever the backend: every transform of
PyTorch works on them. In eager mode on a CPU, where that is faster, a step is one call of the cpu
backend's kernel, and its gradients are another (`bptt.calls.plain`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy

from .. import functional
from ..calls import autocast, checks, plain
from ..calls.single_step import cell_step
from ..interop.tracing import Traced
from ..recurrence.cells import States
from .base import Device

_is_compiling = torch.compiler.is_compiling


class RecurrentCell(Traced, nn.RNNCellBase):
    """What the three cells share; use RNNCell, GRUCell or LSTMCell."""

    # A class attribute, so that a pickle older than the option loads with the option's default.
    peephole: bool = False
    _kind = ""
    _gates = 0

    @property
    def _cell_name(self) -> str:
        """The cell, a name in `bptt.recurrence.cells.CELLS`."""
        raise NotImplementedError

    def _step(self, input: Tensor, hx: tuple[Any, ...] | None, count: int) -> tuple[Tensor, ...]:
        """Check the arguments, then take one step; `count` states in, `count` out."""
        kind = self._kind
        checks.check_cell_input(kind, input)
        if hx is not None:
            checks.check_cell_state_rank(kind, hx, input.dim() == 2)
        weights, shapes, names = self._weights()
        device_type = input.device.type
        dtype = autocast.layer_dtype(self._cell_name, input, hx, True)
        if dtype is not None:
            input, weights = autocast.cast(input, dtype), [autocast.cast(w, dtype) for w in weights]
            hx = None if hx is None else tuple(autocast.cast(s, dtype) for s in hx)
        if hx is None:
            shape = (*input.shape[:-1], self.hidden_size)
            hx = (torch.zeros(shape, dtype=input.dtype, device=input.device),) * count
        checks.check_cell(kind, input, hx, weights, shapes, names)
        with autocast.switched_off(device_type, dtype is not None):
            return self._equations(input, hx, *weights)

    # Between the steps of a decoder all else that runs pushes this out of the caches, which then
    # takes several times as long: as few functions as possible, and before everything else.
    def _fused(self, input: Any, h: Any, c: Any = None) -> tuple[Any, ...] | None:
        """The states after the step, (h, None, c), by a kernel.

        None where that is not possible, or not faster, or something is wrong.
        """
        if _is_compiling() or type(input) is not Tensor:
            return None
        own = self._parameters  # past nn.Module's search
        try:
            weights: list[Any] = [own["weight_ih"], own["weight_hh"]]
            if self.bias:
                weights += own["bias_ih"], own["bias_hh"]
        except KeyError:  # something replaced a parameter
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
            weights = [getattr(self, name) for name in names]
        return plain.step(self._cell_name, input, h, c, weights, self.bias)

    def _equations(
        self, x: Tensor, states: States, w_ih: Tensor, w_hh: Tensor, *rest: Tensor
    ) -> States:
        """The cell's equations on `x [..., I]` and `states [..., H]`."""
        b_ih, b_hh = rest[:2] if len(rest) > 1 else (None, None)
        w_unit = rest[-1] if self.peephole else None
        return cell_step(self._cell_name, x, states, w_ih, w_hh, b_ih, b_hh, w_unit)

    def _weights(self) -> tuple[list[Any], list[tuple[int, ...]], list[str]]:
        """The weights as they are now, the shape each must have, and their names."""
        hidden, rows = self.hidden_size, self._gates * self.hidden_size
        weights: list[Any] = [self.weight_ih, self.weight_hh]
        shapes: list[tuple[int, ...]] = [(rows, self.input_size), (rows, hidden)]
        names = ["weight_ih", "weight_hh"]
        bias_ih = self.bias_ih
        if bias_ih is not None:
            weights += [bias_ih, self.bias_hh]
            shapes += [(rows,), (rows,)]
            names += ["bias_ih", "bias_hh"]
        if self.peephole:
            weights.append(self.weight_peephole)
            shapes.append((3 * hidden,))
            names.append("weight_peephole")
        return weights, shapes, names


class RNNCell(RecurrentCell):
    """One step of a simple recurrent network; takes the place of `torch.nn.RNNCell`.

    Equation and source: `bptt.functional.rnn`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as in torch.nn. `nonlinearity`
            may also be "sigmoid".

    Forward:
        input: `[B, I]` or `[I]`.
        hx: `[B, H]` or `[H]`, or None for zeros.
        Returns the next hidden state, shaped like hx.
    """

    nonlinearity: str
    _kind = "RNNCell"
    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    @property
    def _cell_name(self) -> str:
        if self.nonlinearity not in functional.RNN_CELLS:
            # torch.nn's cell says so when it is called, and with another type than its layer.
            raise RuntimeError(f"{self._kind}: Unknown nonlinearity: {self.nonlinearity!r}")
        return functional.RNN_CELLS[self.nonlinearity]

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        made = self._fused(input, hx)
        if made is not None:
            return made[0]
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            node: Tensor = self._node(input, hx)
            return node
        return self._step(input, _single(self, hx), 1)[0]


class GRUCell(RecurrentCell):
    """One step of a gated recurrent unit; takes the place of `torch.nn.GRUCell`.

    Equations and source: `bptt.functional.gru`. Gate order r, z, n.

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.nn.
        reset_after: as in `GRU`.

    Forward: as in `RNNCell`.
    """

    reset_after: bool = True
    _kind = "GRUCell"
    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = reset_after

    @property
    def _cell_name(self) -> str:
        return functional.gru_cell_name(self.reset_after)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        made = self._fused(input, hx)
        if made is not None:
            return made[0]
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            node: Tensor = self._node(input, hx)
            return node
        return self._step(input, _single(self, hx), 1)[0]

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.reset_after else f"{shown}, reset_after={self.reset_after}"


class LSTMCell(RecurrentCell):
    """One step of a long short-term memory; takes the place of `torch.nn.LSTMCell`.

    Equations and sources: `bptt.functional.lstm`. Gate order i, f, g, o.

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.nn.
        peephole: whether the gates see the cell state, through the parameter `weight_peephole` of
            shape `[3*H]`, in the order i, f, o.

    Forward:
        input: `[B, I]` or `[I]`.
        hx: a pair (h, c) of `[B, H]` or `[H]`, or None for zeros.
        Returns the next pair (h, c).
    """

    _kind = "LSTMCell"
    _gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
        self.peephole = peephole
        if peephole:
            self.weight_peephole = nn.Parameter(self.weight_ih.new_empty(3 * hidden_size))
            bound = 1.0 / math.sqrt(hidden_size) if hidden_size > 0 else 0.0
            nn.init.uniform_(self.weight_peephole, -bound, bound)

    @property
    def _cell_name(self) -> str:
        return functional.lstm_cell_name(self.peephole)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        made = None
        if hx is None:
            made = self._fused(input, None)
        elif type(hx) in (tuple, list) and len(hx) == 2 and type(hx[0]) is type(hx[1]) is Tensor:
            made = self._fused(input, *hx)
        if made is not None:
            return made[0], made[2]
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            node: tuple[Tensor, Tensor] = self._node(input, hx)
            return node
        if hx is not None:
            checks.check_state_type(self._kind, hx, ("h", "c"))
            hx = (hx[0], hx[1])
        h, c = self._step(input, hx, 2)
        return h, c

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return f"{shown}, peephole={self.peephole}" if self.peephole else shown


def _single(cell: RecurrentCell, hx: Any) -> tuple[Any, ...] | None:
    if hx is None:
        return None
    checks.check_state_type(cell._kind, hx, ("h",))
    return (hx,)
