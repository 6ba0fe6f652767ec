"""Result files: their schema, reading and writing, and the same as CSV.

A file is one run on one device with one version of everything: facts about both, the figures that
floors are made of, and rows, each a problem with what every provider did.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .layers import KINDS
from .problems import PASSES, PRECISIONS, Problem

VERSION = 2
STATUSES = ("timed", "wrong", "failed", "absent")

_NUMBER: dict[str, Any] = {"type": "number"}
_MAYBE: dict[str, Any] = {"type": ["number", "null"]}
_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 1}
_SPREAD: dict[str, Any] = {
    "type": "object",
    "properties": {"median": _NUMBER, "q1": _NUMBER, "q3": _NUMBER, "rounds": _COUNT},
    "required": ["median", "q1", "q3"],
}
# What a provider did with a problem. Sizes are bytes, times milliseconds unless named otherwise.
ENTRY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "status": {"enum": list(STATUSES)},
        "reason": {**_TEXT, "description": "of any status but timed"},
        "error": {**_MAYBE, "description": "largest relative error of any result, Frobenius norm"},
        "kernel": {**_TEXT, "description": "what bptt.explain says"},
        "ms": _SPREAD,
        "ratio": {**_SPREAD, "description": "torch.nn / this; quartiles of ratios within rounds"},
        "us_per_step": _NUMBER,
        "gflops": _NUMBER,
        "gbytes_per_s": {**_NUMBER, "description": "of the least traffic, see Problem.bytes"},
        "share_of_floor": {**_NUMBER, "description": "floor / time; 1 is as fast as can be"},
        "share_of_gemm": _NUMBER,
        "share_of_copy": _NUMBER,
        "saved_bytes": {"type": "integer"},
        "peak_bytes": {"type": "integer"},
        "launches": {"type": ["integer", "null"]},
        "compile_s": _NUMBER,
    },
    "required": ["status"],
    "additionalProperties": False,
    "if": {"properties": {"status": {"const": "timed"}}},
    "then": {"required": ["ms", "us_per_step", "error", "share_of_floor"]},
    "else": {"required": ["reason"]},
}
ROW: dict[str, Any] = {
    "type": "object",
    "properties": {
        "layer": {"enum": list(KINDS)},
        "precision": {"enum": list(PRECISIONS)},
        "which": {"enum": list(PASSES)},
        **dict.fromkeys(("steps", "batch", "input", "hidden", "layers", "directions"), _COUNT),
        "cudnn_class": {"enum": ["SMALL_H", "PERSIST_STATIC", "STANDARD", None]},
        "gflop": _NUMBER,
        "floor_ms": _NUMBER,
        "providers": {"type": "object", "additionalProperties": ENTRY},
    },
    "required": ["layer", "precision", "which", "steps", "batch", "hidden", "providers"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A result file of bptt bench",
    "type": "object",
    "properties": {
        "schema": {"const": VERSION},
        "grid": _TEXT,
        "date": _TEXT,
        "commit": _TEXT,
        "sources_changed_since_commit": {"type": "boolean"},
        "device": {"type": "object", "required": ["kind", "name"]},
        "versions": {"type": "object", "required": ["bptt", "torch", "python"]},
        "figures": {"type": "object", "description": "GFLOP/s, GB/s, us: see bench/floor.py"},
        "other_load": {**_MAYBE, "description": "share of the cores in other programs' hands"},
        "crashed": {"type": "array", "description": "[problem, provider] that ended the process"},
        "rows": {"type": "array", "items": ROW},
    },
    "required": ["schema", "grid", "date", "commit", "device", "versions", "figures", "rows"],
    "additionalProperties": False,
}
# Two files that differ in one of these are not the same run.
IDENTITY = ("grid", "commit", "sources_changed_since_commit", "device", "versions")


class BadResult(ValueError):
    """A file that is no result file, or belongs to another run."""


def validate(content: dict[str, Any]) -> None:
    """Hold the content of a file against the schema.

    Raises:
        BadResult: with the place and what is wrong there.
    """
    try:
        import jsonschema
    except ModuleNotFoundError:
        raise BadResult("reading a result file needs jsonschema (pip install jsonschema)") from None
    try:
        jsonschema.validate(content, SCHEMA)
    except jsonschema.ValidationError as error:
        place = "/".join(map(str, error.absolute_path)) or "the file"
        raise BadResult(f"{place}: {error.message[:300]}") from None


def problem_of(row: dict[str, Any]) -> Problem:
    """The problem that a row is about."""
    names = ("layer", "precision", "steps", "batch", "input", "hidden", "layers", "directions")
    return Problem(**{name: row[name] for name in (*names, "which")})


@dataclass
class Result:
    """A result file in memory. `content` is what is written; `path` where."""

    path: Path
    content: dict[str, Any]
    _by_problem: dict[Problem, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_problem = {problem_of(row): row for row in self.content["rows"]}

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises BadResult where there is no such file, or it is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadResult(f"{path}: {error.strerror}") from None
        except json.JSONDecodeError as error:
            raise BadResult(f"{path}: not JSON: {error}") from None
        try:
            validate(content)
        except BadResult as error:
            raise BadResult(f"{path}: {error}") from None
        return cls(path, content)

    @classmethod
    def begin(cls, path: Path, grid: str, facts: dict[str, Any], fresh: bool) -> Result:
        """An empty result, or the one that lies there already, to go on with.

        Raises:
            BadResult: what lies there is of another device, version or commit.
        """
        new = {"schema": VERSION, "grid": grid, **facts, "figures": {}, "rows": []}
        if fresh or not path.exists():
            return cls(path, new)
        found = cls.read(path)
        for name in IDENTITY:
            if found.content.get(name) != new.get(name):
                raise BadResult(
                    f"{path} is of another run: its {name} is {found.content.get(name)!r}, now "
                    f"{new.get(name)!r}. --fresh measures anew, --output FILE writes elsewhere."
                )
        return found

    def row(self, problem: Problem) -> dict[str, Any] | None:
        return self._by_problem.get(problem)

    def add(self, problem: Problem, row: dict[str, Any]) -> None:
        """Enter a row, in place of an older one of the same problem, and write the file."""
        old = self._by_problem.get(problem)
        if old is not None:
            self.content["rows"].remove(old)
        self.content["rows"].append(row)
        self._by_problem[problem] = row
        self.write()

    def write(self) -> None:
        """The whole file or nothing: a run may be interrupted at any moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def write_csv(self) -> Path:
        """One line for each problem and provider, beside the file."""
        path = self.path.with_suffix(".csv")
        lines = list(self._lines())
        names = list(dict.fromkeys(name for line in lines for name in line))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(lines)
        return path

    def _lines(self) -> Iterator[dict[str, Any]]:
        for row in self.content["rows"]:
            for name, entry in row["providers"].items():
                line = {k: v for k, v in row.items() if k != "providers"}
                line["provider"] = name
                for key, value in entry.items():
                    if isinstance(value, dict):
                        line.update({f"{key}_{part}": each for part, each in value.items()})
                    else:
                        line[key] = value
                yield line
