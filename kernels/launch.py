"""The ops of `torch.ops.bptt` on Triton: checks, tensors in, kernels launched, tensors out.

Shapes are those of `csrc/engine/params.h`; what the ops return is stated by the fake kernels of
`bptt.ops`. Every kernel is launched on the current stream and nothing waits for one: calls can be
captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bptt.cells import CELLS, CellSpec
from bptt.gradients import KEEP_GATES, KEEP_NOTHING, LoopInputs, project
from bptt.op_checks import Sizes, check_backward, check_forward
from bptt.op_tensors import dense, new

from . import backward as back
from . import forward as fore
from .cells import KERNEL_CELLS, KernelCell
from .plan import BLOCK, PERSISTENT, RESIDENT, Plan, chip_of, plan_for, reason_against

_FLAG_BITS = 24  # of a pattern of directions


def forward(backend: str, cell: str, *rest: Any) -> tuple[Tensor, ...]:
    """`bptt::recurrence_forward`."""
    *tensors, reverse, keep = rest
    loop = LoopInputs(*tensors)
    sizes = check_forward(backend, cell, loop, reverse, keep)
    _check_limits(cell, sizes)
    spec = CELLS[cell]
    lead = loop.w_hh
    steps, batch, directions, hidden, state = sizes
    two_products = spec.stages == 2 or loop.w_hr is not None
    y = new(lead, steps, batch, directions, state)
    h_n = loop.h0.clone(memory_format=torch.contiguous_format)
    c = _sums(loop.c0, lead, directions, batch, hidden) if spec.has_cell_state else None
    shape = (steps, batch, directions, len(spec.saved), hidden)
    saved = new(lead, *shape) if keep == KEEP_GATES and spec.saved else None
    scratch = None
    if saved is None and spec.stages == 2:
        scratch = new(lead, directions, batch, len(spec.saved), hidden)
    cells = None
    if keep != KEEP_NOTHING and spec.has_cell_state:
        cells = new(lead, steps, batch, directions, hidden, dtype=torch.float32)
    if y.numel():
        io = fore.ForwardIO(
            _gates(loop, cell),
            dense(loop.w_hh),
            dense(loop.b_hh),
            dense(loop.w_hr),
            dense(loop.peephole),
            dense(loop.h0),
            dense(loop.lengths),
            _bytes(loop.resets),
            y,
            h_n,
            c,
            saved,
            scratch,
            cells,
            new(lead, directions, batch, hidden) if two_products else None,
            hidden,
            state,
        )
        plan = plan_for(cell, lead.dtype, hidden, state, False, lead.device)
        widths = (hidden, state) if two_products else (hidden,)
        _run(_FORWARD, cell, sizes, io, reverse, plan, widths)
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
    peephole: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: Sequence[int],
    keep_dh: bool = False,
) -> tuple[Tensor, ...]:
    """`bptt::recurrence_backward`."""
    loop = LoopInputs(None, None, None, None, w_hh, None, w_hr, peephole, h0, c0, lengths, resets)
    sizes = check_backward(backend, cell, (dy, dh_n, dc_n), (y, saved, cells), loop, reverse)
    _check_limits(cell, sizes)
    spec = CELLS[cell]
    steps, batch, directions, hidden, state = sizes
    gates = (steps, batch, directions, len(spec.gates), hidden)
    projected = w_hr is not None
    two_products = spec.stages == 2 or projected
    dgates_x = new(y, *gates)
    dgates_h = None if spec.shared_gates else new(y, *gates)
    dh = _sums(dh_n, y, directions, batch, state)
    dc = _sums(dc_n, y, directions, batch, hidden) if spec.has_cell_state else None
    dpeephole = None
    if peephole is not None:
        dpeephole = y.new_zeros(batch, *peephole.shape, dtype=torch.float32)
    operand = new(y, steps, batch, directions, hidden) if two_products else None
    dh_all = new(y, steps, batch, directions, state) if projected or keep_dh else None
    if y.numel():
        io = back.BackwardIO(
            dense(dy),
            dense(y),
            dense(saved),
            dense(cells),
            dense(w_hh),
            dense(w_hr),
            dense(peephole),
            dense(h0),
            None if c0 is None else c0.float().contiguous(),
            dense(lengths),
            _bytes(resets),
            dgates_x,
            dgates_h,
            dh,
            dc,
            dpeephole,
            operand,
            dh_all,
            hidden,
            state,
        )
        plan = plan_for(cell, y.dtype, hidden, state, True, y.device)
        widths = (state, hidden) if two_products else (state,)
        _run(_BACKWARD, cell, sizes, io, reverse, plan, widths)
        if plan.tier != RESIDENT:
            dh += _into_initial_state(spec, io, loop, reverse)

    def or_empty(tensor: Tensor | None, dtype: torch.dtype = y.dtype) -> Tensor:
        return y.new_empty(0, dtype=dtype) if tensor is None else tensor.to(dtype)

    return (
        dgates_x,
        or_empty(dgates_h),
        dh.to(y.dtype),
        or_empty(dc),
        or_empty(dpeephole, torch.float32),
        or_empty(operand),
        or_empty(dh_all),
    )


def _check_limits(cell: str, sizes: Sizes) -> None:
    reason = reason_against(cell, sizes.hidden, sizes.state)
    if reason is not None:
        raise RuntimeError(f"bptt::recurrence: {reason}")


class _Kernels(NamedTuple):
    """One pass in every tier, and the functions of a cell that it takes."""

    resident: Any
    block: Any
    step: Any
    persistent: Any
    functions: Callable[[KernelCell], dict[str, Any]]
    tiled_functions: Callable[[KernelCell], dict[str, Any]]


_FORWARD = _Kernels(
    fore.forward_resident,
    fore.forward_block,
    fore.forward_step,
    fore.forward_persistent,
    lambda cell: {"FORWARD": cell.forward},
    lambda cell: {"FIRST": cell.first},
)
_BACKWARD = _Kernels(
    back.backward_resident,
    back.backward_block,
    back.backward_step,
    back.backward_persistent,
    lambda cell: {"BACKWARD": cell.backward},
    lambda cell: {"OPERAND": cell.operand, "BACKWARD_FIRST": cell.backward_first},
)


def _run(
    kernels: _Kernels, cell: str, sizes: Sizes, io: Any, reverse: Sequence[int], plan: Plan,
    widths: Sequence[int],
) -> None:  # fmt: skip
    """Launch what a plan says; `widths` are the columns that each product of a step makes."""
    spec, functions = CELLS[cell], KERNEL_CELLS[cell]
    steps, batch, directions = sizes[:3]
    numbers: dict[str, Any] = {
        "T": steps, "B": batch, "D": directions, "pattern": direction_pattern(reverse),
        "G": len(spec.gates), "STATES": len(spec.states), "SAVED": len(spec.saved),
        "PEEPHOLES": len(spec.peepholes), "BB": plan.rows, "BN": plan.units,
        "PRECISION": precision(io.y), **kernels.functions(functions),
    }  # fmt: skip
    options: dict[str, Any] = {"num_warps": plan.warps}
    blocks = triton.cdiv(batch, plan.rows)
    with _device_of(io.y):
        if plan.tier == RESIDENT:
            kernels.resident[blocks, directions](io, **numbers, **options)
            return
        numbers.update(kernels.tiled_functions(functions), BK=plan.depth)
        if plan.tier == BLOCK:
            kernels.block[blocks, directions](io, **numbers, **options)
            return
        grids = [(blocks, triton.cdiv(width, plan.units), directions) for width in widths]
        if plan.tier == PERSISTENT:
            # More programs than processors could not all wait for one another.
            programs = min(max(map(prod, grids)), chip_of(io.y.device).processors)
            counter = io.y.new_zeros(1, dtype=torch.int64)
            options["launch_cooperative_grid"] = True
            kernels.persistent[programs,](io, counter, **numbers, **options)
            return
        launches = [
            _each_step(kernels.step, grid, io, {**numbers, "SECOND": bool(second)}, options)
            for second, grid in enumerate(grids)
        ]
        for s in range(steps):
            for launch in launches:
                launch(s)


def _each_step(
    kernel: Any, grid: tuple[int, ...], io: Any, numbers: dict[str, Any], options: dict[str, Any]
) -> Callable[[int], None]:
    """A function that launches a kernel for a step.

    Triton finds what it has compiled for the arguments of the first step. The others differ from it
    in a number that is not compiled in: they skip the search, which takes longer than a step, and
    pass addresses, which need no look at a tensor.
    """
    again: Callable[..., Any] | None = None
    rest = [numbers[name] for name in kernel.arg_names[2:]]
    addresses = type(io)(*(x.data_ptr() if isinstance(x, Tensor) else x for x in io))

    def launch(s: int) -> None:
        nonlocal again
        if again is not None:
            again(addresses, s, *rest)
            return
        compiled = kernel[grid](io, s, **numbers, **options)
        if compiled is not None:  # as it is in the interpreter
            driver = triton.runtime.driver.active
            stream = driver.get_current_stream(driver.get_current_device())
            again = partial(compiled[grid], stream=stream)

    return launch


def _into_initial_state(
    spec: CellSpec, io: back.BackwardIO, loop: LoopInputs, reverse: Sequence[int]
) -> Tensor:
    """What the recurrent product passes on to the initial state, [D, B, R] float32."""
    dgates = io.dgates_x if io.dgates_h is None else io.dgates_h
    steps, batch = dgates.shape[:2]
    rows_used = (len(spec.gates) - (spec.stages - 1)) * io.H
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
        product = start.flatten(1)[:, :rows_used] @ loop.w_hh[d, :rows_used]
        if taken is not None:
            product = torch.where(taken.unsqueeze(1), torch.zeros_like(product), product)
        products.append(product.float())
    return torch.stack(products)


def precision(tensor: Tensor) -> str:
    """How float32 blocks are multiplied, by `torch.backends.cudnn.rnn.fp32_precision`."""
    if tensor.dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32":
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
