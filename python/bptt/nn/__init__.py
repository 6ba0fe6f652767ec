"""Recurrent layers and cells that take the place of torch.nn's, and layers of one's own cells."""

from .cells import GRUCell, LSTMCell, RNNCell
from .layers import CIFG, GRU, LSTM, RNN, SLSTM, IndRNN
from .library import MGU, SRU, DiagonalGRU, DiagonalLSTM, LightGRU, MinGRU, MinLSTM
from .recurrent import Recurrent

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
    "IndRNN",
    "LSTMCell",
    "LightGRU",
    "MinGRU",
    "MinLSTM",
    "RNNCell",
    "Recurrent",
]
