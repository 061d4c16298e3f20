"""The static figures: three panels of the map, the original study's picture, a strip of zooms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from fractal_k8s.analysis import lattice
from fractal_k8s.analysis.measure import convergence_measure, rank_colours
from fractal_k8s.report.colours import (
    NO_VALUE_COLOUR,
    ORIGINAL,
    Scheme,
    trainability_values,
    unjudged,
)
from fractal_k8s.report.typography import PAGE, paper_style
from fractal_k8s.report.view import AxisView, axis_views
from fractal_k8s.results.grid import MARGINAL, TRAINABLE, Grid

PANEL_TITLES: Final = ("Trainability Boundary", "Final Loss (trainable runs)", "Binary Trainable")
_MAP_LAYER: Final = 1.0
_HATCH_COLOUR: Final = "#9A9A9A"
_MAX_STRIP_COLUMNS: Final = 4
# characters of a title that fit above three panels
_WIDEST: Final = 105

Floats = npt.NDArray[np.float64]
Box = tuple[tuple[float, float], tuple[float, float]]


def three_panels(grid: Grid, summary: dict[str, Any], scheme: Scheme = ORIGINAL) -> Figure:
    """Trainability, final loss of the trainable runs, and the binary map; missing cells hatched."""
    trainable = grid.states == TRAINABLE
    binary = np.where(grid.known & (grid.states != MARGINAL), trainable.astype(float), np.nan)
    losses = np.where(trainable, grid.final_loss, np.nan)
    shown: tuple[tuple[Floats, str | ListedColormap, tuple[float, float]], ...] = (
        (trainability_values(grid), scheme.trainability(), (-1.0, 1.0)),
        (losses, scheme.loss, _limits(losses)),
        (binary, ListedColormap(list(scheme.binary)), (0.0, 1.0)),
    )
    with paper_style():
        figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, title, (values, colours, limits) in zip(panels, PANEL_TITLES, shown, strict=True):
            picture = _map(axes, grid, values, colours, limits, scheme)
            if title != PANEL_TITLES[1]:
                _mark(axes, grid, grid.states == MARGINAL, scheme.marginal)
            axes.set_title(title)
            axes.locator_params(axis="x", nbins=5)
            bar = figure.colorbar(picture, ax=axes, orientation="horizontal", aspect=26)
            bar.outline.set_linewidth(0.4)
            if title == PANEL_TITLES[0]:
                bar.set_ticks([-1.0, 0.3, 1.0], labels=["not trainable", "highest", "lowest loss"])
            elif title == PANEL_TITLES[2]:
                bar.set_ticks([0.25, 0.75], labels=["not trainable", "trainable"])
        for axes in panels[1:]:
            axes.set_ylabel("")
        _unjudged_legend(figure, grid, scheme)
        figure.suptitle(caption(grid, summary))
    return figure


def study_picture(grid: Grid, scheme: Scheme = ORIGINAL) -> Figure:
    """The convergence measure in the original study's colours (arXiv:2402.06184)."""
    with paper_style():
        figure = Figure(figsize=(3.6, 3.5), layout="constrained")
        axes = figure.subplots()
        values = rank_colours(convergence_measure(grid))
        _map(axes, grid, values, scheme.measure, (-1.0, 1.0), scheme)
        high, low = ("blue", "red") if scheme is ORIGINAL else ("purple", "orange")
        title = f"{grid.sweep.name}: {high} converges, {low} does not; darker is slower"
        if not grid.known.all():
            title += f"\n{_partial(grid.coverage)}"
        axes.set_title(title)
        _unjudged_legend(figure, grid, scheme)
    return figure


@dataclass(frozen=True)
class ZoomLevel:
    """One map of a zoom strip."""

    label: str
    grid: Grid
    # cells of this map that other maps of the strip show, ends included
    boxes: tuple[Box, ...] = ()


def zoom_strip(levels: Sequence[ZoomLevel], scheme: Scheme = ORIGINAL) -> Figure:
    """The maps of a family of zooms side by side, each with the boxes that others show."""
    columns = min(len(levels), _MAX_STRIP_COLUMNS)
    rows = math.ceil(len(levels) / columns)
    with paper_style():
        height = rows * (PAGE / columns * 0.95 + 0.25)
        figure = Figure(figsize=(PAGE, height), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, level in zip(panels, levels, strict=False):
            values = rank_colours(convergence_measure(level.grid))
            _map(axes, level.grid, values, scheme.measure, (-1.0, 1.0), scheme)
            axes.set_title(level.label)
            axes.set_xlabel("")
            axes.set_ylabel("")
            axes.locator_params(nbins=4)
            _draw_boxes(axes, level)
        for axes in panels[len(levels) :]:
            axes.set_axis_off()
        y, x = axis_views(levels[0].grid.sweep)
        figure.supxlabel(x.label, fontsize="medium")
        figure.supylabel(y.label, fontsize="medium")
    return figure


def _draw_boxes(axes: Axes, level: ZoomLevel) -> None:
    y, x = axis_views(level.grid.sweep)
    for (i0, i1), (j0, j1) in level.boxes:
        left, right = _edges_at(x, j0, j1 + 1)
        low, high = _edges_at(y, i0, i1 + 1)
        corner, size = (left, low), (right - left, high - low)
        for width, colour in ((1.8, "black"), (0.8, "white")):
            outline = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width)
            outline.set_zorder(_MAP_LAYER + 1)
            axes.add_patch(outline)


def _edges_at(axis: AxisView, first: float, last: float) -> tuple[float, float]:
    """Where two edges of cells lie; a box given by values may lie between cells."""
    low, high = np.interp([first, last], np.arange(len(axis.edges)), axis.edges)
    return float(low), float(high)


def caption(grid: Grid, summary: dict[str, Any]) -> str:
    """What the map is and how much of it there is, in lines that are no wider than a page."""
    parts = [grid.sweep.id, f"{grid.sweep.rows} x {grid.sweep.columns}"]
    if not summary["complete"]:
        parts.append(_partial(summary["coverage"]))
    parts.append(_edge_caption(summary))
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}   {part}" if lines[-1] else part
        if len(longer) <= _WIDEST:
            lines[-1] = longer
        else:
            lines.append(part)
    return "\n".join(lines)


def _partial(coverage: float) -> str:
    return f"PARTIAL: {coverage:.1%} of the points"


def _edge_caption(summary: dict[str, Any]) -> str:
    dimension, slope = summary["dimension"], summary.get("raw_slope")
    if dimension is not None:
        low, high = summary["interval"] or (dimension, dimension)
        return f"edge dimension {dimension:.3f} [{low:.3f}, {high:.3f}]"
    if (so_far := lattice.text(summary.get("provisional"))) is not None:
        return f"edge dimension so far {so_far}"
    if slope is not None:  # the reason is a sentence, too long for here
        return f"no edge dimension (slope of boxes {slope:.2f})"
    return str(summary["refused"])


def _map(
    axes: Axes,
    grid: Grid,
    values: Floats,
    colours: str | ListedColormap,
    limits: tuple[float, float],
    scheme: Scheme,
) -> AxesImage | QuadMesh:
    """One panel: nearest sampling, cells centred on their values, holes left open."""
    y, x = axis_views(grid.sweep)
    missing, failed = unjudged(grid)
    axes.set_facecolor(NO_VALUE_COLOUR)
    _hatch(axes, missing, y, x)
    shown = np.ma.masked_invalid(values)
    if y.is_regular and x.is_regular:
        extent = (x.edges[0], x.edges[-1], y.edges[0], y.edges[-1])
        picture: AxesImage | QuadMesh = axes.imshow(
            shown,
            origin="lower",
            extent=extent,
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            zorder=_MAP_LAYER,
        )
    else:
        picture = axes.pcolormesh(
            x.edges,
            y.edges,
            shown,
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            zorder=_MAP_LAYER,
            rasterized=True,
        )
    _mark(axes, grid, failed, scheme.failed)
    axes.set_xlim(x.edges[0], x.edges[-1])
    axes.set_ylim(y.edges[0], y.edges[-1])
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    return picture


def _mark(axes: Axes, grid: Grid, cells: npt.NDArray[np.bool_], colour: str) -> None:
    """Cells in one colour, above the map."""
    if not cells.any():
        return
    y, x = axis_views(grid.sweep)
    marks = np.ma.masked_where(~cells, np.ones(cells.shape))
    axes.pcolormesh(
        x.edges,
        y.edges,
        marks,
        cmap=ListedColormap([colour]),
        zorder=_MAP_LAYER,
        rasterized=True,
    )


def _hatch(axes: Axes, missing: npt.NDArray[np.bool_], y: AxisView, x: AxisView) -> None:
    """Hatching behind the map that shows through wherever a point is missing."""
    if not missing.any():
        return
    box = Rectangle(
        (x.edges[0], y.edges[0]),
        x.edges[-1] - x.edges[0],
        y.edges[-1] - y.edges[0],
        facecolor="white",
        edgecolor=_HATCH_COLOUR,
        hatch="//////",
        linewidth=0,
        zorder=_MAP_LAYER - 0.4,
    )
    axes.add_patch(box)
    # cells that are not missing but have no value in this panel are plain, not hatched
    plain = np.ma.masked_where(missing, np.ones(missing.shape))
    grey = ListedColormap([NO_VALUE_COLOUR])
    axes.pcolormesh(x.edges, y.edges, plain, cmap=grey, zorder=_MAP_LAYER - 0.2, rasterized=True)


def _limits(losses: Floats) -> tuple[float, float]:
    known = losses[np.isfinite(losses)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _unjudged_legend(figure: Figure, grid: Grid, scheme: Scheme) -> None:
    """What hatching and the colours of failures and marginal points mean, where there are any."""
    missing, failed = unjudged(grid)
    patches = []
    if missing.any():
        patches.append(
            Patch(facecolor="white", edgecolor=_HATCH_COLOUR, hatch="//////", label="missing")
        )
    if failed.any():
        patches.append(Patch(color=scheme.failed, label="failed"))
    if (grid.states == MARGINAL).any():
        patches.append(Patch(color=scheme.marginal, label="marginal"))
    if patches:
        figure.legend(handles=patches, loc="outside lower right", ncols=3, frameon=False)
