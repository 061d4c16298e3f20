"""The original study's convergence measure: one number per point that makes a picture of a run."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.results.grid import Grid
from fractal_k8s.sweep.axes import STEPS

_CLIP: Final = 1e6

Floats = npt.NDArray[np.float64]


def convergence_measure(grid: Grid) -> Floats:
    """-(sum of normalised losses) where trainable, +(sum of 1 / normalised loss) elsewhere.

    Losses are divided by the first one and clipped at 1e6; a non-finite loss counts as 1e6, and so
    does every step that a run which ended early did not make (arXiv:2402.06184, cell 13 of its
    notebook). The study's own test, mean of the last 20 below 1, is the default verdict rule.

    Returns:
        shape (rows, columns), NaN where there is no result.
    """
    values, offsets = grid.losses()
    counts = np.diff(offsets)
    measure = np.full(grid.sweep.num_points, np.nan)
    for point, start, count in zip(grid.point_indexes(), offsets, counts, strict=False):
        if count:
            steps = _planned(grid, int(point), int(count))
            series = values[start : start + count]
            measure[point] = measure_of(series, steps, bool(grid.trainable.flat[point]))
    measure[~grid.known.ravel()] = np.nan
    return measure.reshape(grid.states.shape)


def _planned(grid: Grid, point: int, recorded: int) -> int:
    """Losses that the point's run would have made to its end."""
    if STEPS not in (grid.sweep.y_knob.affects, grid.sweep.x_knob.affects):
        return grid.sweep.training.num_steps() or recorded
    return grid.sweep.training_at(grid.sweep.point(point)).num_steps() or recorded


def measure_of(losses: npt.NDArray[np.floating], steps: int, trainable: bool) -> float:
    """The measure of one series that should have had `steps` losses."""
    series = losses.astype(np.float64)
    first = series[0]
    series = np.where(np.isfinite(series), series, _CLIP)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        normalised = np.minimum(series / first, _CLIP)
        absent = max(0, steps - len(series))
        lost = min(_CLIP / first, _CLIP)
        if trainable:
            return -float(normalised.sum() + absent * lost)
        return float((1 / normalised).sum() + absent / lost)


def rank_colours(measure: Floats, gap: float = 0.25) -> Floats:
    """The measure as ranks in -1..1, signs kept and flipped: the study's colour scale.

    Converged points spread evenly over [gap, 1] (slowest 1), diverged ones over [-1, -gap] (slowest
    -1), so that the edge stays sharp. Ranks are relative to this map. NaN stays NaN.
    """
    known = np.isfinite(measure)
    values = np.sort(measure[known])
    negative = int((values < 0).sum())
    ranks = np.concatenate(
        [np.linspace(-1, -gap, negative), np.linspace(gap, 1, len(values) - negative)]
    )
    colours = np.full(measure.shape, np.nan)
    if len(values):
        colours[known] = -np.interp(measure[known], values, ranks)
    return colours
