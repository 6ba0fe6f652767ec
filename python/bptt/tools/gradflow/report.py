"""What was measured as a table, as files and as a picture."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from ..._version import __version__
from .measure import NETWORKS, Flow, summarize
from .settings import PLAIN, Settings

DEFINITION = (
    "||dL_b/dh_t||_2: Euclidean norm of the gradient of the squared error of sequence b at the "
    "last step, by the whole hidden state of step t"
)
LINES = ("-", "--", ":")  # of the treatments
COLUMNS = (
    "network", "treatment", "phase", "layer", "step", "distance",
    "lower_quartile", "median", "upper_quartile",
)  # fmt: skip


def table(flows: Sequence[Flow]) -> Table:
    """A row per network, treatment, phase and layer."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "network",
        "treatment",
        "phase",
        "layer",
        "loss",
        "last step",
        "first step",
        "per step",
        "half-life",
    )
    for k, name in enumerate(columns):
        shown.add_column(name, justify="left" if k < 3 else "right", no_wrap=True)
    for flow in flows:
        s = summarize(flow)
        shown.add_row(
            flow.network,
            flow.treatment,
            flow.phase,
            str(flow.layer),
            f"{flow.loss:.4g}",
            f"{s.last:.2e}",
            "0" if s.first == 0 else "underflow" if s.first < flow.tiny else f"{s.first:.2e}",
            "-" if s.rate is None else f"x {s.rate:.4f}",
            "-" if s.half_life is None else f"{s.half_life:.1f} steps",
        )
    return shown


def write_csv(flows: Sequence[Flow], path: Path) -> None:
    """A line per network, treatment, phase, layer and step.

    Steps count from 0, distances from the loss.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for flow in flows:
            last = flow.norms.shape[0] - 1
            for step, norms in enumerate(flow.quartiles().t().tolist()):
                place = (flow.network, flow.treatment, flow.phase, flow.layer, step, last - step)
                writer.writerow([*place, *norms])


def write_json(settings: Settings, flows: Sequence[Flow], path: Path) -> None:
    """Settings, versions, the definition, and a summary of each flow; null for no finite number."""
    results = [
        {
            "network": flow.network,
            "treatment": flow.treatment,
            "phase": flow.phase,
            "layer": flow.layer,
            "loss": flow.loss,
            **asdict(summarize(flow)),
        }
        for flow in flows
    ]
    content = {
        "task": "adding problem, loss at the last step",
        "norm": DEFINITION,
        "settings": asdict(settings),
        "versions": {
            "bptt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "results": [{k: _finite(v) for k, v in result.items()} for result in results],
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figure(settings: Settings, flows: Sequence[Flow], path: Path) -> None:
    """Norm over the distance to the loss: a column of panels per phase, a row per layer."""
    phases = list(dict.fromkeys(flow.phase for flow in flows))
    size = (3 + 4.5 * len(phases), 0.8 + 3.2 * settings.layers)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(settings.layers, len(phases), sharex=True, sharey=True, squeeze=False)
    treatments = list(settings.treatments())
    for flow in flows:
        line = LINES[treatments.index(flow.treatment)]
        _draw(panels[flow.layer][phases.index(flow.phase)], flow, line)
    for row, layer in enumerate(panels):
        for column, panel in enumerate(layer):
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            trained = f"after {settings.train} steps of training"
            panel.set_title("as initialised" if phases[column] == "initial" else trained)
            if row == settings.layers - 1:
                panel.set_xlabel("steps before the loss")
            if column == 0:
                name = f"layer {row}: " if settings.layers > 1 else ""
                panel.set_ylabel(rf"{name}$\Vert \partial L/\partial h_t \Vert_2$")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(
        f"Adding problem: T = {settings.steps}, H = {settings.hidden}, gain {settings.gain:g}, "
        f"{settings.dtype}; medians and quartiles of {settings.batch} sequences",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150)


def _draw(panel: Axes, flow: Flow, line: str) -> None:
    values = flow.quartiles()
    # A log scale has no place for zeros, nor for what is not finite: gaps.
    gaps = ~values.isfinite() | (values < flow.tiny)
    lower, median, upper = values.masked_fill(gaps, math.nan).tolist()
    distances = range(len(median) - 1, -1, -1)
    color = f"C{list(NETWORKS).index(flow.network)}"
    plain = flow.treatment == PLAIN
    label = flow.network if plain else f"{flow.network}, {flow.treatment}"
    panel.plot(distances, median, color=color, linestyle=line, label=label)
    if plain:
        panel.fill_between(distances, lower, upper, color=color, alpha=0.2, linewidth=0)
