"""Layers of a stack at once on a GPU: layer l runs one chunk of time while layer l+1 runs the one
before.

A recurrent layer waits for itself at every step and leaves most of a GPU idle. Each layer gets a
stream; a chunk of a layer needs the same chunk of the layer below and, for its state, its own chunk
before. Outputs are those of one chunk, to the bit. Gradients of weights are sums over chunks, each
by a matrix product, so they differ by rounding.

Off unless BPTT_OVERLAP names the steps of a chunk, such as 64: nobody has measured yet where it
pays. Then it is used where every layer's blocks have room beside the others'.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..recurrence.op_checks import Sizes
from ..recurrence.rows import Rows
from . import dispatch, gpu

_CHUNK = os.environ.get("BPTT_OVERLAP", "0")

State = tuple[Tensor, Tensor | None]  # h and c of a layer


class Slice(NamedTuple):
    """What a layer is given of a chunk: input `[t, B, I]`, lengths `[B]`, resets `[t, B]`.

    With `rows` the input is the valid rows `[N, I]` of a padded batch.
    """

    x: Tensor
    lengths: Tensor | None = None
    resets: Tensor | None = None
    rows: Rows | None = None


# Runs a layer on a slice from a state; returns its output [t, B, R] and its state after.
RunLayer = Callable[[int, Slice, State], tuple[Tensor, State]]


def chunk_steps(cell: str, layers: int, sizes: Sizes, like: Tensor) -> int:
    """Steps of a chunk, or 0 where layers run one after another.

    Args:
        cell: a name in `bptt.recurrence.cells.CELLS`.
        layers: L.
        sizes: T, B, D, H and R of a layer.
        like: a tensor of the layers' dtype and device.

    Raises:
        ValueError: BPTT_OVERLAP is no number.
    """
    if layers == 1 or sizes.directions == 2 or not like.is_cuda:
        return 0
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return 0
    if not _CHUNK.isdecimal():
        raise ValueError(f"BPTT_OVERLAP must be a number of steps, got {_CHUNK!r}")
    chunk = int(_CHUNK)
    if chunk == 0 or sizes.steps <= chunk:
        return 0
    return chunk if _has_room(cell, layers, sizes._replace(steps=chunk), like) else 0


def _has_room(cell: str, layers: int, sizes: Sizes, like: Tensor) -> bool:
    """Whether all layers' blocks are resident at once, in both passes."""
    if dispatch.choose(dispatch.Problem(cell, like.device.type, like.dtype)) != "cuda":
        return False
    projected = sizes.state != sizes.hidden
    plans = [
        gpu.plan_for(cell, like.dtype, sizes, projected, backward, like.device)
        for backward in (False, True)
    ]
    processors = gpu.device_limits(like.device)[1]
    return all(
        plan.tier != "step" and plan.waves * plan.blocks * layers <= processors for plan in plans
    )


def run(
    run_layer: RunLayer, whole: Slice, states: Sequence[State], chunk: int
) -> tuple[Tensor, list[State]]:
    """Run all layers on chunks of `chunk` steps, those that do not wait for one another at once.

    Args:
        run_layer: what one layer does.
        whole: the input of the first layer, and the masks of all.
        states: of each layer, before the first step.

    Returns:
        The last layer's output `[T, B, R]`, and every layer's state at the end.
    """
    layers, steps = len(states), whole.x.shape[0]
    streams = _Streams(layers, whole.x)
    inputs = [_slice(whole, start, chunk) for start in range(0, steps, chunk)]
    current = list(states)
    outputs: list[Tensor] = [piece.x for piece in inputs]  # of the layer below, chunk by chunk
    for wave in range(layers + len(inputs) - 1):
        # From the top: a layer takes the chunk that the one below made in the wave before.
        for layer in reversed(range(layers)):
            k = wave - layer
            if not 0 <= k < len(inputs):
                continue
            with streams.of(layer):
                streams.receive(layer, k, outputs[k], *current[layer])
                piece = inputs[k]._replace(x=outputs[k])
                outputs[k], current[layer] = run_layer(layer, piece, current[layer])
                streams.done(layer, k)
    streams.join(*outputs, *(t for state in current for t in state))
    return torch.cat(outputs), current


def _slice(whole: Slice, start: int, chunk: int) -> Slice:
    x = whole.x[start : start + chunk]
    lengths = None
    if whole.lengths is not None:
        lengths = (whole.lengths - start).clamp(0, x.shape[0])
    resets = None if whole.resets is None else whole.resets[start : start + chunk]
    return Slice(x, lengths, resets)


class _Streams:
    """A stream for each layer; on a CPU, where all happens in order, none."""

    def __init__(self, layers: int, like: Tensor) -> None:
        self.cuda = like.is_cuda
        self.events: dict[tuple[int, int], Any] = {}
        if self.cuda:
            self.main = torch.cuda.current_stream(like.device)
            self.streams = [torch.cuda.Stream(like.device) for _ in range(layers)]
            for stream in self.streams:
                stream.wait_stream(self.main)

    def of(self, layer: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.streams[layer]) if self.cuda else nullcontext()

    def receive(self, layer: int, k: int, *tensors: Tensor | None) -> None:
        """Wait for the layer below, and keep what other streams made until this one has read it."""
        if not self.cuda:
            return
        if layer > 0:
            self.streams[layer].wait_event(self.events[layer - 1, k])
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(self.streams[layer])

    def done(self, layer: int, k: int) -> None:
        if self.cuda:
            self.events[layer, k] = self.streams[layer].record_event()

    def join(self, *tensors: Tensor | None) -> None:
        """Make the stream that called wait for all."""
        if not self.cuda:
            return
        for stream in self.streams:
            self.main.wait_stream(stream)
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(self.main)
