"""The layer of a cell of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import Unpack

from .. import functional
from ..custom.user_cell import UserCell
from ..options import OptionNames
from ..recurrence.grad_norms import GradientNorms
from .base import Device, RecurrentLayer


class Recurrent(RecurrentLayer):
    """A recurrent network of a cell of one's own, made by `bptt.cell`.

    Args:
        cell: the cell.
        input_size, hidden_size, num_layers: as in torch.nn, and so are bias, batch_first, dropout,
            bidirectional, device and dtype.
        merge_mode, recompute, learn_initial_state, options: as in `bptt.RNN`. Activations, bounds
            and normalisations of a state stand in the cell itself: gate_activation, activation,
            cell_clip and layer_norm are refused.

    Forward: as in `bptt.RNN`; where the cell has several states, hx is a tuple of them,
        `[L*D, B, H]` each, the hidden state first, and so are the final states.

    Weights: under the names of `bptt.LSTM`, with G*H rows; `weight_unit_l{k}` `[U*H]` holds the
        cell's unit weights, in the order of its keywords. All are drawn as torch.nn draws them.

    Raises:
        TypeError: `cell` is not made by `bptt.cell`.
    """

    def __init__(
        self,
        cell: UserCell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        merge_mode: str | None = "concat",
        recompute: bool | str = False,
        learn_initial_state: bool = False,
        **options: Unpack[OptionNames],
    ) -> None:
        if not isinstance(cell, UserCell):
            raise TypeError(
                f"Recurrent: cell must be a function decorated with bptt.cell, got {cell!r}"
            )
        self.cell = cell
        self.peephole = bool(cell.spec.cell_weights)
        self._kind, self._gates = self._kind_of(cell), len(cell.spec.gates)
        super().__init__(
            "RNN_TANH",  # nn.RNNBase's; `_add_own_parameters` mends the rows
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            merge_mode=merge_mode,
            recompute=recompute,
            learn_initial_state=learn_initial_state,
            options=options,
        )
        self.mode = cell.__name__

    def _kind_of(self, cell: UserCell) -> str:
        """What messages call the layer."""
        return cell.__name__

    def _shape(self, arguments: dict[str, Any]) -> functional.LayerShape:
        return functional.LayerShape(
            custom_states=len(self.cell.spec.states), custom_product=self.cell.product
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        grad_norms: GradientNorms | None = None,
        return_cells: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Run the layer; the arguments and results are those of the class's description."""
        return self._forward(input, hx, lengths, resets, grad_norms, return_cells, mask)

    @property
    def _cell_name(self) -> str:
        return self.cell.name

    def extra_repr(self) -> str:
        return f"{self._kind}, {super().extra_repr()}"
