"""The eager route: the time loop and its gradients as two autograd Functions.

The backward pass is a Function of its own so that it can be differentiated again (double backward)
and batched (`vmap` of a gradient). Both have vmap rules that turn the vmapped axis into one that
the op already has: batched data becomes a larger batch, batched weights become more directions.

Differentiating a gradient runs the reference loop: it needs the second derivatives of the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cells import CELLS
from .grad_norms import LayerNorms
from .gradients import (
    BATCH_AXIS,
    DIRECTION_AXIS,
    WEIGHTS,
    Config,
    LoopInputs,
    forward_op,
    loop_gradients,
    reference_gradients,
    saved_tensors,
)
from .short import is_short, short_gradients

# Where LoopGradients has the tensors of LoopInputs, after the gradients of four outputs.
_DOUTS = 4
_LOOP = slice(_DOUTS, _DOUTS + len(LoopInputs._fields))


def plainly_eager() -> bool:
    """Whether nobody traces or transforms: then what torch does for them can be passed by."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
    )


class Loop(torch.autograd.Function):
    """The recurrence. Inputs: a Config and the tensors of LoopInputs."""

    @classmethod
    def applied(cls, *inputs: Any) -> tuple[Tensor, ...]:
        """`apply`, in eager mode without binding arguments to a signature at each call."""
        if not plainly_eager():
            return cls.apply(*inputs)
        inputs = torch._functorch.utils.unwrap_dead_wrappers(inputs)
        return super(torch.autograd.Function, cls).apply(*inputs)  # type: ignore[misc]

    @staticmethod
    def forward(config: Config, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        if not plainly_eager():
            return forward_op(config, LoopInputs(*tensors), config.keep)
        with torch._C._AutoDispatchBelowAutograd():
            return forward_op(config, LoopInputs(*tensors), config.keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.config, *tensors = inputs
        ctx.set_materialize_grads(False)
        y, _, _, saved, cells = output
        ctx.mark_non_differentiable(saved, *([] if ctx.config.keep_cells else [cells]))
        ctx.save_for_backward(*tensors, y, saved, cells)

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any, dcells: Any) -> tuple[Any, ...]:
        has_cell_state = CELLS[ctx.config.cell].has_cell_state
        douts = (dy, dh_n, *((dc_n, dcells) if has_cell_state else (None, None)))
        if all(d is None for d in douts):
            return (None,) * (1 + len(LoopInputs._fields))
        *tensors, y, saved, cells = saved_tensors(ctx)
        if ctx.config.norms is not None:
            ctx.config.norms.check_backward(douts)
        eager = plainly_eager() and not torch.is_grad_enabled()
        if eager:
            loop, kept = LoopInputs(*tensors), (y, saved, cells)
            if is_short(ctx.config, loop, douts, kept):
                with torch._C._AutoDispatchBelowAutograd():
                    needs = ctx.needs_input_grad[1:]
                    return (None, *short_gradients(ctx.config, needs, douts, loop, kept))
        needed = tuple(
            name
            for name, need in zip(LoopInputs._fields, ctx.needs_input_grad[1:], strict=True)
            if need
        )
        # What the forward pass kept counts as constant: as a function of the inputs it is part of
        # what the gradient Function computes.
        inputs = (ctx.config, 1, needed, *douts, *tensors, y.detach(), saved, cells.detach())
        if eager:
            with torch._C._AutoDispatchBelowAutograd():
                grads = LoopGradients.forward(*inputs)
        else:
            grads = LoopGradients.apply(*inputs)
        named = {
            name: grad.squeeze(0) if name in WEIGHTS else grad
            for name, grad in zip(needed, grads, strict=True)
        }
        return (None, *(named.get(name) for name in LoopInputs._fields))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], config: Config, *tensors: Any) -> Any:
        fold = _Fold(info.batch_size, in_dims[1:], tensors, config)
        if fold.kind == "slices":
            return fold.by_slices(lambda slices: Loop.apply(config, *slices), in_dims[1:], tensors)
        outputs = Loop.apply(fold.config(config), *fold.loop())
        return fold.unfold_all(outputs, (fold.step_axis, *fold.state_axes, *fold.kept_axes))


class Probe(torch.autograd.Function):
    """Zeros `[T, B, D, R]` whose gradient is taken down: what the reference loop's states get.

    The inputs but for the first two are the tensors that the loop is differentiated in: a gradient
    of any of them asks for that of the probe.
    """

    @staticmethod
    def forward(
        ctx: Any, norms: LayerNorms, shape: Sequence[int], *tensors: Tensor | None
    ) -> Tensor:
        ctx.norms = norms
        like = next(t for t in tensors if t is not None)
        return like.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, dprobe: Tensor) -> tuple[None, ...]:
        ctx.norms.check_backward((dprobe,))
        ctx.norms.record(dprobe)
        return (None,) * len(ctx.needs_input_grad)


class LoopGradients(torch.autograd.Function):
    """The gradients of a recurrence.

    Inputs: config, groups and needed as in `loop_gradients`, then dy, dh_n, dc_n, dcells, the
    tensors of LoopInputs, and y, saved and cells, which count as constants. Outputs: the gradients
    in the order of `needed`.
    """

    @staticmethod
    def forward(
        config: Config, groups: int, needed: Sequence[str], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        loop = LoopInputs(*tensors[_LOOP])
        kept = tensors[_LOOP.stop :]
        grads = loop_gradients(config, groups, needed, tensors[:_DOUTS], loop, kept)  # type: ignore[arg-type]
        return tuple(grads[name] for name in needed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.static = inputs[:3]
        ctx.save_for_backward(*inputs[3 : 3 + _LOOP.stop])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        config, groups, needed = ctx.static
        tensors = ctx.saved_tensors
        places = [k for k, t in enumerate(tensors) if t is not None and t.is_floating_point()]

        def gradients(*values: Tensor) -> tuple[Tensor, ...]:
            full = list(tensors)
            for place, value in zip(places, values, strict=True):
                full[place] = value
            douts, loop = full[:_DOUTS], LoopInputs(*full[_LOOP])
            return reference_gradients(config, groups, needed, douts, loop)

        pull = torch.func.vjp(gradients, *(tensors[k] for k in places))[1]
        answer: list[Any] = [None] * len(tensors)
        for place, grad in zip(places, pull(tuple(cotangents)), strict=True):
            answer[place] = grad
        return (None, None, None, *answer, None, None, None)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        config: Config,
        groups: int,
        needed: Sequence[str],
        *tensors: Any,
    ) -> Any:
        dims = in_dims[3:]
        fold = _Fold(info.batch_size, dims[_LOOP], tensors[_LOOP], config)
        if fold.kind == "slices":
            return fold.by_slices(
                lambda slices: LoopGradients.apply(config, groups, needed, *slices), dims, tensors
            )
        dout_axes = (fold.step_axis, *fold.state_axes, fold.step_axis)
        kept_axes = (fold.step_axis, *fold.kept_axes)
        grads = LoopGradients.apply(
            fold.config(config),
            groups * info.batch_size if fold.kind == "batch" else groups,
            needed,
            *fold.each(tensors[:_DOUTS], dims[:_DOUTS], dout_axes),
            *fold.loop(),
            *fold.each(tensors[_LOOP.stop :], dims[_LOOP.stop :], kept_axes),
        )
        # A weight gradient leads with the group, then the direction.
        weight_axis = 0 if fold.kind == "batch" else 1
        axes = [weight_axis if name in WEIGHTS else fold.axes[name] for name in needed]
        return fold.unfold_all(grads, axes)


class _Fold:
    """How a vmapped axis of size N becomes part of an axis the op already has.

    Batched data with shared weights fold into the batch; batched weights fold into the directions,
    each model being a recurrence of its own. Lengths or resets per model fit neither, and neither
    do random masks, which are functions of the place in a batch, nor the rows of a packed one: then
    the models are run one by one.
    """

    def __init__(
        self, size: int, dims: Sequence[Any], tensors: Sequence[Any], config: Config
    ) -> None:
        self.size, self.dims, self.tensors = size, dims, tensors
        loop = LoopInputs(*dims)
        batched = {n for n in LoopInputs._fields if getattr(loop, n) is not None}
        if LoopInputs(*tensors).seed is not None or config.rows is not None:
            self.kind = "slices"
        elif not batched.intersection(WEIGHTS):
            self.kind = "batch"
        elif batched.intersection(("lengths", "resets", "x", "w_ih")):
            self.kind = "slices"
        else:
            self.kind = "direction"
        self.axes = BATCH_AXIS if self.kind == "batch" else DIRECTION_AXIS
        # Axes of [T, B, D, ...] tensors, of [D, B, ...] states, and of saved and cells.
        self.step_axis = 1 if self.kind == "batch" else 2
        self.state_axes = (1, 1) if self.kind == "batch" else (0, 0)
        self.kept_axes = (self.step_axis, self.step_axis)

    def config(self, config: Config) -> Config:
        if self.kind == "batch":
            return config
        return config._replace(reverse=config.reverse * self.size)

    def fold(self, tensor: Tensor | None, dim: int | None, axis: int | None) -> Tensor | None:
        if tensor is None or axis is None or _is_placeholder(tensor, dim):
            return tensor
        if dim is None:
            tensor = tensor.unsqueeze(axis)
            shape = list(tensor.shape)
            shape[axis] = self.size
            return tensor.expand(shape).flatten(axis, axis + 1)
        return tensor.movedim(dim, axis).flatten(axis, axis + 1)

    def each(
        self, tensors: Sequence[Any], dims: Sequence[Any], axes: Sequence[int | None]
    ) -> list[Tensor | None]:
        return [self.fold(t, d, a) for t, d, a in zip(tensors, dims, axes, strict=True)]

    def loop(self) -> list[Tensor | None]:
        return self.each(
            self.tensors, self.dims, [self.axes.get(name) for name in LoopInputs._fields]
        )

    def unfold_all(self, tensors: Sequence[Tensor], axes: Sequence[int]) -> Any:
        outputs: list[Tensor] = []
        dims: list[int | None] = []
        for tensor, axis in zip(tensors, axes, strict=True):
            if _is_placeholder(tensor, None):
                outputs.append(tensor)
                dims.append(None)
            else:
                outputs.append(tensor.unflatten(axis, (self.size, -1)))
                dims.append(axis)
        return tuple(outputs), tuple(dims)

    def by_slices(
        self,
        run: Callable[[list[Any]], tuple[Tensor, ...]],
        dims: Sequence[Any],
        tensors: Sequence[Any],
    ) -> Any:
        results = [
            run([t if d is None else t.select(d, k) for t, d in zip(tensors, dims, strict=True)])
            for k in range(self.size)
        ]
        outputs = tuple(torch.stack(column) for column in zip(*results, strict=True))
        return outputs, (0,) * len(outputs)


def _is_placeholder(tensor: Tensor, dim: int | None) -> bool:
    """Whether it is the empty tensor that stands in an op's output for what a cell lacks."""
    return tensor.dim() == (1 if dim is None else 2) and tensor.shape[-1] == 0
