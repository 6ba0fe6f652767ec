"""Cells of the library that are functions made by `bptt.cell`, each with its paper's equations.

They are made when a layer of theirs is, not when bptt is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from .user_cell import UserCell

Gates = Sequence[Tensor]


def min_gru(gates_x: Gates, h: Tensor) -> Tensor:
    z = torch.sigmoid(gates_x[0])
    return h + z * (gates_x[1] - h)


def min_lstm(gates_x: Gates, h: Tensor) -> Tensor:
    f, i = torch.sigmoid(gates_x[0]), torch.sigmoid(gates_x[1])
    return (f * h + i * gates_x[2]) / (f + i)


def sru(gates_x: Gates, h: Tensor, c: Tensor, *, v_f: Tensor, v_r: Tensor) -> tuple[Tensor, Tensor]:
    f = torch.sigmoid(gates_x[1] + v_f * c)
    r = torch.sigmoid(gates_x[2] + v_r * c)
    c = gates_x[0] + f * (c - gates_x[0])
    return gates_x[3] + r * (c - gates_x[3]), c


def diagonal_gru(gates_x: Gates, gates_h: Gates, h: Tensor) -> Tensor:
    r = torch.sigmoid(gates_x[0] + gates_h[0])
    z = torch.sigmoid(gates_x[1] + gates_h[1])
    n = torch.tanh(gates_x[2] + r * gates_h[2])
    return n + z * (h - n)


def diagonal_lstm(gates_x: Gates, gates_h: Gates, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + y for x, y in zip(gates_x, gates_h, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def light_gru(gates_x: Gates, gates_h: Gates, h: Tensor) -> Tensor:
    z = torch.sigmoid(gates_x[0] + gates_h[0])
    n = torch.relu(gates_x[1] + gates_h[1])
    return n + z * (h - n)


def minimal_gated_unit(gates_x: Gates, gates_h: Gates, h: Tensor) -> Tensor:
    f = torch.sigmoid(gates_x[0] + gates_h[0])
    n = torch.tanh(gates_x[1] + f * gates_h[1])
    return h + f * (n - h)


# By name: the function, the names of its gates, how the hidden state enters them.
CELLS_HERE: dict[str, tuple[Callable[..., Any], tuple[str, ...], str]] = {
    "min_gru": (min_gru, ("z", "n"), "none"),
    "min_lstm": (min_lstm, ("f", "i", "n"), "none"),
    "sru": (sru, ("n", "f", "r", "x"), "none"),
    "diagonal_gru": (diagonal_gru, ("r", "z", "n"), "diagonal"),
    "diagonal_lstm": (diagonal_lstm, ("i", "f", "g", "o"), "diagonal"),
    "light_gru": (light_gru, ("z", "n"), "dense"),
    "minimal_gated_unit": (minimal_gated_unit, ("f", "n"), "dense"),
}


class LibraryCell(UserCell):
    """A cell of this file; pickled by its name here.

    The CUDA kernels know it by its struct in `csrc/cells/library.h`, which `library_header.py`
    writes.
    """

    packaged: ClassVar[bool] = True

    def __reduce__(self) -> Any:
        return cell_named, (self.__name__,)


@cache
def cell_named(name: str) -> LibraryCell:
    """A cell of this file, made when it is first asked for."""
    function, gates, product = CELLS_HERE[name]
    return LibraryCell(function, gates, product)
