"""Packed sequences: layers over rows that are valid, of a batch that grows thinner step by step.

A layer runs on a padded batch [t, B, I]. One over all steps of a packed sequence would have T*B
rows where N are valid, and N may be a small part of that. So time is cut into segments, each as
high as its first step, none with many rows to spare; states go from one segment to the next. On a
CPU, without gradients, segments are longer: there padding costs little.
Between layers the rows stay packed, and so dropout draws what it draws in torch.nn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..engines import overlap
from ..recurrence.grad_norms import LayerNorms
from ..recurrence.rows import Rows
from . import stack
from .checks import Call

# A segment may have this part of its valid rows to spare, or this part of all that are packed:
# between more memory and more passes.
SPARE_OF_SEGMENT = 0.2
SPARE_OF_ALL = 1 / 64
# On a CPU, whose loop leaves padding out, rows to spare cost memory alone, and without gradients no
# longer than a layer runs.
SPARE_WITHOUT_GRADIENTS = 1.0


class Segment(NamedTuple):
    """Steps of a packed sequence that run as one padded batch.

    Attributes:
        steps: the number of valid rows of each step, never rising.
        first: the place of its first row among the packed rows.
    """

    steps: tuple[int, ...]
    first: int

    @property
    def batch(self) -> int:
        """The number of rows of its first step."""
        return self.steps[0]

    @property
    def rows(self) -> int:
        """The number of valid rows."""
        return sum(self.steps)


def cut(batch_sizes: Sequence[int], spare: float = SPARE_OF_SEGMENT) -> list[Segment]:
    """Cut steps into segments with few rows to spare.

    Args:
        batch_sizes: how many rows each step has, never rising.
        spare: the part of its valid rows that a segment may have besides.
    """
    spare_of_all = SPARE_OF_ALL * sum(batch_sizes)
    segments: list[Segment] = []
    start = first = valid = 0
    for t, size in enumerate(batch_sizes):
        padded = (t + 1 - start) * batch_sizes[start]
        most = max(spare * (valid + size), spare_of_all)
        if padded - valid - size > most:
            segments.append(Segment(tuple(batch_sizes[start:t]), first))
            start, first, valid = t, first + valid, 0
        valid += size
    return [*segments, Segment(tuple(batch_sizes[start:]), first)]


class _Piece(NamedTuple):
    """A segment, how its rows lie in its padded batch, and the lengths `[B]` in there, or None."""

    segment: Segment
    rows: Rows
    lengths: Tensor | None

    def slice(self, data: Tensor) -> overlap.Slice:
        """What a layer is given of packed rows `[N, I]`."""
        x = data.narrow(0, self.segment.first, self.segment.rows)
        if self.lengths is None:
            return overlap.Slice(self.rows.spread(x))  # a view
        return overlap.Slice(x, self.lengths, rows=self.rows)


def _place(segment: Segment, device: torch.device) -> _Piece:
    steps, batch = len(segment.steps), segment.batch
    if segment.rows == steps * batch:
        return _Piece(segment, Rows(steps, batch, None), None)
    sizes = torch.tensor(segment.steps, dtype=torch.int64, device="cpu")
    step = torch.arange(steps, device="cpu").repeat_interleave(sizes)  # [N]
    sample = torch.arange(segment.rows, device="cpu") - (sizes.cumsum(0) - sizes)[step]  # [N]
    lengths = torch.bincount(sample, minlength=batch).to(device)
    return _Piece(segment, Rows(steps, batch, (step * batch + sample).to(device)), lengths)


def run(
    call: Call,
    data: Tensor,
    batch_sizes: Tensor,
    weights: Sequence[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    norms: Sequence[LayerNorms | None],
) -> tuple[Any, Tensor, Tensor | None, list[Tensor]]:
    """Run all layers on checked arguments.

    Args:
        call, weights, norms: as in `stack.run`.
        data: `[N, I]`, step after step.
        batch_sizes: int64 `[T]` on the CPU, never rising.
        h0: `[L*D, B, R]`.
        c0: `[L*D, B, C*H]`, or None for cells without a cell state.

    Returns:
        As `stack.run`, with the packed rows `[N, ...]` in place of `[T, B, ...]`.
    """
    sizes = batch_sizes.tolist()
    # Masks and borders of truncation are functions of the step; norms are those of one pass.
    whole = call.varied or call.keep_cells or norms[0] is not None
    quick = data.is_cpu and not torch.is_grad_enabled()
    spare = SPARE_WITHOUT_GRADIENTS if quick else SPARE_OF_SEGMENT
    segments = [Segment(tuple(sizes), 0)] if whole else cut(sizes, spare)
    pieces = [_place(segment, data.device) for segment in segments]
    directions, layers = call.directions, call.num_layers
    left: list[tuple[Tensor, Tensor | None]] = []
    cells: list[Tensor] = []
    output: Any = data
    for layer in range(layers):
        rows = slice(layer * directions, (layer + 1) * directions)
        state = (h0[rows], None if c0 is None else c0[rows])
        if len(pieces) == 1:
            stacked = stack.stacked_weights(call, weights, layer)
            y, states, kept = _whole(call, pieces[0], output, stacked, state, norms[layer])
            if kept is not None:
                cells.append(kept)
        else:
            own = [stack.direction_weights(call, weights, layer, d) for d in range(directions)]
            y, states = _in_segments(call, pieces, output, own, state)
        left.append(states)
        last = layer == layers - 1
        merged = stack.merge(y.unsqueeze(1), call.merge_mode, last)
        output = tuple(m.squeeze(1) for m in merged) if isinstance(merged, tuple) else merged[:, 0]
        if call.dropout > 0 and not last:
            output = F.dropout(output, call.dropout, True)
    h_n, c_n = zip(*left, strict=True)
    return output, torch.cat(h_n), None if c0 is None else torch.cat(c_n), cells


def _whole(
    call: Call,
    piece: _Piece,
    data: Tensor,
    weights: Sequence[Any],
    state: overlap.State,
    norms: LayerNorms | None,
) -> tuple[Tensor, overlap.State, Tensor | None]:
    """One layer in one piece: `[N, D, R]`, its last states, and all cell states `[N, D*C*H]`."""
    batch = piece.slice(data)
    if call.varied and piece.lengths is not None:
        batch = overlap.Slice(piece.rows.spread(batch.x), piece.lengths)
    reverse = (False, True)[: call.directions]
    y, h_n, c_n, kept = stack.one_layer(call, batch, weights, state, reverse, norms)
    cells = None if kept is None else piece.rows.gather(kept.flatten(2))
    return piece.rows.gather(y), (h_n, c_n), cells


def _in_segments(
    call: Call,
    pieces: Sequence[_Piece],
    data: Tensor,
    weights: Sequence[Sequence[Any]],
    state: overlap.State,
) -> tuple[Tensor, overlap.State]:
    """One layer, one direction and segment after another: `[N, D, R]` and its last states.

    `weights` are those of each direction.
    """
    batches = [piece.slice(data) for piece in pieces]
    outputs, left = [], []
    for d in range(call.directions):
        start = _States(s[d : d + 1] for s in state if s is not None)
        y, states = _one_direction(call, pieces, batches, weights[d], start, d == 1)
        outputs.append(y)
        left.append(states)
    h_n, c_n = (torch.cat(column) if column else None for column in _columns(left))
    assert h_n is not None
    return torch.stack(outputs, 1), (h_n, c_n)


class _States(tuple[Tensor, ...]):
    """The states of one direction, `[1, B, ...]` each."""

    def rows(self, start: int, end: int) -> _States:
        return _States(s[:, start:end] for s in self)

    def below(self, other: _States) -> _States:
        """These rows, and those of the other after them."""
        return _States(torch.cat(pair, 1) for pair in zip(self, other, strict=True))


def _columns(states: Iterable[_States]) -> list[list[Tensor]]:
    columns = [list(column) for column in zip(*states, strict=True)]
    return columns if len(columns) == 2 else [*columns, []]


def _one_direction(
    call: Call,
    pieces: Sequence[_Piece],
    batches: Sequence[overlap.Slice],
    weights: Sequence[Any],
    start: _States,
    reverse: bool,
) -> tuple[Tensor, _States]:
    """The output `[N, R]` and the last states of a direction.

    Forwards, rows leave a batch that grows thinner; backwards, they join one that grows.
    """
    order = list(range(len(pieces)))[:: -1 if reverse else 1]
    outputs: list[Any] = [None] * len(pieces)
    done: _States | None = None  # of rows whose sequence has ended, those with the last row last
    states = start.rows(0, 0) if reverse else start
    for k in order:
        batch = pieces[k].segment.batch
        known = states[0].shape[1]
        if reverse:
            states = states.below(start.rows(known, batch)) if batch > known else states
        elif batch < known:
            ended = states.rows(batch, known)
            done = ended if done is None else ended.below(done)
            states = states.rows(0, batch)
        state = (states[0], states[1] if len(states) > 1 else None)
        y, h_n, c_n, _ = stack.one_layer(call, batches[k], weights, state, (reverse,), None)
        outputs[k] = pieces[k].rows.gather(y.squeeze(2))
        states = _States(s for s in (h_n, c_n) if s is not None)
    return torch.cat(outputs), states if done is None else states.below(done)
