"""Sequences of different lengths as padded tensors, and batches that pad little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from .vocabulary import PAD


class Padded(NamedTuple):
    """N sequences in one tensor.

    Attributes:
        values: int64 [N, longest], PAD past each sequence's length.
        lengths: int64 [N].
    """

    values: Tensor
    lengths: Tensor

    def batch(self, rows: Tensor) -> Padded:
        """The given rows, time first: values [T, B] with T the longest among them, lengths [B]."""
        lengths = self.lengths[rows]
        return Padded(self.values[rows, : int(lengths.max())].t(), lengths)


def pad(sequences: Sequence[Sequence[int]]) -> Padded:
    """Join sequences of indices into one padded tensor.

    Raises:
        ValueError: there is no sequence, or one of them is empty.
    """
    if not sequences:
        raise ValueError("expected at least one sequence, got none")
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    if not bool(lengths.all()):
        raise ValueError(f"sequence {int(lengths.argmin())} is empty")
    rows = [torch.as_tensor(sequence, dtype=torch.int64) for sequence in sequences]
    return Padded(pad_sequence(rows, batch_first=True, padding_value=PAD), lengths)


class SimilarLengths(Sampler[list[int]]):
    """Batches whose members are alike in length, dealt out to the processes of a run in turn.

    Args:
        lengths: as `similar_lengths` takes them.
        batch_size: rows a batch.
        seed: with the epoch, which Lightning tells by `set_epoch`, it decides all that is drawn.
        shuffle: False for the same batches in the same order in every epoch.
        world, rank: how many processes there are, and which this is. All get as many batches: the
            first ones are dealt again where the number does not divide.
    """

    def __init__(
        self,
        lengths: Sequence[Tensor],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        world: int = 1,
        rank: int = 0,
    ) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.seed, self.shuffle, self.world, self.rank = seed, shuffle, world, rank
        self.epoch = 0
        self.sampler = self  # where Lightning looks for `set_epoch` in a sampler of batches

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        batches = -(-len(self.lengths[0]) // self.batch_size)
        return -(-batches // self.world)

    def __iter__(self) -> Iterator[list[int]]:
        draw = (self.seed << 32) + (self.epoch if self.shuffle else 0)
        generator = torch.Generator().manual_seed(draw)
        batches = similar_lengths(self.lengths, self.batch_size, generator)
        for i in range(len(self)):
            yield batches[(i * self.world + self.rank) % len(batches)].tolist()


def similar_lengths(
    lengths: Sequence[Tensor], batch_size: int, generator: torch.Generator
) -> list[Tensor]:
    """Split rows into shuffled batches whose members are alike in every length.

    Args:
        lengths: int64 [N] each, the one to sort by first in front (source, then target).
        batch_size: rows per batch; the last batch in sorted order may be smaller.
        generator: decides the order among equals and the order of the batches.

    Returns:
        Row indices of each batch, every row once.
    """
    order = torch.randperm(len(lengths[0]), generator=generator)
    for length in reversed(lengths):
        order = order[length[order].argsort(stable=True)]
    batches = order.split(batch_size)
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]
