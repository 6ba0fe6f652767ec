"""sLSTM layers of the package `xlstm` (Beck et al. 2024) as `bptt.SLSTM`, weights and all.

Nothing of that package is imported; any of its backends' layers will do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..nn import SLSTM

# In the order in which an sLSTMLayer hands its gates to its cell, which calls them i, f, z and o.
_GATES = ("fgate", "igate", "zgate", "ogate")
# What bends the recurrence of an sLSTMCell, and its value where it does not.
_BENDS = {
    "function": "slstm",
    "gradient_recurrent_cut": False,
    "gradient_recurrent_clipval": None,
    "forward_clipval": None,
}


def slstm(layer: Any) -> SLSTM:
    """The gates and the cell of an `sLSTMLayer` as one fused layer, with copies of its weights.

        layer = stack.blocks[1].xlstm              # an sLSTMLayer of embedding size E
        ours = bptt.interop.xlstm.slstm(layer)
        y, (h, c, n, m) = ours(x)                  # before the layer's dropout and normalisation

    Without a convolution x is the layer's input, `[B, S, E]`. With one, whose result the gates i
    and f see, it is both side by side, `[B, S, 2*E]`:
    `torch.cat([layer.conv_act_fn(layer.conv1d(x)), x], -1)`.

    Returns:
        A layer with batch_first, of E units, with as many heads.

    Raises:
        TypeError: it is no sLSTMLayer.
        ValueError: its cell is no sLSTM, or clips values or gradients of its own, which
            `bptt.SLSTM` does in other places.
    """
    cell = getattr(layer, "slstm_cell", None)
    if cell is None or not all(hasattr(layer, gate) for gate in _GATES):
        raise TypeError(f"slstm: expected an sLSTMLayer of xlstm, got {type(layer).__name__}")
    config = cell.config
    for name, plain in _BENDS.items():
        if getattr(config, name, plain) != plain:
            raise ValueError(
                f"slstm: {name} must be {plain!r} in the layer's config, got "
                f"{getattr(config, name)!r}"
            )
    # [heads, in, gate, out] and [heads, gate, out], whatever a backend keeps.
    recurrent, bias = cell.recurrent_kernel.clone(), cell.bias.clone()
    heads, gates, width = bias.shape
    size = heads * width
    weight_ih = _inputs_of(layer, size)
    made = SLSTM(
        weight_ih.shape[1], size, num_heads=heads, batch_first=True,
        device=weight_ih.device, dtype=weight_ih.dtype,
    )  # fmt: skip
    made.load_state_dict(
        {
            "weight_ih_l0": weight_ih,
            "weight_hh_l0": recurrent.permute(2, 0, 3, 1).reshape(gates * size, width),
            "bias_ih_l0": bias.transpose(0, 1).reshape(-1),
            "bias_hh_l0": torch.zeros(gates * size),
        }
    )
    return made


def _inputs_of(layer: Any, size: int) -> Tensor:
    """`[4*H, E]`, or `[4*H, 2*E]` where two gates see the convolution's result instead of x."""
    rows = []
    for place, gate in enumerate(_GATES):
        dense = torch.block_diag(*getattr(layer, gate).weight)  # of [heads, out, in]
        if hasattr(layer, "conv1d"):
            absent = dense.new_zeros(size, size)
            dense = torch.cat([dense, absent] if place < 2 else [absent, dense], dim=1)
        rows.append(dense)
    return torch.cat(rows).detach()
