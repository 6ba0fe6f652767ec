"""A table of finished runs of the reference models.

    python benchmarks/models.py RUN...      copies each run's result, and writes models.md of all

Results go to results/<machine>/models, one file a run; models.md tells about all that lie there, of
runs that differ in their seeds alone the mean.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from bptt.tools.bench.machine import folder_of
from bptt.train.task import Anchor

RESULTS = Path(__file__).resolve().parent / "results"


def name_of(result: dict[str, Any]) -> str:
    """What runs of one kind share: the task, the data, and what tells apart runs of one task."""
    options = result["options"]
    parts = [result["task"], re.sub(r"[^a-z0-9.]+", "-", result["data"].lower())]
    keys = ("model", "sparsity", "noise", "attention", "cell", "impl")
    parts += [str(options[key]) for key in keys if key in options]
    parts += [f"code{options['code']}"] if "code" in options else []
    parts += ["one-direction"] if options.get("bidirectional") is False else []
    return "-".join(parts)


def file_of(result: dict[str, Any]) -> str:
    """A file's name; only of other seeds than 0 it tells the seed."""
    return name_of(result) + (f"-seed{result['seed']}" if result["seed"] else "") + ".json"


def rows_of(results: list[dict[str, Any]]) -> list[str]:
    """A row for each metric of runs of one kind; bars are held against the mean over seeds."""
    rows = []
    first, count = results[0], len(results)
    minutes = sum(result["minutes"] for result in results) / count
    epochs = sum(result["epochs"] for result in results) / count
    times = (f"{minutes:.1f}", f"{epochs:.4g}", f"{60 * minutes / epochs:.2g}")
    for i, metric in enumerate(first["metrics"]):
        values = [result["metrics"][metric] for result in results]
        mean = sum(values) / count
        spread = f" ({min(values):.5g} to {max(values):.5g})" if min(values) < max(values) else ""
        anchors = [anchor for anchor in first["anchors"] if anchor["metric"] == metric]
        bounds = "; ".join(f"{a['better']} {a['bound']:.5g} ({a['source']})" for a in anchors)
        met = "; ".join(
            "met" if Anchor(**_bar(a)).met({metric: mean}) else "missed" for a in anchors
        )
        run = (name_of(first), str(count), *times) if i == 0 else ("",) * 5
        cells = (run[0], metric, f"{mean:.5g}{spread}", bounds, met, *run[1:])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _bar(anchor: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in anchor.items() if key != "met"}


def main(runs: list[str]) -> None:
    for run in runs:
        result = json.loads((Path(run) / "result.json").read_text())
        start = result["options"].get("start")
        if start is not None:  # a path of the machine that trained
            result["options"]["start"] = Path(start).name
        facts = {"device": result["machine"]}
        folder = RESULTS / folder_of(facts) / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file_of(result)).write_text(json.dumps(result, indent=1) + "\n")
    for folder in sorted(RESULTS.glob("*/models")):
        kinds: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.json")):
            result = json.loads(path.read_text())
            kinds.setdefault(name_of(result), []).append(result)
        folder.with_suffix(".md").write_text("\n".join(_page(kinds)) + "\n")


def _page(kinds: dict[str, list[dict[str, Any]]]) -> list[str]:
    result = next(iter(kinds.values()))[0]
    machine, versions = result["machine"], result["versions"]
    return [
        "# Reference models",
        "",
        f"{machine['name']}, {machine['cores']} cores, torch {versions['torch']}.",
        "",
        "Of several seeds, the mean, and in brackets least and most; bars are held against the "
        "mean. Times are of training, validation and checkpoints included, with other programs "
        "beside it. Written by `benchmarks/models.py`; each run's options lie in its file.",
        "",
        "| run | metric | value | anchor | | seeds | minutes | epochs | s/epoch |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row for results in kinds.values() for row in rows_of(results)),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
