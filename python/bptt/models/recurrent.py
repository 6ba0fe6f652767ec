"""A recurrent layer by name, of bptt or of torch.nn: models take either, for comparison.

Both give outputs past the lengths as zeros and final states of the last step within them. torch.nn
has no lengths: its input is packed and its output padded again, as its documentation has users do.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bptt
from bptt.custom.files import is_named, load_cell

Cell = Literal["rnn", "gru", "lstm"]
Impl = Literal["bptt", "torch"]

LAYERS = {"rnn": bptt.RNN, "gru": bptt.GRU, "lstm": bptt.LSTM}
_TORCH_LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
_CELLS: dict[tuple[str, str], type[nn.Module]] = {
    ("bptt", "rnn"): bptt.RNNCell,
    ("bptt", "gru"): bptt.GRUCell,
    ("bptt", "lstm"): bptt.LSTMCell,
    ("torch", "rnn"): nn.RNNCell,
    ("torch", "gru"): nn.GRUCell,
    ("torch", "lstm"): nn.LSTMCell,
}


class _Packing(nn.Module):
    """A layer of torch.nn that takes `lengths` as bptt's layers do."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.first = layer.batch_first

    def forward(self, x: Tensor, hx: Any = None, lengths: Tensor | None = None) -> Any:
        if lengths is None:
            return self.layer(x, hx)
        steps = x.shape[1 if self.first else 0]
        packed = pack_padded_sequence(x, lengths.cpu(), self.first, enforce_sorted=False)
        y, state = self.layer(packed, hx)
        return pad_packed_sequence(y, self.first, total_length=steps)[0], state


def recurrent(
    cell: str,
    inputs: int,
    hidden: int,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    batch_first: bool = True,
    weight_drop: float = 0.0,
    impl: Impl = "bptt",
) -> nn.Module:
    """A layer from [B, T, inputs] to [B, T, D * hidden], called as `layer(x, hx, lengths=lengths)`.

    Args:
        cell: "rnn", "gru", "lstm", or a cell of one's own as "file.py:name".
        inputs, hidden: sizes of the input and of the hidden state.
        layers, bidirectional, batch_first: as torch.nn has them.
        dropout: between layers, as torch.nn has it; nothing for one layer.
        weight_drop: part of the hidden-to-hidden weights that is left out in training, an option of
            bptt's layers.
        impl: "bptt" or "torch".

    Raises:
        ValueError: an unknown cell or implementation, or weight_drop with torch.nn's layers.
    """
    own = load_cell(cell) if is_named(cell) else None
    _check("gru" if own else cell, impl)
    if own is not None and impl == "torch":
        raise ValueError(f"impl must be bptt for a cell of your own, got {impl!r} with {cell!r}")
    options: dict[str, Any] = {
        "num_layers": layers,
        "bidirectional": bidirectional,
        "dropout": dropout if layers > 1 else 0.0,  # torch.nn warns of one that does nothing
        "batch_first": batch_first,
    }
    if own is not None:
        return bptt.Recurrent(own, inputs, hidden, **options, weight_drop=weight_drop)
    if impl == "bptt":
        return LAYERS[cell](inputs, hidden, **options, weight_drop=weight_drop)
    if weight_drop:
        raise ValueError(
            f"weight_drop={weight_drop} needs impl='bptt': torch.nn has no such option"
        )
    return _Packing(_TORCH_LAYERS[cell](inputs, hidden, **options))


def recurrent_cell(cell: Cell, inputs: int, hidden: int, impl: Impl = "bptt") -> nn.Module:
    """A cell from [B, inputs] and its state to its next state; see `recurrent`."""
    _check(cell, impl)
    return _CELLS[impl, cell](inputs, hidden)


def _check(cell: str, impl: str) -> None:
    if cell not in LAYERS:
        raise ValueError(f"cell must be one of {', '.join(LAYERS)}, got {cell!r}")
    if impl not in ("bptt", "torch"):
        raise ValueError(f"impl must be bptt or torch, got {impl!r}")


def last_hidden(state: Any, directions: int) -> Tensor:
    """The last layer's final hidden state, directions side by side: [L * D, B, H] -> [B, D * H]."""
    h = state[0] if isinstance(state, tuple) else state  # an LSTM has a cell state, too
    return h[-directions:].transpose(0, 1).flatten(1)


def valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Which steps of x [B, T, F] lie within the lengths [B], or all: bool [B, T, 1]."""
    if lengths is None:
        return torch.ones(*x.shape[:2], 1, dtype=torch.bool, device=x.device)
    steps = torch.arange(x.shape[1], device=x.device)
    return (steps < lengths[:, None])[..., None]
