"""The ops of `torch.ops.bptt`, their autograd, and the routes a recurrence takes to them.

A layer's whole sequence is one forward op and one backward op over all its directions. They know
the time loop only: the input projection before it and the weight gradients after it are matrix
products over all time steps and belong to torch.

Three routes, chosen in `recurrence`:

1. eager, `torch.func.grad` and `vmap`: the two autograd Functions below. The backward is a Function
   of its own, so that it can be differentiated again and batched.
2. `torch.compile` and `torch.export`: the registered op, opaque to the compiler, with its autograd
   formula.
3. forward-mode AD, function transforms inside torch.compile, or the reference backend: the
   reference loop, made of ordinary differentiable operations.

Differentiating a backward pass (double backward) runs the reference loop too: it needs the second
derivatives of the cell, which the fused kernels do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import dispatch, reference
from .cells import CELLS

Tensors = Sequence["Tensor | None"]


class Config(NamedTuple):
    """The part of a call that is not tensors."""

    backend: str
    cell: str
    reverse: tuple[bool, ...]


class LoopInputs(NamedTuple):
    """The tensors of the time loop; shapes as in `reference.recurrence`."""

    gates_x: Any
    w_hh: Any
    b_hh: Any
    w_hr: Any
    peephole: Any
    h0: Any
    c0: Any
    lengths: Any
    resets: Any


# Differentiable inputs, in the order of LoopInputs; the weights among them.
_DIFFERENTIABLE = ("gates_x", "w_hh", "b_hh", "w_hr", "peephole", "h0", "c0")
_WEIGHTS = ("w_hh", "b_hh", "w_hr", "peephole")
# The axis that holds the batch (folded when samples are vmapped) and the direction (folded when
# whole models are) in each tensor of the loop.
_BATCH_AXIS = {"gates_x": 1, "h0": 1, "c0": 1, "lengths": 0, "resets": 1, "x": 1}
_DIRECTION_AXIS = {"gates_x": 2, "h0": 0, "c0": 0, **dict.fromkeys(_WEIGHTS, 0)}


def recurrence(
    cell: str,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    peephole: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer: the input projection of every step and direction, then the time loop.

    Arguments are taken as checked. Shapes are those of `reference.recurrence`, with `x [T, B, I]`
    (any strides), `w_ih [D, G*H, I]` and `b_ih [D, G*H]` in place of `gates_x`.

    Returns:
        `y [T, B, D, R]`, `h_n [D, B, R]`, `c_n [D, B, H]` (None without a cell state).
    """
    spec = CELLS[cell]
    if lengths is not None:
        x = _zero_padding(x, lengths)
    bias = b_ih
    if b_hh is not None and spec.shared_gates:
        # Both biases are added to the same sum: fold them, and the loop has one operand less.
        bias, b_hh = (b_hh if b_ih is None else b_ih + b_hh), None
    w_in, b_in = w_ih.flatten(0, 1), None if bias is None else bias.flatten()
    gates_x = _project(x, w_in, b_in, len(reverse), len(spec.gates))
    loop = LoopInputs(gates_x, w_hh, b_hh, w_hr, peephole, h0, c0, lengths, resets)

    backend = dispatch.choose(problem_of(cell, x))
    if backend == "reference":
        return reference.recurrence(cell, *loop, reverse)
    config = Config(backend, cell, reverse)
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (gates_x, *loop[1:7])
    )
    if torch.compiler.is_compiling():
        out = _forward_op(config, loop, needs_grad)
    elif _functorch_active():
        out = _Loop.apply(config, *loop, None, None, None)
    elif needs_grad:
        out = _Loop.apply(config, *loop, x, w_in, b_in)
    else:
        out = _forward_op(config, loop, False)
    y, h_n, c_n = out[:3]
    return y, h_n, c_n if spec.has_cell_state else None


def problem_of(cell: str, x: Tensor) -> dispatch.Problem:
    """Describe the problem that a layer with input `x` poses to the backends."""
    return dispatch.Problem(cell, x.device.type, x.dtype, _needs_composite())


def _project(x: Tensor, w: Tensor, b: Tensor | None, directions: int, gates: int) -> Tensor:
    # A batch-first caller hands in a transposed view: project what lies contiguous in memory and
    # transpose the result, so that nothing is copied. The loop takes any strides of T and B.
    swap = not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
    gates_x = torch.nn.functional.linear(x.transpose(0, 1) if swap else x, w, b)
    gates_x = gates_x.unflatten(-1, (directions, gates, -1))  # [T, B, D, G, H]
    return gates_x.transpose(0, 1) if swap else gates_x


def _zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    # The loop ignores what lies past a length, but the weight gradient would still multiply it by
    # zero, and zero times NaN is NaN.
    steps = torch.arange(x.shape[0], device=x.device)
    inside = steps.unsqueeze(1) < lengths  # [T, B]
    return torch.where(inside.unsqueeze(-1), x, torch.zeros((), dtype=x.dtype, device=x.device))


# --- which transforms are at work ---------------------------------------------------------------


@torch.compiler.assume_constant_result
def _transform_levels() -> tuple[bool, bool]:
    """Whether forward-mode AD is on, and whether any torch.func transform is.

    Under torch.compile this runs at trace time, when Dynamo has really entered the levels; its own
    guard on the functorch stack makes the answer a constant of the graph.
    """
    functorch = torch._C._functorch.peek_interpreter_stack() is not None
    return forward_ad._current_level >= 0, functorch


def _functorch_active() -> bool:
    return _transform_levels()[1]


def _needs_composite() -> str | None:
    forward_mode, functorch = _transform_levels()
    if forward_mode:
        return "forward-mode AD runs through the differentiable reference loop"
    if functorch and torch.compiler.is_compiling():
        return "torch.func inside torch.compile runs through the differentiable reference loop"
    return None


# --- the ops ------------------------------------------------------------------------------------


def _forward_op(config: Config, loop: LoopInputs, save: bool) -> tuple[Tensor, ...]:
    return torch.ops.bptt.recurrence_forward(
        config.backend, config.cell, *loop, list(config.reverse), save
    )


def _backward_op(
    config: Config, douts: Tensors, loop: LoopInputs, kept: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return torch.ops.bptt.recurrence_backward(
        config.backend,
        config.cell,
        *douts,
        *kept,
        loop.w_hh,
        loop.w_hr,
        loop.peephole,
        loop.h0,
        loop.c0,
        loop.lengths,
        loop.resets,
        list(config.reverse),
    )


def _loop_gradients(
    config: Config, groups: int, douts: Tensors, loop: LoopInputs, kept: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Gradients of the differentiable inputs, from the backward op and the products after it.

    With `groups` = N the batch is N groups laid end to end and the weight gradients are summed
    within each: `[N, *weight.shape]` (per-sample gradients). Always with that leading axis.
    """
    spec = CELLS[config.cell]
    dgates_x, dgates_h, dh0, dc0, dpeephole, operand, dh = _backward_op(config, douts, loop, kept)
    if spec.shared_gates:
        dgates_h = dgates_x
    y = kept[0]
    h_prev = _previous_hidden(y, loop.h0, loop.lengths, loop.resets, config.reverse)
    rows = dgates_h.flatten(3)  # [T, B, D, G*H]
    if spec.stages == 2:
        hidden = operand.shape[-1]
        first, second = rows[..., :-hidden], rows[..., -hidden:]
        dw_hh = torch.cat(
            [_outer_sum(first, h_prev, groups), _outer_sum(second, operand, groups)], dim=2
        )
    else:
        dw_hh = _outer_sum(rows, h_prev, groups)
    grads = {"gates_x": dgates_x, "w_hh": dw_hh, "h0": dh0}
    if loop.b_hh is not None:
        grads["b_hh"] = rows.unflatten(1, (groups, -1)).sum((0, 2))
    if loop.w_hr is not None:
        grads["w_hr"] = _outer_sum(dh, operand, groups)
    if loop.peephole is not None:
        per_group = dpeephole.unflatten(0, (groups, -1)).sum(1)
        grads["peephole"] = per_group.to(loop.peephole.dtype)
    if spec.has_cell_state:
        grads["c0"] = dc0
    return grads


def _outer_sum(rows: Tensor, columns: Tensor, groups: int) -> Tensor:
    """Sum rows^T columns over time and the batch of each group: [T,B,D,M], [T,B,D,K] -> [N,D,M,K]."""
    steps, batch, directions, _ = rows.shape
    if groups == 1:
        # One GEMM per direction on strided views: nothing is copied.
        return torch.stack(
            [
                rows[:, :, d].reshape(steps * batch, -1).t()
                @ columns[:, :, d].reshape(steps * batch, -1)
                for d in range(directions)
            ]
        ).unsqueeze(0)
    rows, columns = (t.unflatten(1, (groups, -1)) for t in (rows, columns))
    return torch.einsum("tnbdm,tnbdk->ndmk", rows, columns)


def _previous_hidden(
    y: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: Sequence[bool],
) -> Tensor:
    """The hidden state that entered each step, `[T, B, D, R]`: outputs shifted by one step."""
    planes = []
    for d, backwards in enumerate(reverse):
        first = h0[d].unsqueeze(0)
        if not backwards:
            planes.append(torch.cat([first, y[:-1, :, d]]))
            continue
        plane = torch.cat([y[1:, :, d], first])
        if lengths is not None:
            steps = torch.arange(1, y.shape[0] + 1, device=y.device).unsqueeze(1)
            plane = torch.where((steps == lengths).unsqueeze(-1), first, plane)
        planes.append(plane)
    h_prev = torch.stack(planes, dim=2) if len(planes) > 1 else planes[0].unsqueeze(2)
    if resets is not None:
        h_prev = torch.where(resets[:, :, None, None], torch.zeros_like(h_prev), h_prev)
    return h_prev


# --- eager route: two Functions -----------------------------------------------------------------


class _Loop(torch.autograd.Function):
    """The time loop. Inputs: config, the nine of LoopInputs, then x, w_in, b_in.

    The last three are there to rebuild gates_x in a double backward instead of keeping it: it is as
    large as all that is saved besides. Under torch.func they are None and gates_x is kept.
    """

    @staticmethod
    def forward(config: Config, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return _forward_op(config, LoopInputs(*tensors[:9]), True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        config, gates_x, *rest = inputs
        ctx.config = config
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[3:])
        keep_gates = rest[8] is None
        y, _, _, saved, cells = output
        ctx.save_for_backward(gates_x if keep_gates else None, *rest, y, saved, cells)

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, *_: Any) -> tuple[Any, ...]:
        *tensors, y, saved, cells = ctx.saved_tensors
        has_cell_state = CELLS[ctx.config.cell].has_cell_state
        douts = (dy, dh_n, dc_n if has_cell_state else None)
        if all(d is None for d in douts):
            return (None,) * 13
        # y is constant here: as a function of the inputs it is part of what the Function computes.
        grads = _LoopBackward.apply(ctx.config, 1, *douts, *tensors, y.detach(), saved, cells)
        by_name = dict(zip(_present(ctx.config, LoopInputs(*tensors[:9])), grads, strict=True))
        for name in _WEIGHTS:
            if name in by_name:
                by_name[name] = by_name[name].squeeze(0)
        return (None, *(by_name.get(name) for name in LoopInputs._fields), None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], config: Config, *tensors: Any) -> Any:
        fold = _Fold(info.batch_size, in_dims[1:10], tensors[:9])
        if fold.kind == "slices":
            return fold.by_slices(lambda slices: _Loop.apply(config, *slices, None, None, None))
        y, h_n, c_n, saved, cells = _Loop.apply(
            fold.config(config), *fold.inputs(), None, None, None
        )
        out = fold.unfold
        axis = 1 if fold.kind == "batch" else 2
        has_cell_state = CELLS[config.cell].has_cell_state
        outputs = [out(y, axis), out(h_n, axis % 2), (c_n, None), out(saved, axis), (cells, None)]
        if has_cell_state:
            outputs[2], outputs[4] = out(c_n, axis % 2), out(cells, axis)
        if not CELLS[config.cell].saved:
            outputs[3] = (saved, None)
        return tuple(t for t, _ in outputs), tuple(dim for _, dim in outputs)


def _present(config: Config, loop: LoopInputs) -> list[str]:
    """Names of the gradients a loop has, in order. gates_x always; it may be rebuilt from x."""
    return ["gates_x"] + [n for n in _DIFFERENTIABLE[1:] if getattr(loop, n) is not None]


class _LoopBackward(torch.autograd.Function):
    """The gradients of the time loop.

    Inputs: config, groups, dy, dh_n, dc_n, the twelve of `_Loop`, then y, saved and cells, which are
    what the forward kept and count as constants. Outputs: the gradients named by `_present`.
    """

    @staticmethod
    def forward(config: Config, groups: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        loop = LoopInputs(*tensors[3:12])
        grads = _loop_gradients(config, groups, tensors[:3], loop, tensors[15:])
        return tuple(grads[name] for name in _present(config, loop))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.config, ctx.groups, *tensors = inputs
        ctx.save_for_backward(*tensors[:15])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        places = [
            k
            for k, t in enumerate(tensors)
            if t is not None and (t.is_floating_point() or t.is_complex())
        ]

        def gradients(*primals: Tensor) -> tuple[Tensor, ...]:
            full = list(tensors)
            for place, primal in zip(places, primals, strict=True):
                full[place] = primal
            return _reference_gradients(ctx.config, ctx.groups, full)

        _, pull = torch.func.vjp(gradients, *(tensors[k] for k in places))
        answer: list[Any] = [None] * len(tensors)
        for place, grad in zip(places, pull(tuple(cotangents)), strict=True):
            answer[place] = grad
        return (None, None, *answer, None, None, None)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], config: Config, groups: int, *tensors: Any
    ) -> Any:
        dims = in_dims[2:]
        fold = _Fold(info.batch_size, dims[3:12], tensors[3:12])
        if fold.kind == "slices":
            return fold.by_slices(
                lambda slices: _LoopBackward.apply(config, groups, *slices), dims, tensors
            )
        size, batched = info.batch_size, fold.kind == "batch"
        axis = 1 if batched else 2
        kept_axes = (axis, axis % 2, axis % 2)
        recipe = [
            fold.fold(t, dim, _BATCH_AXIS.get(name))
            for name, t, dim in zip(("x", "w", "b"), tensors[12:15], dims[12:15], strict=True)
        ]
        grads = _LoopBackward.apply(
            fold.config(config),
            groups * size if batched else groups,
            *(fold.fold(t, d, a) for t, d, a in zip(tensors[:3], dims, kept_axes, strict=False)),
            *fold.inputs(),
            *recipe,
            *(fold.fold(t, d, axis) for t, d in zip(tensors[15:], dims[15:], strict=True)),
        )
        outputs = []
        for name, grad in zip(_present(config, LoopInputs(*tensors[3:12])), grads, strict=True):
            if name in _WEIGHTS:
                outputs.append(fold.unfold(grad, 0 if batched else 1))
            else:
                outputs.append(fold.unfold(grad, fold.axes[name]))
        return tuple(t for t, _ in outputs), tuple(dim for _, dim in outputs)


class _Fold:
    """How one vmapped axis of size N becomes part of an axis the op already has.

    Batched data with shared weights folds into the batch; batched weights fold into the directions,
    each model being a recurrence of its own. Per-sample lengths or resets together with per-sample
    weights fit neither and are run slice by slice.
    """

    def __init__(self, size: int, dims: Sequence[Any], tensors: Sequence[Any]) -> None:
        self.size, self.dims, self.tensors = size, dims, tensors
        loop = LoopInputs(*dims)
        weights = any(getattr(loop, name) is not None for name in _WEIGHTS)
        masks = loop.lengths is not None or loop.resets is not None
        self.kind = "batch" if not weights else "slices" if masks else "direction"
        self.axes = _BATCH_AXIS if self.kind == "batch" else _DIRECTION_AXIS

    def config(self, config: Config) -> Config:
        if self.kind == "batch":
            return config
        return config._replace(reverse=config.reverse * self.size)

    def fold(self, tensor: Tensor | None, dim: int | None, axis: int | None) -> Tensor | None:
        if tensor is None or axis is None or tensor.dim() < 1 or tensor.numel() == 0 == axis:
            return tensor
        if dim is None:
            if axis >= tensor.dim():  # an empty placeholder
                return tensor
            tensor = tensor.unsqueeze(axis)
            shape = list(tensor.shape)
            shape[axis] = self.size
            return tensor.expand(shape).flatten(axis, axis + 1)
        return tensor.movedim(dim, axis).flatten(axis, axis + 1)

    def unfold(self, tensor: Tensor, axis: int) -> tuple[Tensor, int]:
        return tensor.unflatten(axis, (self.size, -1)), axis

    def inputs(self) -> list[Tensor | None]:
        return [
            self.fold(t, d, self.axes.get(name))
            for name, t, d in zip(LoopInputs._fields, self.tensors, self.dims, strict=True)
        ]

    def by_slices(
        self,
        run: Callable[[list[Any]], tuple[Tensor, ...]],
        dims: Sequence[Any] | None = None,
        tensors: Sequence[Any] | None = None,
    ) -> Any:
        dims = self.dims if dims is None else dims
        tensors = self.tensors if tensors is None else tensors
        results = [
            run([t if d is None else t.select(d, k) for t, d in zip(tensors, dims, strict=True)])
            for k in range(self.size)
        ]
        outputs = tuple(torch.stack(column) for column in zip(*results, strict=True))
        return outputs, (0,) * len(outputs)


def _reference_gradients(config: Config, groups: int, tensors: Sequence[Any]) -> tuple[Any, ...]:
    """What `_LoopBackward` computes, out of differentiable operations.

    Takes the first fifteen tensors of that Function. Weights are expanded to one copy per group so
    that their gradients come out per group.
    """
    dy, dh_n, dc_n, *rest = tensors
    loop, (x, w_in, b_in) = LoopInputs(*rest[:9]), rest[9:12]
    spec = CELLS[config.cell]
    if loop.gates_x is None:
        gates_x = _project(x, w_in, b_in, len(config.reverse), len(spec.gates))
        loop = loop._replace(gates_x=gates_x)
    names = _present(config, loop)

    def split(name: str, tensor: Tensor | None) -> Tensor | None:
        # One group per leading index: weights repeated, data taken apart along the batch.
        if tensor is None:
            return None
        if name in _WEIGHTS:
            return tensor.expand(groups, *tensor.shape)
        axis = _BATCH_AXIS[name]
        return tensor.unflatten(axis, (groups, -1)).movedim(axis, 0)

    grouped = LoopInputs(*(split(n, t) for n, t in zip(LoopInputs._fields, loop, strict=True)))
    cotangents = [
        None if d is None else d.unflatten(1, (groups, -1)).movedim(1, 0) for d in (dy, dh_n, dc_n)
    ]
    present = [k for k, d in enumerate(cotangents) if d is not None]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        def one(*parts: Tensor | None) -> tuple[Tensor, ...]:
            outs = reference.recurrence(config.cell, *parts, config.reverse)  # type: ignore[arg-type]
            return tuple(outs[k] for k in present)  # type: ignore[misc]

        full = grouped._replace(**dict(zip(names, values, strict=True)))
        in_dims = tuple(None if t is None else 0 for t in full)
        return torch.func.vmap(one, in_dims=in_dims)(*full)

    _, pull = torch.func.vjp(run, *(getattr(grouped, n) for n in names))
    grads = pull(tuple(cotangents[k] for k in present))
    return tuple(
        g if n in _WEIGHTS else g.movedim(0, _BATCH_AXIS[n]).flatten(_BATCH_AXIS[n], _BATCH_AXIS[n] + 1)
        for n, g in zip(names, grads, strict=True)
    )


# --- compiled route: fake kernels and the op's own autograd formula -------------------------------


def _fake_forward(
    backend: str,
    cell: str,
    gates_x: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    peephole: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: list[bool],
    save: bool,
) -> tuple[Tensor, ...]:
    steps, batch, directions, _, hidden = gates_x.shape
    spec = CELLS[cell]
    new = gates_x.new_empty
    kept = save and bool(spec.saved)
    cells = save and spec.has_cell_state
    return (
        new(steps, batch, directions, h0.shape[-1]),
        torch.empty_like(h0, memory_format=torch.contiguous_format),
        new(directions, batch, hidden) if spec.has_cell_state else new(0),
        new(steps, batch, directions, len(spec.saved), hidden) if kept else new(0),
        new(steps, batch, directions, hidden, dtype=_state_dtype(gates_x.dtype))
        if cells
        else new(0, dtype=_state_dtype(gates_x.dtype)),
    )


def _fake_backward(
    backend: str,
    cell: str,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    y: Tensor,
    saved: Tensor,
    cells: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    peephole: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: list[bool],
) -> tuple[Tensor, ...]:
    spec = CELLS[cell]
    steps, batch, directions, state = y.shape
    gates = len(spec.gates)
    hidden = w_hh.shape[1] // gates
    new = y.new_empty
    gate_shape = (steps, batch, directions, gates, hidden)
    two_products = spec.stages == 2 or w_hr is not None
    wide = _state_dtype(y.dtype)
    return (
        new(gate_shape),
        new(0) if spec.shared_gates else new(gate_shape),
        torch.empty_like(h0, memory_format=torch.contiguous_format),
        new(directions, batch, hidden) if spec.has_cell_state else new(0),
        new(0, dtype=wide) if peephole is None else new(batch, *peephole.shape, dtype=wide),
        new(steps, batch, directions, hidden) if two_products else new(0),
        new(steps, batch, directions, state) if w_hr is not None else new(0),
    )


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Cell states and sums are kept in at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _setup_compiled(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    backend, cell, *tensors, reverse, _ = inputs
    ctx.config = Config(backend, cell, tuple(reverse))
    y, _, _, saved, cells = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors[1:], y, saved, cells)


def _compiled_backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, *_: Any) -> tuple[Any, ...]:
    *tensors, y, saved, cells = ctx.saved_tensors
    loop = LoopInputs(None, *tensors)
    douts = (dy, dh_n, dc_n if CELLS[ctx.config.cell].has_cell_state else None)
    grads = _loop_gradients(ctx.config, 1, douts, loop, (y, saved, cells))
    for name in _WEIGHTS:
        if name in grads:
            grads[name] = grads[name].squeeze(0)
    return (None, None, *(grads.get(name) for name in LoopInputs._fields), None, None)


def _register() -> None:
    torch.library.register_fake("bptt::recurrence_forward", _fake_forward)
    torch.library.register_fake("bptt::recurrence_backward", _fake_backward)
    torch.library.register_autograd(
        "bptt::recurrence_forward", _compiled_backward, setup_context=_setup_compiled
    )


if hasattr(torch.ops.bptt, "recurrence_forward"):  # absent when the extension did not load
    _register()
