"""Symbols and the integers that stand for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PAD, START, END = 0, 1, 2
_RESERVED = 3


class Vocabulary:
    """A fixed, ordered set of symbols behind three reserved indices: padding, start and end.

    Args:
        symbols: any strings; duplicates count once and the order of the indices is sorted, so that
            the same set gives the same indices.
        name: what the symbols are, for error messages.

    Raises:
        ValueError: there are no symbols.
    """

    def __init__(self, symbols: Iterable[str], name: str = "symbol") -> None:
        self.symbols = tuple(sorted(set(symbols)))
        self.name = name
        if not self.symbols:
            raise ValueError(f"a vocabulary needs at least one {name}, got none")
        self._index = {symbol: i for i, symbol in enumerate(self.symbols, start=_RESERVED)}

    def __len__(self) -> int:
        return len(self.symbols) + _RESERVED

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._index

    def encode(self, symbols: Iterable[str]) -> list[int]:
        """Indices of `symbols`, without start and end.

        Raises:
            ValueError: a symbol is not in the vocabulary.
        """
        symbols = list(symbols)
        unknown = sorted({symbol for symbol in symbols if symbol not in self._index})
        if unknown:
            raise ValueError(
                f"unknown {self.name} {', '.join(map(repr, unknown))} in {' '.join(symbols)!r}; "
                f"known: {' '.join(self.symbols)}"
            )
        return [self._index[symbol] for symbol in symbols]

    def dump(self) -> dict[str, Any]:
        """All of it, for a JSON file."""
        return {"name": self.name, "symbols": list(self.symbols)}

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Vocabulary:
        """What `dump` gave."""
        return cls(saved["symbols"], saved["name"])

    def decode(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Symbols of `indices` up to the first end; padding and start are left out.

        Raises:
            ValueError: an index is outside the vocabulary.
        """
        decoded = []
        for index in indices:
            if index == END:
                break
            if not 0 <= index < len(self):
                raise ValueError(f"{self.name} index must be in [0, {len(self)}), got {index}")
            if index >= _RESERVED:
                decoded.append(self.symbols[index - _RESERVED])
        return tuple(decoded)
