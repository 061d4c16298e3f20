"""The static figure of the dimension: counts with their line, residuals, local slopes."""

from __future__ import annotations

from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from fractal_k8s.report.fit import Fit
from fractal_k8s.report.typography import COLUMN, paper_style

_DATA: Final = "#1D4ED8"
_LINE: Final = "#A1181D"
_BASELINES: Final = {"smooth": (0, (4, 2)), "noise": (0, (1, 1.5))}


def dimension_figure(fit: Fit, title: str) -> Figure:
    """Three panels over a common axis of box sides, as wide as a column."""
    with paper_style():
        figure = Figure(figsize=(COLUMN, 4.2), layout="constrained")
        counts, residuals, slopes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1.6))
        _counts(counts, fit)
        counts.set_title(title)
        _residuals(residuals, fit)
        _slopes(slopes, fit)
        _size_axis(slopes, fit)
    return figure


def _counts(axes: Axes, fit: Fit) -> None:
    axes.plot(fit.sizes, fit.counts, "o", color=_DATA, label="boxes with edge")
    axes.plot(fit.sizes, fit.line, color=_LINE, label=f"slope {fit.slope:.3f}")
    for name, value in fit.baselines.items():
        # through the middle of the data, so that the angles can be compared
        middle = len(fit.sizes) // 2
        line = [fit.line[middle] * (size / fit.sizes[middle]) ** -value for size in fit.sizes]
        style = _BASELINES.get(name, "dotted")
        axes.plot(
            fit.sizes, line, color="grey", linestyle=style, label=f"{name} baseline, {value:.2f}"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylabel("boxes with edge")
    axes.legend(frameon=False)
    axes.annotate(
        fit.title, (0.03, 0.05), xycoords="axes fraction", fontsize="medium", fontweight="bold"
    )


def _residuals(axes: Axes, fit: Fit) -> None:
    axes.axhline(0, color=_LINE)
    axes.vlines(fit.sizes, 0, fit.residuals, color="grey", linewidth=0.8)
    axes.plot(fit.sizes, fit.residuals, "o", color=_DATA)
    far = max(0.01, *(abs(value) for value in fit.residuals)) * 1.3
    axes.set_ylim(-far, far)
    axes.set_ylabel("residual,\nlog10")


def _slopes(axes: Axes, fit: Fit) -> None:
    if fit.interval is not None:
        axes.axhspan(*fit.interval, color=_LINE, alpha=0.15, linewidth=0)
    if fit.dimension is not None:
        axes.axhline(fit.dimension, color=_LINE)
    for name, value in fit.baselines.items():
        axes.axhline(value, color="grey", linestyle=_BASELINES.get(name, "dotted"))
    axes.plot(fit.middles, fit.local_slopes, "o-", color=_DATA)
    axes.set_ylabel("local slope")
    axes.set_xlabel("box side, points")


def _size_axis(axes: Axes, fit: Fit) -> None:
    """Labels at the box sides themselves, as many as there is room for."""
    axes.xaxis.set_major_locator(FixedLocator(fit.sizes[:: max(1, len(fit.sizes) // 7)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
