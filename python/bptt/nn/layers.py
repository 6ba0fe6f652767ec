"""The layers RNN, GRU and LSTM: torch.nn's constructor, parameters and contract on bptt's engines.

They have options of their own (`bptt.options.Options`), and beside them stand CIFG, SLSTM and
IndRNN, which torch.nn does not have.

They derive from `torch.nn.RNNBase`, not from `torch.nn.LSTM` and its like: Dynamo refuses to trace
those. `bptt.convert` and `bptt.to_torch` swap layers either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import Unpack

from .. import functional
from ..options import OptionNames
from ..recurrence.grad_norms import GradientNorms
from .base import Device, Pair, RecurrentLayer


class RNN(RecurrentLayer):
    """A simple recurrent network (Elman 1990); takes the place of `torch.nn.RNN`.

    Equations, shapes and sources: `bptt.functional.rnn`.

    Args:
        input_size, hidden_size, num_layers: as in torch.nn, and so are bias, batch_first, dropout,
            bidirectional, device, dtype and nonlinearity, which may also be "sigmoid".
        merge_mode: what becomes of the outputs of two directions: "concat" (torch.nn's way), "sum",
            "mul", "ave" in every layer, or None for a pair (forward, backward) as the output.
        recompute: whether the backward pass rebuilds the gates instead of keeping them: less memory
            between the passes, one more matrix product. "auto": where they would take more than
            256 MB.
        learn_initial_state: whether the state at the start, where hx is None, is a parameter:
            `initial_h` (and `initial_c`, ...) of shape `[L*D, H]`, zeros at first. Resets still
            set a state to zero.
        proj_size: not for this layer; there to refuse it as torch.nn does.
        options: regularisation, normalisation and control of gradients, all of them keywords:
            `bptt.options.Options`.

    Forward:
        input: `[T, B, I]`, `[B, T, I]` with `batch_first`, `[T, I]`, or a PackedSequence.
        hx: initial hidden state `[L*D, B, H]`, or None for zeros.
        lengths: keyword; integer tensor `[B]`, the number of valid steps of each sequence.
        resets: keyword; bool tensor shaped like the input without its features; true where the
            state is zeroed before that step.
        mask: keyword; in place of lengths, as TorchRL and attention masks have them: a bool tensor
            shaped like the input without its features, true in the valid steps, which come first.
        grad_norms: keyword; a `bptt.GradientNorms` that takes down the norm of the gradient at each
            step in the backward pass.
        return_cells: keyword, of layers with a cell state; whether to return, third, a tuple with
            all cell states of each layer, `[T, B, D*H]` laid out as the output.
        Returns the output and the final hidden state `[L*D, B, H]`.

    Parameters: as in torch.nn, under the same names, with the same initial values under one seed.
    """

    nonlinearity: str
    _kind = "RNN"
    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
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
        proj_size: int | None = None,
        **options: Unpack[OptionNames],
    ) -> None:
        _refuse_projection(proj_size)
        functional.rnn_cell_name(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            # nn.RNNBase knows two modes; the third has parameters of the same shapes.
            "RNN_RELU" if nonlinearity == "relu" else "RNN_TANH",
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
        self.mode = f"RNN_{nonlinearity.upper()}"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        grad_norms: GradientNorms | None = None,
        return_cells: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layer; the arguments and results are those of the class's description."""
        return self._forward(input, hx, lengths, resets, grad_norms, return_cells, mask)

    @property
    def _cell_name(self) -> str:
        return functional.rnn_cell_name(self.nonlinearity, self.options)

    @property
    def _nonlinearity(self) -> str:
        return functional.chosen_nonlinearity(self._cell_name, self.nonlinearity)

    def extra_repr(self) -> str:
        # torch.nn's repr does not show relu either.
        shown = super().extra_repr()
        usual = self.nonlinearity in ("tanh", "relu")
        return shown if usual else f"{shown}, nonlinearity={self.nonlinearity}"


class GRU(RecurrentLayer):
    """A network of gated recurrent units (Cho et al. 2014); takes the place of `torch.nn.GRU`.

    Equations, shapes and sources: `bptt.functional.gru`. Gate order r, z, n.

    Args:
        input_size, hidden_size, num_layers: as in torch.nn, and so are bias, batch_first, dropout,
            bidirectional, device and dtype.
        reset_after: whether the reset gate acts after the recurrent product (torch.nn's way) or
            before it (the paper's).
        merge_mode, recompute, learn_initial_state, options: as in `RNN`.
        proj_size: not for this layer; there to refuse it as torch.nn does.

    Forward, parameters: as in `RNN`.
    """

    reset_after: bool = True
    _kind = "GRU"
    _gates = 3

    def __init__(
        self,
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
        reset_after: bool = True,
        merge_mode: str | None = "concat",
        recompute: bool | str = False,
        learn_initial_state: bool = False,
        proj_size: int | None = None,
        **options: Unpack[OptionNames],
    ) -> None:
        _refuse_projection(proj_size)
        self.reset_after = reset_after
        super().__init__(
            "GRU",
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

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        grad_norms: GradientNorms | None = None,
        return_cells: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layer; the arguments and results are those of the class's description."""
        return self._forward(input, hx, lengths, resets, grad_norms, return_cells, mask)

    @property
    def _cell_name(self) -> str:
        return functional.gru_cell_name(self.reset_after, self.options)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.reset_after else f"{shown}, reset_after={self.reset_after}"


class LSTM(RecurrentLayer):
    """A long short-term memory (Hochreiter and Schmidhuber 1997); replaces `torch.nn.LSTM`.

    Equations, shapes and sources: `bptt.functional.lstm`. Gate order i, f, g, o.

    Args:
        input_size, hidden_size, num_layers: as in torch.nn, and so are bias, batch_first, dropout,
            bidirectional, proj_size, device and dtype.
        peephole: whether the gates see the cell state (Gers and Schmidhuber 2000), through the
            parameters `weight_peephole_l{k}` and `weight_peephole_l{k}_reverse` of shape `[3*H]`,
            in the order i, f, o.
        merge_mode, recompute, learn_initial_state, options: as in `RNN`.

    Forward: as in `RNN`, with hx a pair `(h_0 [L*D, B, R], c_0 [L*D, B, H])` where R is proj_size
    or H, and the final states such a pair.

    Parameters: as in torch.nn, under the same names, with the same initial values under one seed;
    peepholes come after them.
    """

    _kind = "LSTM"
    _gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        merge_mode: str | None = "concat",
        recompute: bool | str = False,
        learn_initial_state: bool = False,
        **options: Unpack[OptionNames],
    ) -> None:
        self.peephole = peephole
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
            merge_mode=merge_mode,
            recompute=recompute,
            learn_initial_state=learn_initial_state,
            options=options,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Pair | None = None,
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
        return functional.lstm_cell_name(self.peephole, self.options)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return f"{shown}, peephole={self.peephole}" if self.peephole else shown


class CIFG(RecurrentLayer):
    """A long short-term memory with coupled input and forget gates: three quarters of the weights.

    Equations, shapes and sources: `bptt.functional.cifg`. Gate order f, g, o.

    Args, Forward: as in `LSTM`, without peepholes.

    Parameters: under the names of `LSTM`, with 3*H rows.
    """

    _kind = "CIFG"
    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        merge_mode: str | None = "concat",
        recompute: bool | str = False,
        learn_initial_state: bool = False,
        **options: Unpack[OptionNames],
    ) -> None:
        super().__init__(
            "LSTM",  # nn.RNNBase knows it to take a projection; `_add_parameters` mends the rows
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
            merge_mode=merge_mode,
            recompute=recompute,
            learn_initial_state=learn_initial_state,
            options=options,
        )
        self.mode = self._kind

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Pair | None = None,
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
        return "cifg"


class SLSTM(RecurrentLayer):
    """An sLSTM (Beck et al. 2024): exponential gating with a normaliser and a stabiliser state.

    Equations, shapes and sources: `bptt.functional.slstm`. Gate order i, f, z, o.

    Args: as in `RNN`; `num_heads` makes the recurrent weights block-diagonal, as in the paper.

    Forward: as in `RNN`, with hx a tuple (h, c, n, m) of `[L*D, B, H]` each, and the final states
    such a tuple. All zeros is the empty state.

    Parameters: under the names and in the shapes of `LSTM`. Those of an sLSTMLayer of the authors'
    package xlstm come with `bptt.interop.xlstm.slstm`.
    """

    _kind = "SLSTM"
    _gates = 4

    def __init__(
        self,
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
        proj_size: int | None = None,
        **options: Unpack[OptionNames],
    ) -> None:
        _refuse_projection(proj_size)
        if learn_initial_state is True:
            raise ValueError(
                "SLSTM: learn_initial_state is not for this layer: c, n and m are one number in "
                "three, which gradient steps would tear apart"
            )
        super().__init__(
            "LSTM",
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
        self.mode = self._kind

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, ...] | None = None,
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
        return "slstm"


class IndRNN(RecurrentLayer):
    """An independently recurrent network (Li et al. 2018).

    Equations, shapes and sources: `bptt.functional.indrnn`.

    Args, Forward: as in `RNN`; the nonlinearity is relu unless another is chosen.

    Parameters: under the names of `RNN`; `weight_hh_l{k}` is the vector u `[H]`, drawn from [0, 1],
    as in the paper's experiments; the others are drawn as torch.nn draws them.
    """

    nonlinearity: str
    _kind = "IndRNN"
    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
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
        proj_size: int | None = None,
        **options: Unpack[OptionNames],
    ) -> None:
        _refuse_projection(proj_size)
        functional.rnn_cell_name(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            "RNN_RELU",
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
        self.mode = self._kind

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        for name in self._flat_weights_names:
            if name.startswith("weight_hh"):
                nn.init.uniform_(getattr(self, name))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        grad_norms: GradientNorms | None = None,
        return_cells: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layer; the arguments and results are those of the class's description."""
        return self._forward(input, hx, lengths, resets, grad_norms, return_cells, mask)

    @property
    def _cell_name(self) -> str:
        return "indrnn"

    @property
    def _nonlinearity(self) -> str:
        return functional.chosen_nonlinearity("indrnn", self.nonlinearity)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        usual = self.nonlinearity == "relu"
        return shown if usual else f"{shown}, nonlinearity={self.nonlinearity}"


def _refuse_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
