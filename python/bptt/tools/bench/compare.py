"""Two result files side by side, with verdicts that know how noisy a row was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .problems import Problem
from .results import Result, problem_of

LEAST_CHANGE = 0.05  # changes below are not worth a word, however quiet the machine was


@dataclass(frozen=True)
class Change:
    """One provider's row in both files; times in milliseconds.

    verdict: "faster" or "slower" where the medians differ by more than `LEAST_CHANGE` and the
    interquartile ranges do not meet; else "same". "new", "gone" and "broken" where one of the files
    has no time.
    """

    problem: Problem
    provider: str
    before: float | None
    after: float | None
    verdict: str

    @property
    def ratio(self) -> float | None:
        """Above 1 the second file is faster."""
        return self.before / self.after if self.before and self.after else None


def changes(first: Result, second: Result) -> list[Change]:
    """Every provider of every problem that either file has, in the order of the second."""
    return list(_changes(first, second))


def _changes(first: Result, second: Result) -> Iterator[Change]:
    problems = [problem_of(row) for result in (second, first) for row in result.content["rows"]]
    for problem in dict.fromkeys(problems):
        rows = [(result.row(problem) or {"providers": {}}) for result in (first, second)]
        for name in dict.fromkeys([*rows[1]["providers"], *rows[0]["providers"]]):
            before, after = (row["providers"].get(name, {"status": "absent"}) for row in rows)
            if {before["status"], after["status"]} == {"absent"}:
                continue
            yield Change(problem, name, _median(before), _median(after), verdict(before, after))


def _median(entry: dict[str, Any]) -> float | None:
    return entry["ms"]["median"] if entry["status"] == "timed" else None


def verdict(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Of two entries of a provider."""
    if after["status"] in ("wrong", "failed"):
        return "broken" if before["status"] not in ("wrong", "failed") else "same"
    if before["status"] != "timed":
        return "new" if after["status"] == "timed" else "gone"
    if after["status"] != "timed":
        return "gone"
    old, new = before["ms"], after["ms"]
    if abs(old["median"] / new["median"] - 1) <= LEAST_CHANGE:
        return "same"
    if new["q3"] < old["q1"]:
        return "faster"
    return "slower" if new["q1"] > old["q3"] else "same"
