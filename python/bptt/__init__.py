"""bptt: recurrent layers for PyTorch on fused kernels.

Drop-in `RNN`, `GRU` and `LSTM` (and their cells) with torch.nn's parameters and checkpoints:

    import bptt
    model = bptt.convert(model)          # swaps the recurrent layers of any module tree
    layer = bptt.LSTM(64, 128)           # or use them directly
"""

from . import functional
from ._version import __version__
from .convert import convert, to_torch
from .custom.compiled_cell import compile_cell
from .custom.user_cell import cell
from .diagnostics import explain
from .engines.dispatch import backend, backends
from .nn import (
    CIFG,
    GRU,
    LSTM,
    MGU,
    RNN,
    SLSTM,
    SRU,
    DiagonalGRU,
    DiagonalLSTM,
    GRUCell,
    IndRNN,
    LightGRU,
    LSTMCell,
    MinGRU,
    MinLSTM,
    Recurrent,
    RNNCell,
)
from .recurrence.grad_norms import GradientNorms

__all__ = [
    "CIFG",
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "SLSTM",
    "SRU",
    "DiagonalGRU",
    "DiagonalLSTM",
    "GRUCell",
    "GradientNorms",
    "IndRNN",
    "LSTMCell",
    "LightGRU",
    "MinGRU",
    "MinLSTM",
    "RNNCell",
    "Recurrent",
    "__version__",
    "backend",
    "backends",
    "cell",
    "compile_cell",
    "convert",
    "explain",
    "functional",
    "to_torch",
]
