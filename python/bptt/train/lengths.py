"""Batches of rows that are alike in length, for a process of a run."""

from __future__ import annotations

from bptt.data.batches import SimilarLengths

from .fit import rank
from .settings import Settings
from .task import Rows


def by_length(rows: Rows, columns: tuple[str, ...], s: Settings, shuffle: bool) -> SimilarLengths:
    """What `Task.batches` returns where rows have lengths.

    Args:
        rows: have those columns.
        columns: of lengths, the one to sort by first in front.
        s: batch, seed and devices.
        shuffle: see `SimilarLengths`.
    """
    lengths = tuple(rows.columns[name] for name in columns)
    return SimilarLengths(
        lengths, s.batch, seed=s.seed, shuffle=shuffle, world=s.devices, rank=rank()
    )
