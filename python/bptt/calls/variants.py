"""One layer with options that its loop knows nothing of: heads, normalised inputs, dropped weights.

Each is brought into the form of a plain recurrence (`ops.recurrence`):

- a unit's own recurrent weights (IndRNN) and a layer normalisation's gains and biases become unit
  weights;
- heads become directions, of which an op takes any number: a head is a recurrence of its own;
- dropped weights are made before the loop, and the input's normalisation too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recurrence import ops, random
from ..recurrence.cells import CELLS, NORM_EPSILON
from ..recurrence.grad_norms import LayerNorms
from ..recurrence.gradients import project
from ..recurrence.reference import Outputs
from .checks import Call


def run_layer(
    call: Call,
    piece: Any,
    weights: Sequence[Any],
    state: tuple[Tensor, Tensor | None],
    reverse: tuple[bool, ...],
    norms: LayerNorms | None,
) -> Outputs:
    """Run one layer.

    Args:
        call: the options.
        piece: the layer's input `x [T, B, I]`, lengths and resets.
        weights: those of `stack._stacked`.
        state: h and c at the start.
        reverse: D flags.
        norms: where to leave the norms of its gradients through time, or None.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr, w_unit, *gains = weights
    x: Any
    x, lengths = piece.x, piece.lengths
    seed = draw_seed(x.device) if call.control.draws else None
    gates_x = None
    if call.weight_drop > 0:
        w_hh = _dropped(w_hh, draw_seed(x.device), call.weight_drop)
    if CELLS[call.cell].stages == 0:
        own = [w for w in (w_hh, w_unit) if w is not None]
        w_unit = torch.cat(own, -1) if len(own) > 1 else own[0] if own else None
        w_hh = w_ih.new_empty(*w_ih.shape[:2], 0)
    if call.options.layer_norm:
        if lengths is not None:
            x = ops.zero_padding(x, lengths)
        gates_x, w_unit = _normalized(call, x, w_ih, b_ih, b_hh, gains)
        x = w_ih = b_ih = b_hh = None
    heads = call.options.num_heads
    h0, c0 = state
    if heads > 1:
        w_ih, w_hh, b_ih, b_hh, w_unit, h0, c0 = _apart(
            heads, call, w_ih, w_hh, b_ih, b_hh, w_unit, h0, c0
        )
        reverse = reverse * heads
        if norms is not None:
            norms = norms.of_heads(heads)
    outputs = ops.recurrence(
        call.cell, x, w_ih, w_hh, b_ih, b_hh, w_hr, w_unit, h0, c0, lengths, piece.resets, reverse,
        call.recompute, norms, call.control, seed, call.keep_cells, gates_x,
    )  # fmt: skip
    return _together(heads, call, outputs) if heads > 1 else outputs


def draw_seed(device: torch.device) -> Tensor:
    """A seed of the masks of one layer's call, int64 `[1]`, by torch's generator of the device."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


# --- layer normalisation ------------------------------------------------------------------------


def _normalized(
    call: Call,
    x: Tensor,
    w_ih: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    gains: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The gates' part of the input `[T, B, D, G, H]`, and the unit weights `[D, U*H]`."""
    product = project(x, w_ih, call.cell)
    names = call.names()
    gain = dict(zip(names[len(names) - len(gains) :], gains, strict=True))
    gain_hh = gain["gain_hh"]
    zeros = torch.zeros_like(gain_hh)
    if call.gates == 1:  # the loop normalises the sum
        bias = zeros if b_ih is None or b_hh is None else b_ih + b_hh
        return product, torch.cat([gain_hh, bias], -1)
    normal = F.layer_norm(product.flatten(-2), w_ih.shape[1:2], eps=NORM_EPSILON)
    normal = normal * gain["gain_ih"]
    if b_ih is not None:
        normal = normal + b_ih
    units = [gain_hh, zeros if b_hh is None else b_hh]
    if "gain_c" in gain:
        units += [gain["gain_c"], gain.get("bias_c", torch.zeros_like(gain["gain_c"]))]
    return normal.unflatten(-1, product.shape[-2:]), torch.cat(units, -1)


# --- heads --------------------------------------------------------------------------------------


def _apart(heads: int, call: Call, *tensors: Tensor | None) -> list[Any]:
    """Weights and states with heads, the first axis, among the directions `[N*D, ...]`."""
    w_ih, w_hh, b_ih, b_hh, w_unit, h0, c0 = tensors

    def rows(tensor: Tensor | None, planes: int) -> Tensor | None:
        """[D, planes*H, ...] -> [N*D, planes*H/N, ...]."""
        if tensor is None:
            return None
        apart = tensor.unflatten(1, (planes, heads, -1)).movedim(2, 0)
        return apart.flatten(2, 3).flatten(0, 1)

    def states(tensor: Tensor | None, planes: int) -> Tensor | None:
        """[D, B, planes*H] -> [N*D, B, planes*H/N]."""
        if tensor is None:
            return None
        apart = tensor.unflatten(-1, (planes, heads, -1)).movedim(3, 0)
        return apart.flatten(-2).flatten(0, 1)

    spec = CELLS[call.cell]
    return [
        *(rows(tensor, call.gates) for tensor in (w_ih, w_hh, b_ih, b_hh)),
        rows(w_unit, len(spec.unit_weights)),
        states(h0, 1),
        states(c0, spec.cell_states),
    ]


def _together(heads: int, call: Call, outputs: Outputs) -> Outputs:
    """The inverse for `[T, B, N*D, ...]` and `[N*D, B, ...]`."""
    planes = CELLS[call.cell].cell_states

    def steps(tensor: Tensor, planes: int) -> Tensor:
        apart = tensor.unflatten(2, (heads, -1)).unflatten(-1, (planes, -1))
        return apart.movedim(2, 4).flatten(-3)

    def states(tensor: Tensor, planes: int) -> Tensor:
        apart = tensor.unflatten(0, (heads, -1)).unflatten(-1, (planes, -1))
        return apart.movedim(0, 3).flatten(-3)

    y, h_n, c_n, cells = outputs
    return Outputs(
        steps(y, 1),
        states(h_n, 1),
        None if c_n is None else states(c_n, planes),
        None if cells is None else steps(cells, planes),
    )


# --- dropped weights ----------------------------------------------------------------------------


def _dropped(weights: Tensor, seed: Tensor, probability: float) -> Tensor:
    if ops.transforms_at_work()[0] is not None:  # Dynamo takes no Function with tangents
        return weights * _kept_weights(weights, seed, probability)
    dropped: Tensor = DroppedWeights.apply(weights, seed, probability)
    return dropped


def _kept_weights(weights: Tensor, seed: Tensor, probability: float) -> Tensor:
    shape = _matrices(weights)
    kept = random.kept(seed, probability, shape, weights.dtype, random.WEIGHT_DROP)
    return kept.reshape(weights.shape)


class DroppedWeights(torch.autograd.Function):
    """Weights `[D, M, K]` with some elements dropped, the others grown by 1 / (1 - p).

    Inputs: the weights, a seed, and p. The mask is drawn again in the backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, seed: Tensor, probability: float) -> Tensor:
        return weights * _kept_weights(weights, seed, probability)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, seed, ctx.probability = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, dweights: Tensor) -> tuple[Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        return DroppedWeights.apply(dweights, seed, ctx.probability), None, None


def _matrices(weights: Tensor) -> tuple[int, int, int]:
    """The shape of weights as matrices; a unit's own weights are rows of one."""
    directions, rows = weights.shape[:2]
    return directions, rows, weights.shape[2] if weights.dim() == 3 else 1
