"""The valid rows of a padded batch, without those that pad it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

# Of rows that are gathered at a time where all of them are not needed at once: small beside the
# whole, and a multiple of the depth at which a matrix product cuts its sum (csrc/engine/matrix.h).
_PARTS, _DEPTH = 8, 384


class Rows(NamedTuple):
    """How rows `[N, ...]` lie in a padded batch `[T, B, ...]`, step after step.

    Attributes:
        steps: T.
        batch: B.
        places: int64 `[N]`, of each row among the T*B; None where every one of them is valid.
    """

    steps: int
    batch: int
    places: Tensor | None

    def spread(self, rows: Tensor) -> Tensor:
        """The padded batch, with zeros between the rows."""
        if self.places is not None:
            padded = rows.new_zeros(self.steps * self.batch, *rows.shape[1:])
            rows = padded.index_copy(0, self.places, rows)
        return rows.unflatten(0, (self.steps, self.batch))

    def parts(self, padded: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Which rows, and their content: all valid rows, one part after another."""
        if self.places is None:
            yield slice(None), self.gather(padded)
            return
        flat, count = padded.flatten(0, 1), len(self.places)
        each = _DEPTH * max(1, -(-count // (_PARTS * _DEPTH)))
        for first in range(0, count, each):
            part = slice(first, first + each)
            yield part, flat.index_select(0, self.places[part])

    def gather(self, padded: Tensor) -> Tensor:
        """The valid rows."""
        rows = padded.flatten(0, 1)
        return rows if self.places is None else rows.index_select(0, self.places)
