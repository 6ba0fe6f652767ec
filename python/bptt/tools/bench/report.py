"""A result file as a page of Markdown with plots beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .layers import BASELINE, KINDS, baseline_of
from .machine import DISTURBING
from .problems import PASSES
from .results import Result

Row = dict[str, Any]


def geometric_mean(values: Sequence[float]) -> float:
    """Of values above zero."""
    return math.exp(sum(map(math.log, values)) / len(values))


def names_in(rows: Iterable[Row]) -> list[str]:
    """Providers that were timed in any row, the baseline first."""
    timed = dict.fromkeys(
        name
        for row in rows
        for name, entry in row["providers"].items()
        if entry["status"] == "timed"
    )
    return sorted(timed, key=lambda name: name != BASELINE)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are set to the right."""
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- words ----------------------------------------------------------------------------------------


def machine_line(content: dict[str, Any]) -> str:
    """Device, versions and date."""
    device, versions = content["device"], content["versions"]
    if device["kind"] == "cpu":
        what = f"{device['name']}, {device['cores']} cores, {device['threads']} threads, "
        what += f"{device['bptt_instructions']} instructions"
    else:
        what = f"{device['name']}, driver {device.get('driver_version', 'unknown')}, "
        what += f"{device.get('clocks.sm', 'unknown')} at the start"
    listed = ", ".join(f"{name} {value}" for name, value in versions.items() if name != "bptt")
    return f"{what}; {listed}; {content['date']}"


def source_line(content: dict[str, Any]) -> str:
    commit = content["commit"][:12] or "unknown"
    changed = " with uncommitted changes" if content.get("sources_changed_since_commit") else ""
    return f"bptt {content['versions']['bptt']}, commit {commit}{changed}"


def figures_lines(content: dict[str, Any]) -> list[str]:
    """What the device reached on a product, a copy and an exchange, and how quiet it was."""
    figures = content["figures"]
    lines = [
        f"- product of two large matrices, {name.removeprefix('gemm_')}: {value:.0f} GFLOP/s"
        for name, value in figures.items()
        if name.startswith("gemm_")
    ]
    if "copy" in figures:
        lines.append(f"- copy of a large array: {figures['copy']:.0f} GB/s, read and written")
    for name, us in figures.get("exchanges_us", {}).items():
        lines.append(f"- exchange among the blocks of a {name}: {us:.2f} us")
    if "import_s" in figures:
        lines.append(f"- `import bptt` after torch: {figures['import_s']:.3f} s")
    load = content.get("other_load")
    if load is not None:
        said = ", so that the times say little" if load > DISTURBING else ""
        lines.append(f"- other programs took {load:.0%} of the processor{said}")
    return lines


def means_table(rows: Sequence[Row]) -> str:
    """Geometric means of the ratios of each provider, by layer, precision, class and pass."""
    baselines = {baseline_of(row["layer"]) for row in rows}
    names = [name for name in names_in(rows) if name not in baselines]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row["layer"], row["precision"], row["cudnn_class"] or "", row["which"])
        groups.setdefault(key, []).append(row)
    classed = any(row["cudnn_class"] for row in rows)
    head = ["layer", "precision", *(["cuDNN class"] if classed else []), "pass", "rows", *names]
    body = []
    for (layer, precision, kind, which), group in groups.items():
        line = [layer, precision, *([kind] if classed else []), which, str(len(group))]
        body.append([*line, *(_mean(group, name) for name in names)])
    return table(head, body)


def _mean(rows: Sequence[Row], name: str) -> str:
    ratios = [r["ratio"]["median"] for r in entries(rows, name) if "ratio" in r]
    if not ratios:
        return ""
    part = "" if len(ratios) == len(rows) else f" ({len(ratios)})"
    return f"{geometric_mean(ratios):.2f}{part}"


def entries(rows: Iterable[Row], name: str) -> list[dict[str, Any]]:
    """What one provider did in rows where it was timed."""
    found = [row["providers"].get(name) for row in rows]
    return [entry for entry in found if entry is not None and entry["status"] == "timed"]


def rows_table(rows: Sequence[Row]) -> str:
    """Every row: microseconds per step, and the ratio."""
    names = names_in(rows)
    head = ["problem", "cuDNN class", "floor", *names]
    body = []
    for row in rows:
        floor = f"{1e3 * row['floor_ms'] / row['steps']:.2f}"
        cells = [_shown(row["providers"].get(name)) for name in names]
        body.append([name_of(row), row["cudnn_class"] or "", floor, *cells])
    return table(head, body)


def name_of(row: Row) -> str:
    kind = "bidirectional " if row["directions"] == 2 else ""
    stack = f" x{row['layers']}" if row["layers"] > 1 else ""
    shape = f"T={row['steps']} B={row['batch']} I={row['input']} H={row['hidden']}"
    return f"{kind}{row['layer']}{stack} {row['precision']} {shape}, {row['which']}"


def _shown(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["status"] == "absent":
        return ""
    if entry["status"] != "timed":
        return f"**{entry['status']}**"
    text = f"{entry['us_per_step']:.2f}"
    if "ratio" in entry:
        ratio = entry["ratio"]
        text += f" (**{ratio['median']:.2f}**, {ratio['q1']:.2f} to {ratio['q3']:.2f})"
    return text


def costs_table(rows: Sequence[Row]) -> str:
    """Beside time: error, shares of what the device can do, memory, launches, compilation."""
    head = ["problem", "provider", "relative error", "of the floor", "of the GEMM", "of the copy"]
    head += ["saved MB", "peak MB", "launches", "compiled in"]
    body = []
    for row in rows:
        for name, entry in row["providers"].items():
            if entry["status"] != "timed":
                continue
            shares = [f"{entry[f'share_of_{what}']:.0%}" for what in ("floor", "gemm", "copy")]
            sizes = [f"{entry[f'{what}_bytes'] / 1e6:.1f}" for what in ("saved", "peak")]
            launches = "" if entry["launches"] is None else str(entry["launches"])
            compiled = f"{entry['compile_s']:.1f} s" if "compile_s" in entry else ""
            line = [name_of(row), name, f"{entry['error']:.1e}", *shares, *sizes]
            body.append([*line, launches, compiled])
    return table(head, body)


def troubles(rows: Sequence[Row]) -> list[str]:
    """Entries that are wrong or failed, and why providers are absent, once each."""
    lines: list[str] = []
    absent: dict[tuple[str, str], Row] = {}
    for row in rows:
        for name, entry in row["providers"].items():
            if entry["status"] in ("wrong", "failed"):
                lines.append(f"- {name}, {name_of(row)}: {entry['status']}: {entry['reason']}")
            elif entry["status"] == "absent":
                absent.setdefault((name, entry["reason"]), row)
    return [*lines, *(f"- {name} is absent: {reason}" for name, reason in absent)]


def markdown(result: Result, plots: Sequence[Path]) -> str:
    """The page."""
    content = result.content
    rows = content["rows"]
    parts = [
        f"# bptt bench, grid {content['grid']}",
        f"{machine_line(content)}. {source_line(content)}.",
        "\n".join(figures_lines(content)),
        "Ratio: median time of torch.nn / median time of the provider, timed in turns in one run; "
        "above 1 the provider is faster. Of layers that torch.nn lacks it is that of bptt "
        "reference, a loop in Python over torch's operations. The floor is the least that the "
        "device allows by the figures above (`bptt.tools.bench.floor`).",
    ]
    if rows:
        parts += ["## Geometric means of the ratios", means_table(rows)]
        parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
        parts += ["## Microseconds per step (ratio, its quartiles)", rows_table(rows)]
        parts += ["## Beside time", costs_table(rows)]
    trouble = troubles(rows)
    if trouble:
        parts += ["## Absent, wrong or failed", "\n".join(trouble)]
    return "\n\n".join(parts) + "\n"


def write(result: Result) -> list[Path]:
    """Report, plots and CSV beside the result file; returns their paths."""
    plots = draw(result)
    page = result.path.with_suffix(".md")
    page.write_text(markdown(result, plots), encoding="utf-8")
    return [page, result.write_csv(), *plots]


# --- plots ----------------------------------------------------------------------------------------


def draw(result: Result) -> list[Path]:
    """Heat maps of the ratios over H and B, and times per step over T with the floor as a line."""
    rows = [row for row in result.content["rows"] if row["layers"] == row["directions"] == 1]
    return [*_heat_maps(result.path, rows), *_over_steps(result.path, rows)]


def _heat_maps(path: Path, rows: Sequence[Row]) -> list[Path]:
    """One file for each pass, a panel for each layer and precision; needs two shapes or more."""
    written = []
    for which in PASSES:
        some = [row for row in rows if row["which"] == which and "ratio" in _entry(row, "bptt")]
        if len({(row["hidden"], row["batch"]) for row in some}) < 2:
            continue
        layers = [name for name in KINDS if any(row["layer"] == name for row in some)]
        precisions = list(dict.fromkeys(row["precision"] for row in some))
        figure, axes = _panels(len(precisions), len(layers))
        figure.suptitle(f"torch.nn / bptt, {which}: above 1 bptt is faster")
        for i, precision in enumerate(precisions):
            for j, layer in enumerate(layers):
                panel = [r for r in some if (r["layer"], r["precision"]) == (layer, precision)]
                _heat_map(axes[i][j], panel, f"{layer} {precision}")
        written.append(_saved(figure, path.with_name(f"{path.stem}-ratio-{which}.png")))
    return written


def _entry(row: Row, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = row["providers"].get(name, {})
    return entry


def _heat_map(axes: Any, rows: Sequence[Row], title: str) -> None:
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    hidden = sorted({row["hidden"] for row in rows})
    batches = sorted({row["batch"] for row in rows})
    values = np.full((len(hidden), len(batches)), np.nan)
    for row in rows:  # of several lengths, the last
        place = hidden.index(row["hidden"]), batches.index(row["batch"])
        values[place] = math.log2(_entry(row, "bptt")["ratio"]["median"])
    norm = TwoSlopeNorm(0, vmin=-2, vmax=3)
    axes.imshow(values, cmap="RdYlGn", norm=norm, origin="lower", aspect="auto")
    axes.set(title=title, xlabel="batch", ylabel="hidden units")
    axes.set_xticks(range(len(batches)), batches)
    axes.set_yticks(range(len(hidden)), hidden)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(j, i, f"{2**value:.2f}", ha="center", va="center", fontsize=8)


def _over_steps(path: Path, rows: Sequence[Row]) -> list[Path]:
    """Where a layer was measured at three lengths or more: a line for each provider."""
    series: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["layer"], row["precision"], row["batch"], row["hidden"], row["which"])
        series.setdefault(key, []).append(row)
    series = {key: group for key, group in series.items() if len(group) >= 3}
    if not series:
        return []
    figure, axes = _panels(math.ceil(len(series) / 4), min(4, len(series)))
    for panel, (key, group) in zip(
        (a for line in axes for a in line), series.items(), strict=False
    ):
        layer, precision, batch, hidden, which = key
        group = sorted(group, key=lambda row: row["steps"])
        for name in names_in(group):
            shown = [row for row in group if _entry(row, name).get("status") == "timed"]
            times = [_entry(row, name)["us_per_step"] for row in shown]
            panel.plot([row["steps"] for row in shown], times, marker="o", label=name)
        floors = [1e3 * row["floor_ms"] / row["steps"] for row in group]
        panel.plot([row["steps"] for row in group], floors, "k--", label="floor")
        panel.set(xscale="log", yscale="log", xlabel="steps", ylabel="us per step")
        panel.set_title(f"{layer} {precision} B={batch} H={hidden} {which}", fontsize=9)
        panel.legend(fontsize=6)
    return [_saved(figure, path.with_name(f"{path.stem}-steps.png"))]


def _panels(rows: int, columns: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _saved(figure: Any, path: Path) -> Path:
    """Few colours: a file of all panels of a grid takes a third, and lies in the repository."""
    from PIL import Image  # matplotlib needs it, too

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)
    return path
