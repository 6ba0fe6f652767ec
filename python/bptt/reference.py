"""The reference backend: a plain PyTorch loop over time, the executable definition of every cell.

It runs on any device and dtype, and every transform of PyTorch (double backward, forward mode,
vmap) works on it because it is made of ordinary differentiable operations. It is slow: one time
step costs about a dozen small operations. The fused backends are held against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cells import CELLS, CellSpec, States


def recurrence(
    cell: str,
    gates_x: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    peephole: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: Sequence[bool],
    probe: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run D independent recurrences over a batch of sequences.

    Args:
        cell: a name in `bptt.cells.CELLS`, with G gates.
        gates_x: `[T, B, D, G, H]`, the input projection with its bias.
        w_hh: `[D, G*H, R]`; R is the size of the hidden state.
        b_hh: `[D, G*H]` or None.
        w_hr: `[D, R, H]` or None; projects the cell's output to the hidden state.
        peephole: `[D, 3*H]` or None.
        h0: `[D, B, R]`.
        c0: `[D, B, H]`, for cells with a cell state.
        lengths: integers `[B]` or None.
        resets: bool `[T, B]` or None.
        reverse: D flags, True for the direction that runs from the end to the start.
        probe: zeros `[T, B, D, R]` or None; added to every hidden state, so that its gradient is
            that of the hidden states.

    Returns:
        `y [T, B, D, R]`, `h_n [D, B, R]` and `c_n [D, B, H]` (None without a cell state).
    """
    spec = CELLS[cell]
    runs = [
        _one_direction(
            spec,
            gates_x[:, :, d],
            w_hh[d],
            None if b_hh is None else b_hh[d],
            None if w_hr is None else w_hr[d],
            None if peephole is None else peephole[d],
            (h0[d],) if c0 is None else (h0[d], c0[d]),
            lengths,
            resets,
            backwards,
            None if probe is None else probe[:, :, d],
        )
        for d, backwards in enumerate(reverse)
    ]
    y = torch.stack([outputs for outputs, _ in runs], dim=2)
    h_n = torch.stack([states[0] for _, states in runs])
    c_n = torch.stack([states[1] for _, states in runs]) if spec.has_cell_state else None
    return y, h_n, c_n


def _one_direction(
    spec: CellSpec,
    gates_x: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    peephole: Tensor | None,
    states: States,
    lengths: Tensor | None,
    resets: Tensor | None,
    backwards: bool,
    probe: Tensor | None,
) -> tuple[Tensor, States]:
    steps, _, gates, hidden = gates_x.shape
    peepholes = None if peephole is None else peephole.unflatten(0, (3, hidden)).unbind(0)

    def recur(operand: Tensor, which: slice = slice(None)) -> tuple[Tensor, ...]:
        rows = w_hh.unflatten(0, (gates, hidden))[which].flatten(0, 1)  # [g*H, R]
        bias = None if b_hh is None else b_hh.unflatten(0, (gates, hidden))[which].flatten()
        product = torch.nn.functional.linear(operand, rows, bias)  # [B, g*H]
        return product.unflatten(-1, (-1, hidden)).unbind(-2)

    probes = None if probe is None else probe.unbind(0)
    outputs: list[Tensor] = []
    for t in reversed(range(steps)) if backwards else range(steps):
        held = states
        if resets is not None:
            keep = ~resets[t].unsqueeze(-1)
            states = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in states)
        states = spec.step(gates_x[t].unbind(-2), recur, states, peepholes)
        if w_hr is not None:
            states = (torch.nn.functional.linear(states[0], w_hr), *states[1:])
        if probes is not None:
            states = (states[0] + probes[t], *states[1:])
        output = states[0]
        if lengths is not None:
            active = (lengths > t).unsqueeze(-1)
            # Past its end a sequence holds its state, and a reset there has no effect.
            states = tuple(torch.where(active, s, old) for s, old in zip(states, held, strict=True))
            output = torch.where(active, output, torch.zeros_like(output))
        outputs.append(output)
    return torch.stack(outputs[::-1] if backwards else outputs), states
