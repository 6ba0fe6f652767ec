"""The ops of `torch.ops.bptt` on the CUDA kernels: checks, a plan, tensors in, tensors out.

Shapes are those of `csrc/engine/params.h`; what the ops return is stated by the fake kernels of
`bptt.recurrence.ops`. Everything is enqueued on the current stream and nothing waits: calls can be
captured in a CUDA graph.

Without a GPU, `BPTT_SIMULATOR` names the library that `python setup.py build_simulator` makes,
`build/native/simulator/ops.so`. The backend then takes CPU tensors where it is forced, and the very
kernels run in the simulator: slowly, and with every check on.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..recurrence import precision
from ..recurrence.cells import CELLS, PLAIN_CELLS
from ..recurrence.control import PLAIN, Control, from_numbers
from ..recurrence.gradients import KEEP_GATES, KEEP_NOTHING, LoopInputs
from ..recurrence.op_checks import Sizes, check_backward, check_forward
from ..recurrence.op_tensors import dense, new
from . import measured

TIERS = ("block", "cluster", "grid", "step")
_CUT = ("team", "units", "rows", "passes", "parts", "held", "threads")
_COUNTS = ("blocks", "waves", "shared_bytes", "exchanges")


@dataclass(frozen=True)
class Plan:
    """How one pass is cut among the blocks of a GPU; see `csrc/cuda/planner.h`.

    Attributes:
        tier: "block", "cluster", "grid" or "step".
        team: blocks that share the hidden units; in the step tier, a tile of a product, each with
            a part of its depth.
        units: hidden units of a block.
        rows: sequences of the batch that a block multiplies at a time.
        passes: how often it does so in a step.
        parts: pieces of the depth of the product.
        held: 1 where weights stay in registers, 0 where they stay in shared memory.
        threads: threads of a block.
        blocks: blocks of a launch.
        waves: how many times over the blocks fill the device.
        shared_bytes: shared memory of a block.
        exchanges: products per step that need what other blocks made; in the step tier launches
            per step, 0 where one is enough for all steps.
        step_us: modelled time of a step, in microseconds.
        sequence_us: modelled time of all steps.
    """

    tier: str
    team: int
    units: int
    rows: int
    passes: int
    parts: int
    held: int
    threads: int
    blocks: int
    waves: int
    shared_bytes: int
    exchanges: int
    step_us: float
    sequence_us: float

    @property
    def numbers(self) -> list[int]:
        """The plan as the ops take it."""
        return [TIERS.index(self.tier), *(getattr(self, name) for name in _CUT)]

    def __str__(self) -> str:
        modelled = f"{self.step_us:.2f} us a step by the model"
        if self.tier == "step":
            launches = "a launch" if self.exchanges == 1 else f"{self.exchanges} launches"
            launches = f"{launches} per step" if self.exchanges else "one launch for all steps"
            shared = f", {self.team} to a tile" if self.team > 1 else ""
            return f"step tier, {launches}, {self.blocks} blocks{shared}, {modelled}"
        parts = [f"{self.tier} tier"]
        if self.team > 1:
            parts.append(f"teams of {self.team} blocks")
        batch = f"{self.rows} sequences"
        if self.passes > 1:
            batch += f" x {self.passes} passes"
        parts.append(f"{self.units} units and {batch} to a block of {self.threads} threads")
        if self.held:
            parts.append("weights in registers")
        parts.append(f"{self.shared_bytes // 1024} KB of shared memory")
        if self.waves > 1:
            parts.append(f"{self.waves} waves")
        return ", ".join([*parts, modelled])


def number_of(dtype: torch.dtype) -> str:
    """How the kernels multiply tensors of a dtype: "fp32", "tf32", "fp16" or "bf16".

    float32 follows `torch.backends.cudnn.rnn.fp32_precision`, as torch.nn does.
    """
    if dtype == torch.float32:
        return "tf32" if precision.is_tf32() else "fp32"
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


@lru_cache(maxsize=4096)
def make_plan(
    cell: str, number: str, sizes: Sizes, projected: bool, backward: bool, device: tuple[int, ...],
    tier: str = "", controlled: bool = False, norms: bool = False,
) -> Plan:  # fmt: skip
    """Plan one pass for a device with the limits that `device_limits` returns.

    Args:
        cell: a name in `bptt.recurrence.cells.CELLS`.
        number: what `number_of` returns.
        sizes: T, B, D, H and R.
        projected: whether there is a projection.
        backward: which pass.
        device: compute capability (10 * major + minor), processors, bytes of shared memory of a
            block, MHz; then, where the driver was asked, how many clusters of 1 to 16 blocks find
            room at a time.
        tier: one of `TIERS`, or "" for the best by the model.
        controlled: whether the loop does more than run its cell; see `reason_for_step_tier`.
        norms: whether rows of gradients are held within a norm.

    Raises:
        RuntimeError: the tier cannot take the problem.
    """
    answer = torch.ops.bptt.gpu_plan(
        cell, number, list(sizes), projected, backward, device, tier, controlled, norms
    )
    counts = dict(zip(_CUT + _COUNTS, answer[1:], strict=False))
    step, sequence = answer[-2:]
    return Plan(TIERS[answer[0]], **counts, step_us=step / 1000, sequence_us=sequence / 1000)


@lru_cache
def device_limits(device: torch.device) -> tuple[int, ...]:
    """What a plan needs to know of a device that is here; of the simulator's on a CPU."""
    if device.type == "cpu":
        return tuple(torch.ops.bptt.simulated_device())
    index = torch.cuda.current_device() if device.index is None else device.index
    return tuple(torch.ops.bptt.gpu_device(index))


def plan_for(
    cell: str, dtype: torch.dtype, sizes: Sizes, projected: bool, backward: bool,
    device: torch.device, control: Control = PLAIN, all_cells: bool = False,
) -> Plan:  # fmt: skip
    """The plan of a call: by the model, in the tier that was measured to be the fastest if any.

    `all_cells` says whether all cell states have gradients of their own.
    """
    number, limits = number_of(dtype), device_limits(device)
    if reason_for_step_tier(cell, control, projected, backward and all_cells) is not None:
        controlled, norms = control != PLAIN or all_cells, control.gradient_norm > 0
        return make_plan(
            cell, number, sizes, projected, backward, limits, "step", controlled, norms
        )
    row = measured.row_for(cell, dtype, sizes.directions, sizes.hidden, sizes.batch, device)
    tier = row.tier if row is not None and row.backend == "cuda" else ""
    return make_plan(cell, number, sizes, projected, backward, limits, tier)


def reason_for_step_tier(
    cell: str, control: Control = PLAIN, projected: bool = False, all_cells: bool = False
) -> str | None:
    """Why a recurrence takes the step tier, whatever its sizes; None where it need not.

    Args:
        cell: a name in `bptt.recurrence.cells.CELLS`.
        control: what the loop does besides running the cell.
        projected: whether there is a projection.
        all_cells: whether all cell states have gradients of their own (return_cells).
    """
    spec = CELLS[cell]
    if spec.stages == 0:
        if control.gradient_norm > 0:
            return "gradient_norm looks at a row as a whole"
        return "no unit looks at another"
    if spec.stages == 2 or projected:
        return "there are two products per step"
    if spec.normalized:
        return f"{cell} looks at a row as a whole"
    if cell not in PLAIN_CELLS:
        return f"the persistent kernels do not know {cell}"
    if control != PLAIN:
        return f"the persistent kernels have no {', '.join(control.asked())}"
    if all_cells:
        return "the persistent kernels take no gradients of all cell states (return_cells)"
    return None


# Calls that took the step tier as the device had no room for their plans, by cell and pass.
refusals: Counter[tuple[str, str]] = Counter()


def note_refusal(plan: Plan, cell: str, which: str) -> None:
    """Count a call that found no room, and warn of the first of its kind."""
    refusals[cell, which] += 1
    if refusals[cell, which] == 1:
        wanted, ran = f"{plan.blocks} blocks", "the step tier"
        if plan.tier == "step":
            wanted, ran = f"{plan.team} blocks of a cluster", "one block to a tile"
        warnings.warn(
            f"bptt: the GPU had no room for {wanted} at once ({cell}, {which}, {plan.tier} tier), "
            f"and {ran} ran, which is slower. Does another program use the GPU? bptt.explain "
            "counts such calls; this is said once",
            RuntimeWarning,
            stacklevel=2,
        )


def forward(backend: str, cell: str, *rest: Any) -> tuple[Tensor, ...]:
    """`bptt::recurrence_forward`."""
    # torch leaves trailing arguments out that have their defaults.
    defaults: list[Any] = [(), None]
    *tensors, reverse, keep, numbers, seed = [*rest, *defaults[len(rest) - 14 :]]
    loop = LoopInputs(*[*tensors, seed])
    control = from_numbers(numbers)
    sizes = check_forward(backend, cell, loop, reverse, keep, control)
    spec = CELLS[cell]
    lead = loop.w_hh
    steps, batch, directions, hidden, state = sizes
    width = spec.cell_states * hidden
    y = new(lead, steps, batch, directions, state)
    h_n = new(lead, directions, batch, state)
    c_n = new(lead, directions, batch, width) if spec.has_cell_state else None
    saved = cells = None
    if keep == KEEP_GATES and spec.saved:
        saved = new(lead, steps, batch, directions, len(spec.saved), hidden)
    if keep != KEEP_NOTHING and spec.has_cell_state:
        cells = new(lead, steps, batch, directions, width, dtype=torch.float32)
    if y.numel():
        projected = loop.w_hr is not None
        plan = plan_for(cell, lead.dtype, sizes, projected, False, lead.device, control)
        gates_x, b_ih = _gates(loop, cell)
        refused = torch.ops.bptt.gpu_forward(
            cell, number_of(lead.dtype), plan.numbers, gates_x, b_ih, loop.w_hh.contiguous(),
            dense(loop.b_hh), dense(loop.w_hr), dense(loop.w_unit), dense(loop.h0),
            dense(loop.c0), dense(loop.lengths), dense(loop.resets), list(reverse),
            list(numbers), seed, y, h_n, c_n, saved, cells,
        )  # fmt: skip
        if refused:
            note_refusal(plan, cell, "forward")
    else:
        h_n.copy_(loop.h0)
        if c_n is not None:
            c_n.copy_(loop.c0)

    def or_empty(tensor: Tensor | None, dtype: torch.dtype = lead.dtype) -> Tensor:
        return lead.new_empty(0, dtype=dtype) if tensor is None else tensor

    return y, h_n, or_empty(c_n), or_empty(saved), or_empty(cells, torch.float32)


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
    spec = CELLS[cell]
    steps, batch, directions, hidden, state = sizes
    gates = (steps, batch, directions, len(spec.gates), hidden)
    projected = w_hr is not None
    dgates_x = new(y, *gates)
    dgates_h = None if spec.shared_gates else new(y, *gates)
    dh0 = new(y, directions, batch, state)
    dc0 = None if c0 is None else new(y, *c0.shape)
    dw_unit = operand = dh = None
    if w_unit is not None:
        dw_unit = new(y, batch, *w_unit.shape, dtype=torch.float32)
    if spec.stages == 2 or projected:
        operand = new(y, steps, batch, directions, hidden)
    if projected or keep_dh:
        dh = new(y, steps, batch, directions, state)
    if y.numel():
        all_cells = dcells is not None
        plan = plan_for(cell, y.dtype, sizes, projected, True, y.device, control, all_cells)
        refused = torch.ops.bptt.gpu_backward(
            cell, number_of(y.dtype), plan.numbers, dense(dy), dense(dh_n), dense(dc_n),
            dense(dcells), dense(y), dense(saved), dense(cells) if spec.has_cell_state else None,
            w_hh.contiguous(), dense(w_hr), dense(w_unit), dense(h0), dense(c0), dense(lengths),
            dense(resets), list(reverse), list(numbers), seed, dgates_x, dgates_h, dh0, dc0,
            dw_unit, operand, dh,
        )  # fmt: skip
        if refused:
            note_refusal(plan, cell, "backward")
    else:
        _pass_on(dh0, dh_n)
        _pass_on(dc0, dc_n)
        if dw_unit is not None:
            dw_unit.zero_()

    def or_empty(tensor: Tensor | None, dtype: torch.dtype = y.dtype) -> Tensor:
        return y.new_empty(0, dtype=dtype) if tensor is None else tensor

    return (
        dgates_x,
        or_empty(dgates_h),
        dh0,
        or_empty(dc0),
        or_empty(dw_unit, torch.float32),
        or_empty(operand),
        or_empty(dh),
    )


def _pass_on(target: Tensor | None, source: Tensor | None) -> None:
    """Without a step a state's gradient arrives as it comes."""
    if target is not None:
        target.copy_(source) if source is not None else target.zero_()


def _gates(loop: LoopInputs, cell: str) -> tuple[Tensor | None, Tensor | None]:
    """The projected input, and the bias that is not in it yet."""
    if loop.gates_x is not None:
        return dense(loop.gates_x), dense(loop.b_ih)
    bias = None if loop.b_ih is None else loop.b_ih.flatten()
    with precision.as_recurrence(loop.x.dtype):
        gates_x = torch.nn.functional.linear(loop.x, loop.w_ih.flatten(0, 1), bias)
    directions = loop.w_ih.shape[0]
    return gates_x.unflatten(-1, (directions, len(CELLS[cell].gates), -1)).contiguous(), None
