"""Layers of the cells in `bptt.custom.library`: no code of their own in any engine.

Like every cell that `bptt.cell` makes they are compiled where they are first used on a CPU. On a
GPU Triton runs them, or the CUDA kernels, which are compiled with structs printed from the same
functions (`bptt.custom.library_header`).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import nn

from ..custom.library import cell_named
from .recurrent import Recurrent


class LibraryLayer(Recurrent):
    """A layer of a cell of the library; a subclass names it. Its arguments are `Recurrent`'s."""

    _cell: ClassVar[str]

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__(cell_named(self._cell), input_size, hidden_size, *args, **options)
        self.mode = type(self).__name__

    def _kind_of(self, cell: Any) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        return super(Recurrent, self).extra_repr()

    def _inputs_of(self, name: str) -> int:
        """I of the layer that a parameter belongs to."""
        end = name.split("_l", 1)[1]
        return int(getattr(self, f"weight_ih_l{end}").shape[1])


class _FromInputs(LibraryLayer):
    """Weights and biases drawn as those of nn.Linear, which the papers' code uses."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith(("weight_ih", "bias_ih")):
                bound = 1 / math.sqrt(self._inputs_of(name))
                nn.init.uniform_(parameter, -bound, bound)


class MinGRU(_FromInputs):
    """A minimal GRU (Feng et al. 2024): its gates see the input alone.

        z_t = sigmoid(W_z x_t + b_z)
        n_t = W_n x_t + b_n
        h_t = (1 - z_t) * h_{t-1} + z_t * n_t

    Args, Forward: as in `RNN`; recurrent_dropout, weight_drop and num_heads are not for it, as it
        has no recurrent product.

    Parameters: `weight_ih_l{k}` `[2*H, I]` and `bias_ih_l{k}` in the order z, n; no weight_hh.

    Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, "Were RNNs All We Needed?", 2024.
    """

    _cell = "min_gru"


class MinLSTM(_FromInputs):
    """A minimal LSTM (Feng et al. 2024): gates see the input alone, and share one sum.

        f_t, i_t = sigmoid(W x_t + b)
        n_t      = W_n x_t + b_n
        h_t      = (f_t * h_{t-1} + i_t * n_t) / (f_t + i_t)

    Args, Forward, Parameters: as in `MinGRU`, with 3*H rows in the order f, i, n.

    Source: Feng et al., "Were RNNs All We Needed?", 2024.
    """

    _cell = "min_lstm"


class SRU(LibraryLayer):
    """A simple recurrent unit (Lei et al. 2018), its highway from a projection of the input.

        f_t = sigmoid(W_f x_t + v_f * c_{t-1} + b_f)
        r_t = sigmoid(W_r x_t + v_r * c_{t-1} + b_r)
        c_t = f_t * c_{t-1} + (1 - f_t) * (W_n x_t)
        h_t = r_t * c_t + (1 - r_t) * (W_x x_t)

    The states are h and c; h itself is not looked at. The projection W_x is the authors' where
    input and output differ in size.

    Args, Forward: as in `LSTM`, without proj_size and peephole, and as in `MinGRU`.

    Weights: `weight_ih_l{k}` `[4*H, I]` in the order n, f, r, x; `bias_ih_l{k}`, of which those
        of n and x are kept at zero by the authors, and may be learnt here; `weight_unit_l{k}`
        `[2*H]`, v_f and v_r. Drawn as in the authors' code: W of variance 1 / I, half of that for
        f and r, v of variance 1/2, biases zero.

    Source: Lei, Zhang, Wang, Dai and Artzi, "Simple Recurrent Units for Highly Parallelizable
        Recurrence", 2018.
    """

    _cell = "sru"

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("bias_ih"):
                nn.init.zeros_(parameter)
            elif name.startswith("weight_unit"):
                nn.init.uniform_(parameter, -math.sqrt(1.5), math.sqrt(1.5))
            elif name.startswith("weight_ih"):
                bound = math.sqrt(3 / self._inputs_of(name))
                nn.init.uniform_(parameter, -bound, bound)
                gates = slice(self.hidden_size, 3 * self.hidden_size)  # f, r
                parameter.data[gates] *= math.sqrt(0.5)


class DiagonalGRU(LibraryLayer):
    """A GRU whose recurrent matrices are diagonal: a unit's gates see its own state alone.

    The equations of `GRU` with `u * h_{t-1}` in place of `W_hh h_{t-1}`. In ParaRNN (Danieli et
    al. 2025) such cells are what time is made parallel of.

    Args, Forward: as in `GRU`, without reset_after; num_heads is not for it.

    Parameters: as in `GRU`, but for `weight_hh_l{k}`, which is the vector u `[3*H]`.
    """

    _cell = "diagonal_gru"


class DiagonalLSTM(LibraryLayer):
    """An LSTM whose recurrent matrices are diagonal, as in `DiagonalGRU`.

    Args, Forward: as in `LSTM`, without proj_size and peephole; num_heads is not for it.

    Parameters: as in `LSTM`, but for `weight_hh_l{k}`, which is the vector u `[4*H]`.
    """

    _cell = "diagonal_lstm"


class LightGRU(LibraryLayer):
    """A light GRU (Ravanelli et al. 2018): no reset gate, and a rectifier for tanh.

        z_t = sigmoid(W_z x_t + b_z + U_z h_{t-1} + c_z)
        n_t = relu(W_n x_t + b_n + U_n h_{t-1} + c_n)
        h_t = z_t * h_{t-1} + (1 - z_t) * n_t

    The authors normalise W x_t over the batch, which belongs before the layer here.

    Args, Forward: as in `RNN`. Parameters: as in `GRU`, with 2*H rows in the order z, n.

    Source: Ravanelli, Brakel, Omologo and Bengio, "Light Gated Recurrent Units for Speech
        Recognition", 2018.
    """

    _cell = "light_gru"


class MGU(LibraryLayer):
    """A minimal gated unit (Zhou et al. 2016), its gate acting after the recurrent product.

        f_t = sigmoid(W_f x_t + b_f + U_f h_{t-1} + c_f)
        n_t = tanh(W_n x_t + b_n + f_t * (U_n h_{t-1} + c_n))
        h_t = (1 - f_t) * h_{t-1} + f_t * n_t

    In the paper U_n multiplies f_t * h_{t-1}; here f_t multiplies the product, as torch.nn's GRU
    has its reset gate: one product in a step.

    Args, Forward: as in `RNN`. Parameters: as in `GRU`, with 2*H rows in the order f, n.

    Source: Zhou, Wu, Zhang and Zhou, "Minimal Gated Unit for Recurrent Neural Networks", 2016.
    """

    _cell = "minimal_gated_unit"
