"""The loop over layers: what lies between a checked call and one recurrence per layer.

Here are the stacking of the two directions' weights, merging of the directions and dropout between
layers. Packed sequences have a loop of their own in `packed.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..engines import overlap
from ..recurrence import ops
from ..recurrence.cells import CELLS
from ..recurrence.grad_norms import LayerNorms
from ..recurrence.op_checks import Sizes
from ..recurrence.reference import Outputs
from . import variants
from .checks import Call

_REVERSE = {1: (False,), 2: (False, True)}
# Bytes of a direction's weights, for each row of T*B and besides, whose copy, into one tensor for
# both directions, takes longer than one direction waits for the other (benchmarks/NOTES.md).
_APART_BYTES, _APART_BYTES_A_ROW = 512 << 10, 16 << 10


def run(
    call: Call,
    x: Tensor,
    weights: Sequence[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    norms: Sequence[LayerNorms | None],
) -> tuple[Any, Tensor, Tensor | None, list[Tensor]]:
    """Run all layers on checked arguments.

    Args:
        call: the options.
        x: `[T, B, I]`, of any strides.
        weights: flat; per layer and direction in the order of `Call.names`.
        h0: `[L*D, B, R]`.
        c0: `[L*D, B, C*H]`, or None for cells without a cell state.
        lengths: int64 `[B]` or None.
        resets: bool `[T, B]` or None.
        norms: for each layer where to leave the norms of its gradients through time, or None.

    Returns:
        The output of the last layer (`[T, B, D*R]`, `[T, B, R]` if merged, or a pair of them),
        `h_n [L*D, B, R]`, `c_n [L*D, B, C*H]`, and where `call.keep_cells` asks all cell states of
        each layer, `[T, B, D*C*H]`.
    """
    layers, directions = call.num_layers, call.directions
    reverse = _REVERSE[directions]
    h0s = (h0,) if layers == 1 else h0.split(directions)
    c0s = (None,) * layers if c0 is None else (c0,) if layers == 1 else c0.split(directions)
    states = list(zip(h0s, c0s, strict=True))
    # Norms come from one backward pass over all steps of a layer.
    asked = norms[0] is not None or call.varied or call.keep_cells
    apart = not asked and _are_apart(call, x, weights)
    stacked = [] if apart else [stacked_weights(call, weights, layer) for layer in range(layers)]
    cells: list[Tensor] = []

    def run_layer(layer: int, piece: overlap.Slice, state: overlap.State) -> Any:
        if apart:
            outputs = _one_by_one(call, piece, weights, layer, state)
        else:
            outputs = one_layer(call, piece, stacked[layer], state, reverse, norms[layer])
        y, h_n, c_n, kept = outputs
        if kept is not None:
            cells.append(kept.flatten(2))
        last = layer == layers - 1
        output = merge(y, call.merge_mode, last)
        if call.dropout > 0 and not last:
            output = F.dropout(output, call.dropout, True)
        return output, (h_n, c_n)

    hidden = weights[0].shape[0] // call.gates
    sizes = Sizes(x.shape[0], x.shape[1], directions, hidden, h0.shape[-1])
    chunk = 0 if asked else overlap.chunk_steps(call.cell, layers, sizes, x)
    if chunk > 0:
        output, states = overlap.run(run_layer, overlap.Slice(x, lengths, resets), states, chunk)
    else:
        output = x
        for layer in range(layers):
            piece = overlap.Slice(output, lengths, resets)
            output, states[layer] = run_layer(layer, piece, states[layer])
    h_n, c_n = zip(*states, strict=True)
    if layers == 1:
        return output, h_n[0], c_n[0], cells
    return output, torch.cat(h_n), None if c0 is None else torch.cat(c_n), cells


def one_layer(
    call: Call,
    piece: overlap.Slice,
    weights: Sequence[Any],
    state: overlap.State,
    reverse: tuple[bool, ...],
    norms: LayerNorms | None,
) -> Outputs:
    """Run one layer on the weights that `stacked_weights` gives."""
    if call.varied:
        return variants.run_layer(call, piece, weights, state, reverse, norms)
    w_ih, w_hh, b_ih, b_hh, w_hr, w_unit = weights
    return ops.recurrence(
        call.cell, piece.x, w_ih, w_hh, b_ih, b_hh, w_hr, w_unit, *state, piece.lengths,
        piece.resets, reverse, call.recompute, norms, keep_cells=call.keep_cells, rows=piece.rows,
    )  # fmt: skip


def _are_apart(call: Call, x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the two directions of each layer run one after the other, on weights as they are."""
    if call.directions == 1 or not x.is_cpu:
        return False
    if torch.compiler.is_compiling() or torch._C._is_tracing():  # a graph is for any size
        return False
    size = sum(w.numel() * w.element_size() for w in weights[: call.tensors])
    return size >= _APART_BYTES + _APART_BYTES_A_ROW * x.shape[0] * x.shape[1]


def _one_by_one(
    call: Call, piece: overlap.Slice, weights: Sequence[Tensor], layer: int, state: overlap.State
) -> Outputs:
    made = []
    for d, way in enumerate(_REVERSE[2]):
        h0, c0 = state
        own = (h0[d : d + 1], None if c0 is None else c0[d : d + 1])
        mine = direction_weights(call, weights, layer, d)
        made.append(one_layer(call, piece, mine, own, (way,), None))
    ys, h_ns, c_ns, _ = zip(*made, strict=True)
    c_n = None if c_ns[0] is None else torch.cat(c_ns)
    return Outputs(torch.cat(ys, 2), torch.cat(h_ns), c_n, None)


def direction_weights(
    call: Call, weights: Sequence[Tensor], layer: int, direction: int
) -> list[Any]:
    """As `stacked_weights`, of one direction: views."""
    start = (layer * call.directions + direction) * call.tensors
    return _in_place(call, [w.unsqueeze(0) for w in weights[start : start + call.tensors]])


def stacked_weights(call: Call, weights: Sequence[Tensor], layer: int) -> list[Any]:
    """The weights of one layer with the direction as first axis; None for what it does not have.

    Those of a layer normalisation come last.
    """
    if call.directions == 1:
        return direction_weights(call, weights, layer, 0)
    start = layer * 2 * call.tensors
    middle = start + call.tensors
    pairs = zip(weights[start:middle], weights[middle : middle + call.tensors], strict=True)
    return _in_place(call, [torch.stack(pair) for pair in pairs])


def _in_place(call: Call, present: Sequence[Tensor]) -> list[Any]:
    """Weights, each in its place in a list of all that a layer may have."""
    rest = iter(present)
    free = CELLS[call.cell].free
    w_ih, w_hh = next(rest), None if free else next(rest)
    b_ih, b_hh = next(rest) if call.bias else None, None
    if call.bias and not free:
        b_hh = next(rest)
    w_hr = next(rest) if call.proj_size > 0 else None
    return [w_ih, w_hh, b_ih, b_hh, w_hr, next(rest) if call.peephole else None, *rest]


def merge(y: Tensor, mode: str | None, last: bool) -> Any:
    """Make `[T, B, D, R]` the output of a layer.

    With mode None the pair stays apart only in the output of the last layer: the next layer has one
    input, so it gets the two side by side.
    """
    if mode == "concat" or (mode is None and not last):
        return y.flatten(2)
    forward, backward = y.unbind(2)
    if mode is None:
        return forward, backward
    if mode == "mul":
        return forward * backward
    total = forward + backward
    return total if mode == "sum" else total / 2
