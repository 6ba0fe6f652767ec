"""The valid rows of a padded batch, without those that pad it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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

    def gather(self, padded: Tensor) -> Tensor:
        """The valid rows."""
        rows = padded.flatten(0, 1)
        return rows if self.places is None else rows.index_select(0, self.places)
