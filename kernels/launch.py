"""The ops of `torch.ops.bptt` on Triton: checks, tensors in, kernels launched, tensors out.

Shapes are those of `csrc/engine/params.h`; what the ops return is stated by the fake kernels of
`bptt.recurrence.ops`. Every kernel is launched on the current stream and nothing waits for one:
calls can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bptt.recurrence.cells import CELLS, CellSpec
from bptt.recurrence.control import Control, from_numbers
from bptt.recurrence.gradients import KEEP_GATES, KEEP_NOTHING, LoopInputs, project
from bptt.recurrence.op_checks import Sizes, check_backward, check_forward
from bptt.recurrence.op_tensors import dense, new
from bptt.recurrence.precision import as_recurrence, is_tf32

from . import backward as back
from . import backward_tiles as back_tiles
from . import forward as fore
from . import forward_tiles as fore_tiles
from .cells import kernel_cell
from .control import LoopControl
from .launcher import relauncher
from .parts import PLACES
from .plan import BLOCK, PERSISTENT, RESIDENT, Plan, chip_of, plan_for, reason_against
from .random import fill_kept, threshold_of

_FLAG_BITS = 24  # of a pattern of directions


def forward(backend: str, cell: str, *rest: Any) -> tuple[Tensor, ...]:
    """`bptt::recurrence_forward`."""
    # The dispatcher leaves out what is the schema's default.
    *tensors, reverse, keep, numbers, seed = (*rest, *((), None)[len(rest) - 14 :])
    loop, control = LoopInputs(*tensors, seed), from_numbers(numbers)
    sizes = check_forward(backend, cell, loop, reverse, keep, control)
    _check_limits(cell, sizes)
    spec, lead = CELLS[cell], loop.w_hh
    steps, batch, directions, hidden, state = sizes
    width = spec.cell_states * hidden
    plan = plan_for(cell, lead.dtype, hidden, state, False, lead.device, control)
    y = new(lead, steps, batch, directions, state)
    h_n = loop.h0.clone(memory_format=torch.contiguous_format)
    c = _sums(loop.c0, lead, directions, batch, width) if width else None
    saved = scratch = cells = None
    if keep == KEEP_GATES and spec.saved:
        saved = new(lead, steps, batch, directions, len(spec.saved), hidden)
    elif spec.stages == 2 or (spec.normalized and plan.tier != RESIDENT):
        scratch = new(lead, directions, batch, len(spec.saved), hidden)
    if keep != KEEP_NOTHING and width:
        cells = new(lead, steps, batch, directions, width, dtype=torch.float32)
    if y.numel():
        handed = Handed(plan, sizes, lead)
        io = fore.ForwardIO(
            gates_x=_gates(loop, cell),
            w_hh=dense(loop.w_hh) if spec.stages else None,
            b_hh=None if spec.normalized else dense(loop.b_hh),
            w_hr=dense(loop.w_hr),
            w_unit=dense(loop.w_unit),
            h0=dense(loop.h0),
            lengths=dense(loop.lengths),
            resets=_bytes(loop.resets),
            y=y,
            h_n=h_n,
            c=c,
            saved=saved,
            scratch=scratch,
            cells=cells,
            operand=new(lead, directions, batch, hidden) if _two_products(spec, loop) else None,
            made=handed.wide(hidden) if spec.normalized and width else None,
            parts=handed.parts() if spec.normalized else None,
            H=hidden,
            R=state,
            **loop_control(cell, control, loop, sizes)._asdict(),
        )
        _run(_FORWARD, cell, sizes, io, reverse, plan)
    return (
        y,
        h_n,
        lead.new_empty(0) if c is None else c.to(lead.dtype),
        lead.new_empty(0) if saved is None else saved,
        lead.new_empty(0, dtype=torch.float32) if cells is None else cells,
    )


def backward(
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
    w_unit: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: Sequence[int],
    keep_dh: bool = False,
    numbers: Sequence[float] = (),
    seed: Tensor | None = None,
    dcells: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`bptt::recurrence_backward`."""
    loop = LoopInputs(
        None, None, None, None, w_hh, None, w_hr, w_unit, h0, c0, lengths, resets, seed
    )
    control = from_numbers(numbers)
    douts = (dy, dh_n, dc_n, dcells)
    sizes = check_backward(backend, cell, douts, (y, saved, cells), loop, reverse, control)
    _check_limits(cell, sizes)
    spec = CELLS[cell]
    steps, batch, directions, hidden, state = sizes
    width = spec.cell_states * hidden
    plan = plan_for(cell, y.dtype, hidden, state, True, y.device, control)
    gates = (steps, batch, directions, len(spec.gates), hidden)
    projected = w_hr is not None
    dgates_x = new(y, *gates)
    dgates_h = None if spec.shared_gates else new(y, *gates)
    dh = _sums(dh_n, y, directions, batch, state)
    dc = _sums(dc_n, y, directions, batch, width) if width else None
    dw_unit = operand = None
    if w_unit is not None:
        dw_unit = y.new_zeros(batch, *w_unit.shape, dtype=torch.float32)
    if _two_products(spec, loop):
        operand = new(y, steps, batch, directions, hidden)
    dh_all = new(y, steps, batch, directions, state) if projected or keep_dh else None
    if y.numel():
        handed = Handed(plan, sizes, y)
        changed = control.zoneout_h > 0 or control.gradient_bound > 0 or control.gradient_norm > 0
        norms = control.gradient_norm > 0
        statistics = y.new_empty(steps, batch, directions, 4, dtype=torch.float32)
        io = back.BackwardIO(
            dy=dense(dy),
            dcells=dense(dcells),
            y=dense(y),
            saved=dense(saved) if spec.saved else None,
            cells=dense(cells),
            w_hh=dense(w_hh) if spec.stages else None,
            w_hr=dense(w_hr),
            w_unit=dense(w_unit),
            h0=dense(h0),
            c0=None if c0 is None else c0.float().contiguous(),
            lengths=dense(lengths),
            resets=_bytes(resets),
            dgates_x=dgates_x,
            dgates_h=dgates_h,
            dh=dh,
            dc=dc,
            dw_unit=dw_unit,
            operand=operand,
            dh_all=dh_all,
            dprojected=new(y, directions, batch, state) if projected and changed else None,
            stats=statistics if spec.normalized else None,
            dwhole=handed.wide(state) if norms else None,
            dnormal=handed.wide((len(spec.gates) + 2) * hidden) if spec.normalized else None,
            parts=handed.parts() if spec.normalized or norms else None,
            H=hidden,
            R=state,
            **loop_control(cell, control, loop, sizes)._asdict(),
        )
        _run(_BACKWARD, cell, sizes, io, reverse, plan)
        if plan.tier != RESIDENT:
            dh += _into_initial_state(spec, io, loop, reverse)

    def or_empty(tensor: Tensor | None, dtype: torch.dtype = y.dtype) -> Tensor:
        return y.new_empty(0, dtype=dtype) if tensor is None else tensor.to(dtype)

    return (
        dgates_x,
        or_empty(dgates_h),
        dh.to(y.dtype),
        or_empty(dc),
        or_empty(dw_unit, torch.float32),
        or_empty(operand),
        or_empty(dh_all),
    )


def _check_limits(cell: str, sizes: Sizes) -> None:
    reason = reason_against(cell, sizes.hidden, sizes.state)
    if reason is not None:
        raise RuntimeError(f"bptt::recurrence: {reason}")


def _two_products(spec: CellSpec, loop: LoopInputs) -> bool:
    return spec.stages == 2 or loop.w_hr is not None


class Handed(NamedTuple):
    """Memory through which the phases of a step hand over; none where a program has whole rows."""

    plan: Plan
    sizes: Sizes
    like: Tensor

    def wide(self, width: int) -> Tensor | None:
        if self.plan.tier == RESIDENT:
            return None
        shape = (self.sizes.directions, self.sizes.batch, width)
        return new(self.like, *shape, dtype=torch.float32)

    def parts(self) -> Tensor | None:
        if self.plan.tier == RESIDENT:
            return None
        shape = (
            self.sizes.directions,
            self.sizes.batch,
            PLACES.value,
            parts_of(self.plan, self.sizes.hidden),
        )
        return self.like.new_zeros(shape, dtype=torch.float32)


def parts_of(plan: Plan, hidden: int) -> int:
    """Room for a part of a sum of each tile of units: a power of 2, as the width of a block is."""
    return triton.next_power_of_2(triton.cdiv(hidden, plan.units))


def loop_control(cell: str, control: Control, loop: LoopInputs, sizes: Sizes) -> LoopControl:
    """A Control as the kernels take it."""
    threshold = threshold_of if control.sampled else float
    zones_out = control.zoneout_h > 0 or control.zoneout_c > 0
    return LoopControl(
        gate=tl.constexpr(control.gates or "sigmoid"),
        state=tl.constexpr(control.states or kernel_cell(cell).own_state),
        cell_bound=control.cell_bound or None,
        zoneout_h=threshold(control.zoneout_h) if control.zoneout_h > 0 else None,
        zoneout_c=threshold(control.zoneout_c) if control.zoneout_c > 0 else None,
        seed=loop.seed if control.sampled and zones_out else None,
        kept=_kept_by_dropout(control.recurrent_dropout, loop, sizes),
        truncate=control.truncate or None,
        gradient_bound=control.gradient_bound or None,
        gradient_norm=control.gradient_norm or None,
    )


_FILLED = 256  # elements of a program


def _kept_by_dropout(p: float, loop: LoopInputs, sizes: Sizes) -> Tensor | None:
    """What recurrent dropout multiplies hidden states with, drawn once a call."""
    _, batch, directions, _, state = sizes
    if p == 0 or batch * directions * state == 0:
        return None
    kept = loop.w_hh.new_empty(directions, batch, state, dtype=torch.float32)
    scale = 1 / (1 - p) if p < 1 else 0.0
    with _device_of(kept):
        grid = (batch, triton.cdiv(state, _FILLED), directions)
        fill_kept[grid](kept, loop.seed, threshold_of(p), scale, batch, state, _FILLED)
    return kept


class _Kernels(NamedTuple):
    """One pass in every tier."""

    backward: bool
    resident: Any
    block: Any
    step: Any
    persistent: Any


_FORWARD = _Kernels(
    False,
    fore.forward_resident,
    fore_tiles.forward_block,
    fore_tiles.forward_step,
    fore_tiles.forward_persistent,
)
_BACKWARD = _Kernels(
    True,
    back.backward_resident,
    back_tiles.backward_block,
    back_tiles.backward_step,
    back_tiles.backward_persistent,
)


def _run(
    kernels: _Kernels, cell: str, sizes: Sizes, io: Any, reverse: Sequence[int], plan: Plan
) -> None:
    """Launch what a plan says."""
    steps, batch, directions, hidden, state = sizes
    numbers: dict[str, Any] = {
        "T": steps, "B": batch, "D": directions, "pattern": direction_pattern(reverse),
        "CELL": kernel_cell(cell), "BB": plan.rows, "BN": plan.units,
    }  # fmt: skip
    options: dict[str, Any] = {"num_warps": plan.warps}
    blocks = triton.cdiv(batch, plan.rows)
    with _device_of(io.y):
        if kernels.backward and io.stats is not None:
            back.row_statistics[steps * blocks, directions](io, **numbers, **options)
        numbers["PRECISION"] = precision(io.y)
        if plan.tier == RESIDENT:
            tiles = triton.cdiv(hidden, plan.units)  # one, but where programs share the units
            kernels.resident[blocks, directions, tiles](io, **numbers, **options)
            return
        numbers.update(BK=plan.depth, PARTS=parts_of(plan, hidden))
        widths = phase_widths(
            cell, hidden, state, io.w_hr is not None, io.gradient_norm is not None, kernels.backward
        )
        if plan.tier == BLOCK:
            kernels.block[blocks, directions](io, **numbers, PHASES=len(widths), **options)
            return
        grids = [(blocks, triton.cdiv(width, plan.units), directions) for width in widths]
        if plan.tier == PERSISTENT:
            # More programs than processors could not all wait for one another.
            programs = min(max(map(prod, grids)), chip_of(io.y.device).processors)
            counter = io.y.new_zeros(1, dtype=torch.int64)
            numbers["PHASES"] = len(widths)
            options["launch_cooperative_grid"] = True
            kernels.persistent[programs,](io, counter, **numbers, **options)
            return
        launches = [
            _each_step(kernels.step, grid, io, {**numbers, "PHASE": phase}, options)
            for phase, grid in enumerate(grids)
        ]
        for s in range(steps):
            for launch in launches:
                launch(s)


def phase_widths(
    cell: str, hidden: int, state: int, projected: bool, norms: bool, backward: bool
) -> list[int]:
    """The columns of each phase of a step in the tiers whose state goes through memory."""
    spec = CELLS[cell]
    more = int(spec.stages == 2 or projected)
    if spec.normalized:
        more = 2 if spec.has_cell_state else 1
    if not backward:
        return [hidden, *[state] * more]
    return [*[state] * (2 if norms else 1), *[hidden] * more]


def _each_step(
    kernel: Any, grid: tuple[int, ...], io: Any, numbers: dict[str, Any], options: dict[str, Any]
) -> Callable[[int], None]:
    """A function that launches a kernel for a step.

    Triton finds what it has compiled for the arguments of the first step. The others differ from it
    in a number that is not compiled in: they skip the search, which takes longer than a step, and
    pass addresses, which need no look at a tensor.
    """
    again: Callable[..., None] | None = None
    rest = [numbers[name] for name in kernel.arg_names[2:]]
    addresses = type(io)(*(x.data_ptr() if isinstance(x, Tensor) else x for x in io))

    def launch(s: int) -> None:
        nonlocal again
        if again is not None:
            again(addresses, s, *rest)
            return
        again = relauncher(kernel[grid](io, s, **numbers, **options), grid)

    return launch


def _into_initial_state(
    spec: CellSpec, io: back.BackwardIO, loop: LoopInputs, reverse: Sequence[int]
) -> Tensor:
    """What the recurrent product passes on to the initial state, [D, B, R] float32."""
    dgates = io.dgates_x if io.dgates_h is None else io.dgates_h
    steps, batch = dgates.shape[:2]
    rows_used = (len(spec.gates) - (spec.stages == 2)) * io.H
    products = []
    for d, backwards in enumerate(reverse):
        if not backwards:
            start = dgates[0, :, d]
            taken = None if loop.resets is None else loop.resets[0]
        elif loop.lengths is None:
            start = dgates[-1, :, d]
            taken = None if loop.resets is None else loop.resets[-1]
        else:
            at = (loop.lengths.clamp(max=steps) - 1).clamp(min=0)  # no step: its rows are zero
            rows = torch.arange(batch, device=at.device)
            start = dgates[at, rows, d]
            taken = None if loop.resets is None else loop.resets[at, rows]
        if spec.free:
            product = start.new_zeros(batch, start.shape[-1])
        elif spec.stages == 0:
            own = loop.w_unit[d].unflatten(0, (-1, start.shape[-1]))[: len(spec.gates)]
            product = (start * own).sum(1)
        else:
            product = start.flatten(1)[:, :rows_used] @ loop.w_hh[d, :rows_used]
        if taken is not None:
            product = torch.where(taken.unsqueeze(1), torch.zeros_like(product), product)
        products.append(product.float())
    stacked = torch.stack(products)
    return stacked if io.kept is None else stacked * io.kept


def precision(tensor: Tensor) -> str:
    """How float32 blocks are multiplied, by `torch.backends.cudnn.rnn.fp32_precision`."""
    if tensor.dtype == torch.float32 and is_tf32():
        return "tf32"
    return "ieee"


def _device_of(tensor: Tensor) -> Any:
    """Kernels start on the current device; under the interpreter there is none."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


def direction_pattern(reverse: Sequence[int]) -> int:
    """Which directions run backwards, as one 32-bit number.

    Bits 24 and above hold a period, the lower bits a flag for each direction within it.

    Raises:
        RuntimeError: no pattern of at most 24 directions repeats.
    """
    flags = [bool(flag) for flag in reverse]
    for period in range(1, min(len(flags), _FLAG_BITS) + 1):
        if all(flag == flags[d % period] for d, flag in enumerate(flags)):
            return period << _FLAG_BITS | sum(flag << d for d, flag in enumerate(flags[:period]))
    raise RuntimeError(
        f"triton: reverse must repeat a pattern of at most {_FLAG_BITS} directions, "
        f"got {len(flags)} flags that do not"
    )


def _gates(loop: LoopInputs, cell: str) -> Tensor:
    gates_x = loop.gates_x
    if gates_x is None:
        with as_recurrence(loop.x.dtype):
            gates_x = project(loop.x, loop.w_ih, cell)
    if loop.b_ih is not None:
        gates_x = gates_x + loop.b_ih.unflatten(1, gates_x.shape[-2:])
    return gates_x.contiguous()


def _sums(start: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """A float32 tensor to add to, of a value or zeros."""
    if start is None:
        return like.new_zeros(shape, dtype=torch.float32)
    return start.to(torch.float32, copy=True).contiguous()


def _bytes(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.contiguous().view(torch.uint8)
