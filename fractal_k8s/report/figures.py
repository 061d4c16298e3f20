"""The static figures: three panels of the map, and the original study's picture of it."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from fractal_k8s.analysis.measure import convergence_measure, rank_colours
from fractal_k8s.report.colours import (
    BINARY_COLOURS,
    FAILED_COLOUR,
    NO_VALUE_COLOUR,
    trainability_colormap,
    trainability_values,
    unjudged,
)
from fractal_k8s.report.view import AxisView, axis_views
from fractal_k8s.results.grid import TRAINABLE, Grid

PANEL_TITLES: Final = ("Trainability Boundary", "Final Loss (trainable runs)", "Binary Trainable")
_DPI: Final = 150
_MAP_LAYER: Final = 1.0

Floats = npt.NDArray[np.float64]


def three_panels(grid: Grid, summary: dict[str, Any]) -> Figure:
    """Trainability, final loss of the trainable runs, and the binary map; missing cells hatched."""
    figure = Figure(figsize=(18, 6.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, 3)
    trainable = grid.states == TRAINABLE
    binary = np.where(grid.known, trainable.astype(float), np.nan)
    losses = np.where(trainable, grid.final_loss, np.nan)
    first = _map(panels[0], grid, trainability_values(grid), trainability_colormap(), (-1.0, 1.0))
    bar = figure.colorbar(first, ax=panels[0], ticks=[-1.0, 0.3, 1.0])
    bar.set_ticklabels(["not\ntrainable", "highest\nloss", "lowest\nloss"])
    middle = _map(panels[1], grid, losses, "viridis", _limits(losses))
    figure.colorbar(middle, ax=panels[1], label="final loss")
    _map(panels[2], grid, binary, ListedColormap(list(BINARY_COLOURS)), (0.0, 1.0))
    for axes, title in zip(panels, PANEL_TITLES, strict=True):
        axes.set_title(title)
    _legend(panels[2], grid)
    figure.suptitle(caption(grid, summary))
    return figure


def study_picture(grid: Grid) -> Figure:
    """The convergence measure in the original study's colours (arXiv:2402.06184)."""
    figure = Figure(figsize=(7.2, 7), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    _map(axes, grid, rank_colours(convergence_measure(grid)), "Spectral", (-1.0, 1.0))
    axes.set_title(f"{grid.sweep.name}: blue converges, red does not; darker is slower")
    return figure


def caption(grid: Grid, summary: dict[str, Any]) -> str:
    """One line that says what the map is and how much of it there is."""
    dimension = summary["dimension"]
    edge = summary["refused"] if dimension is None else f"edge dimension {dimension:.3f}"
    text = f"{grid.sweep.id}   {grid.sweep.rows} x {grid.sweep.columns}   {edge}"
    if not summary["complete"]:
        text += f"   PARTIAL: {summary['coverage']:.1%} of the points"
    return text


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same content."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def _map(
    axes: Axes,
    grid: Grid,
    values: Floats,
    colours: str | ListedColormap,
    limits: tuple[float, float],
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
        )
    if failed.any():
        marks = np.ma.masked_where(~failed, np.ones(failed.shape))
        amber = ListedColormap([FAILED_COLOUR])
        axes.pcolormesh(x.edges, y.edges, marks, cmap=amber, zorder=_MAP_LAYER)
    axes.set_xlim(x.edges[0], x.edges[-1])
    axes.set_ylim(y.edges[0], y.edges[-1])
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    return picture


def _hatch(axes: Axes, missing: npt.NDArray[np.bool_], y: AxisView, x: AxisView) -> None:
    """Hatching behind the map that shows through wherever a point is missing."""
    if not missing.any():
        return
    box = Rectangle(
        (x.edges[0], y.edges[0]),
        x.edges[-1] - x.edges[0],
        y.edges[-1] - y.edges[0],
        facecolor="white",
        edgecolor="#9A9A9A",
        hatch="////",
        linewidth=0,
        zorder=_MAP_LAYER - 0.4,
    )
    axes.add_patch(box)
    # cells that are not missing but have no value in this panel are plain, not hatched
    plain = np.ma.masked_where(missing, np.ones(missing.shape))
    grey = ListedColormap([NO_VALUE_COLOUR])
    axes.pcolormesh(x.edges, y.edges, plain, cmap=grey, zorder=_MAP_LAYER - 0.2)


def _limits(losses: Floats) -> tuple[float, float]:
    known = losses[np.isfinite(losses)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _legend(axes: Axes, grid: Grid) -> None:
    missing, failed = unjudged(grid)
    patches = [
        Patch(color=BINARY_COLOURS[1], label="trainable"),
        Patch(color=BINARY_COLOURS[0], label="not trainable"),
    ]
    if missing.any():
        patches.append(Patch(facecolor="white", edgecolor="#9A9A9A", hatch="////", label="missing"))
    if failed.any():
        patches.append(Patch(color=FAILED_COLOUR, label="failed"))
    axes.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False
    )
