"""The time loop of `bptt.compile_cell`: chunks of steps, each a graph of torch.compile.

Inductor makes C++ of a graph on a CPU and Triton on a GPU. The loop over chunks is plain Python,
whose cost the steps of a chunk share. The backward pass of a chunk is a graph of its own, derived
by torch.func.vjp, that computes the steps again from the states before them: what the steps of a
chunk share between the passes would cost more to hand over than to compute.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

States = tuple[Tensor, ...]
StepFunction = Callable[..., Any]


def run_steps(
    fn: StepFunction,
    x: Tensor,
    states: States,
    params: Sequence[Tensor],
    active: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States]:
    """The plain loop: all of it, or the steps of a chunk on their way into a graph."""
    outputs: list[Tensor] = []
    x_steps = x.unbind()  # whose gradient is one stack; that of x[t] is as large as x at every step
    for t in reversed(range(len(x_steps))) if reverse else range(len(x_steps)):
        held = states
        if resets is not None:
            states = tuple(s.masked_fill(_beside(resets[t], s), 0) for s in states)
        states = as_states(fn(x_steps[t], *states, *params))
        output = states[0]
        if active is not None:
            states = tuple(
                torch.where(_beside(active[t], s), s, old)
                for s, old in zip(states, held, strict=True)
            )
            output = output.masked_fill(~_beside(active[t], output), 0)
        outputs.append(output)
    return torch.stack(outputs[::-1] if reverse else outputs), states


def as_states(value: Any) -> States:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def signature(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """What a graph is made for."""
    return tuple(None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors)


class CompiledLoop:
    """The graphs of one step function, made as they are needed.

    Args:
        fn: the step function.
        chunk: steps of a graph.
    """

    def __init__(self, fn: StepFunction, chunk: int) -> None:
        self.fn, self.chunk = fn, chunk
        self.graphs: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self,
        x: Tensor,
        states: States,
        params: States,
        active: Tensor | None,
        resets: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, States]:
        y, *after = _Through.apply(self, reverse, active, resets, len(states), x, *states, *params)
        return y, tuple(after)

    def cut(self, *sequences: Tensor | None) -> list[tuple[Any, ...]]:
        """Sequences `[T, ...]` cut alike: whole chunks, then single steps for what is left."""
        steps = next(s.shape[0] for s in sequences if s is not None)
        sizes = [self.chunk] * (steps // self.chunk) + [1] * (steps % self.chunk)
        pieces = (s.split(sizes) if s is not None else [None] * len(sizes) for s in sequences)
        return list(zip(*pieces, strict=True))

    def forward(
        self, piece: tuple[Any, ...], states: States, params: States, reverse: bool
    ) -> tuple[Tensor, States]:
        """Outputs `[K, B, ...]` of a chunk and the states after it."""
        x, active, resets = piece
        key = (reverse, signature((*piece, *states, *params)))
        answer: tuple[Tensor, States] = self._graph(run_steps, key, x.device.type)(
            self.fn, x, states, params, active, resets, reverse
        )
        return answer

    def backward(
        self,
        piece: tuple[Any, ...],
        states: States,
        params: States,
        reverse: bool,
        wanted: tuple[bool, ...],
        dy: Tensor,
        dstates: States,
    ) -> tuple[Tensor, ...]:
        """Gradients of those of x, the states before the chunk and the parameters in `wanted`."""
        x, active, resets = piece
        key = (reverse, wanted, signature((*piece, *states, *params, dy, *dstates)))
        answer: tuple[Tensor, ...] = self._graph(_pull_back, key, x.device.type)(
            self.fn, x, states, params, active, resets, reverse, wanted, dy, dstates
        )
        return answer

    def _graph(self, function: Any, key: Any, device: str) -> Callable[..., Any]:
        graph = self.graphs.get((function, key))
        if graph is None:
            graph = self.graphs[function, key] = _compiled(function, device)
        return graph


class _Through(torch.autograd.Function):
    """All steps, forward and backward. It keeps the states before every chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        loop: CompiledLoop,
        reverse: bool,
        active: Tensor | None,
        resets: Tensor | None,
        states: int,
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        before, params = tensors[:states], tensors[states:]
        pieces = loop.cut(x, active, resets)
        outputs: list[Tensor] = []
        starts: list[Tensor] = []
        for piece in reversed(pieces) if reverse else pieces:
            starts += before
            y, before = loop.forward(piece, before, params, reverse)
            outputs.append(y)
        ctx.save_for_backward(x, active, resets, *params, *starts)
        ctx.loop, ctx.reverse, ctx.states, ctx.params = loop, reverse, states, len(params)
        return torch.cat(outputs[::-1] if reverse else outputs), *before

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *dstates: Tensor) -> tuple[Tensor | None, ...]:
        x, active, resets, *saved = ctx.saved_tensors
        params, starts = tuple(saved[: ctx.params]), saved[ctx.params :]
        needed = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():  # somebody wants the gradient of this gradient
            given = (x, *starts[: ctx.states], *params)
            return *(None,) * 5, *_Through.again(ctx, given, active, resets, (dy, *dstates))
        dstates = tuple(d.contiguous() for d in dstates)
        # Within the sequence states always need gradients.
        wanted = (needed[0], *(True,) * ctx.states, *needed[1 + ctx.states :])
        pieces = ctx.loop.cut(x, active, resets, dy.contiguous())
        order = list(range(len(pieces)))
        dx: list[Tensor] = []
        dparams: list[Tensor] = []
        for place, n in enumerate(order if ctx.reverse else reversed(order)):
            *piece, dy_piece = pieces[n]
            start = (len(pieces) - 1 - place) * ctx.states
            before = tuple(starts[start : start + ctx.states])
            grads = list(
                ctx.loop.backward(
                    tuple(piece), before, params, ctx.reverse, wanted, dy_piece, dstates
                )
            )
            if needed[0]:
                dx.append(grads.pop(0))
            dstates, new = tuple(grads[: ctx.states]), grads[ctx.states :]
            dparams = [a.add_(b) for a, b in zip(dparams, new, strict=True)] if dparams else new
        d_x = torch.cat(dx if ctx.reverse else dx[::-1]) if needed[0] else None
        rest = iter(dparams)
        d_params = (next(rest) if need else None for need in needed[1 + ctx.states :])
        return *(None,) * 5, d_x, *dstates, *d_params

    @staticmethod
    def again(
        ctx: Any,
        given: States,
        active: Tensor | None,
        resets: Tensor | None,
        tangents: States,
    ) -> list[Tensor | None]:
        """The same gradients by the plain loop, open to further ones."""
        before, params = given[1 : 1 + ctx.states], given[1 + ctx.states :]
        y, after = run_steps(ctx.loop.fn, given[0], before, params, active, resets, ctx.reverse)
        needed = ctx.needs_input_grad[5:]
        wanted = [t for t, need in zip(given, needed, strict=True) if need]
        grads = iter(
            torch.autograd.grad(
                (y, *after), wanted, tangents, create_graph=True, materialize_grads=True
            )
        )
        return [next(grads) if need else None for need in needed]


def _pull_back(
    fn: StepFunction,
    x: Tensor,
    states: States,
    params: States,
    active: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    wanted: tuple[bool, ...],
    dy: Tensor,
    dstates: States,
) -> tuple[Tensor, ...]:
    given = (x, *states, *params)

    def run(*chosen: Tensor) -> tuple[Tensor, ...]:
        rest = iter(chosen)
        inputs = tuple(next(rest) if want else t for t, want in zip(given, wanted, strict=True))
        before, others = inputs[1 : 1 + len(states)], inputs[1 + len(states) :]
        y, after = run_steps(fn, inputs[0], before, others, active, resets, reverse)
        return y, *after

    pull = torch.func.vjp(run, *(t for t, want in zip(given, wanted, strict=True) if want))[1]
    grads: tuple[Tensor, ...] = pull((dy, *dstates))
    return grads


def _beside(mask: Tensor, like: Tensor) -> Tensor:
    """A mask `[B]` that broadcasts over `[B, ...]`."""
    return mask.reshape(-1, *(1,) * (like.dim() - 1))


def _compiled(function: Any, device: str) -> Callable[..., Any]:
    """torch.compile of a function, for one kind of arguments.

    Of a function with code of its own: Dynamo counts recompilations by code, and each kind of
    arguments is a graph that is meant.
    """
    own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    # Without it each product of a step is a call from Python.
    options: dict[str, Any] | None = {"cpp_wrapper": True} if device == "cpu" else None
    compiled: Callable[..., Any] = torch.compile(
        own, fullgraph=True, dynamic=False, options=options
    )
    return compiled
