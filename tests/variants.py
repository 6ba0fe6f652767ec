"""The problems of cell variants and of what a loop does besides: below the layers, at the op.

A `Variant` names a recurrence of one layer, any cell and any `Control`. `check_variant` holds a
backend against the float64 reference loop: outputs and every gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import bptt
from bptt.recurrence import ops
from bptt.recurrence.cells import CELLS
from bptt.recurrence.control import PLAIN, Control
from bptt.recurrence.grad_norms import start_norms
from bptt.recurrence.gradients import LoopInputs
from cases import F32, F64, HALVES, HiddenGradients, OpCounter, one_thread, worst

NEW_CELLS = ("cifg", "slstm", "indrnn", "rnn_layer_norm", "gru_layer_norm", "lstm_layer_norm")
EVERY_CELL = tuple(CELLS)
NORMALIZED = tuple(name for name, spec in CELLS.items() if spec.normalized)

# One setting at a time, and all of them together; those of the cell state are left out of cells
# without one by `fitting`.
CONTROLS = {
    "activations": Control(gates="hard_sigmoid", states="softsign"),
    "other-activations": Control(gates="sigmoid", states="hard_tanh"),
    "cell-bound": Control(cell_bound=0.3),
    "zoneout": Control(zoneout_h=0.4, zoneout_c=0.3, sampled=True),
    "zoneout-mean": Control(zoneout_h=0.4, zoneout_c=0.3),
    "recurrent-dropout": Control(recurrent_dropout=0.5),
    "truncate": Control(truncate=3),
    "gradient-bound": Control(gradient_bound=0.05),
    "gradient-norm": Control(gradient_norm=0.2),
    "all": Control(
        states="relu", cell_bound=0.8, zoneout_h=0.2, zoneout_c=0.3, sampled=True,
        recurrent_dropout=0.3, truncate=4, gradient_bound=0.5, gradient_norm=0.6,
    ),
}  # fmt: skip


def fitting(cell: str, control: Control) -> Control:
    """The control without what a cell does not take."""
    if not CELLS[cell].has_cell_state:
        control = control._replace(cell_bound=0.0, zoneout_c=0.0)
    if cell == "slstm":  # its cell state is one of two that make a ratio; i and f are exponentials
        control = control._replace(cell_bound=0.0)
    return control


@dataclass(frozen=True)
class Variant:
    """One problem; names as in `cases.Case`.

    Attributes:
        keep_cells: whether all cell states are an output, with a gradient of their own.
        hidden_gradients: whether dL/dh_t is asked for, too.
    """

    cell: str = "lstm"
    control: Control = PLAIN
    steps: int = 7
    batch: int = 5
    inputs: int = 3
    hidden: int = 6
    directions: int = 1
    proj: int = 0
    masks: str = "none"
    bias: bool = True
    recompute: bool = False
    keep_cells: bool = False
    hidden_gradients: bool = False
    seed: int = 0

    @property
    def spec(self):
        return CELLS[self.cell]


def make_variant(variant: Variant) -> dict[str, Tensor | None]:
    """The tensors of a problem by the names of LoopInputs, float64, and the loss's weights."""
    v, spec = variant, variant.spec
    random = torch.Generator().manual_seed(v.seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=random, dtype=F64)

    T, B, D, I, H = v.steps, v.batch, v.directions, v.inputs, v.hidden
    R, G, C = v.proj or H, len(spec.gates), spec.cell_states
    relu = "relu" in (v.cell, v.control.states) or v.cell in ("rnn_relu", "indrnn")
    scale = H**-0.5 * (0.5 if relu else 1.0)
    tensors: dict[str, Tensor | None] = dict.fromkeys(LoopInputs._fields)
    if spec.normalized:
        tensors["gates_x"] = normal(T, B, D, G, H)
    else:
        tensors["x"], tensors["w_ih"] = normal(T, B, I), normal(D, G * H, I, scale=scale)
    if v.bias and not spec.normalized:
        tensors["b_ih"], tensors["b_hh"] = normal(D, G * H), normal(D, G * H)
    if spec.free:  # nothing of the hidden state enters its gates
        tensors["b_hh"] = None
    tensors["w_hh"] = normal(D, G * H, R if spec.stages else 0, scale=scale)
    if v.proj:
        tensors["w_hr"] = normal(D, R, H, scale=scale)
    if spec.unit_weights:
        tensors["w_unit"] = normal(D, len(spec.unit_weights) * H, scale=0.7)
    tensors["h0"] = normal(D, B, R)
    if C:
        tensors["c0"] = normal(D, B, C * H)
    if v.cell == "slstm":  # a normaliser is a sum of exponentials; where it is zero, c is
        c0 = tensors["c0"].unflatten(-1, (C, H))
        c0[..., 1, :] = c0[..., 1, :].abs() + 0.5
        c0[:, :1, :2] = 0.0
    if v.masks in ("lengths", "both"):
        tensors["lengths"] = torch.randint(1, T + 1, (B,), generator=random)
        if B > 2:
            tensors["lengths"][-1], tensors["lengths"][B // 2] = T, 0
    if v.masks in ("resets", "both"):
        tensors["resets"] = torch.rand((T, B), generator=random) < 0.3
    if v.control.draws:
        tensors["seed"] = torch.randint(-(2**62), 2**62, (1,), generator=random)
    tensors["loss_y"], tensors["loss_h_n"] = normal(T, B, D, R), normal(D, B, R)
    if C:
        tensors["loss_c_n"], tensors["loss_cells"] = normal(D, B, C * H), normal(T, B, D, C * H)
    return tensors


def is_weighed(name: str, tensor: Tensor | None) -> bool:
    """Whether a tensor is one that gradients are wanted of."""
    return tensor is not None and tensor.is_floating_point() and not name.startswith("loss_")


def run_variant(
    variant: Variant,
    inputs: dict[str, Tensor | None],
    backend: str,
    dtype: torch.dtype = F64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Outputs and gradients by name, in float64 on the CPU."""
    tensors: dict[str, Tensor | None] = {}
    for name, tensor in inputs.items():
        if tensor is not None:
            tensor = tensor.to(device, dtype if tensor.is_floating_point() else None)
            tensor = tensor.clone().requires_grad_() if is_weighed(name, tensor) else tensor
        tensors[name] = tensor
    t = LoopInputs(**{name: tensors[name] for name in LoopInputs._fields})
    norms = HiddenGradients() if variant.hidden_gradients else None
    reverse = (False, True)[: variant.directions]
    counter = OpCounter()
    with bptt.backend(backend), counter if backend != "reference" else one_thread():
        y, h_n, c_n, cells = ops.recurrence(
            variant.cell, t.x, t.w_ih, t.w_hh, t.b_ih, t.b_hh, t.w_hr, t.w_unit, t.h0, t.c0,
            t.lengths, t.resets, reverse, variant.recompute,
            start_norms("test", norms, 1, None)[0], variant.control, t.seed, variant.keep_cells,
            gates_x=t.gates_x,
        )  # fmt: skip
        outputs = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}
        outputs = {name: tensor for name, tensor in outputs.items() if tensor is not None}
        loss = sum((tensor * tensors[f"loss_{name}"]).sum() for name, tensor in outputs.items())
        wanted = {n: x for n, x in tensors.items() if is_weighed(n, x)}
        grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    if backend != "reference":
        assert counter.calls["recurrence_backward"] == 1, "the backend's kernels did not run"
    answer = {name: tensor.detach() for name, tensor in outputs.items()}
    for name, grad in zip(wanted, grads, strict=True):
        # w_hh of a cell without a product is empty, and the reference does not look at it.
        answer[f"d_{name}"] = torch.zeros_like(wanted[name]) if grad is None else grad
    if norms is not None:
        answer["d_hidden"] = norms.layers[0]
    return {name: tensor.to("cpu", F64) for name, tensor in answer.items()}


# Rounding errors in units of eps times a tensor's scale, as in cases.py. An activation with kinks
# may lie on either side of one after rounding, which a random problem does not hit.
ROUNDINGS = 60
HALF_FACTOR, HALF_FLOOR = 3, 4


def check_variant(
    variant: Variant, backend: str, dtype: torch.dtype = F32, device: str = "cpu"
) -> None:
    """Hold a backend against the float64 reference."""
    variant = replace(variant, control=fitting(variant.cell, variant.control))
    inputs = {
        name: x.to(dtype).to(F64) if x is not None and x.is_floating_point() else x
        for name, x in make_variant(variant).items()
    }
    exact = run_variant(variant, inputs, "reference")
    plain = run_variant(variant, inputs, "reference", dtype) if dtype in HALVES else None
    ours = run_variant(variant, inputs, backend, dtype, device)
    assert ours.keys() == exact.keys()
    eps = torch.finfo(dtype).eps
    for name, expected in exact.items():
        got = ours[name]
        assert got.shape == expected.shape, name
        error = worst(got - expected)
        scale = max(1.0, worst(expected))
        bound = ROUNDINGS * eps * scale
        if plain is not None:
            bound = HALF_FACTOR * worst(plain[name] - expected) + HALF_FLOOR * eps * scale
        # Written so that a NaN fails.
        assert error <= bound, f"{name}: error {error:.3g} above {bound:.3g}: {variant} in {dtype}"
