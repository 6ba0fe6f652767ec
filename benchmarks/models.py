"""A table of finished runs of the reference models.

    python benchmarks/models.py RUN...      copies each run's result, and writes models.md of all

Results go to results/<machine>/models, one file a run; models.md tells about all that lie there.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from bptt.tools.bench.machine import folder_of

RESULTS = Path(__file__).resolve().parent / "results"


def name_of(result: dict[str, Any]) -> str:
    """A file's name: the task, the data, and what tells apart runs of one task."""
    options = result["options"]
    parts = [result["task"], re.sub(r"[^a-z0-9.]+", "-", result["data"].lower())]
    keys = ("model", "sparsity", "noise", "attention", "impl")
    parts += [str(options[key]) for key in keys if key in options]
    parts += [f"code{options['code']}"] if "code" in options else []
    return "-".join(parts)


def rows_of(result: dict[str, Any]) -> list[str]:
    """A row for each metric."""
    rows = []
    for i, (metric, value) in enumerate(result["metrics"].items()):
        anchors = [anchor for anchor in result["anchors"] if anchor["metric"] == metric]
        bounds = "; ".join(f"{a['better']} {a['bound']:.5g} ({a['source']})" for a in anchors)
        met = "; ".join("met" if a["met"] else "missed" for a in anchors)
        run = f"{name_of(result)}" if i == 0 else ""
        each = 60 * result["minutes"] / result["epochs"]
        times = (f"{result['minutes']:.1f}", str(result["epochs"]), f"{each:.2g}")
        cells = (run, metric, f"{value:.5g}", bounds, met, *(times if i == 0 else ("", "", "")))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def main(runs: list[str]) -> None:
    for run in runs:
        result = json.loads((Path(run) / "result.json").read_text())
        facts = {"device": result["machine"]}
        folder = RESULTS / folder_of(facts) / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name_of(result)}.json").write_text(json.dumps(result, indent=1) + "\n")
    for folder in sorted(RESULTS.glob("*/models")):
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        machine, versions = results[0]["machine"], results[0]["versions"]
        seeds = ", ".join(sorted({str(result["seed"]) for result in results}))
        lines = [
            "# Reference models",
            "",
            f"{machine['name']}, {machine['cores']} cores, torch {versions['torch']}. "
            f"Seeds: {seeds}. Times are of training, validation and checkpoints included. "
            "Written by `benchmarks/models.py`; each run's options and curves lie in its file.",
            "",
            "| run | metric | value | anchor | | minutes | epochs | s/epoch |",
            "|---|---|---|---|---|---|---|---|",
            *(row for result in results for row in rows_of(result)),
        ]
        folder.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
