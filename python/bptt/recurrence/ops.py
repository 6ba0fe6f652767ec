"""The ops of `torch.ops.bptt` and the routes a recurrence takes to them.

A layer's whole sequence is one forward op and one backward op over all its directions. They know
the time loop only: the input projection before it and the weight gradients after it are matrix
products over all time steps and belong to torch.

Three routes, chosen in `recurrence`:

1. eager, `torch.func.grad` and `vmap`: the autograd Functions of `autograd.py`.
2. `torch.compile`, `torch.export` and `torch.func.functionalize`: the registered op, opaque to
   whoever traces, with the autograd formula below.
3. forward-mode AD, function transforms inside torch.compile, or the reference backend: the
   reference loop, made of ordinary differentiable operations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..custom import native
from ..engines import dispatch, gpu, measured, vendor
from ..interop import flops, onnx
from . import precision
from .autograd import Loop, Probe
from .cells import CELLS
from .control import PLAIN, Control, from_numbers
from .grad_norms import LayerNorms
from .gradients import (
    DIFFERENTIABLE,
    KEEP_GATES,
    KEEP_NOTHING,
    KEEP_STATES,
    WEIGHTS,
    Config,
    LoopInputs,
    forward_op,
    loop_gradients,
    project,
    reference_outputs,
    saved_tensors,
    spread,
)
from .reference import Outputs
from .rows import Rows

# Above this `recompute="auto"` rebuilds a layer's gates: where memory may be what runs out.
RECOMPUTE_BYTES = 256 * 2**20


def recurrence(
    cell: str,
    x: Tensor | None,
    w_ih: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    w_unit: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: tuple[bool, ...],
    recompute: bool | str = False,
    norms: LayerNorms | None = None,
    control: Control = PLAIN,
    seed: Tensor | None = None,
    keep_cells: bool = False,
    gates_x: Tensor | None = None,
    rows: Rows | None = None,
) -> Outputs:
    """Run one layer: the input projection of every step and direction, then the time loop.

    Arguments are taken as checked (`bptt.functional` does that). Shapes are those of
    `reference.recurrence`, with `x [T, B, I]` of any strides, `w_ih [D, G*H, I]` and
    `b_ih [D, G*H]` in place of `gates_x`. With `recompute` the backward pass rebuilds the gates;
    "auto" does so where they are large. The backward pass leaves the norms of the hidden states'
    gradients in `norms`. Cells whose input is normalised, too, get it as `gates_x`, in place of x,
    w_ih and b_ih. `seed` is int64 `[1]` where `control` draws. With `rows`, x is `[N, I]`, the
    valid rows of a padded batch.
    """
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0:
        flops.register()
    custom, forced = CELLS[cell].custom, dispatch.forced_backend()
    if custom is not None and w_hh.device.type == "cpu" and forced in (dispatch.AUTO, "cpu"):
        prepare_custom(cell, _DTYPE_NAMES.get(w_hh.dtype, ""), control is not PLAIN)
    composite, functorch = transforms_at_work()
    lazily = torch.is_grad_enabled() and not functorch and composite is None and norms is None
    if rows is not None and x is not None and not lazily:
        x, rows = rows.spread(x), None
    elif lengths is not None and x is not None and rows is None:
        # The loop ignores what lies past a length, but the weight gradient would still multiply it
        # by zero, and zero times NaN is NaN.
        alone = x.is_cpu and forced in (dispatch.AUTO, "cpu") and not functorch
        if torch.is_grad_enabled() or composite is not None or not alone:
            x = zero_padding(x, lengths)
    loop = LoopInputs(
        gates_x, x, w_ih, b_ih, w_hh, b_hh, w_hr, w_unit, h0, c0, lengths, resets, seed
    )
    lead: Tensor = loop.x if gates_x is None else gates_x
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in loop[:10]
    )
    if norms is not None:
        norms.check_forward(needs_grad, functorch or composite is not None)
    problem = dispatch.Problem(
        cell,
        lead.device.type,
        lead.dtype,
        composite,
        "function transforms have no rule for it"
        if functorch
        else vendor.reason_against(cell, loop, reverse, norms is not None, control, keep_cells),
    )
    backend = dispatch.choose(problem, fastest=measured_backend(problem, loop))
    if recompute == "auto":
        recompute = gates_bytes(cell, lead, w_hh) > RECOMPUTE_BYTES
    config = Config(backend, cell, reverse, bool(recompute), norms, control, keep_cells, rows)
    if (torch.compiler.is_compiling() or torch._C._is_tracing()) and onnx.is_exporting():
        return onnx.outputs(*spread(config, loop))
    if backend == "reference":
        probe = None
        if norms is not None:
            shape = (*lead.shape[:2], w_hh.shape[0], h0.shape[2])
            probe = Probe.apply(norms, shape, *loop[:10])
        return reference_outputs(config, loop, probe)
    if backend == "torch":
        return vendor.outputs(*spread(config, loop))
    if functorch and x is not None and w_ih is not None:
        # The projection stays outside of the op: vmap knows how to batch it.
        loop = loop._replace(gates_x=project(x, w_ih, cell), x=None, w_ih=None)
    opaque = torch.compiler.is_compiling() or functionalized()
    if functorch or (needs_grad and not opaque):
        if torch._C._is_tracing():
            raise RuntimeError(
                "torch.jit.trace cannot record the gradients of bptt's layers: trace under "
                "torch.no_grad() for inference, or a model that bptt.to_torch has been given"
            )
        y, h_n, c_n, _, cells = Loop.applied(config, *loop)
    else:
        keep = config.keep if needs_grad else KEEP_STATES if keep_cells else KEEP_NOTHING
        y, h_n, c_n, _, cells = forward_op(config, loop, keep)
    if not CELLS[cell].has_cell_state:
        return Outputs(y, h_n, None, None)
    if not keep_cells:
        return Outputs(y, h_n, c_n, None)
    cells = cells.to(y.dtype)
    return Outputs(y, h_n, c_n, cells if lengths is None else zero_padding(cells, lengths))


def prepare_custom(cell: str, dtype: str, control: bool = False) -> bool:
    """Compile loops of a cell of `bptt.cell` for the cpu backend, where that was not done yet.

    Args:
        cell: its name.
        dtype: "float32" and so on; there are none of others than the backend takes.
        control: whether the loops may do more than run the cell.
    """
    text = (CELLS[cell].custom or {})["struct.h"]
    kinds = (False, True) if control else (False,)
    return dtype in native.DTYPES and all(native.prepare(cell, text, dtype, k) for k in kinds)


# Float16 is computed with in float32.
_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float32",
}


# Run, not traced: what torch.compiler.assume_constant_result says, which imports the compiler.
prepare_custom._dynamo_marked_constant = True  # type: ignore[attr-defined]


def measured_backend(problem: dispatch.Problem, loop: LoopInputs) -> str | None:
    """What a table of measurements says of a layer; None on a CPU, and while compiling."""
    w_hh, device = loop.w_hh, loop.w_hh.device
    if problem.device != "cuda" or torch.compiler.is_compiling():
        return None
    hidden = w_hh.shape[1] // len(CELLS[problem.cell].gates)
    directions, batch, _ = loop.h0.shape
    row = measured.row_for(problem.cell, problem.dtype, directions, hidden, batch, device)
    return None if row is None else row.backend


def gates_bytes(cell: str, x: Tensor, w_hh: Tensor) -> int:
    """What a layer would keep of its gates for the backward pass."""
    spec = CELLS[cell]
    units = w_hh.shape[0] * w_hh.shape[1] // len(spec.gates)  # D*H
    places = x.shape[0] * (x.shape[1] if x.dim() > 2 else 1)  # x may be rows alone
    return places * units * len(spec.saved) * x.element_size()


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """`x [T, B, ...]` with zeros past each length."""
    steps = torch.arange(x.shape[0], device=x.device)
    inside = steps.unsqueeze(1) < lengths  # [T, B]
    inside = inside.reshape(*inside.shape, *(1,) * (x.dim() - 2))
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype, device=x.device))


def _transform_levels() -> tuple[bool, bool]:
    """Whether forward-mode AD is on, and whether any torch.func transform is.

    Under torch.compile this runs at trace time, when Dynamo has really entered the levels; its own
    guard on the functorch stack makes the answer a constant of the graph.
    """
    functorch = torch._C._functorch.peek_interpreter_stack() is not None
    return forward_ad._current_level >= 0, functorch


# What torch.compiler.assume_constant_result does, without importing Dynamo, which takes a second.
_transform_levels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def functionalized() -> bool:
    """Whether torch.func.functionalize is among the transforms at work."""
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return False
    stack = functorch.get_interpreter_stack() or ()
    return any(level.key() == functorch.TransformType.Functionalize for level in stack)


functionalized._dynamo_marked_constant = True  # type: ignore[attr-defined]


def transforms_at_work() -> tuple[str | None, bool]:
    """Why only differentiable operations will do, or None; and whether torch.func is at work.

    torch.func.functionalize by itself is not counted: it takes the op as torch.compile does.
    """
    forward_mode, functorch = _transform_levels()
    # Reading the level a second time puts Dynamo's guard on it: what was compiled without
    # forward-mode AD would drop the tangents of dual tensors without a word.
    if forward_mode or forward_ad._current_level >= 0:
        return "forward-mode AD runs through the differentiable reference loop", functorch
    if functorch and torch.compiler.is_compiling():
        return "torch.func inside torch.compile runs through the reference loop", functorch
    if functorch and functionalized():
        if len(torch._C._functorch.get_interpreter_stack()) == 1:
            return None, False
        return "functionalize with other transforms runs through the reference loop", functorch
    return None, functorch


# --- what the compiler needs to know of the ops ---------------------------------------------------


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Cell states and sums are kept in at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_forward(backend: str, cell: str, *rest: Any) -> tuple[Tensor, ...]:
    loop, keep = LoopInputs(*rest[:12]), rest[13]
    spec = CELLS[cell]
    lead = loop.x if loop.gates_x is None else loop.gates_x
    steps, batch = lead.shape[:2]
    directions, rows, _ = loop.w_hh.shape
    state, hidden = loop.h0.shape[2], rows // len(spec.gates)
    width = spec.cell_states * hidden
    wide = _state_dtype(lead.dtype)
    new = lead.new_empty
    kept = keep == KEEP_GATES and bool(spec.saved)
    cells = keep != KEEP_NOTHING and spec.has_cell_state
    return (
        new(steps, batch, directions, state),
        new(directions, batch, state),
        new(directions, batch, width) if spec.has_cell_state else new(0),
        new(steps, batch, directions, len(spec.saved), hidden) if kept else new(0),
        new((steps, batch, directions, width) if cells else (0,), dtype=wide),
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
    w_unit: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: list[int],
    keep_dh: bool = False,
    control: Sequence[float] = (),
    seed: Tensor | None = None,
    dcells: Tensor | None = None,
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
        new(h0.shape),
        new(directions, batch, spec.cell_states * hidden) if spec.has_cell_state else new(0),
        new(0, dtype=wide) if w_unit is None else new(batch, *w_unit.shape, dtype=wide),
        new(steps, batch, directions, hidden) if two_products else new(0),
        new(steps, batch, directions, state) if keep_dh or w_hr is not None else new(0),
    )


def _fake_product(a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _fake_masked_product(a: Tensor, b: Tensor, start: Tensor | None, mask: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _fake_kept(
    seed: Tensor, probability: float, shape: Sequence[int], draw: int, wide: bool
) -> Tensor:
    return seed.new_empty(shape, dtype=torch.float64 if wide else torch.float32)


def _kept_for_each(
    info: Any, in_dims: Sequence[int | None], seeds: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    """vmap's rule: a seed for each."""
    assert in_dims[0] is not None
    return torch.stack([torch.ops.bptt.kept(s, *rest) for s in seeds.unbind(in_dims[0])]), 0


def _setup_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _product_backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    need_a, need_b, need_start = ctx.needs_input_grad
    product = torch.ops.bptt.matrix_product
    return (
        product(dout, b.t(), None) if need_a else None,
        product(a.t(), dout, None) if need_b else None,
        dout if need_start else None,
    )


def _setup_compiled(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    backend, cell, gates_x, *tensors, reverse, keep, control, seed = inputs
    reverse = tuple(bool(r) for r in reverse)
    ctx.config = Config(
        backend, cell, reverse, recompute=keep == KEEP_STATES, control=from_numbers(control)
    )
    ctx.set_materialize_grads(False)
    y, _, _, saved, cells = output
    if keep == KEEP_GATES:
        gates_x = None  # as large as all that is saved, which was made of it
    ctx.save_for_backward(gates_x, *tensors, seed, y, saved, cells)


def _compiled_backward(
    ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any, dcells: Any
) -> tuple[Any, ...]:
    *tensors, y, saved, cells = saved_tensors(ctx)
    loop = LoopInputs(*tensors)
    needed = [
        name
        for name, need in zip(LoopInputs._fields, ctx.needs_input_grad[2:], strict=False)
        if need and name in DIFFERENTIABLE
    ]
    has_cell_state = CELLS[ctx.config.cell].has_cell_state
    douts = (dy, dh_n, *((dc_n, dcells) if has_cell_state else (None, None)))
    if all(d is None for d in douts):
        return (None,) * 18
    grads = loop_gradients(ctx.config, 1, needed, douts, loop, (y, saved, cells))
    named = {n: g.squeeze(0) if n in WEIGHTS else g for n, g in grads.items()}
    # After the tensors: reverse, keep, control, seed.
    return (None, None, *(named.get(name) for name in LoopInputs._fields[:12]), *(None,) * 4)


def _triton_forward(*arguments: Any) -> tuple[Tensor, ...]:
    from ..kernels import launch  # imports Triton

    return launch.forward(*arguments)


def _triton_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from ..kernels import launch

    return launch.backward(*arguments)


_LIBRARY = torch.library.Library("bptt", "IMPL")
# The ops of GPU backends, by op and backend.
_ROUTES: dict[str, dict[str, Callable[..., Any]]] = {
    "recurrence_forward": {"cuda": gpu.forward, "triton": _triton_forward},
    "recurrence_backward": {"cuda": gpu.backward, "triton": _triton_backward},
}


def _register_gpu() -> None:
    """Make the ops for CUDA tensors choose by the backend's name.

    For CPU tensors too where a backend's kernels run without a GPU.
    """
    _LIBRARY.impl("matrix_product", precision.product_on_gpu, "CUDA")
    emulated = dispatch.emulated_backends()
    for name, routes in _ROUTES.items():
        _LIBRARY.impl(name, _chosen(routes, None), "CUDA")
        if emulated:
            rest = _compiled(name)
            op = _chosen({backend: routes[backend] for backend in emulated}, rest)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that an op is overridden; it is meant
                _LIBRARY.impl(name, op, "CPU", allow_override=True)


def _chosen(
    routes: dict[str, Callable[..., Any]], rest: Callable[..., Any] | None
) -> Callable[..., Any]:
    """An op that takes the route of its first argument, a backend's name."""

    def op(backend: str, *arguments: Any) -> Any:
        route = routes.get(backend, rest)
        if route is None:
            known = ", ".join(routes)
            raise RuntimeError(
                f'bptt: backend must be one of {known} for CUDA tensors, got "{backend}"'
            )
        return route(backend, *arguments)

    return op


def _compiled(name: str) -> Callable[..., Any]:
    """The op of the cpu backend."""
    kernel = torch.library.get_kernel(f"bptt::{name}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda *arguments: kernel.call_boxed(keys, *arguments)


def _register() -> None:
    library = torch.library
    library.register_fake("bptt::recurrence_forward", _fake_forward)
    library.register_fake("bptt::recurrence_backward", _fake_backward)
    library.register_fake("bptt::matrix_product", _fake_product)
    library.register_fake("bptt::masked_product", _fake_masked_product)
    library.register_fake("bptt::kept", _fake_kept)
    library.register_vmap("bptt::kept", _kept_for_each)
    library.register_autograd(
        "bptt::matrix_product", _product_backward, setup_context=_setup_product
    )
    library.register_autograd(
        "bptt::recurrence_forward", _compiled_backward, setup_context=_setup_compiled
    )


if hasattr(torch.ops.bptt, "recurrence_forward"):  # absent when the extension did not load
    _register()
    _register_gpu()
