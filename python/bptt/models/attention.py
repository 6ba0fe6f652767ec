"""What decoders share: the memory that a source leaves, how they look into it, their states.

A decoder has N = K * B rows for the B sources of a memory: K beginnings of each output side by
side, 1 in training, the width of the beam in a search. The memory is never copied for them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""Hidden states [L, N, S], for an LSTM cell states [L, N, S], then what else a decoder carries from
step to step, [1, N, ...]. Rows are the second dimension of all."""


class Memory(NamedTuple):
    """What an encoder leaves of B sources of up to T symbols.

    Attributes:
        values: H, [B, T, 2E]: what is attended to.
        keys: what queries are held against, [B, T, S].
        padding: bool [B, T], true past the length of a source.
        summary: the last states of both directions, [B, 2E].
    """

    values: Tensor
    keys: Tensor
    padding: Tensor
    summary: Tensor


class Decoded(NamedTuple):
    """What a decoder makes of U steps.

    Attributes:
        readout: what the output layer sees, [U, N, S].
        state: after the last step.
        weights: of the attention, [N, U, T]; None without one.
    """

    readout: Tensor
    state: State
    weights: Tensor | None


class Decoder(Protocol):
    """A decoder's interface; each of the three is a module in a file of its own."""

    def keys(self, values: Tensor) -> Tensor:
        """What queries will be held against, [B, T, S], of values [B, T, 2E]."""

    def start(self, memory: Memory, states: State) -> State:
        """The state before the first step, of the recurrent layers' [L, B, S]."""

    def __call__(self, memory: Memory, embedded: Tensor, state: State) -> Decoded:
        """Steps over the embeddings [U, N, e] of the symbols before those to be predicted."""


def attended(energies: Tensor, padding: Tensor) -> Tensor:
    """Weights over the source, [B, *, T], of energies [B, *, T]; none on padding [B, T]."""
    # The lowest finite value: minus infinity would make NaN of a source of length 0.
    lowest = torch.finfo(energies.dtype).min
    return energies.masked_fill(padding[:, None], lowest).softmax(dim=-1)


def by_source(x: Tensor, sources: int) -> Tensor:
    """[U, N, F] as [B, K * U, F]: all that looks into one source, side by side."""
    return x.unflatten(1, (sources, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def by_row(x: Tensor, steps: int) -> Tensor:
    """The way back: [B, K * U, F] as [N, U, F]."""
    return x.unflatten(1, (-1, steps)).flatten(0, 1)


def repetition(weights: Tensor) -> Tensor:
    """How much each step looks where steps before it looked: [N, U], from weights [N, U, T].

    The sum over t of min(a_ut, sum of a_vt over v < u), the coverage loss of See, Liu, Manning 2017
    (arXiv 1704.04368, equation 12).
    """
    before = weights.cumsum(1) - weights
    return torch.minimum(weights, before).sum(-1)


def layer_state(state: State, cell: str) -> Any:
    """The part of a state that recurrent layers take and return."""
    return state[:2] if cell == "lstm" else state[0]


def state_of(layers: Any) -> State:
    """What recurrent layers return, as the beginning of a state."""
    return layers if isinstance(layers, tuple) else (layers,)
