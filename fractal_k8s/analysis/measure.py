"""The original study's convergence measure: one number per point that makes a picture of a run."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.results.grid import Grid
from fractal_k8s.sweep.axes import STEPS

_CLIP: Final = 1e6
# losses that are looked at together
_BLOCK: Final = 1 << 19

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
    recorded = counts > 0
    points = grid.point_indexes()[recorded]
    if len(points):
        steps = _planned(grid, points, counts[recorded])
        trainable = grid.trainable.ravel()[points]
        measure[points] = measures_of(values, offsets[:-1][recorded], steps, trainable)
    measure[~grid.known.ravel()] = np.nan
    return measure.reshape(grid.states.shape)


def _planned(
    grid: Grid, points: npt.NDArray[np.int64], recorded: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Losses that each point's run would have made to its end."""
    if STEPS not in (grid.sweep.y_knob.affects, grid.sweep.x_knob.affects):
        planned = grid.sweep.training.num_steps()
        return recorded if planned is None else np.full_like(recorded, planned)
    training = (grid.sweep.training_at(grid.sweep.point(int(point))) for point in points)
    return np.array(
        [each.num_steps() or count for each, count in zip(training, recorded, strict=True)]
    )


def steps_to_divergence(grid: Grid) -> npt.NDArray[np.int64]:
    """Finite losses before the first one that is not, -1 where every stored loss is finite.

    A run may go on for some steps after that; shape (rows, columns).
    """
    values, offsets = grid.losses()
    lost = np.flatnonzero(~np.isfinite(values))
    rows, first = np.unique(np.searchsorted(offsets, lost, side="right") - 1, return_index=True)
    steps = np.full(grid.sweep.num_points, -1)
    steps[grid.point_indexes()[rows]] = lost[first] - offsets[rows]
    return steps.reshape(grid.states.shape)


def measures_of(
    losses: npt.NDArray[np.floating],
    starts: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    trainable: npt.NDArray[np.bool_],
) -> Floats:
    """The measure of each of several series that lie end to end.

    Args:
        losses: all of them, shape (losses,).
        starts: where each series begins, rising, shape (series,); the last ends with `losses`.
        steps: how many losses each should have had, shape (series,).
        trainable: shape (series,).
    """
    ends = np.append(starts[1:], len(losses))
    measures = np.empty(len(starts))
    # block by block, so that a map of any size needs little memory
    blocks = np.searchsorted(ends, np.arange(_BLOCK, len(losses), _BLOCK)) + 1
    for rows in np.split(np.arange(len(starts)), np.unique(blocks[blocks < len(starts)])):
        begin, end = starts[rows[0]], ends[rows[-1]]
        measures[rows] = _block_measures(
            losses[begin:end].astype(np.float64), starts[rows] - begin, steps[rows], trainable[rows]
        )
    return measures


def _block_measures(
    series: Floats,
    starts: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    trainable: npt.NDArray[np.bool_],
) -> Floats:
    """`measures_of` for one block, whose `series` is overwritten."""
    counts = np.diff(starts, append=len(series))
    first = series[starts]
    series[~np.isfinite(series)] = _CLIP
    absent = np.maximum(steps - counts, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        normalised = np.minimum(series / np.repeat(first, counts), _CLIP)
        lost = np.minimum(_CLIP / first, _CLIP)
        wide = np.repeat(trainable, counts)
        sums = np.add.reduceat(np.where(wide, normalised, 1 / normalised), starts)
        rest = np.where(absent > 0, absent * np.where(trainable, lost, 1 / lost), 0.0)
    measures: Floats = np.where(trainable, -1.0, 1.0) * (sums + rest)
    return measures


def measure_of(losses: npt.NDArray[np.floating], steps: int, trainable: bool) -> float:
    """The measure of one series that should have had `steps` losses."""
    begin = np.zeros(1, dtype=np.int64)
    return float(measures_of(losses, begin, np.array([steps]), np.array([trainable]))[0])


def rank_colours(measure: Floats, gap: float = 0.25) -> Floats:
    """The measure as ranks in -1..1, signs kept and flipped: the study's colour scale.

    Converged points spread evenly over [gap, 1] (slowest 1), diverged ones over [-1, -gap] (slowest
    -1), so that the edge stays sharp. Ranks are relative to this map. NaN stays NaN.
    """
    return RankScale(measure, gap)(measure)


class RankScale:
    """The colour scale that one map's ranks make, for that map's measures or another's."""

    def __init__(self, measure: Floats, gap: float = 0.25) -> None:
        known = measure[np.isfinite(measure)]
        self.gap = gap
        self._negative = np.sort(known[known < 0])
        self._positive = np.sort(known[known >= 0])

    def __call__(self, measure: Floats) -> Floats:
        """Colours of any measures, same shape; beyond the map's own they are its extremes'."""
        colours = np.full(measure.shape, np.nan)
        for values, where, first, last in (
            (self._negative, measure < 0, 1.0, self.gap),
            (self._positive, measure >= 0, -self.gap, -1.0),
        ):
            if where.any():
                ranks = np.linspace(first, last, len(values))
                # a map without this sign has no ranks for it: the middle of its colours
                middle = (first + last) / 2
                colours[where] = np.interp(measure[where], values, ranks) if len(values) else middle
        return colours
