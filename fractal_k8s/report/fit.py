"""The straight line behind the dimension: what both the page and the figure draw of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Fit:
    """Boxes against box side, and the line through them. All lists have one entry per box side."""

    sizes: tuple[float, ...]
    counts: tuple[float, ...]
    # counts of the line, and log10(count / line)
    line: tuple[float, ...]
    residuals: tuple[float, ...]
    # minus the slope of the line, before any calibration
    slope: float
    # between neighbouring box sides: where (geometric mean), and minus the slope there
    middles: tuple[float, ...]
    local_slopes: tuple[float, ...]
    # the number that is reported, and its 95 % interval, where there are any
    dimension: float | None
    interval: tuple[float, float] | None
    # dimensions of a smooth edge and of noise at this resolution, where they were measured
    baselines: dict[str, float]

    @property
    def title(self) -> str:
        if self.dimension is None:
            return "no dimension"
        if self.interval is None:
            return f"D = {self.dimension:.3f}"
        return f"D = {self.dimension:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


def fit_of(summary: dict[str, Any]) -> Fit | None:
    """The fit in a summary's keys `box_sizes`, `box_counts`, ...; None where there are none."""
    sizes, counts = summary.get("box_sizes") or [], summary.get("box_counts") or []
    if len(sizes) < 2:
        return None
    x, y = np.log10(np.array(sizes, dtype=float)), np.log10(np.array(counts, dtype=float))
    gradient, offset = np.polyfit(x, y, 1)
    line = gradient * x + offset
    local = -np.diff(y) / np.diff(x)
    interval = summary.get("interval")
    return Fit(
        sizes=tuple(float(size) for size in sizes),
        counts=tuple(float(count) for count in counts),
        line=tuple((10**line).tolist()),
        residuals=tuple((y - line).tolist()),
        slope=-float(gradient),
        middles=tuple((10 ** ((x[1:] + x[:-1]) / 2)).tolist()),
        local_slopes=tuple(local.tolist()),
        dimension=summary.get("dimension"),
        interval=(float(interval[0]), float(interval[1])) if interval else None,
        baselines=_baselines(summary.get("baselines") or {}),
    )


def _baselines(found: dict[str, Any]) -> dict[str, float]:
    """Those that are numbers; one that could not be measured is left out."""
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
