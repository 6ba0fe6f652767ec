"""The problems of the numerical tests: what a case is, its inputs, and how to run and judge it.

A `Case` names everything about a call of `bptt.functional`. `make_inputs` draws its tensors,
`run` runs it on a backend and returns every output and gradient by name, and `assert_close`
compares two such answers within the bounds stated there.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import bptt
from bptt.calls import stack
from bptt.recurrence.cells import CELLS

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
HALVES = (F16, BF16)
DTYPES = (F64, F32, BF16)
# The cells of the layers that take the place of torch.nn's; variants.py has the others.
ALL_CELLS = tuple(list(CELLS)[:7])
LSTMS = ("lstm", "lstm_peephole")


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        masks: "lengths", "resets", "both" or "none". Lengths of three or more sequences are
            unsorted and hold 0 and T; the input is NaN past them.
        states: whether an initial state is given.
        strided: whether the input, the initial states and the weights are strided views.
        hidden_gradients: whether dL/dh_t of every layer is asked for, too, as grad_norms= does.
    """

    cell: str = "lstm"
    steps: int = 6
    batch: int = 4
    inputs: int = 5
    hidden: int = 9
    directions: int = 1
    layers: int = 1
    proj: int = 0
    masks: str = "none"
    bias: bool = True
    states: bool = True
    batch_first: bool = False
    strided: bool = False
    recompute: bool = False
    hidden_gradients: bool = False
    seed: int = 0

    @property
    def spec(self):
        return CELLS[self.cell]

    @property
    def state(self) -> int:
        """R, the size of the hidden state."""
        return self.proj or self.hidden

    @property
    def values(self) -> int:
        """Terms in the longest sum of a gradient: every step of every sequence."""
        return self.steps * self.batch


def make_inputs(case: Case) -> dict[str, Tensor | None]:
    """Draw the tensors of a case, float64: "x", "h0", "c0", the weights by name, "lengths",
    "resets", and the weights "loss_..." of the outputs in the loss.
    """
    random = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=F64)

    rows = case.layers * case.directions
    # As in torch.nn's initialisation; for relu a quarter of that, see keep_from_kinks.
    scale = case.hidden**-0.5 * (0.25 if case.cell == "rnn_relu" else 1.0)
    inputs: dict[str, Tensor | None] = {"x": normal(case.steps, case.batch, case.inputs)}
    inputs["h0"] = normal(rows, case.batch, case.state) if case.states else None
    has_c0 = case.states and case.spec.has_cell_state
    inputs["c0"] = normal(rows, case.batch, case.hidden) if has_c0 else None
    for layer in range(case.layers):
        width = case.directions * case.state if layer else case.inputs
        for d in range(case.directions):
            for name, shape in weight_shapes(case, width).items():
                inputs[f"{name}_l{layer}_d{d}"] = scale * (
                    2 * torch.rand(shape, generator=random, dtype=F64) - 1
                )
    if case.cell == "rnn_relu" and case.bias:
        keep_from_kinks(inputs)
    inputs["lengths"] = inputs["resets"] = None
    if case.masks in ("lengths", "both"):
        lengths = torch.randint(1, case.steps + 1, (case.batch,), generator=random)
        if case.batch > 1:
            lengths[-1] = case.steps
            lengths[case.batch // 2] = 0
        inputs["lengths"] = lengths
        past = torch.arange(case.steps).unsqueeze(1) >= lengths
        inputs["x"][past] = torch.nan
    if case.masks in ("resets", "both"):
        inputs["resets"] = torch.rand((case.steps, case.batch), generator=random) < 0.3
    inputs["loss_y"] = normal(case.steps, case.batch, case.directions * case.state)
    inputs["loss_h_n"] = normal(rows, case.batch, case.state)
    inputs["loss_c_n"] = normal(rows, case.batch, case.hidden) if case.spec.has_cell_state else None
    return inputs


def weight_shapes(case: Case, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of one layer and direction, in the order of `bptt.functional`."""
    gates = len(case.spec.gates) * case.hidden
    shapes: dict[str, tuple[int, ...]] = {"w_ih": (gates, width), "w_hh": (gates, case.state)}
    if case.bias:
        shapes.update(b_ih=(gates,), b_hh=(gates,))
    if case.proj:
        shapes["w_hr"] = (case.proj, case.hidden)
    if case.spec.unit_weights:
        shapes["peephole"] = (len(case.spec.unit_weights) * case.hidden,)
    return shapes


def keep_from_kinks(inputs: dict[str, Tensor | None]) -> None:
    """Switch every second relu unit on and the others off, by a bias its other terms stay below.

    At a kink the derivative jumps from 0 to 1, and rounding decides on which side a unit is.
    """
    for name, tensor in inputs.items():
        if name.startswith("b_ih"):
            tensor[0::2], tensor[1::2] = 6.0, -6.0


def is_data(name: str) -> bool:
    """Whether a name of `make_inputs` is a tensor that the call may be differentiated in."""
    return name not in ("lengths", "resets") and not name.startswith("loss_")


class OpCounter(TorchDispatchMode):
    """Counts the calls of bptt's ops, by name, on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "bptt":
            self.calls[func._opname.rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def one_thread():
    """Run on one thread: the reference's operations are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def as_strided(tensor: Tensor) -> Tensor:
    """A view of the same values whose last axis is not dense."""
    spaced = tensor.new_full((*tensor.shape, 2), torch.nan)
    spaced[..., 0] = tensor
    return spaced[..., 0]


class HiddenGradients(bptt.GradientNorms):
    """The gradients dL/dh_t `[T, B, D, R]` themselves, in `layers`, instead of their norms."""

    def _measure(self, dh: Tensor) -> Tensor:
        return dh


def call(
    case: Case, tensors: dict[str, Tensor | None], norms: bptt.GradientNorms | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Call `bptt.functional` on a case's tensors; returns y (time-major), h_n, c_n."""
    x, resets = tensors["x"], tensors["resets"]
    if case.batch_first:
        x = x.transpose(0, 1)
        resets = None if resets is None else resets.transpose(0, 1)
    options = {
        "bias": case.bias,
        "num_layers": case.layers,
        "bidirectional": case.directions == 2,
        "batch_first": case.batch_first,
        "lengths": tensors["lengths"],
        "resets": resets,
        "recompute": case.recompute,
        "grad_norms": norms,
    }
    weights = [t for name, t in tensors.items() if "_l" in name and is_data(name)]
    hx = tensors["h0"]
    if case.cell in LSTMS:
        hx = None if hx is None else (hx, tensors["c0"])
        y, (h_n, c_n) = bptt.functional.lstm(
            x, hx, weights, proj_size=case.proj, peephole=bool(case.spec.unit_weights), **options
        )
    elif case.cell.startswith("gru"):
        y, h_n = bptt.functional.gru(x, hx, weights, reset_after=case.cell == "gru", **options)
        c_n = None
    else:
        kind = case.cell.removeprefix("rnn_")
        y, h_n = bptt.functional.rnn(x, hx, weights, nonlinearity=kind, **options)
        c_n = None
    return y.transpose(0, 1) if case.batch_first else y, h_n, c_n


def run(
    case: Case,
    inputs: dict[str, Tensor | None],
    backend: str,
    dtype: torch.dtype = F64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Run a case on a forced backend; returns outputs and gradients by name, float64 on the CPU.

    Asserts that a fused backend did the work where one is asked for.
    """
    tensors = {n: None if t is None else t.to(device) for n, t in inputs.items()}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_floating_point():
            value = tensor.to(dtype)
            if case.strided and is_data(name):
                value = as_strided(value)
            # Not a leaf, so that a strided view stays one.
            tensors[name] = value.requires_grad_() if is_data(name) else value
    ops = OpCounter()
    norms = HiddenGradients() if case.hidden_gradients else None
    # The counter would make a reference step, made of many small operations, twice as slow.
    apart = mock.patch.object(stack, "_one_by_one", wraps=stack._one_by_one)
    watched = ops if backend != "reference" else one_thread()
    with bptt.backend(backend), watched, apart as one_by_one:
        outputs = dict(zip(("y", "h_n", "c_n"), call(case, tensors, norms), strict=True))
        wanted = {n: t for n, t in tensors.items() if t is not None and is_data(n)}
        loss = sum((t * tensors[f"loss_{n}"]).sum() for n, t in outputs.items() if t is not None)
        grads = torch.autograd.grad(loss, list(wanted.values()))
    if backend != "reference":
        rebuilt = case.recompute and len(case.spec.saved) > 0
        # Directions with large weights and few rows run one by one, a call more of each layer.
        calls = case.layers + one_by_one.call_count
        assert ops.calls["recurrence_forward"] == calls * (1 + rebuilt)
        assert ops.calls["recurrence_backward"] == calls
    for name, tensor in outputs.items():
        assert tensor is None or tensor.dtype == dtype, name
    answer = {n: t.detach() for n, t in outputs.items() if t is not None}
    answer.update({f"d_{n}": g for n, g in zip(wanted, grads, strict=True)})
    for k, gradient in enumerate([] if norms is None else norms.layers):
        assert gradient.dtype == dtype
        answer[f"d_hidden{k}"] = gradient
    return {n: t.to("cpu", F64) for n, t in answer.items()}


def rounded(inputs: dict[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor | None]:
    """The inputs as `dtype` holds them, in float64: what the float64 reference should be given."""
    return {
        n: t.to(dtype).to(F64) if t is not None and t.is_floating_point() else t
        for n, t in inputs.items()
    }


# Rounding errors that a value or gradient may have gathered in float32 and float64, in units of eps
# times the tensor's scale (see `scale_of`): some four times what has been seen.
ROUNDINGS = 40
# 16-bit dtypes are judged by what plain PyTorch loses in them; this much on top, for where that is
# lucky.
HALF_FACTOR = {"value": 2, "gradient": 3}
HALF_FLOOR = {"value": 2, "gradient": 3}


def scale_of(case: Case, name: str, exact: dict[str, Tensor]) -> float:
    """The size that a tensor's rounding errors are measured against.

    Its largest element; but at least what its terms add up to, as a small sum may be the remainder
    of large terms: 1 for values, and for gradients that are sums over all steps of all sequences,
    of terms of random sign as large as the hidden state, the root of their number times that.
    """
    least = 1.0
    if name.startswith("d_") and "_l" in name:
        least = case.values**0.5 * max(1.0, worst(exact["y"]))
    return max(worst(exact[name]), least)


def assert_close(
    case: Case,
    ours: dict[str, Tensor],
    exact: dict[str, Tensor],
    dtype: torch.dtype,
    plain: dict[str, Tensor] | None = None,
) -> None:
    """Hold outputs and gradients computed in `dtype` against the float64 reference.

    Args:
        case: the problem.
        ours: what the backend computed.
        exact: the float64 reference on the same (rounded) inputs.
        dtype: what `ours` was computed in.
        plain: the reference computed in `dtype`; needed for 16-bit ones only.
    """
    assert ours.keys() == exact.keys()
    eps = torch.finfo(dtype).eps
    for name, expected in exact.items():
        got = ours[name]
        assert got.shape == expected.shape, name
        error = worst(got - expected)
        scale = scale_of(case, name, exact)
        if dtype in HALVES:
            kind = "gradient" if name.startswith("d_") else "value"
            lost = worst(plain[name] - expected)
            bound = HALF_FACTOR[kind] * lost + HALF_FLOOR[kind] * eps * scale
        else:
            bound = ROUNDINGS * eps * scale
        # Written so that a NaN fails.
        assert error <= bound, f"{name}: error {error:.3g} above {bound:.3g} for {case} in {dtype}"


def worst(tensor: Tensor) -> float:
    """The largest magnitude; 0 for no elements, NaN if there is one."""
    return tensor.abs().max().item() if tensor.numel() else 0.0


def check(case: Case, dtype: torch.dtype = F64, backend: str = "cpu", device: str = "cpu") -> None:
    """Hold a backend on a device against the float64 reference on one case."""
    inputs = rounded(make_inputs(case), dtype)
    exact = run(case, inputs, "reference")
    plain = run(case, inputs, "reference", dtype) if dtype in HALVES else None
    assert_close(case, run(case, inputs, backend, dtype, device), exact, dtype, plain)
