"""Section 2: the same weights and input through torch.nn and bptt, forward and every gradient.

Both are compared with torch.nn in float64. What torch.nn loses in float32 is the measure: bptt may
be at most FORWARD_FACTOR times as far off in outputs and states, GRADIENT_FACTOR times in
gradients, plus FLOOR_EPS roundings of the largest value (torch.nn may be exact by luck).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt

T, B, INPUT, HIDDEN = 40, 8, 24, 32
FORWARD_FACTOR, GRADIENT_FACTOR, FLOOR_EPS = 2.0, 3.0, 8.0

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "LSTM proj_size": ("LSTM", {"proj_size": HIDDEN // 2}),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "1 layer": {},
    "bidirectional": {"bidirectional": True},
    "2 layers": {"num_layers": 2},
    "2 bidir., packed": {"num_layers": 2, "bidirectional": True, "packed": True},
}

Values = dict[str, Tensor]  # named outputs and gradients of one run


@dataclass(frozen=True)
class Errors:
    """Largest absolute differences over a group of tensors, and whether all keep the bound.

    Attributes:
        bptt_nn: bptt against torch.nn, both float32.
        bptt_exact: bptt against torch.nn in float64.
        nn_exact: torch.nn in float32 against float64.
        used: bptt's error as a share of its bound, the worst over the tensors; 1 or less passes.
    """

    bptt_nn: float
    bptt_exact: float
    nn_exact: float
    used: float

    @property
    def passed(self) -> bool:
        return self.used <= 1.0

    def cells(self) -> list[str]:
        errors = (self.bptt_nn, self.bptt_exact, self.nn_exact)
        return [f"{error:.1e}".replace("e-0", "e-") if error else "0" for error in errors]


def section(console: Console, seed: int) -> bool:
    """Print the table; false if any row fails."""
    console.rule("[bold]2. Parity with torch.nn: same weights, same input, float32")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("layer")
    for head in ("bptt\n-nn", "bptt\n-f64", "nn\n-f64"):
        table.add_column(f"output\n{head}", justify="right")
    for head in ("bptt\n-nn", "bptt\n-f64", "nn\n-f64"):
        table.add_column(f"grad\n{head}", justify="right")
    table.add_column("of\nbound", justify="right")
    table.add_column("verdict")
    passed = True
    for name in LAYERS:
        table.add_row(f"[bold]{name}")
        for variant in VARIANTS:
            forward, gradients = compare(name, variant, seed)
            good = forward.passed and gradients.passed
            passed &= good
            used = f"{max(forward.used, gradients.used):.0%}"
            verdict = "[green]equal" if good else "[bold red]DIFFERS"
            table.add_row(f"  {variant}", *forward.cells(), *gradients.cells(), used, verdict)
    console.print(table)
    console.print(
        "Largest absolute differences, over outputs and final states and over the gradients of "
        "input, initial states and every weight; f64 is torch.nn in float64. Bound, tensor by "
        f"tensor: bptt-f64 is at most {FORWARD_FACTOR:g} times nn-f64 ({GRADIENT_FACTOR:g} times "
        f"for gradients) plus {FLOOR_EPS:g} roundings of the tensor's largest value. "
        f"T={T}, B={B}, I={INPUT}, H={HIDDEN}."
    )
    return passed


def compare(name: str, variant: str, seed: int) -> tuple[Errors, Errors]:
    """Run one row: errors of the outputs and of the gradients."""
    kind, options = LAYERS[name]
    options = {**options, **VARIANTS[variant]}
    packed = options.pop("packed", False)
    torch.manual_seed(seed)
    theirs = getattr(nn, kind)(INPUT, HIDDEN, **options)
    ours = getattr(bptt, kind)(INPUT, HIDDEN, **options)
    ours.load_state_dict(theirs.state_dict())
    exact = getattr(nn, kind)(INPUT, HIDDEN, **options).double()
    exact.load_state_dict(theirs.state_dict())
    lengths = torch.randint(1, T + 1, (B,)) if packed else None
    with warnings.catch_warnings():
        # torch.nn says that oneDNN lacks projections; both paths of it are compared all the same.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        runs = [run(layer, lengths, seed) for layer in (ours, theirs, exact)]
    forward = _errors(*(outputs for outputs, _ in runs), factor=FORWARD_FACTOR)
    gradients = _errors(*(gradients for _, gradients in runs), factor=GRADIENT_FACTOR)
    return forward, gradients


def run(layer: nn.RNNBase, lengths: Tensor | None, seed: int) -> tuple[Values, Values]:
    """Outputs and gradients of a layer on inputs, states and upstream gradients fixed by the seed.

    Args:
        layer: of torch.nn or of bptt; its dtype is used.
        lengths: int64 [B] to pack the input, or None.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = next(layer.parameters()).dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    x = draw(T, B, INPUT).requires_grad_()
    h = draw(rows, B, layer.proj_size or HIDDEN).requires_grad_()
    c = draw(rows, B, HIDDEN).requires_grad_()
    lstm = layer.mode == "LSTM"
    inputs = {"x": x, "h_0": h, **({"c_0": c} if lstm else {})}
    source: Any = x
    if lengths is not None:
        source = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, last = layer(source, (h, c) if lstm else h)
    outputs = {"output": y.data if isinstance(y, PackedSequence) else y}
    outputs |= dict(zip(("h_n", "c_n"), last if lstm else (last,), strict=False))

    parameters = dict(layer.named_parameters())
    upstream = [draw(*output.shape) for output in outputs.values()]
    leaves = [*inputs.values(), *parameters.values()]
    gradients = torch.autograd.grad(list(outputs.values()), leaves, upstream)
    named = dict(zip([*inputs, *parameters], gradients, strict=True))
    return {key: value.detach() for key, value in outputs.items()}, named


def _errors(ours: Values, theirs: Values, exact: Values, *, factor: float) -> Errors:
    bptt_nn = bptt_exact = nn_exact = used = 0.0
    eps = torch.finfo(torch.float32).eps
    for key, truth in exact.items():
        own = _distance(ours[key], truth)
        reference = _distance(theirs[key], truth)
        bound = factor * reference + FLOOR_EPS * eps * truth.abs().max().item()
        bptt_nn = max(bptt_nn, _distance(ours[key], theirs[key]))
        bptt_exact, nn_exact = max(bptt_exact, own), max(nn_exact, reference)
        used = max(used, own / bound)
    return Errors(bptt_nn, bptt_exact, nn_exact, used)


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite where a value is NaN or the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    largest = (a.double() - b.double()).abs().max().item()
    return math.inf if math.isnan(largest) else largest
