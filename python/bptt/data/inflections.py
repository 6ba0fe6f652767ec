"""Words and their inflected forms: a file in UniMorph's format, or the English ones of lemminflect.

UniMorph's format is a form a line, `lemma TAB form TAB tags`, tags such as `V;PST`.

Source: UniMorph (https://unimorph.github.io) for format and tags; the package lemminflect (MIT
licence) for the English table, made from the NIH's SPECIALIST lexicon.
"""

from __future__ import annotations

import csv
import gzip
import random
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

from .errors import BadInput
from .lines import read_table

Entry = tuple[str, str]  # lemma and tags
Forms = dict[Entry, tuple[str, ...]]

# What the columns of the English table hold after the lemma and its kind.
_TAGS = {
    "noun": ("N;PL",),
    "verb": ("V;PST", "V;V.PTCP;PST", "V;V.PTCP;PRS", "V;PRS;3;SG"),
    "adj": ("ADJ;CMPR", "ADJ;SPRL"),
}


def load(path: Path | None = None) -> Forms:
    """Every lemma with tags, and its forms, the usual one first.

    Raises:
        ModuleNotFoundError: no path, and the package lemminflect is not installed.
        BadInput: the file is missing, empty or damaged.
    """
    forms: defaultdict[Entry, list[str]] = defaultdict(list)
    if path is None:
        rows = _english()
    else:
        rows = [(lemma, tags, form) for lemma, form, tags in read_table(path, 3)]
    for lemma, tags, form in rows:
        if form not in forms[lemma, tags]:
            forms[lemma, tags].append(form)
    if not forms:
        raise BadInput(f"{path} holds no forms: expected lines of lemma, form and tags")
    return {entry: tuple(choices) for entry, choices in forms.items()}


def _english() -> list[tuple[str, str, str]]:
    found = find_spec("lemminflect")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("lemminflect is not installed", name="lemminflect")
    table = Path(found.origin).parent / "resources" / "infl_lu.csv.gz"
    made = []
    with gzip.open(table, "rt", encoding="utf-8", newline="") as lines:
        for lemma, kind, *cells in csv.reader(lines):
            if kind == "verb" and not cells[1]:
                cells[1] = cells[0]  # the past participle is the past
            pairs = zip(_TAGS.get(kind, ()), cells, strict=False)
            made += [
                (lemma, tags, form) for tags, cell in pairs for form in cell.split("/") if form
            ]
    return made


def split(forms: Forms, seed: int, held_out: float = 0.1) -> tuple[Forms, Forms]:
    """Split by lemma: all forms of a lemma land on the same side.

    Raises:
        ValueError: a part would be empty.
    """
    lemmas = sorted({lemma for lemma, _ in forms})
    random.Random(seed).shuffle(lemmas)
    count = round(held_out * len(lemmas))
    if not 0 < count < len(lemmas):
        raise ValueError(f"held_out={held_out} leaves one part of {len(lemmas)} lemmas empty")
    held = set(lemmas[:count])
    parts: tuple[Forms, Forms] = ({}, {})
    for entry, choices in forms.items():
        parts[entry[0] in held][entry] = choices
    return parts


class SuffixRules:
    """The usual change of endings: what a model has to beat.

    For each tag, the change of the longest ending of a lemma that was seen in training, the most
    frequent one; an ending is what follows the part that lemma and form share.

    Source: the baseline of SIGMORPHON's shared tasks on inflection, Cotterell et al. 2017 (arXiv
    1706.09031), section 5.1, suffixes alone.
    """

    def __init__(self, forms: Forms) -> None:
        self.rules: defaultdict[Entry, Counter[tuple[int, str]]] = defaultdict(Counter)
        for (lemma, tags), choices in forms.items():
            shared = _shared(lemma, choices[0])
            change = len(lemma) - shared, choices[0][shared:]  # letters to drop, letters to add
            for start in range(shared + 1):
                self.rules[lemma[start:], tags][change] += 1

    def form(self, lemma: str, tags: str) -> str:
        for start in range(len(lemma) + 1):
            changes = self.rules.get((lemma[start:], tags))
            if changes:
                drop, add = max(changes.items(), key=lambda item: (item[1], item[0]))[0]
                return lemma[: len(lemma) - drop] + add
        return lemma


def _shared(a: str, b: str) -> int:
    """Letters that both begin with."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count
