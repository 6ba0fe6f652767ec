"""`bptt.compile_cell`: a step function of one's own as a fused time loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .compiled_loop import CompiledLoop, States, StepFunction, as_states, run_steps, signature

_WHAT_TO_DO = (
    "A step function is made of PyTorch operations on tensors alone: torch.where in place of `if`, "
    "no .item(), no printing, no change of its arguments, no randomness"
)


def compile_cell(fn: StepFunction, *, chunk: int = 16) -> CompiledCell:
    """Make a recurrent layer of a step function.

        def cell(x, h, c, w):                              # one step: LSTM without a bias
            i, f, g, o = (x + h @ w.t()).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c     # the new states, in order

        layer = bptt.compile_cell(cell)
        y, (h_n, c_n) = layer(x_proj, (h_0, c_0), (w,))

    The first call with tensors of new shapes compiles, which takes seconds; the number of steps T
    is free. Gradients reach the input, the initial states and the parameters. Where it is called
    under torch.func, vmap, forward-mode AD or torch.compile, and for empty batches, a plain loop
    over the function runs instead: `CompiledCell.explain` says so. So it does in a backward pass
    with create_graph=True, for gradients of gradients. Between forward and backward only the
    states before every chunk are kept; the backward pass computes the steps again.

    Args:
        fn: `fn(x, *states, *params) -> states` with x `[B, ...]` one step of the input; the first
            state is the output. A tuple, or a tensor where there is one state.
        chunk: how many steps become one graph. More are faster by a little and take longer to
            compile.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: `chunk` is no positive int.
    """
    return CompiledCell(fn, chunk)


class CompiledCell:
    """What `compile_cell` returns; call it as a layer."""

    def __init__(self, fn: StepFunction, chunk: int) -> None:
        if not callable(fn):
            raise TypeError(f"compile_cell: fn must be a function, got {type(fn).__name__}")
        if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
            raise ValueError(f"compile_cell: chunk must be an int of 1 or more, got {chunk!r}")
        self.fn, self.chunk = fn, chunk
        self.name = getattr(fn, "__name__", type(fn).__name__)
        self._loop = CompiledLoop(fn, chunk)
        self._checked: set[Any] = set()

    def __repr__(self) -> str:
        return f"CompiledCell({self.name}, chunk={self.chunk})"

    def __call__(
        self,
        x: Tensor,
        states: Tensor | Sequence[Tensor],
        params: Sequence[Tensor] = (),
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, Any]:
        """Run the loop.

        Args:
            x: `[T, B, ...]`, the input of every step (for a network, its input projection).
            states: the initial states `[B, ...]`, a tuple, or a tensor where there is one.
            params: further arguments of every step.
            lengths: integers `[B]`; outputs past a length are zero, states stay what they are.
            resets: bool `[T, B]`; true where the states are zeroed before a step.
            reverse: whether to start at the end.

        Returns:
            The first state of every step, `[T, B, ...]`, and the last states, as `states` came.

        Raises:
            RuntimeError: T is 0; the function cannot be traced; it changes its arguments, draws
                random numbers, or returns other states than it got; the message says which.
            TypeError: an argument is no tensor.
        """
        single = isinstance(states, Tensor)
        before: States = (states,) if isinstance(states, Tensor) else tuple(states)
        params = tuple(params)
        masks = self._masks(x, before, params, lengths, resets)
        if self.explain(x) is not None or x.shape[1] == 0:
            y, after = run_steps(self.fn, x, before, params, *masks, reverse)
        else:
            self._check_step(x, before, params)
            try:
                y, after = self._loop(x, before, params, *masks, reverse)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                first = " ".join(str(error).split("\n\n")[0].split())
                raise RuntimeError(
                    f"{self.name} cannot be compiled: {first}. {_WHAT_TO_DO}"
                ) from error
        return y, after[0] if single else after

    def explain(self, x: Tensor) -> str | None:
        """Why a call on this input would run the plain loop; None where it would be compiled."""
        if torch.compiler.is_compiling():
            return "torch.compile is at work, which traces the plain loop"
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "function transforms (torch.func, vmap) have no rule for what is compiled"
        if forward_ad._current_level >= 0:
            return "forward-mode AD runs through ordinary operations"
        return None

    # --- checks ---

    def _masks(
        self,
        x: Any,
        states: States,
        params: Sequence[Any],
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The checked masks: which sequences take a step, and which start it anew, `[T, B]`."""
        for what, value in (
            ("x", x),
            *((f"states[{k}]", s) for k, s in enumerate(states)),
            *((f"params[{k}]", p) for k, p in enumerate(params)),
        ):
            if not isinstance(value, Tensor):
                raise TypeError(f"{self.name}: {what} must be a tensor, got {type(value).__name__}")
        if not states:
            raise ValueError(f"{self.name}: states must hold one tensor or more, got none")
        if x.dim() < 2:
            raise ValueError(f"{self.name}: x must be [T, B, ...], got {list(x.shape)}")
        steps, batch = x.shape[:2]
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        for k, state in enumerate(states):
            if state.dim() < 1 or state.shape[0] != batch:
                raise ValueError(
                    f"{self.name}: states[{k}] must be [B, ...] with B = {batch}, "
                    f"got {list(state.shape)}"
                )
        active = None
        if lengths is not None:
            if lengths.shape != (batch,) or lengths.is_floating_point():
                raise ValueError(
                    f"{self.name}: lengths must be integers [B] = [{batch}], got "
                    f"{lengths.dtype} {list(lengths.shape)}"
                )
            active = torch.arange(steps, device=x.device).unsqueeze(1) < lengths
        if resets is not None and (resets.shape != (steps, batch) or resets.dtype != torch.bool):
            raise ValueError(
                f"{self.name}: resets must be bool [T, B] = [{steps}, {batch}], got "
                f"{resets.dtype} {list(resets.shape)}"
            )
        return active, resets

    def _check_step(self, x: Tensor, states: States, params: Sequence[Tensor]) -> None:
        """Try one step, once for each kind of arguments, and look at what it does."""
        arguments = [x[0], *states, *params]
        key = signature(arguments)
        if key in self._checked:
            return
        copies = [a.detach().clone() for a in arguments]
        versions = [c._version for c in copies]
        random = _random_states(x.device)
        with torch.enable_grad():
            after = as_states(self.fn(*copies))
        if versions != [c._version for c in copies]:
            raise RuntimeError(f"{self.name} changes its arguments in place. {_WHAT_TO_DO}")
        if any(
            not torch.equal(a, b) for a, b in zip(random, _random_states(x.device), strict=True)
        ):
            raise RuntimeError(f"{self.name} draws random numbers. {_WHAT_TO_DO}")
        if len(after) != len(states):
            raise RuntimeError(
                f"{self.name} must return as many states as it gets, {len(states)}, "
                f"got {len(after)}"
            )
        for k, (new, old) in enumerate(zip(after, states, strict=True)):
            if not isinstance(new, Tensor):
                raise RuntimeError(
                    f"{self.name} must return tensors, got a {type(new).__name__} as state {k}"
                )
            if new.shape != old.shape or new.dtype != old.dtype:
                raise RuntimeError(
                    f"{self.name} must leave state {k} as {old.dtype} {list(old.shape)}, got "
                    f"{new.dtype} {list(new.shape)}"
                )
            if new.requires_grad:
                raise RuntimeError(
                    f"{self.name} uses a tensor that requires a gradient and is not among its "
                    "arguments: pass it in `params`"
                )
        self._checked.add(key)


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
