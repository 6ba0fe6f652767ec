"""The derivative of a cell made by `bptt.cell`, held against finite differences."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck

import bptt
from bptt.custom.user_cell import UserCell


def derivative_error(cell: UserCell) -> str:
    """What is wrong with the gradients of the fused loop, in float64; "" where they are right."""
    torch.manual_seed(0)
    layer = bptt.Recurrent(cell, 3, 4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    weights = [p.detach().requires_grad_() for p in layer.parameters()]

    def run(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(names, weights, strict=True))
        y, last = torch.func.functional_call(layer, named, (x,))
        return y, *(last if isinstance(last, tuple) else (last,))

    try:
        gradcheck(run, (x, *weights))
    except RuntimeError as error:
        return " ".join(str(error).split())[:300]
    return ""
