"""Figures that tasks share: grids of images, curves, maps of codes. Nothing here opens a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_CELL = 0.75  # inches, of an image in a grid
_GAP = 2  # pixels between images


def image_grid(rows: Sequence[tuple[str, Tensor]]) -> Figure:
    """Rows of grey images in [0, 1], each [N, height, width] with a name at its left."""
    columns = max(len(images) for _, images in rows)
    height, width = rows[0][1].shape[1:]
    tall, wide = height + _GAP, width + _GAP
    sheet = np.ones((len(rows) * tall - _GAP, columns * wide - _GAP))
    for i, (_, images) in enumerate(rows):
        for j, image in enumerate(images):
            place = slice(i * tall, i * tall + height), slice(j * wide, j * wide + width)
            sheet[place] = image.clamp(0, 1).numpy()
    size = (_CELL * columns + 1.0, _CELL * len(rows) * tall / wide + 0.1)
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    axis.imshow(sheet, cmap="gray", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([i * tall + height / 2 for i in range(len(rows))], [name for name, _ in rows])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def curves(history: Sequence[dict[str, float]]) -> Figure:
    """Every logged term over the epochs: those to train on solid, those of validation dashed."""
    names = sorted({name.partition("/")[2] for epoch in history for name in epoch})
    figure = Figure(figsize=(3.6 * max(1, len(names)), 2.8), layout="constrained")
    axes = figure.subplots(1, max(1, len(names)), squeeze=False)[0]
    for name, axis in zip(names, axes, strict=False):
        for part, style in (("train", "-"), ("validation", "--")):
            values = [epoch.get(f"{part}/{name}", np.nan) for epoch in history]
            axis.plot(range(1, len(values) + 1), values, style, marker=".", label=part)
        axis.set_xlabel("epoch")
        axis.set_title(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def latent_map(codes: Tensor, labels: Tensor, title: str = "") -> Figure:
    """Codes [N, C] on their two first principal components, coloured by label."""
    from sklearn.decomposition import PCA

    places = PCA(min(2, codes.shape[1]), random_state=0).fit_transform(codes.numpy())
    second = places[:, 1] if places.shape[1] > 1 else np.zeros(len(places))
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axis = figure.subplots()
    points = axis.scatter(places[:, 0], second, c=labels.numpy(), s=4, alpha=0.6, cmap="tab10")
    if len(labels.unique()) > 1:
        handles, names = points.legend_elements(num=len(labels.unique()))
        axis.legend(handles, names, fontsize=7)
    axis.set_xlabel("first principal component of the codes")
    axis.set_ylabel("second")
    axis.set_title(title)
    return figure


def histogram(groups: Sequence[tuple[str, Tensor]], label: str) -> Figure:
    """How values [N] of named groups are spread, over each other."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axis: Axes = figure.subplots()
    edges = np.histogram_bin_edges(np.concatenate([v.numpy() for _, v in groups]), bins=40)
    for name, values in groups:
        axis.hist(values.numpy(), edges.tolist(), alpha=0.5, density=True, label=name)
    axis.set_xlabel(label)
    axis.set_ylabel("density")
    axis.legend(fontsize=8)
    return figure


def series_grid(rows: Sequence[tuple[Tensor, Tensor | None]]) -> Figure:
    """Series [T, features] as solid lines, and beside each, dashed, what was made of it."""
    figure = Figure(figsize=(9, 1.9 * ((len(rows) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(rows) + 1) // 2, 2, squeeze=False).flatten()
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    for (series, made), axis in zip(rows, axes, strict=False):
        for feature in range(min(3, series.shape[1])):
            color = f"C{feature}"
            axis.plot(series[:, feature].numpy(), color=color)
            if made is not None:
                axis.plot(made[:, feature].numpy(), "--", color=color)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return figure
