"""Sentences in two languages: a folder of parallel files, or the verses of two Bibles.

A folder has `train.LANGUAGE`, `val.LANGUAGE` and `test*.LANGUAGE` for each language, a sentence a
line, plain or compressed by gzip: Multi30k's layout.

The verses are those of Debian's packages sword-text-web (World English Bible) and sword-text-sparv
(Reina-Valera 1909), both in the public domain, read by the package pysword. They are split by
chapter; a verse that was trained on, word for word, is not tested.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BadInput
from .lines import read_lines

Pairs = list[tuple[str, str]]

SWORD = Path("/usr/share/sword")
_BIBLES = {"en": "engWEB2015eb", "es": "spaRV1909eb"}
_HELD_OUT = 25  # one chapter of so many is to validate on, and one to test


class Parallel(NamedTuple):
    """Pairs of source and target sentence, to train on, to validate on, to test."""

    train: Pairs
    validation: Pairs
    test: Pairs


def load_folder(folder: Path, source: str, target: str) -> Parallel:
    """The sentences of a folder in two of its languages.

    Raises:
        BadInput: a file is missing or cannot be read, or two differ in their number of lines.
    """
    if not folder.is_dir():
        raise BadInput(f"--data {folder} is no folder: expected files train.{source}, val.{source}")
    if source == target:
        raise BadInput(f"--source and --target are both {source!r}")
    parts = []
    for part in ("train", "val", "test"):
        files = [_file(folder, part, language) for language in (source, target)]
        lines = [[line.strip() for line in read_lines(path)] for path in files]
        if len(lines[0]) != len(lines[1]):
            raise BadInput(
                f"{files[0]} has {len(lines[0])} lines and {files[1]} {len(lines[1])}: expected a "
                "sentence a line, and as many in both"
            )
        parts.append([pair for pair in zip(*lines, strict=True) if all(pair)])
        if not parts[-1]:
            raise BadInput(f"{files[0]} and {files[1]} hold no sentences")
    return Parallel(*parts)


def _file(folder: Path, part: str, language: str) -> Path:
    """The file of a part: `train.de`, `test_2016_flickr.de.gz`; the first by name."""
    pattern = re.compile(rf"{part}[\w-]*\.{re.escape(language)}(\.gz)?")
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if not found:
        known = sorted({path.name.split(".")[1] for path in folder.glob("train*.*")})
        have = f"; its languages are {', '.join(known)}" if known else ""
        raise BadInput(f"{folder} has no {part}.{language} or {part}.{language}.gz{have}")
    return found[0]


def load_verses(source: str, target: str, folder: Path = SWORD) -> Parallel:
    """Verses of two Bibles, chapters dealt to the three parts by chance, always alike.

    Raises:
        BadInput: a language or a package is not there.
    """
    if {source, target} != set(_BIBLES):
        raise BadInput(
            f"without --data there are the languages {' and '.join(_BIBLES)}, got --source "
            f"{source} --target {target}"
        )
    try:
        from pysword.modules import SwordModules
    except ModuleNotFoundError:
        raise BadInput(_missing("the Python package pysword")) from None
    if not folder.is_dir():
        raise BadInput(_missing(f"{folder} with the texts"))
    modules = SwordModules(str(folder))
    known = modules.parse_modules()
    for name in _BIBLES.values():
        if name not in known:
            raise BadInput(_missing(f"the text {name}"))
    first, second = (modules.get_bible_from_module(_BIBLES[one]) for one in (source, target))
    for bible in (first, second):  # pysword unpacks a whole book for each verse, a minute in all
        bible._decompress = lru_cache(maxsize=2)(bible._decompress)
    return _dealt(_chapters(first, second))


def _missing(what: str) -> str:
    return (
        f"{what} is missing: give --data with a folder of parallel sentences such as Multi30k's, "
        "or install Debian's sword-text-web and sword-text-sparv, and pysword from PyPI"
    )


def _chapters(first: Any, second: Any) -> list[Pairs]:
    """The verses that both have, chapter by chapter."""
    made = []
    for books in first.get_structure().get_books().values():
        for book in books:
            for chapter, verses in enumerate(book.chapter_lengths, start=1):
                pairs = [
                    (_verse(first, book.name, chapter, v), _verse(second, book.name, chapter, v))
                    for v in range(1, verses + 1)
                ]
                made.append([pair for pair in pairs if all(pair)])
    return [chapter for chapter in made if chapter]


def _verse(bible: Any, book: str, chapter: int, verse: int) -> str:
    """A verse's text, or nothing where the Bible lacks it."""
    try:
        text = bible.get(books=[book], chapters=[chapter], verses=[verse], clean=True)
    except (ValueError, KeyError, IndexError):
        return ""
    return " ".join(str(text).split())


def _dealt(chapters: list[Pairs]) -> Parallel:
    random.Random(0).shuffle(chapters)
    count = max(1, len(chapters) // _HELD_OUT)
    parts = chapters[2 * count :], chapters[count : 2 * count], chapters[:count]
    train, validation, test = ([pair for chapter in part for pair in chapter] for part in parts)
    seen = set(train)  # “And Yahweh spoke to Moses, saying”
    return Parallel(train, *([p for p in part if p not in seen] for part in (validation, test)))
