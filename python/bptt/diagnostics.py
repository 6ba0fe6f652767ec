"""`bptt.explain`: which backend and kernel a call would take, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .calls import autocast
from .engines import dispatch, gpu, measured, overlap, vendor
from .recurrence.cells import CELLS
from .recurrence.control import PLAIN, Control
from .recurrence.gradients import LoopInputs
from .recurrence.op_checks import Sizes
from .recurrence.ops import prepare_custom, transforms_at_work

_TRANSFORMS = (
    "eager autograd, torch.func.grad and vmap, torch.compile and torch.export stay on this kernel; "
    "double backward, forward-mode AD and torch.func inside torch.compile run the reference loop"
)


@dataclass(frozen=True)
class Explanation:
    """What `bptt.explain` found; `str()` of it is the text to read.

    Attributes:
        cell: the cell's name in `bptt.recurrence.cells.CELLS`.
        backend: the backend that would run.
        forced: whether it was forced, by `bptt.backend(...)` or BPTT_BACKEND.
        kernel: what that backend would run, in words.
        reasons: for every other backend, why not.
        transforms: which transforms of PyTorch leave the kernel.
        measured: where it was measured that this backend is the fastest, or "".
    """

    cell: str
    backend: str
    forced: bool
    kernel: str
    reasons: dict[str, str]
    transforms: str
    measured: str = ""

    def __str__(self) -> str:
        why = "forced" if self.forced else "the first backend with nothing against it"
        if self.measured:
            why = f"measured to be the fastest here, {self.measured}"
        lines = [f"{self.cell}: backend {self.backend} ({why})", f"  kernel: {self.kernel}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.reasons.items()]
        lines.append(f"  transforms: {self.transforms}")
        return "\n".join(lines)


def explain(layer: nn.Module, input: Tensor | PackedSequence) -> Explanation:
    """Say which backend and kernel `layer(input)` would take, without running it.

    Args:
        layer: a layer or cell of bptt.
        input: what it would be called with.

    Returns:
        An `Explanation`; print it. The context counts: inside `bptt.backend(...)`, autocast or
        forward-mode AD the answer is the one that holds there.

    Raises:
        TypeError: the layer is not one of bptt's, or the input is no tensor or PackedSequence.
        RuntimeError: the forced backend cannot run the call; the message says why.
    """
    cell = getattr(layer, "_cell_name", None)
    if cell is None:
        raise TypeError(
            f"bptt.explain: layer must be a layer or cell of bptt, got {type(layer).__name__}; "
            "bptt.convert swaps torch.nn's"
        )
    x = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(x, Tensor):
        raise TypeError(
            f"bptt.explain: input must be a tensor or PackedSequence, got {type(input).__name__}"
        )
    if not isinstance(layer, nn.RNNBase):
        return _explain_cell(cell)
    if x.device.type == "cpu" and CELLS[cell].custom is not None:
        prepare_custom(cell, str(x.dtype).removeprefix("torch."))
    by_steps = isinstance(input, PackedSequence) and not layer.proj_size
    dtype = autocast.layer_dtype(cell, x, None, by_steps) or x.dtype
    reverse = (False, True)[: 2 if layer.bidirectional else 1]
    nothing = LoopInputs(*[None] * len(LoopInputs._fields))
    control = cast(Any, layer)._call(False).control
    beyond_torch = vendor.reason_against(cell, nothing, reverse, control=control)
    problem = dispatch.Problem(
        cell,
        x.device.type,
        dtype,
        transforms_at_work()[0],
        beyond_torch,
    )
    row = _measured(cell, dtype, layer, input)
    backend = dispatch.choose(problem, fastest=None if row is None else row.backend)
    forced = dispatch.forced_backend() != dispatch.AUTO
    reasons = dispatch.reasons(problem)
    # The reasons against the others: those that cannot, then those that come later in the order.
    others = {
        name: reason or _later(name, backend, forced)
        for name, reason in reasons.items()
        if name != backend
    }
    kernel = _kernel(backend, layer, cell, input, dtype)
    notes = _notes(backend, layer, control)
    if notes:
        kernel = f"{kernel}; {notes}"
    source = row.source if row is not None and row.backend == backend and not forced else ""
    return Explanation(cell, backend, forced, kernel, others, _TRANSFORMS, source)


def _notes(backend: str, layer: Any, control: Control) -> str:
    """What the layer's options cost of the kernel's speed."""
    parts = []
    if layer.options.num_heads > 1:
        parts.append(f"{layer.options.num_heads} heads as directions")
    if backend == "cpu":
        spec = CELLS[layer._cell_name]
        if spec.normalized or control.gradient_norm > 0:
            whole = "layer_norm" if spec.normalized else "clip_grad_norm"
            parts.append(f"{whole} needs whole rows, so that workers share the batch alone")
        if control != PLAIN:
            parts.append(f"with {', '.join(control.asked())} in the loop")
    return "; ".join(parts)


def _later(name: str, backend: str, forced: bool) -> str:
    """Why a backend that could run a call does not."""
    if forced:
        return "another backend is forced"
    if name == "torch":
        return "taken where it is forced, or measured to be faster"
    return f"{backend} comes first"


def _measured(cell: str, dtype: torch.dtype, layer: Any, input: Any) -> measured.Row | None:
    """The row of a table of measurements about the call's layers."""
    device = input.data.device
    if device.type != "cuda":
        return None
    _, batch, directions, hidden, _ = _sizes(layer, input)
    return measured.row_for(cell, dtype, directions, hidden, batch, device)


def _explain_cell(cell: str) -> Explanation:
    reason = "a single step has no loop to fuse, so cells take this way whatever is forced"
    return Explanation(
        cell,
        "reference",
        False,
        "the equations of one step as a dozen PyTorch operations",
        {name: reason for name in dispatch.ORDER if name != "reference"},
        "every transform of PyTorch works on these operations",
    )


def _kernel(backend: str, layer: Any, cell: str, input: Any, dtype: torch.dtype) -> str:
    if backend == "cuda":
        return _cuda_kernel(layer, cell, input, dtype)
    if backend == "torch":
        return "torch.nn's own: cuDNN for CUDA tensors, oneDNN or PyTorch's loop for CPU tensors"
    if backend == "triton":
        return _triton_kernel(layer, cell, input, dtype)
    if backend != "cpu":
        return "a Python loop over time of about a dozen PyTorch operations per step"
    steps, batch, directions, hidden, state = _sizes(layer, input)
    lanes, rows, units, vector = torch.ops.bptt.cpu_plan(
        cell, dtype.itemsize, [steps, batch, directions, hidden, state]
    )
    workers = lanes * rows * units
    parts = [
        f"fused time loop in C++, {torch.ops.bptt.cpu_instruction_set()} instructions "
        f"({vector} units per vector), {'float64' if dtype == torch.float64 else 'float32'} sums"
    ]
    dots = torch.ops.bptt.cpu_bfloat16_products() if dtype == torch.bfloat16 else "float32"
    if dots != "float32":
        parts.append(f"bfloat16 products by {dots}")
    if workers == 1:
        parts.append("1 worker")
    else:
        ways = [
            (lanes, "directions"),
            (rows, "slices of the batch"),
            (units, "slices of the units"),
        ]
        shared = " x ".join(f"{count} {what}" for count, what in ways if count > 1)
        parts.append(f"{workers} workers ({shared})")
    if CELLS[cell].stages == 2 or state != hidden:
        parts.append("two products per step")
    if units > 1:
        parts.append("a barrier per product and step")
    return "; ".join(parts)


def _cuda_kernel(layer: Any, cell: str, input: Any, dtype: torch.dtype) -> str:
    sizes = Sizes(*_sizes(layer, input))
    projected = sizes.state != sizes.hidden
    control = layer._call(False).control
    passes = [
        gpu.plan_for(cell, dtype, sizes, projected, backward, input.data.device, control)
        for backward in (False, True)
    ]
    parts = [f"CUDA, all directions in one launch; forward {passes[0]}", f"backward {passes[1]}"]
    why = gpu.reason_for_step_tier(cell, control, projected)
    if why is not None:
        parts.append(f"{passes[0].tier} tier because {why}")
    for which in ("forward", "backward"):
        if count := gpu.refusals[cell, which]:
            parts.append(f"{count} {which} calls found no room and took the step tier")
    like = input.data.new_empty(0, dtype=dtype)
    chunk = overlap.chunk_steps(cell, layer.num_layers, sizes, like)
    if chunk > 0:
        parts.append(f"layers at once, each a chunk of {chunk} steps behind the one below")
    return "; ".join(parts)


def _triton_kernel(layer: Any, cell: str, input: Any, dtype: torch.dtype) -> str:
    from .kernels import plan

    *_, hidden, state = _sizes(layer, input)
    device, control = input.data.device, layer._call(False).control
    parts = ["Triton, all directions in one launch"]
    for backward, name in ((False, "forward"), (True, "backward")):
        problem = (cell, dtype, hidden, state, backward, device, control)
        why = plan.why_not_resident(*problem)
        parts.append(f"{name} {plan.plan_for(*problem)}" + (f" ({why})" if why else ""))
    return "; ".join(parts)


def _sizes(layer: Any, input: Any) -> tuple[int, int, int, int, int]:
    """T, B, D, H and R of one layer of the call."""
    hidden = layer.hidden_size
    if isinstance(input, PackedSequence):
        steps, batch = len(input.batch_sizes), int(input.batch_sizes[0])
    elif input.dim() == 2:
        steps, batch = input.shape[0], 1
    else:
        steps, batch = input.shape[:2]
        if layer.batch_first:
            steps, batch = batch, steps
    directions, state = 2 if layer.bidirectional else 1, layer.proj_size or hidden
    heads = layer.options.num_heads  # each is a direction
    return steps, batch, directions * heads, hidden // heads, state // heads
