"""Gradients of a recurrence, from its backward op and the matrix products after the loop.

Everything here works on plain tensors; the autograd rules that call it are in `autograd.py` (eager)
and `ops.py` (compiled).
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import precision, random, reference
from .cells import CELLS
from .control import PLAIN, Control
from .grad_norms import LayerNorms
from .rows import Rows

KEEP_NOTHING, KEEP_STATES, KEEP_GATES = "nothing", "states", "gates"


class Config(NamedTuple):
    """The part of a call that is not tensors.

    Attributes:
        recompute: whether the backward pass rebuilds the gates instead of keeping them.
        norms: where the backward pass leaves the norms of the hidden states' gradients, if asked.
        control: what the loop does besides running the cell.
        keep_cells: whether all cell states are an output.
        rows: how the rows of x lie in its batch, where x is `[N, I]`: then the padded batch is made
            anew when it is needed, and not kept.
    """

    backend: str
    cell: str
    reverse: tuple[bool, ...]
    recompute: bool = False
    norms: LayerNorms | None = None
    control: Control = PLAIN
    keep_cells: bool = False
    rows: Rows | None = None

    @property
    def keep(self) -> str:
        """What the forward op keeps for a backward pass."""
        return KEEP_STATES if self.recompute else KEEP_GATES


class LoopInputs(NamedTuple):
    """The tensors of a recurrence; None where an option is absent.

    Either `gates_x [T, B, D, G, H]`, the input projection without bias, or `x [T, B, I]` and
    `w_ih [D, G*H, I]` to make it from. `b_ih` and `b_hh` are `[D, G*H]`; the rest is as in
    `reference.recurrence`. `seed` is there where `Config.control` draws.
    """

    gates_x: Any
    x: Any
    w_ih: Any
    b_ih: Any
    w_hh: Any
    b_hh: Any
    w_hr: Any
    w_unit: Any
    h0: Any
    c0: Any
    lengths: Any
    resets: Any
    seed: Any = None


DIFFERENTIABLE = LoopInputs._fields[:10]
WEIGHTS = ("w_ih", "b_ih", "w_hh", "b_hh", "w_hr", "w_unit")
# Where the batch and the direction lie in each tensor that has them.
BATCH_AXIS = {"gates_x": 1, "x": 1, "h0": 1, "c0": 1, "lengths": 0, "resets": 1}
DIRECTION_AXIS = {"gates_x": 2, "h0": 0, "c0": 0, **dict.fromkeys(WEIGHTS, 0)}


def project(x: Tensor, w_ih: Tensor, cell: str) -> Tensor:
    """The input projection of all steps and directions, `[T, B, D, G, H]`, without bias."""
    gates_x = torch.nn.functional.linear(x, w_ih.flatten(0, 1))
    return gates_x.unflatten(-1, (w_ih.shape[0], len(CELLS[cell].gates), -1))


def forward_op(config: Config, loop: LoopInputs, keep: str) -> tuple[Tensor, ...]:
    """Call the op; returns y, h_n, c_n, saved, cells."""
    config, loop = spread(config, loop)
    reverse = [int(r) for r in config.reverse]
    return torch.ops.bptt.recurrence_forward(
        config.backend, config.cell, *loop[:12], reverse, keep, config.control.numbers(), loop.seed
    )


def saved_tensors(ctx: Any) -> Sequence[Any]:
    """What a forward pass saved for `ctx`, its outputs made anew where somebody changed them.

    Saved are the tensors of LoopInputs, then y, saved and cells. y is the caller's output, and the
    history of the hidden state that the backward pass reads. Who changes it in place gets the right
    gradients for one more forward pass; nobody else pays.

    Raises:
        RuntimeError: torch's own, where an input was changed or the graph has been freed.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError:
        raw = getattr(ctx, "_raw_saved_tensors", ())
        if not raw or not hasattr(raw[0], "unpack"):
            raise
        loop = LoopInputs(*(tensor.unpack() for tensor in raw[: len(LoopInputs._fields)]))
        if loop.gates_x is None and loop.x is None:  # not kept beside the gates
            raise
    with torch.no_grad():
        y, _, _, saved, cells = forward_op(ctx.config, loop, ctx.config.keep)
    return [*loop, y, saved, cells]


def spread(config: Config, loop: LoopInputs) -> tuple[Config, LoopInputs]:
    """The same with x as a padded batch."""
    if config.rows is None:
        return config, loop
    return config._replace(rows=None), loop._replace(x=config.rows.spread(loop.x))


def loop_gradients(
    config: Config,
    groups: int,
    needed: Sequence[str],
    douts: Sequence[Tensor | None],
    loop: LoopInputs,
    kept: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Gradients of the inputs named in `needed`.

    Args:
        config: backend, cell and directions.
        groups: N; the batch is N groups laid end to end, and weight gradients are summed within
            each: `[N, *weight.shape]`, always with that leading axis (per-sample gradients).
        needed: names in `DIFFERENTIABLE`.
        douts: gradients of y, h_n, c_n and all cell states, or None.
        loop: what the forward op got.
        kept: y, saved and cells, as the forward op returned them; what the cell saves is rebuilt
            where the forward pass left it out.
    """
    spec, rows = CELLS[config.cell], config.rows
    if spec.saved and kept[1].dim() == 1:
        kept = (kept[0], rebuilt_gates(*spread(config, loop), kept), kept[2])
    dgates_x, dgates_h, dh0, dc0, dw_unit, operand, dh = torch.ops.bptt.recurrence_backward(
        config.backend,
        config.cell,
        *douts[:3],
        *kept,
        loop.w_hh,
        loop.w_hr,
        loop.w_unit,
        loop.h0,
        loop.c0,
        loop.lengths,
        loop.resets,
        [int(r) for r in config.reverse],
        config.norms is not None,
        config.control.numbers(),
        loop.seed,
        douts[3],
    )
    if config.norms is not None:
        config.norms.record(dh)
    if spec.shared_gates:
        dgates_h = dgates_x
    # Here and below `reshape` rather than `flatten`: is_grads_batched=True runs this under torch's
    # older vmap, which knows the one and not the other.
    steps, batch, directions, gates, hidden = dgates_x.shape
    rows_x = dgates_x.reshape(steps, batch, directions, gates * hidden)
    rows_h = dgates_h.reshape(rows_x.shape)
    grads = {"gates_x": dgates_x, "h0": dh0, "c0": dc0}
    if rows is not None:
        grads |= _of_packed_input(rows_x, rows, loop, needed)
    elif "x" in needed:
        w_ih = loop.w_ih.reshape(directions * gates * hidden, -1)
        dx = _product(rows_x.reshape(steps * batch, directions * gates * hidden), w_ih)
        grads["x"] = dx.reshape(steps, batch, w_ih.shape[1])
    if rows is None and "w_ih" in needed:
        x = loop.x.unsqueeze(2).expand(*rows_x.shape[:3], loop.x.shape[-1])
        grads["w_ih"] = _outer_sum(rows_x, x, groups)
    if "w_hh" in needed:
        first = rows_h[..., :-hidden] if spec.stages == 2 else rows_h
        if spec.stages == 0:
            grads["w_hh"] = loop.w_hh.new_zeros(groups, *loop.w_hh.shape)
        else:
            grads["w_hh"] = _hidden_sum(first, kept[0], loop, config, groups)
        if spec.stages == 2:
            last = _outer_sum(rows_h[..., -hidden:], operand, groups)
            grads["w_hh"] = torch.cat([grads["w_hh"], last], dim=2)
    if "b_ih" in needed or (spec.shared_gates and "b_hh" in needed):
        grads["b_ih"] = _bias_sum(rows_x, groups)
    if "b_hh" in needed:
        if spec.shared_gates:
            grads["b_hh"] = grads["b_ih"].clone()
        else:
            grads["b_hh"] = _bias_sum(rows_h, groups)
    if "w_hr" in needed:
        grads["w_hr"] = _outer_sum(_into_projection(dh, loop, config), operand, groups)
    if "w_unit" in needed:
        per_group = dw_unit.reshape(groups, batch // groups, *loop.w_unit.shape).sum(1)
        grads["w_unit"] = per_group.to(loop.w_unit.dtype)
    return {name: grads[name] for name in needed}


def _of_packed_input(
    rows_x: Tensor, rows: Rows, loop: LoopInputs, needed: Sequence[str]
) -> dict[str, Tensor]:
    """Gradients of x `[N, I]` and of w_ih, out of those of the gates `[T, B, D, M]`.

    Neither the padded x nor all rows of the gates' gradients are there at a time.
    """
    grads: dict[str, Tensor] = {}
    w_ih = loop.w_ih.reshape(-1, loop.w_ih.shape[2])  # [D * M, I]
    dx: list[Tensor] = []
    dw_ih: Sequence[Any] = [None] * len(loop.w_ih)
    for part, mine in rows.parts(rows_x):  # [n, D, M]
        if "x" in needed:
            dx.append(_product(mine.flatten(1), w_ih))
        if "w_ih" in needed:
            x = loop.x[part]
            dw_ih = [_added(mine[:, d].t(), x, dw) for d, dw in enumerate(dw_ih)]
    if "x" in needed:
        grads["x"] = torch.cat(dx)
    if "w_ih" in needed:
        grads["w_ih"] = _stacked([dw.to(w_ih.dtype) for dw in dw_ih])
    return grads


def _added(a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
    """start + a @ b, in float32 where a and b have 16 bits: parts are not rounded one by one."""
    if a.dtype not in (torch.float16, torch.bfloat16):
        return _product(a, b, start)
    product = _product(a, b).float()
    return product if start is None else start + product


def rebuilt_gates(config: Config, loop: LoopInputs, kept: Sequence[Tensor]) -> Tensor:
    """What the forward pass would have saved, `[T, B, D, A, H]`, from the states that it kept.

    A step needs its input and the states that entered it, and all of those are known by now. So
    this is the same op once more, on one step of a batch of T*B: one matrix product.
    """
    y, _, cells = kept
    steps, batch = y.shape[:2]
    folded: dict[str, Any] = {
        name: tensor.reshape(1, steps * batch, *tensor.shape[2:])
        for name, tensor in (("gates_x", loop.gates_x), ("x", loop.x), ("resets", loop.resets))
        if tensor is not None
    }
    if loop.lengths is not None:
        inside = torch.arange(steps, device=y.device).unsqueeze(1) < loop.lengths
        folded["lengths"] = inside.reshape(steps * batch).to(torch.int64)
    for name, history in (("h0", y), ("c0", cells)):
        first = getattr(loop, name)
        if first is not None:
            entered = _previous(history.to(y.dtype), first, loop.lengths, config.reverse)
            if name == "h0":
                entered = _into_products(entered, loop, config)
            folded[name] = entered.reshape(steps * batch, *entered.shape[2:]).transpose(0, 1)
    # What is saved depends on nothing that happens to the states afterwards.
    config = config._replace(control=config.control.without_randomness())
    saved = forward_op(config, loop._replace(**folded, seed=None), KEEP_GATES)[3]
    return saved.reshape(steps, batch, *saved.shape[2:])


def _grouped(planes: Tensor, groups: int) -> Tensor:
    """[T, B, D, M] -> [T, N, B/N, D, M]."""
    steps, batch, directions, width = planes.shape
    return planes.reshape(steps, groups, batch // groups, directions, width)


def _bias_sum(rows: Tensor, groups: int) -> Tensor:
    """Sum [T, B, D, M] over time and each group's batch: [N, D, M]."""
    return _grouped(rows, groups).sum((0, 2))


def _outer_sum(rows: Tensor, columns: Tensor, groups: int) -> Tensor:
    """Sum rows^T columns over time and each group's batch: [T,B,D,M], [T,B,D,K] -> [N,D,M,K]."""
    if groups > 1:
        with precision.around(rows):
            operands = _grouped(rows, groups), _grouped(columns, groups)
            return torch.einsum("tnbdm,tnbdk->ndmk", *operands)
    # One GEMM per direction on strided views: nothing is copied.
    planes = [_product(_matrix(rows, d).t(), _matrix(columns, d)) for d in range(rows.shape[2])]
    return _stacked(planes)


def _product(a: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
    """start + a @ b.

    On a CPU by the engine's own tiles, which share its threads and its peak; on a GPU by torch's,
    float32 at the precision of the recurrence. A CPU without instructions for bfloat16 multiplies
    it in float32: torch's product would take several times as long.
    """
    if a.device.type == "cpu" and a.dtype == torch.bfloat16 and not _cpu_multiplies_bfloat16():
        wide = _product(a.float(), b.float(), None if start is None else start.float())
        return wide.to(a.dtype)
    if _has_own_product(a) or (a.device.type == "cuda" and a.dtype == torch.float32):
        return torch.ops.bptt.matrix_product(a, b, start)
    return a @ b if start is None else torch.addmm(start, a, b)


@lru_cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether it has instructions for that; others than x86 are left to torch."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    asked = [getattr(torch.cpu, name) for name in known if hasattr(torch.cpu, name)]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not x86 or any(ask() for ask in asked)


def _has_own_product(a: Tensor) -> bool:
    return a.device.type == "cpu" and a.dtype in (torch.float32, torch.float64)


def _stacked(planes: list[Tensor]) -> Tensor:
    """Stack the planes of the directions, with one group before them: [1, D, ...]."""
    stacked = planes[0].unsqueeze(0) if len(planes) == 1 else torch.stack(planes)
    return stacked.unsqueeze(0)


def _matrix(planes: Tensor, d: int) -> Tensor:
    """Direction d of [T, B, D, M] as a matrix [T*B, M], a view where the layout allows."""
    return planes[:, :, d].reshape(-1, planes.shape[3])


def _into_products(h: Tensor, loop: LoopInputs, config: Config) -> Tensor:
    """What of hidden states `[T, B, D, R]` enters recurrent products."""
    return h if config.control.recurrent_dropout == 0 else h * _kept(loop, config, h.dtype)


def _kept(loop: LoopInputs, config: Config, dtype: torch.dtype) -> Tensor:
    """What recurrent dropout multiplies hidden states with, `[B, D, R]`."""
    p, (directions, batch, state) = config.control.recurrent_dropout, loop.h0.shape
    return random.kept(loop.seed, p, (directions, batch, state), dtype).transpose(0, 1)


def _into_projection(dh: Tensor, loop: LoopInputs, config: Config) -> Tensor:
    """What of the gradients of the hidden states `[T, B, D, R]` reaches the projection."""
    control = config.control
    dh = reference.bounded(dh, control.gradient_bound, control.gradient_norm)
    if control.zoneout_h > 0 and not control.sampled:
        dh = dh * (1 - control.zoneout_h)
    elif control.zoneout_h > 0:
        stays = random.zoneout(loop.seed, control.zoneout_h, dh.shape)
        dh = torch.where(stays, torch.zeros_like(dh), dh)
    return dh


def _hidden_sum(rows: Tensor, y: Tensor, loop: LoopInputs, config: Config, groups: int) -> Tensor:
    """Sum rows^T h over all steps, h being the hidden state that entered each step's product."""
    h0, lengths, resets, reverse = loop.h0, loop.lengths, loop.resets, config.reverse
    apart = groups > 1 or resets is not None
    kept = None  # what the products below are still to multiply y with
    if config.control.recurrent_dropout > 0:
        kept = _kept(loop, config, y.dtype)
        h0 = h0 * kept.transpose(0, 1)
        # An array as large as y is the dearest part of this; only the plain product can do without.
        if apart or not _has_own_product(y) or torch.is_grad_enabled():
            y, kept = y * kept, None
    if apart:
        h_prev = _previous(y, h0, lengths, reverse)
        if resets is not None:
            h_prev = torch.where(resets[:, :, None, None], torch.zeros_like(h_prev), h_prev)
        return _outer_sum(rows, h_prev, groups)
    planes = []
    for d, backwards in enumerate(reverse):
        later, earlier = (rows[:-1], y[1:]) if backwards else (rows[1:], y[:-1])
        start = rows[-1, :, d] if backwards else rows[0, :, d]  # what the initial state entered
        if backwards and lengths is not None:
            batch = torch.arange(rows.shape[1], device=rows.device)
            start = rows[(lengths - 1).clamp(min=0), batch, d]  # a length of 0 has zero rows
        initial = _product(start.t(), h0[d])
        if rows.shape[0] == 1:
            planes.append(initial)
            continue
        a, b = _matrix(later, d).t(), _matrix(earlier, d)
        if kept is None:
            planes.append(_product(a, b, initial))
        else:
            planes.append(torch.ops.bptt.masked_product(a, b, initial, kept[:, d]))
    return _stacked(planes)


def _previous(
    history: Tensor, initial: Tensor, lengths: Tensor | None, reverse: Sequence[bool]
) -> Tensor:
    """The state that each step found, `[T, B, D, M]`: those that the steps left, shifted by one.

    A reset is not looked at.
    """
    planes = []
    for d, backwards in enumerate(reverse):
        first = initial[d].unsqueeze(0)
        if not backwards:
            planes.append(torch.cat([first, history[:-1, :, d]]))
            continue
        plane = torch.cat([history[1:, :, d], first])
        if lengths is not None:
            steps = torch.arange(1, history.shape[0] + 1, device=history.device).unsqueeze(1)
            plane = torch.where((steps == lengths).unsqueeze(-1), first, plane)
        planes.append(plane)
    return torch.stack(planes, dim=2)


def reference_outputs(
    config: Config, loop: LoopInputs, probe: Tensor | None = None
) -> reference.Outputs:
    """The recurrence on the reference loop, from `gates_x` or from `x`."""
    config, loop = spread(config, loop)
    gates_x = loop.gates_x
    if gates_x is None:
        gates_x = project(loop.x, loop.w_ih, config.cell)
    if loop.b_ih is not None:
        gates_x = gates_x + loop.b_ih.unflatten(1, gates_x.shape[-2:])
    return reference.recurrence(
        config.cell, gates_x, *loop[4:], config.reverse, config.control, probe, config.keep_cells
    )


def reference_gradients(
    config: Config,
    groups: int,
    needed: Sequence[str],
    douts: Sequence[Tensor | None],
    loop: LoopInputs,
) -> tuple[Tensor, ...]:
    """What `loop_gradients` computes, out of operations that can be differentiated again."""

    def split(name: str, tensor: Tensor | None) -> Tensor | None:
        # One group per leading index: weights repeated, data taken apart along the batch.
        if tensor is None:
            return None
        if name in WEIGHTS:
            return tensor.expand(groups, *tensor.shape)
        if name not in BATCH_AXIS:
            return tensor
        axis = BATCH_AXIS[name]
        return tensor.unflatten(axis, (groups, -1)).movedim(axis, 0)

    grouped = LoopInputs(*(split(n, t) for n, t in zip(LoopInputs._fields, loop, strict=True)))
    present = [k for k, d in enumerate(douts) if d is not None]
    config = config._replace(keep_cells=douts[3] is not None)
    cotangents = tuple(douts[k].unflatten(1, (groups, -1)).movedim(1, 0) for k in present)  # type: ignore[union-attr]

    def one(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs = reference_outputs(config, LoopInputs(*tensors))
        return tuple(outputs[k] for k in present)  # type: ignore[misc]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        full = grouped._replace(**dict(zip(needed, values, strict=True)))
        in_dims = tuple(0 if n in BATCH_AXIS or n in WEIGHTS else None for n in full._fields)
        in_dims = tuple(None if t is None else d for t, d in zip(full, in_dims, strict=True))
        return torch.func.vmap(one, in_dims=in_dims)(*full)

    pull = torch.func.vjp(run, *(getattr(grouped, name) for name in needed))[1]

    def join(name: str, grad: Tensor) -> Tensor:
        if name in WEIGHTS:
            return grad
        axis = BATCH_AXIS[name]
        return grad.movedim(0, axis).flatten(axis, axis + 1)

    return tuple(join(n, g) for n, g in zip(needed, pull(cotangents), strict=True))
