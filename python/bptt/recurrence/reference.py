"""The reference backend: a plain PyTorch loop over time, the executable definition of every cell.

It runs on any device and dtype, and every transform of PyTorch (double backward, forward mode,
vmap) works on it because it is made of ordinary differentiable operations. It is slow: one time
step costs about a dozen small operations. The fused backends are held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from . import random
from .cells import CELLS, NORM_EPSILON, CellMath, CellSpec, Recur, States
from .control import ACTIVATIONS, PLAIN, Control


class Outputs(NamedTuple):
    """What a recurrence returns.

    Attributes:
        y: `[T, B, D, R]`, the hidden states; zero past a length.
        h_n: `[D, B, R]`, the last ones.
        c_n: `[D, B, C*H]`, the last cell states, side by side; None without a cell state.
        cells: `[T, B, D, C*H]`, all cell states, zero past a length; None if not asked for.
    """

    y: Tensor
    h_n: Tensor
    c_n: Tensor | None
    cells: Tensor | None


def recurrence(
    cell: str,
    gates_x: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    w_unit: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
    reverse: Sequence[bool],
    control: Control = PLAIN,
    probe: Tensor | None = None,
    keep_cells: bool = False,
) -> Outputs:
    """Run D independent recurrences over a batch of sequences.

    Args:
        cell: a name in `bptt.recurrence.cells.CELLS`, with G gates, U unit weights and C cell
            states.
        gates_x: `[T, B, D, G, H]`, the input projection with its bias.
        w_hh: `[D, G*H, R]`; R is the size of the hidden state. `[D, G*H, 0]` for cells without a
            recurrent product (R = H).
        b_hh: `[D, G*H]` or None.
        w_hr: `[D, R, H]` or None; projects the cell's output to the hidden state.
        w_unit: `[D, U*H]` or None.
        h0: `[D, B, R]`.
        c0: `[D, B, C*H]`, for cells with a cell state.
        lengths: integers `[B]` or None.
        resets: bool `[T, B]` or None.
        seed: int64 `[1]`, for what `control` draws.
        reverse: D flags, True for the direction that runs from the end to the start.
        control: what the loop does besides running the cell.
        probe: zeros `[T, B, D, R]` or None; added to every hidden state, so that its gradient is
            that of the hidden states.
        keep_cells: whether all cell states are wanted.
    """
    spec = CELLS[cell]
    runs = []
    for d, backwards in enumerate(reverse):
        one = _Direction(
            spec,
            control,
            w_hh[d],
            None if b_hh is None else b_hh[d],
            None if w_hr is None else w_hr[d],
            None if w_unit is None else w_unit[d].unflatten(0, (len(spec.unit_weights), -1)),
            (gates_x.shape[1], h0.shape[-1], gates_x.shape[-1]),
            seed,
            d,
        )
        cell_states = () if c0 is None else c0[d].chunk(spec.cell_states, -1)
        probes = None if probe is None else probe[:, :, d]
        states = (h0[d], *cell_states)
        runs.append(_run(one, gates_x[:, :, d], states, lengths, resets, backwards, probes))
    y = torch.stack([torch.stack(outputs) for outputs, _, _ in runs], dim=2)
    h_n = torch.stack([states[0] for _, _, states in runs])
    if not spec.has_cell_state:
        return Outputs(y, h_n, None, None)
    c_n = torch.stack([torch.cat(states[1:], -1) for _, _, states in runs])
    cells = None
    if keep_cells:
        cells = torch.stack([torch.stack(kept) for _, kept, _ in runs], dim=2)
    return Outputs(y, h_n, c_n, cells)


def _run(
    one: _Direction,
    gates_x: Tensor,
    states: States,
    lengths: Tensor | None,
    resets: Tensor | None,
    backwards: bool,
    probe: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], States]:
    """The time loop of one direction: outputs and cell states of all steps, and the last states."""
    steps = gates_x.shape[0]
    truncate = one.control.truncate
    outputs: list[Tensor] = []
    kept: list[Tensor] = []
    for t in reversed(range(steps)) if backwards else range(steps):
        held = states
        border = t + 1 if backwards else t
        if truncate > 0 and border % truncate == 0 and 0 < border < steps:
            states = _cut(states, border if backwards else t, lengths)
        if resets is not None:
            keep = ~resets[t].unsqueeze(-1)
            states = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in states)
        states = one.step(t, gates_x[t], states)
        if probe is not None:
            states = (states[0] + probe[t], *states[1:])
        taken = states
        if lengths is not None:
            active = (lengths > t).unsqueeze(-1)
            # Past its end a sequence holds its state, and a reset there has no effect.
            states = tuple(torch.where(active, s, old) for s, old in zip(states, held, strict=True))
            taken = tuple(torch.where(active, s, torch.zeros_like(s)) for s in taken)
        outputs.append(taken[0])
        if len(taken) > 1:
            kept.append(torch.cat(taken[1:], -1))
    return (outputs[::-1], kept[::-1], states) if backwards else (outputs, kept, states)


def _cut(states: States, step: int, lengths: Tensor | None) -> States:
    """The states without their past, for the sequences that take the given step."""
    if lengths is None:
        return tuple(s.detach() for s in states)
    active = (lengths > step).unsqueeze(-1)
    return tuple(torch.where(active, s.detach(), s) for s in states)


class _Direction:
    """The steps of one direction: a cell, its weights, and what is done to its states."""

    def __init__(
        self,
        spec: CellSpec,
        control: Control,
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
        w_unit: Tensor | None,
        sizes: tuple[int, int, int],
        seed: Tensor | None,
        direction: int,
    ) -> None:
        self.spec, self.control, self.w_hr, self.w_unit = spec, control, w_hr, w_unit
        self.batch, self.state, self.hidden = sizes
        self.seed, self.direction = seed, direction
        gates = len(spec.gates)
        self.w_hh = w_hh.unflatten(0, (gates, -1))  # [G, H, R]
        self.b_hh = None if b_hh is None else b_hh.unflatten(0, (gates, -1))  # [G, H]
        self.math = self._math()
        self.kept = self._kept_by_dropout(w_hh)
        self.cell_weights = None
        if spec.cell_weights and not spec.normalized and w_unit is not None:
            self.cell_weights = w_unit[-len(spec.cell_weights) :].unbind(0)

    def _math(self) -> CellMath:
        control, spec = self.control, self.spec
        math = CellMath(ACTIVATIONS[control.gates], ACTIVATIONS[control.states])
        bound = control.cell_bound
        if bound > 0:
            math = math._replace(hold=lambda c: c.clamp(-bound, bound))
        if spec.normalized and spec.has_cell_state:
            gain, bias = self.w_unit[-2:]  # type: ignore[index]
            normalize = lambda c: F.layer_norm(c, c.shape[-1:], gain, bias, NORM_EPSILON)  # noqa: E731
            math = math._replace(normalize=normalize)
        return math

    def _kept_by_dropout(self, like: Tensor) -> Tensor | None:
        """What the hidden state is multiplied with on its way into products, `[B, R]`."""
        p = self.control.recurrent_dropout
        if p == 0:
            return None
        assert self.seed is not None
        shape = (self.direction + 1, self.batch, self.state)
        return random.kept_by_torch(self.seed, p, shape, like.dtype)[self.direction]

    def _zoneout_words(self, time: int) -> list[Tensor]:
        assert self.seed is not None
        row = torch.arange(self.batch, device=self.seed.device).unsqueeze(1)
        unit = torch.arange(self.hidden, device=self.seed.device)
        words = random.zoneout_words(self.seed, row, unit, time, self.direction)
        return [word.expand(self.batch, self.hidden) for word in words]

    def step(self, t: int, gates_x: Tensor, before: States) -> States:
        """One step on `gates_x [B, G, H]`."""
        given: Any = gates_x.unbind(-2)
        recur: Recur = self._product
        if self.spec.normalized:
            recur = self._normalized_product
            if len(given) == 1:
                recur = lambda h: self._normalized_product(h, gates_x)  # noqa: E731
                given = (torch.zeros_like(given[0]),)
        elif self.spec.own_products:
            recur = self._own_product
        after = self.spec.step(given, recur, before, self.cell_weights, self.math)
        if self.w_hr is not None:
            after = (F.linear(after[0], self.w_hr), *after[1:])
        if self.control.zoneout_h > 0 or self.control.zoneout_c > 0:
            after = self._zoned(t, before, after)
        control = self.control
        if control.gradient_bound > 0 or control.gradient_norm > 0:
            dual = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
            function = BoundedGradientOfDual if dual else BoundedGradient
            bounded = function.apply(after[0], control.gradient_bound, control.gradient_norm)
            after = (bounded, *after[1:])
        return after

    def _entering(self, operand: Tensor) -> Tensor:
        return operand if self.kept is None else operand * self.kept

    def _product(self, operand: Tensor, which: slice = slice(None)) -> tuple[Tensor, ...]:
        rows = self.w_hh[which].flatten(0, 1)  # [g*H, R]
        bias = None if self.b_hh is None else self.b_hh[which].flatten()
        product = F.linear(self._entering(operand), rows, bias)  # [B, g*H]
        return product.unflatten(-1, (-1, self.hidden)).unbind(-2)

    def _own_product(self, operand: Tensor) -> tuple[Tensor, ...]:
        """Each unit's hidden state times its own weights."""
        assert self.w_unit is not None
        own = self.w_unit[: len(self.spec.gates)]
        products = self._entering(operand).unsqueeze(-2) * own  # [B, G, H]
        return (products if self.b_hh is None else products + self.b_hh).unbind(-2)

    def _normalized_product(
        self, operand: Tensor, gates_x: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        assert self.w_unit is not None
        gates = len(self.spec.gates)
        product = F.linear(self._entering(operand), self.w_hh.flatten(0, 1))  # [B, G*H]
        if gates_x is not None:
            product = product + gates_x.flatten(-2)
        gain, bias = self.w_unit[:gates].flatten(), self.w_unit[gates : 2 * gates].flatten()
        normal = F.layer_norm(product, product.shape[-1:], gain, bias, NORM_EPSILON)
        return normal.unflatten(-1, (gates, self.hidden)).unbind(-2)

    def _zoned(self, t: int, before: States, after: States) -> States:
        control = self.control
        rates = (control.zoneout_h, *[control.zoneout_c] * (len(after) - 1))
        words = self._zoneout_words(t) if control.sampled else []
        zoned = []
        for k, (p, old, new) in enumerate(zip(rates, before, after, strict=True)):
            if p == 0:
                zoned.append(new)
            elif control.sampled:
                stays = random.happens(words[min(k, 1)], p)[:, : new.shape[-1]]
                zoned.append(torch.where(stays, old, new))
            else:
                zoned.append(p * old + (1 - p) * new)
        return tuple(zoned)


class BoundedGradient(torch.autograd.Function):
    """The identity; its gradient's elements, then the norms of its rows, are held within bounds."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, bound: float, norm: float) -> Tensor:
        return h.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.bound, ctx.norm = inputs

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, None, None]:
        return bounded(dh, ctx.bound, ctx.norm), None, None


class BoundedGradientOfDual(BoundedGradient):
    """The same with a tangent: a bound of gradients changes no value, and so no tangent.

    One of its own, as Dynamo traces no Function that has tangents.
    """

    @staticmethod
    def jvp(ctx: Any, dh: Tensor, *_: None) -> Tensor:
        return dh.clone()


def bounded(dh: Tensor, bound: float, norm: float) -> Tensor:
    """Hold the elements of `dh [..., R]` within +-bound, then its rows' norms within `norm`."""
    if bound > 0:
        dh = dh.clamp(-bound, bound)
    if norm > 0:
        size = torch.linalg.vector_norm(dh, dim=-1, keepdim=True)
        # A row of zeros has no direction, and its norm no gradient: it is left as it is.
        dh = torch.where(size > norm, dh * (norm / size.clamp(min=norm)), dh)
    return dh
