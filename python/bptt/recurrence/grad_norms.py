"""Norms of the gradients through time, out of the backward pass as it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_NOT_COMPILED = (
    "bptt: grad_norms does not work under torch.compile or torch.export: a compiled backward pass "
    "has no place to leave them; call the layer in eager mode"
)


class GradientNorms:
    """Takes down how large the gradient of a loss is at every step of every layer.

    The hidden state h_t of a layer reaches the loss L through the output of its step and through
    all steps after it. A backward pass knows the whole gradient of h_t at one moment, which is when
    its kernel writes it down:

        n_t = ||dL/dh_t||_2,     dL/dh_t = dL/dy_t + (ds_{t+1}/dh_t)^T dL/ds_{t+1}  [+ dL/dh_n]

    with the last term at the sequence's last step alone, t + 1 the step that comes next in the
    layer's direction, and s the states that a step leaves: h, in an LSTM h and c. (What c_t passes
    to the steps after it other than through h_t belongs to the gradient of c_t.) A norm that falls
    fast towards early steps vanishes, one that rises explodes.

        norms = bptt.GradientNorms()
        y, h_n = layer(x, grad_norms=norms)
        loss_of(y).backward()
        norms.layers[0]                                # [T, B, D]

    One object serves one call at a time, that of a layer or of a function in `bptt.functional`. A
    later backward pass through the same call replaces the values of the layers that it reaches, a
    later call those of all.

    Attributes:
        layers: a list of tensors `[T, B, D]`, the bottom layer first; D counts directions. They are
            float32, or float64 for float64 layers; sums are taken in float64. The layout does not
            depend on `batch_first`; a single sequence has B = 1; a PackedSequence has its sequences
            in the order in which `h_n` has them. Past a sequence's length, norms are zero.

    Raises:
        ValueError: from a forward pass in which some layer's states will get no gradient.
        RuntimeError: from a forward or backward pass under torch.export, torch.func, vmap or
            forward-mode AD, which have no such place to write to, and under torch.compile with
            fullgraph=True (without, the graph breaks around the layer, which runs in eager mode);
            from `layers` before a backward pass.

    Sources: Bengio, Simard and Frasconi, "Learning Long-Term Dependencies with Gradient Descent is
    Difficult" (1994); Pascanu, Mikolov and Bengio, "On the Difficulty of Training Recurrent Neural
    Networks" (2013), whose equation 5 is the product of the Jacobians dh_{t+1}/dh_t.
    """

    def __init__(self) -> None:
        self._values: list[Tensor | None] = []
        # Whatever Dynamo cannot trace it runs in pieces, and norms would be lost between them. Made
        # here, as it recognises only what was marked before; not at import, as that takes a second.
        self._eagerly = torch.compiler.disable(_called, reason=_NOT_COMPILED)

    @property
    def layers(self) -> list[Tensor]:
        missing = self._missing()
        if missing is not None:
            raise RuntimeError(
                f"GradientNorms: {missing}; pass this object as grad_norms= to a layer's forward "
                "and call loss.backward() before reading layers"
            )
        return [value for value in self._values if value is not None]

    def _missing(self) -> str | None:
        """Why there is nothing to read, or None."""
        if not self._values:
            return "no forward pass was given this object"
        missing = [str(k) for k, value in enumerate(self._values) if value is None]
        return f"no gradient has come to layer {', '.join(missing)} yet" if missing else None

    def __repr__(self) -> str:
        missing = self._missing()
        shown = f"layers={[list(v.shape) for v in self.layers]}" if missing is None else missing
        return f"GradientNorms({shown})"

    def _measure(self, dh: Tensor) -> Tensor:
        # The squares of what has almost vanished are no numbers of float32 any more.
        norms = torch.linalg.vector_norm(dh, dim=-1, dtype=torch.float64)
        return norms if dh.dtype == torch.float64 else norms.float()


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class LayerNorms:
    """Where one layer of one call leaves its norms.

    Args:
        owner: what shows them.
        values: those of all layers of the call.
        layer: the place in there.
        order: the sequence `[B]` of the batch that each row of norms is; None where they agree.
    """

    def __init__(
        self, owner: GradientNorms, values: list[Tensor | None], layer: int, order: Tensor | None
    ) -> None:
        self.owner, self.values, self.layer, self.order = owner, values, layer, order
        self.heads = 1

    def of_heads(self, heads: int) -> LayerNorms:
        """The same for heads that come as directions, the head first: `[T, B, N*D, R/N]`."""
        other = LayerNorms(self.owner, self.values, self.layer, self.order)
        other.heads = heads
        return other

    def check_forward(self, needs_grad: bool, transformed: bool) -> None:
        """Refuse a forward pass that no backward pass can take down.

        Raises:
            ValueError: no gradient will come.
            RuntimeError: a transform of torch.func or forward-mode AD is at work.
        """
        if transformed:
            raise RuntimeError(
                "GradientNorms: grad_norms works with loss.backward() and torch.autograd.grad, not "
                "under torch.func, vmap or forward-mode AD"
            )
        if not torch.is_grad_enabled():
            raise ValueError("GradientNorms: grad_norms was given to a forward without gradients")
        if not needs_grad:
            raise ValueError(
                f"GradientNorms: layer {self.layer} will get no gradient: neither its input nor "
                "its weights require one"
            )

    def check_backward(self, douts: Sequence[Tensor | None]) -> None:
        """Refuse a backward pass over a batch of gradients, or a traced one.

        Raises:
            RuntimeError: naming what is at work.
        """
        functorch = torch._C._functorch
        batched = functorch.peek_interpreter_stack() is not None or any(
            d is not None and functorch.is_legacy_batchedtensor(d) for d in douts
        )
        if batched or torch.compiler.is_compiling():
            raise RuntimeError(
                "GradientNorms: the backward pass runs under vmap (is_grads_batched) or is "
                "compiled; grad_norms takes one backward pass at a time, as it runs"
            )

    def record(self, dh: Tensor) -> None:
        """Take down the gradients `[T, B, D, R]` of a backward pass."""
        if self.heads > 1:
            dh = dh.unflatten(2, (self.heads, -1)).movedim(2, 3).flatten(-2)
        norms = self.owner._measure(dh.detach())
        self.values[self.layer] = norms if self.order is None else norms.index_select(1, self.order)
        # Of several calls it shows the one whose backward pass came last, and never a mixture.
        self.owner._values = self.values


def start_norms(
    kind: str, norms: Any, layers: int, order: Tensor | None
) -> Sequence[LayerNorms | None]:
    """One place for each layer of a call, or None for each where nobody asked.

    Args:
        kind: the layer's name in messages.
        norms: what the caller passed as `grad_norms`.
        layers: L.
        order: as in `LayerNorms`.

    Raises:
        TypeError: it is no GradientNorms.
        RuntimeError: the call is being compiled.
    """
    if norms is None:
        return (None,) * layers
    if not isinstance(norms, GradientNorms):
        raise TypeError(
            f"{kind}: grad_norms must be a bptt.GradientNorms, got {type(norms).__name__}"
        )
    if torch.compiler.is_compiling():
        raise RuntimeError(_NOT_COMPILED)
    values: list[Tensor | None] = [None] * layers
    norms._values = values
    return [LayerNorms(norms, values, layer, order) for layer in range(layers)]
