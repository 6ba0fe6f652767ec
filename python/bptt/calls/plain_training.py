"""Training by the short way: layers as one node of autograd's graph, and two ops.

What second derivatives, many losses at once and compiled autograd want goes the usual way, from the
same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..recurrence.autograd import Loop, plainly_eager
from ..recurrence.gradients import Config, LoopInputs

_CELLS = frozenset({"rnn_tanh", "rnn_relu", "gru", "lstm"})  # with one product in a step
_TYPES = (torch.float32, torch.float64)
_MOST_ROWS = 2048  # T * B; longer calls do not notice


def trains(cell: str, x: Tensor) -> bool:
    """Whether a call has gradients this way, and is faster for it."""
    rows = x.shape[:-1].numel()
    return cell in _CELLS and x.dtype in _TYPES and rows <= _MOST_ROWS


_What = tuple[str, bool, bool]
"""Layers: their cell, whether they have biases, whether two directions."""


class Training(torch.autograd.Function):
    """Layers in training. Inputs: what they are (`_What`), x, h0, c0, and the weights.

    Outputs: y, h_n and c_n, or None. One step, `x [B, I]`, has no h_n: that is y.
    """

    @classmethod
    def applied(cls, *inputs: Any) -> tuple[Any, Any, Any]:
        """`apply`, as nobody transforms, without what it does for those who do."""
        inputs = torch._functorch.utils.unwrap_dead_wrappers(inputs)
        return super(torch.autograd.Function, cls).apply(*inputs)  # type: ignore[misc]

    @staticmethod
    def forward(
        ctx: Any, what: _What, x: Tensor, h0: Any, c0: Any, *weights: Tensor
    ) -> tuple[Any, Any, Any]:
        y, h_n, c_n, kept = _with_kept(what, x, h0, c0, weights)
        ctx.call = what, len(weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, *weights, y, *kept)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        if all(d is None for d in douts):
            return (None,) * (1 + len(needed))
        what, _ = ctx.call
        inputs, y, kept = _saved(ctx)
        if torch.is_grad_enabled() or not plainly_eager() or _are_many(douts):
            return None, *_usual_gradients(what, inputs, douts, needed)
        return None, *_gradients(what, inputs, douts, y, kept, needed)


def _are_many(douts: Sequence[Tensor | None]) -> bool:
    """Whether gradients came for many losses at once (`is_grads_batched`)."""
    return any(d is not None and torch._C._functorch.is_legacy_batchedtensor(d) for d in douts)


def _gradients(
    what: _What,
    inputs: Sequence[Any],
    douts: Sequence[Tensor | None],
    y: Tensor,
    kept: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    cell, has_bias, bidirectional = what
    x, h0, c0, *weights = inputs
    dy, dh_n, dc_n = douts
    with torch._C._AutoDispatchBelowAutograd():
        made: list[Tensor | None] = torch.ops.bptt.plain_gradients.default(
            cell, dy, dh_n, dc_n, x, weights, has_bias, h0, c0, y, kept, needed, bidirectional
        )
    return made


def _with_kept(
    what: _What, x: Tensor, h0: Any, c0: Any, weights: Sequence[Tensor]
) -> tuple[Tensor, Any, Any, list[Tensor]]:
    cell, has_bias, bidirectional = what
    with torch._C._AutoDispatchBelowAutograd():
        made: tuple[Tensor, Any, Any, list[Tensor]] = torch.ops.bptt.plain_training.default(
            cell, x, weights, has_bias, h0, c0, bidirectional
        )
    return made


def _saved(ctx: Any) -> tuple[Sequence[Any], Tensor, Sequence[Tensor]]:
    """The inputs, y and what was kept; y made anew where its owner changed it.

    Raises:
        RuntimeError: torch's own, where an input was changed or the graph has been freed.
    """
    what, count = ctx.call
    try:
        tensors = ctx.saved_tensors
    except RuntimeError:
        raw = getattr(ctx, "_raw_saved_tensors", ())
        if not raw or not hasattr(raw[0], "unpack"):
            raise
        inputs = [tensor.unpack() for tensor in raw[: 3 + count]]
        x, h0, c0, *weights = inputs
        with torch.no_grad():
            y, _, _, kept = _with_kept(what, x, h0, c0, weights)
        return inputs, y, kept
    return tensors[: 3 + count], tensors[3 + count], tensors[4 + count :]


def _usual_gradients(
    what: _What,
    inputs: Sequence[Any],
    douts: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients by the usual way, which can be differentiated and transformed."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = _usual(what, *inputs)
        asked = [(out, d) for out, d in zip(outputs, douts, strict=True) if d is not None]
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in asked],
                wanted,
                [d for _, d in asked],
                create_graph=create,
                allow_unused=True,
            )
        )
    return [next(found) if need else None for need in needed]


def _usual(what: _What, x: Tensor, h0: Any, c0: Any, *weights: Tensor) -> Any:
    """What `Training` answers, from the recurrences one by one."""
    cell, has_bias, bidirectional = what
    if x.dim() == 2:
        h0, c0 = (None if state is None else state.unsqueeze(0) for state in (h0, c0))
        full = _usual(what, x.unsqueeze(0), h0, c0, *weights)
        return full[0][0], None, None if full[2] is None else full[2][0]
    each, directions = 4 if has_bias else 2, 2 if bidirectional else 1
    firsts = range(0, len(weights), each * directions)
    zeros = x.new_zeros(len(firsts) * directions, x.shape[1], weights[1].shape[-1])
    h0 = zeros if h0 is None else h0
    c0 = (zeros if c0 is None else c0) if cell == "lstm" else None
    reverse = (False, True)[:directions]
    last = []
    for layer, first in enumerate(firsts):
        own = slice(layer * directions, (layer + 1) * directions)
        of_layer = weights[first : first + each * directions]
        w_ih, w_hh, *biases = (torch.stack(of_layer[k::each]) for k in range(each))
        b_ih, b_hh = biases or (None, None)
        c = None if c0 is None else c0[own]
        loop = LoopInputs(None, x, w_ih, b_ih, w_hh, b_hh, None, None, h0[own], c, None, None)
        y, h_n, c_n, _, _ = Loop.applied(Config("cpu", cell, reverse), *loop)
        last.append((h_n, c_n if cell == "lstm" else None))
        x = y.flatten(2)
    return x, *(None if of[0] is None else torch.cat(of) for of in zip(*last, strict=True))
