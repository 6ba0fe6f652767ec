"""Recurrent layers and cells that take the place of torch.nn's."""

from .cells import GRUCell, LSTMCell, RNNCell
from .layers import CIFG, GRU, LSTM, RNN, SLSTM, IndRNN

__all__ = ["CIFG", "GRU", "LSTM", "RNN", "SLSTM", "GRUCell", "IndRNN", "LSTMCell", "RNNCell"]
