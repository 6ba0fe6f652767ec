"""The layers RNN, GRU and LSTM: torch.nn's constructor, parameters and contract on bptt's engines.

They derive from `torch.nn.RNNBase`, not from `torch.nn.LSTM` and its like: Dynamo refuses to trace
those. `bptt.convert` and `bptt.to_torch` swap layers either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import functional
from ..checks import Call, check_merge_mode, check_recompute
from ..grad_norms import GradientNorms

Device = torch.device | str | int | None


class RecurrentLayer(nn.RNNBase):
    """What the three layers share; use RNN, GRU or LSTM.

    Weights are looked up by name at each call, so parametrizations, weight_norm,
    `torch.func.functional_call`, weight tying and plain assignment all act at once. There is no
    packed copy of them to keep up to date.
    """

    # Class attributes, so that a pickle older than an option loads with the option's default.
    merge_mode: str | None = "concat"
    peephole: bool = False
    recompute: bool | str = False
    _unfinished = False
    _kind = ""
    _gates = 0

    def __init__(
        self, mode: str, *args: Any, merge_mode: str | None, recompute: bool | str, **kwargs: Any
    ) -> None:
        bidirectional = kwargs["bidirectional"]
        check_merge_mode(merge_mode, bidirectional)
        self.merge_mode = merge_mode
        check_recompute(recompute)
        self.recompute = recompute
        self._unfinished = True
        super().__init__(mode, *args, **kwargs)
        del self._unfinished

    @property
    def _cell_name(self) -> str:
        """The layer's cell, a name in `bptt.cells.CELLS`."""
        raise NotImplementedError

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        grad_norms: GradientNorms | None = None,
    ) -> tuple[Any, Any]:
        """Run the layer; the arguments and results are those of the class's description."""
        call = Call(
            self._kind,
            self._cell_name,
            self._gates,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.bias,
            self.proj_size,
            self.peephole,
            self.merge_mode,
            self.dropout if self.training else 0.0,
            self.batch_first,
            self.recompute,
        )
        weights = [getattr(self, name) for name in self._flat_weights_names]
        return functional.run(call, input, hx, weights, lengths, resets, grad_norms)

    def flatten_parameters(self) -> None:
        """Do nothing: no backend needs the weights in one chunk of memory. Kept for torch.nn."""

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        if self.merge_mode != "concat":
            shown += f", merge_mode={self.merge_mode}"
        return f"{shown}, recompute={self.recompute}" if self.recompute else shown

    # --- nn.RNNBase's bookkeeping ---

    @property
    def _flat_weights(self) -> list[Any]:
        """The weights as they are now. nn.RNNBase keeps a list that can go stale."""
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Any]) -> None:
        """Accept what nn.RNNBase and its users assign; the weights themselves say it already."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Past nn.RNNBase, which would enter the value in its list of weights.
        super(nn.RNNBase, self).__setattr__(name, value)

    def _update_flat_weights(self) -> None:
        """Nothing to update: see `_flat_weights`."""

    def _init_flat_weights(self) -> None:
        # nn.RNNBase's constructor calls this when its parameters exist and before it draws their
        # values: the moment to add our own, so that they are drawn like the rest and after them.
        if self._unfinished:
            self._add_parameters()

    def _add_parameters(self) -> None:
        if self.merge_mode in ("sum", "mul", "ave"):
            # Merged directions are as wide as one, and so is the next layer's input.
            directions = 2 if self.bidirectional else 1
            for name in self._flat_weights_names:
                weight = getattr(self, name)
                if name.startswith("weight_ih_l") and not name.startswith("weight_ih_l0"):
                    rows, width = weight.shape
                    setattr(self, name, nn.Parameter(weight.new_empty(rows, width // directions)))
        if self.peephole:
            for names in self._all_weights:
                name = names[0].replace("weight_ih", "weight_peephole")
                like = getattr(self, names[0])
                setattr(self, name, nn.Parameter(like.new_empty(3 * self.hidden_size)))
                names.append(name)
            self._flat_weights_names = [name for names in self._all_weights for name in names]


class RNN(RecurrentLayer):
    """A simple recurrent network (Elman 1990); takes the place of `torch.nn.RNN`.

    Equations, shapes and sources: `bptt.functional.rnn`.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout,
            bidirectional, device, dtype: as in torch.nn. `nonlinearity` may also be "sigmoid".
        merge_mode: what becomes of the outputs of two directions: "concat" (torch.nn's way), "sum",
            "mul", "ave" in every layer, or None for a pair (forward, backward) as the output.
        recompute: whether the backward pass rebuilds the gates instead of keeping them: less memory
            between the passes, one more matrix product. "auto": where they would take more than
            256 MB.
        proj_size: not for this layer; there to refuse it as torch.nn does.

    Forward:
        input: `[T, B, I]`, `[B, T, I]` with `batch_first`, `[T, I]`, or a PackedSequence.
        hx: initial hidden state `[L*D, B, H]`, or None for zeros.
        lengths: keyword; integer tensor `[B]`, the number of valid steps of each sequence.
        resets: keyword; bool tensor shaped like the input without its features; true where the
            state is zeroed before that step.
        grad_norms: keyword; a `bptt.GradientNorms` that takes down the norm of the gradient at each
            step in the backward pass.
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
        proj_size: int | None = None,
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
        )
        self.mode = f"RNN_{nonlinearity.upper()}"

    @property
    def _cell_name(self) -> str:
        return functional.rnn_cell_name(self.nonlinearity)

    def extra_repr(self) -> str:
        # torch.nn's repr does not show relu either.
        shown = super().extra_repr()
        return f"{shown}, nonlinearity=sigmoid" if self.nonlinearity == "sigmoid" else shown


class GRU(RecurrentLayer):
    """A network of gated recurrent units (Cho et al. 2014); takes the place of `torch.nn.GRU`.

    Equations, shapes and sources: `bptt.functional.gru`. Gate order r, z, n.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype: as in torch.nn.
        reset_after: whether the reset gate acts after the recurrent product (torch.nn's way) or
            before it (the paper's).
        merge_mode, recompute: as in `RNN`.
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
        proj_size: int | None = None,
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
        )

    @property
    def _cell_name(self) -> str:
        return functional.gru_cell_name(self.reset_after)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.reset_after else f"{shown}, reset_after={self.reset_after}"


class LSTM(RecurrentLayer):
    """A long short-term memory (Hochreiter and Schmidhuber 1997); replaces `torch.nn.LSTM`.

    Equations, shapes and sources: `bptt.functional.lstm`. Gate order i, f, g, o.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype: as in torch.nn.
        peephole: whether the gates see the cell state (Gers and Schmidhuber 2000), through the
            parameters `weight_peephole_l{k}` and `weight_peephole_l{k}_reverse` of shape `[3*H]`,
            in the order i, f, o.
        merge_mode, recompute: as in `RNN`.

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
        )

    @property
    def _cell_name(self) -> str:
        return functional.lstm_cell_name(self.peephole)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return f"{shown}, peephole={self.peephole}" if self.peephole else shown


def _refuse_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
