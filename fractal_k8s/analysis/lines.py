"""A map as lines along one axis, and between which values each line is trainable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.results.grid import DIVERGED, TRAINABLE, Grid
from fractal_k8s.sweep.deal import representatives
from fractal_k8s.sweep.training import GPTTraining, Training

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]
Side = Literal["y", "x"]


@dataclass(frozen=True)
class Lines:
    """The points of a grid as m lines of n points along one axis."""

    side: Side
    # knob that varies along a line, and knob that is held on it
    along: str
    across: str
    # values along a line (n,) and of the lines (m,)
    values: Floats
    at: Floats
    # what the lines really hold (m,): the tokens of whole steps for a token axis, else `at`
    held: Floats
    # whether the held knob is spaced by ratios
    log_across: bool
    # codes of results.grid, shape (m, n)
    states: npt.NDArray[np.uint8]
    # lines whose experiments are not those of an earlier line, shape (m,)
    distinct: Mask

    @property
    def known(self) -> Mask:
        return np.greater_equal(self.states, DIVERGED)

    @property
    def trainable(self) -> Mask:
        return np.equal(self.states, TRAINABLE)

    @property
    def decades(self) -> Floats:
        """log10 of the values along a line; they must be above 0."""
        return np.log10(self.values)

    @property
    def pitch(self) -> float:
        """Typical distance of neighbours on a line, in decades."""
        return float(np.median(np.diff(self.decades)))

    @property
    def places(self) -> Floats:
        """Where the lines lie: log10 of what they hold on a log axis, else that itself."""
        return np.log10(self.held) if self.log_across else self.held


def lines_along(grid: Grid, side: Side) -> Lines:
    """The grid's columns for side "y", its rows for side "x"."""
    sweep, axes = grid.sweep, grid.sweep.spec.axes
    y, x = np.array(sweep.y_values), np.array(sweep.x_values)
    distinct = representatives(sweep) == np.arange(sweep.num_points)
    distinct = distinct.reshape(grid.states.shape)
    if side == "y":
        along, across, values, at, axis = sweep.y_knob, sweep.x_knob, y, x, axes.x
        states, own = grid.states.T, distinct.any(axis=0)
    else:
        along, across, values, at, axis = sweep.x_knob, sweep.y_knob, x, y, axes.y
        states, own = grid.states, distinct.any(axis=1)
    return Lines(
        side=side,
        along=along.name,
        across=across.name,
        values=values,
        at=at,
        held=_trained_tokens(sweep.training, at) if across.name == "tokens" else at,
        log_across=axis.spacing(across) == "log" and bool((at > 0).all()),
        states=states,
        distinct=own,
    )


def _trained_tokens(training: Training, tokens: Floats) -> Floats:
    """Tokens that the whole steps of runs of so many tokens hold.

    Where the number of steps depends on the data (supervised accounting) the tokens asked for.
    """
    if not isinstance(training, GPTTraining) or training.num_steps() is None:
        return tokens
    per_step = training.batch_size * training.max_seq_len
    return np.ceil(tokens / per_step) * per_step


def rate_lines(grid: Grid) -> Iterator[Lines]:
    """The grid as lines along each of its axes that is a learning rate."""
    if grid.sweep.y_knob.kind == "rate":
        yield lines_along(grid, "y")
    if grid.sweep.x_knob.kind == "rate":
        yield lines_along(grid, "x")


@dataclass(frozen=True)
class Splits:
    """One cut per line. Cut k lies between points k - 1 and k; 0 and n are the ends of the line.

    Several cuts may misclassify equally few points: `first` and `last` are the outermost of them,
    and a value is read from the middle, so that turning the line round changes nothing.
    All arrays have shape (m,).
    """

    first: Indexes
    last: Indexes
    # lines that have a cut: some known point is on the side that is looked for, and no two ranges
    # that lie apart are equally good
    found: Mask
    # the line's end fits as well as any cut: the true one may lie outside the map
    censored: Mask

    @property
    def inside(self) -> Mask:
        """Lines whose cut lies within the map."""
        return self.found & ~self.censored

    def positions(self, coordinates: Floats) -> Floats:
        """Where the cuts lie, in the coordinates (n,) of the points; NaN where there is none.

        For a censored cut: the nearest place that it can have.
        """
        middles = (coordinates[1:] + coordinates[:-1]) / 2
        cuts = np.concatenate([coordinates[:1], middles, coordinates[-1:]])
        at_top = self.last == len(coordinates)
        first = np.where(self.censored & ~at_top, self.last, self.first)
        last = np.where(self.censored & at_top, self.first, self.last)
        return np.where(self.found, (cuts[first] + cuts[last]) / 2, np.nan)


def band(labels: Mask, known: Mask) -> tuple[Splits, Splits]:
    """Lower and upper end of the range of each line that separates the labels best.

    Of all ranges, the one with the fewest True points outside and False points inside; a step (a
    range that begins or ends with the line) is a special case. Unknown points count for nothing.

    Args:
        labels: shape (m, n), along with where they are known.
    """
    sums = _sums(labels, known)
    lowest = np.minimum.accumulate(sums, axis=1)
    highest = np.maximum.accumulate(sums[:, ::-1], axis=1)[:, ::-1]
    lower, upper = highest - sums, sums - lowest
    total = lower.max(axis=1, keepdims=True)
    best_lower, best_upper = lower == total, upper == total
    # where the outermost cuts make no best range together, they belong to ranges that lie apart
    outermost = np.argmax(best_lower, axis=1), last_true(best_upper)
    line = np.arange(len(sums))
    hull = sums[line, outermost[1]] - sums[line, outermost[0]]
    found = _any(labels, known) & (hull == total[:, 0])
    return (
        _ties(best_lower, found, ends=(0,)),
        _ties(best_upper, found, ends=(labels.shape[1],)),
    )


def last_true(mask: Mask) -> Indexes:
    """Index of the last True of each row, shape (m,); rows without one have the last index."""
    found: Indexes = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    return found


def step(labels: Mask, known: Mask) -> Splits:
    """The cut of each line with the fewest False points below and True points above it."""
    sums = _sums(labels, known)
    found = _any(labels, known)
    return _ties(sums == sums.max(axis=1, keepdims=True), found, ends=(0, labels.shape[1]))


def _any(labels: Mask, known: Mask) -> Mask:
    return np.asarray((labels & known).any(axis=1))


def _sums(labels: Mask, known: Mask) -> Indexes:
    """True minus False points before each cut, shape (m, n + 1)."""
    signs = np.where(known, np.where(labels, 1, -1), 0)
    return np.pad(np.cumsum(signs, axis=1), ((0, 0), (1, 0))).astype(np.int64)


def _ties(best: Mask, found: Mask, ends: tuple[int, ...]) -> Splits:
    """The cuts where `best`; those that reach one of the ends are censored."""
    first = np.argmax(best, axis=1)
    last = last_true(best)
    outside = np.isin(first, ends) | np.isin(last, ends)
    return Splits(first, last, found, found & outside)


def plain(values: npt.ArrayLike) -> list[Any]:
    """An array as a list for JSON: None where it is not finite."""
    return [
        None if isinstance(value, float) and not np.isfinite(value) else value
        for value in np.asarray(values).tolist()
    ]
