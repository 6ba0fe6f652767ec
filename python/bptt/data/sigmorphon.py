"""Grapheme-to-phoneme data of SIGMORPHON 2021, task 1: words and phonemes, in an official split.

A folder with `NAME_train.tsv`, `NAME_dev.tsv` and `NAME_test.tsv`; a pronunciation a line, word and
phonemes with a tab between, spaces between phonemes.

Source: Ashby et al. 2021, Results of the second SIGMORPHON shared task on multilingual
grapheme-to-phoneme conversion (https://aclanthology.org/2021.sigmorphon-1.13).
"""

from __future__ import annotations

from pathlib import Path

from .cmudict import Lexicon
from .errors import BadInput
from .lines import read_table


def load(folder: Path) -> tuple[Lexicon, Lexicon, Lexicon]:
    """Words and their pronunciations to train on, to validate on and to test.

    Raises:
        BadInput: a file is missing, damaged or empty.
    """
    parts = []
    for part in ("train", "dev", "test"):
        found = sorted(folder.glob(f"*_{part}.tsv"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise BadInput(f"{folder}: expected one file *_{part}.tsv, found {names}")
        lexicon: Lexicon = {}
        for word, said in read_table(found[0], 2):
            lexicon[word] = (*lexicon.get(word, ()), tuple(said.split()))
        if not lexicon:
            raise BadInput(f"{found[0]} is empty")
        parts.append(lexicon)
    return parts[0], parts[1], parts[2]
