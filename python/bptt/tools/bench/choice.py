"""From results to a table for `bptt.engines.measured`: where something beats the first choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .layers import LAYERS
from .problems import PRECISIONS
from .results import Result

LEAST_GAIN = 1.05  # a choice that gains less is not worth a rule
WHICH = "step"  # what the choice is made by; inference takes the same backend


def table(result: Result) -> dict[str, Any]:
    """Rows for every measured layer where a backend or tier beat what `bptt` took by itself.

    A measured size stands for its neighbourhood: up to halfway, in powers, to the next one that was
    measured with the same layer. Single layers only; float32 as TF32 is multiplied by default.
    """
    content = result.content
    device = content["device"]
    rows = [
        row
        for row in content["rows"]
        if row["layer"] in LAYERS
        and row["which"] == WHICH
        and row["layers"] == 1
        and row["precision"] != "fp32"
    ]
    return {
        "device": device["name"] if device["kind"] == "cuda" else device["kind"],
        "source": f"bptt bench {content['grid']}, commit {content['commit'][:12]}",
        "rows": [made for row in rows if (made := _row(row, rows)) is not None],
    }


def _row(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    best = _faster(row["providers"])
    if best is None:
        return None
    alike = [r for r in rows if all(r[k] == row[k] for k in ("layer", "precision", "directions"))]
    backend, _, tier = best.removeprefix("bptt ").partition(" ")
    answer = {
        "cell": {"RNN": "rnn_tanh"}.get(row["layer"], row["layer"].lower()),
        "dtype": str(PRECISIONS[row["precision"]][0]).removeprefix("torch."),
        "directions": row["directions"],
        "hidden": _around(row["hidden"], [r["hidden"] for r in alike]),
        "batch": _around(row["batch"], [r["batch"] for r in alike]),
        "backend": "torch" if best == "torch.nn" else backend,
    }
    return {**answer, "tier": tier} if tier else answer


def _faster(providers: dict[str, dict[str, Any]]) -> str | None:
    """The fastest provider that `auto` can take, if it is faster than what it takes."""
    timed = {
        name: entry["ms"]
        for name, entry in providers.items()
        if entry["status"] == "timed"
        and (name in ("bptt", "torch.nn") or name.startswith(("bptt cuda", "bptt triton")))
        and name != "bptt triton persistent"
    }
    if "bptt" not in timed:
        return None
    best = min(timed, key=lambda name: timed[name]["median"])
    own = timed["bptt"]
    gain = own["median"] / timed[best]["median"]
    return best if gain > LEAST_GAIN and timed[best]["q3"] < own["q1"] else None


def _around(size: int, measured: Sequence[int]) -> list[int]:
    """Sizes for which one that was measured stands, both ends included."""
    below = max((s for s in measured if s < size), default=None)
    above = min((s for s in measured if s > size), default=None)
    first = size if below is None else math.isqrt(below * size) + 1
    last = size if above is None else math.isqrt(size * above)
    return [first, last]
