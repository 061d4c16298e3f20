"""Straight lines through points that scatter: slopes that outliers do not turn."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Neighbouring lines of a map are alike, so whole runs of them are drawn (reference figures: with
# single lines a nominal 95 % interval holds the truth in a third of the cases, with runs in half).
BLOCK: Final = 8
_DRAWS: Final = 200


def theil_sen(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept: the median slope of all pairs (Theil 1950, Sen 1968).

    Args:
        x, y: shape (n,), at least two different x.
    """
    first, second = _pairs(x)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return slope, float(np.median(y - slope * x))


def slope_interval(x: Floats, y: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the Theil-Sen slope from runs of residuals drawn with replacement.

    It knows only the scatter between the given points: for the edge of one map, other seeds differ
    by more than this.
    """
    slope, intercept = theil_sen(x, y)
    residuals = y - slope * x - intercept
    first, second = _pairs(x)
    step = x[second] - x[first]
    random = np.random.default_rng(0)
    slopes = []
    for _ in range(_DRAWS):
        drawn = residuals[draw_blocks(len(x), random)]
        slopes.append(slope + float(np.median((drawn[second] - drawn[first]) / step)))
    low, high = np.quantile(slopes, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def draw_blocks(count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """`count` indexes as runs of neighbours from random places, the end joined to the start."""
    size = min(BLOCK, max(1, count // 4))
    starts = random.integers(0, count, size=-(-count // size))
    return ((starts[:, None] + np.arange(size)).ravel()[:count] % count).astype(np.int64)


def running_median(values: Floats, window: int) -> Floats:
    """Median over `window` (odd) neighbours, the ends mirrored. Shape as given."""
    half = window // 2
    padded = np.pad(values, half, mode="reflect") if half else values
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    return np.asarray(np.median(windows, axis=-1))


def _pairs(x: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    first, second = np.triu_indices(len(x), k=1)
    differ = x[first] != x[second]
    return first[differ], second[differ]
