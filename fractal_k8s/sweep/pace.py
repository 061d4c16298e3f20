"""How fast points train: a timing model, fitted to attempts, and the work a sweep will be.

A worker needs `start_seconds` before its first point, and for a block of points

    seconds = (between + per_point) * points + per_step * steps

where `between` goes into log lines and writes, not into training, and the steps are those that are
really made: a run that diverges ends early. A trainer that trains many points as one program works
off whole chunks, so there a step of an unfilled chunk costs as much as one of a full chunk;
`chunk_steps` counts them as the trainer does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.sweep.axes import Knob
from fractal_k8s.sweep.deal import coarse_to_fine
from fractal_k8s.sweep.definition import Sweep

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]

# The batched trainer packs the living nets together again after this many steps, and takes this
# many chunks of points at a time: enough to pack well, few enough to report often.
REPACK_STEPS: Final = 20
CHUNKS_PER_GROUP: Final = 8

_LANES: Final = re.compile(r"\bbatched-(\d+)-")
# Relative residuals beyond this many robust deviations lose weight (Huber 1964).
_HUBER: Final = 2.5
# How far two runs on one machine lie apart unless attempts tell better, as a relative deviation,
# and how many attempts that guess is worth.
_DRIFT: Final = 0.1
_DRIFT_WEIGHT: Final = 4
# Sampled points that a forecast compares each point with.
_MOST_SAMPLES: Final = 1024
_GOLDEN_RATIO: Final = (math.sqrt(5) - 1) / 2


def lanes_of(numerics_class: str) -> int:
    """How many points are trained as one program, from the numerics class; 1 = one by one."""
    found = _LANES.search(numerics_class)
    return int(found[1]) if found else 1


@dataclass(frozen=True)
class Measured:
    """One attempt at some points of a sweep, in the order of training. Arrays: shape (points,)."""

    sweep: Sweep
    index: Indexes
    # steps that were to be made; 0 where that depends on the data
    planned: Indexes
    made: Indexes
    seconds: Floats
    lanes: int = 1
    # from the start of the worker to the first point; None = not recorded
    start_seconds: float | None = None
    # from the first outcome to the last
    span_seconds: float = 0.0


@dataclass(frozen=True)
class Sample:
    """Where runs ended early: planned and made steps of some points. Arrays: shape (points,)."""

    sweep: Sweep
    index: Indexes
    planned: Indexes
    made: Indexes


@dataclass(frozen=True)
class Pace:
    """The timing model, and where it comes from."""

    # a sweep's id, "probe" or the name of an option
    source: str
    per_point: float
    per_step: float
    # of a shard
    start_seconds: float = 0.0
    # of a point, beside its training
    between: float = 0.0
    lanes: int = 1
    # standard error of a forecast as a share of it; None = not known
    error: float | None = None
    # points that were timed
    points: int = 0
    sample: Sample | None = None


# --- the work ---


def chunk_steps(made: Indexes, starts: Indexes, lanes: int) -> Floats:
    """Steps of each block of points, an unfilled chunk counted as a full one. Shape (blocks,).

    Args:
        made: steps of each point, in the order of training, shape (points,).
        starts: where each block begins, rising, the first at 0, shape (blocks,).
        lanes: points that are trained as one program.
    """
    if lanes == 1:
        return np.add.reduceat(made, starts).astype(np.float64)
    size = lanes * CHUNKS_PER_GROUP
    ends = np.append(starts[1:], len(made))
    groups = np.concatenate(
        [np.arange(start, end, size) for start, end in zip(starts, ends, strict=True)]
    )
    total = int(made.max())
    work = np.zeros(len(groups))
    for step in range(0, max(total, 1), REPACK_STEPS):
        alive = np.add.reduceat((made > step).astype(np.int64), groups)
        work += -(-alive // lanes) * lanes * min(REPACK_STEPS, max(total, 1) - step)
    return np.add.reduceat(work, np.searchsorted(groups, starts))


def expected_steps(sweep: Sweep, planned: Indexes | None, sample: Sample | None) -> Indexes | None:
    """Steps that each point of a sweep will make, shape (points,); None if nothing tells.

    A run ends as early as the sampled run that is nearest to it in the plane; where the sample is
    of other knobs, the sampled runs are dealt evenly over the points.

    Args:
        planned: steps of each point that does not end early, shape (points,); None where they
            depend on the data, and then only a sample in the same plane tells.
    """
    if sample is None:
        return planned
    same_plane = (sample.sweep.y_knob, sample.sweep.x_knob) == (sweep.y_knob, sweep.x_knob)
    if same_plane:
        like = _nearest(sweep, sample)
    elif planned is None:
        return None
    else:
        spread = np.modf(np.arange(sweep.num_points) * _GOLDEN_RATIO)[0]
        like = (spread * len(sample.made)).astype(np.int64)
    made = sample.made[like]
    if planned is None:
        return made
    early = made < sample.planned[like]
    return np.where(early, np.minimum(made, planned), planned)


def _nearest(sweep: Sweep, sample: Sample) -> Indexes:
    """For each point of the sweep the nearest sampled one; both axes count alike."""
    own = sweep.values_of(np.arange(sweep.num_points))
    others = sample.sweep.values_of(sample.index)
    y, known_y = _positions(sweep.y_knob, own[0], others[0])
    x, known_x = _positions(sweep.x_knob, own[1], others[1])
    shape = (sweep.rows, sweep.columns, 1)
    nearest = [
        np.argmin((row_y - known_y) ** 2 + (row_x - known_x) ** 2, axis=1)
        for row_y, row_x in zip(y.reshape(shape), x.reshape(shape), strict=True)
    ]
    return np.concatenate(nearest).astype(np.int64)


def _positions(knob: Knob, own: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Places of a sweep's values and of other values on an axis, the sweep's ends at 0 and 1."""
    if knob.scale == "log" and own.min() > 0 and others.min() > 0:
        own, others = np.log(own), np.log(others)
    low, span = own.min(), np.ptp(own) or 1.0
    return (own - low) / span, (others - low) / span


# --- the fit ---


def fit(attempts: Sequence[Measured], source: str) -> Pace | None:
    """The timing model of attempts at the same kind of step; None if they say nothing.

    Relative least squares with Huber weights and no negative coefficient, over points, or over the
    groups of a batched trainer. The first point of an attempt warms up caches and allocators: what
    it took longer than the others counts as start-up. The standard error has three parts: scatter
    of the points, scatter between attempts, and the sample of runs that ended early. Few attempts
    say little about the second, which is then drawn towards a tenth.
    """
    attempts = [attempt for attempt in attempts if len(attempt.made) and attempt.seconds.sum() > 0]
    if not attempts:
        return None
    units = [_units(attempt) for attempt in attempts]
    warm = [unit[1:] if len(unit) > 2 else unit for unit in units]
    per_point, per_step, scatter = _coefficients(np.concatenate(warm))

    def modelled(unit: Floats) -> Floats:
        seconds: Floats = per_point * unit[:, 0] + per_step * unit[:, 1]
        return seconds

    errors = [
        scatter,
        _between_attempts(warm, modelled_sums=[float(modelled(u).sum()) for u in warm]),
    ]
    starts = [
        attempt.start_seconds + max(0.0, float(unit[0, 2] - modelled(unit[:1])[0]))
        for attempt, unit in zip(attempts, units, strict=True)
        if attempt.start_seconds is not None
    ]
    sample = _sample(attempts)
    errors.append(_sampling_error(sample))
    return Pace(
        source=source,
        per_point=per_point,
        per_step=per_step,
        start_seconds=float(np.median(starts)) if starts else 0.0,
        between=_between_points(attempts, units),
        lanes=attempts[0].lanes,
        error=math.sqrt(sum(part**2 for part in errors)),
        points=sum(len(attempt.made) for attempt in attempts),
        sample=sample,
    )


def _between_points(attempts: Sequence[Measured], units: Sequence[Floats]) -> float:
    """Seconds of a point that the trainer does not count: what was left of the attempts' spans."""
    left = sum(
        max(0.0, attempt.span_seconds - float(unit[1:, 2].sum()))
        for attempt, unit in zip(attempts, units, strict=True)
    )
    points = sum(len(attempt.made) - 1 for attempt in attempts)
    return left / points if points else 0.0


def _units(attempt: Measured) -> Floats:
    """Points, chunk steps and seconds of what was timed as one. Shape (units, 3)."""
    made = np.maximum(attempt.made, 1)
    size = 1 if attempt.lanes == 1 else attempt.lanes * CHUNKS_PER_GROUP
    starts = np.arange(0, len(made), size)
    columns = (
        np.add.reduceat(np.ones(len(made)), starts),
        chunk_steps(made, starts, attempt.lanes),
        np.add.reduceat(attempt.seconds, starts),
    )
    return np.stack(columns, axis=1)


def _coefficients(units: Floats) -> tuple[float, float, float]:
    """Seconds per point and per step, and the relative standard error of their sum."""
    weights = np.ones(len(units))
    scale = units[:, 2].mean() * units[:, 1] / units[:, 1].mean()
    solution = np.zeros(2)
    for _ in range(20):
        solution = _non_negative(units, weights / np.maximum(scale, 1e-300))
        scale = units[:, :2] @ solution
        residual = units[:, 2] / scale - 1.0
        deviation = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
        if deviation == 0:
            break
        weights = np.sqrt(np.minimum(1.0, _HUBER * deviation / np.maximum(np.abs(residual), 1e-12)))
    relative = float(np.std(units[:, 2] / scale)) / math.sqrt(len(units))
    return float(solution[0]), float(solution[1]), relative


def _non_negative(units: Floats, weights: Floats) -> Floats:
    """Weighted least squares of seconds on points and steps, neither coefficient below 0."""
    matrix, wanted = units[:, :2] * weights[:, None], units[:, 2] * weights
    rates = units[:, 1] / units[:, 0]
    if np.ptp(rates) > 0.02 * rates.mean():  # else points and steps cannot be told apart
        both = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
        if (both >= 0).all():
            return np.asarray(both, dtype=np.float64)
    alone = [(matrix[:, k] @ wanted) / (matrix[:, k] @ matrix[:, k]) for k in (0, 1)]
    misses = [float(((matrix[:, k] * alone[k] - wanted) ** 2).sum()) for k in (0, 1)]
    by_point = np.ptp(rates) > 0.02 * rates.mean() and misses[0] < misses[1]
    return np.array([alone[0], 0.0] if by_point else [0.0, alone[1]])


def _between_attempts(units: Sequence[Floats], modelled_sums: Sequence[float]) -> float:
    """Relative deviation of whole attempts from the model, drawn towards what machines do."""
    ratios = [unit[:, 2].sum() / total for unit, total in zip(units, modelled_sums, strict=True)]
    squares = float(((np.array(ratios) - np.mean(ratios)) ** 2).sum())
    degrees = len(ratios) - 1 + _DRIFT_WEIGHT
    return math.sqrt((squares + _DRIFT_WEIGHT * _DRIFT**2) / degrees)


def _sample(attempts: Sequence[Measured]) -> Sample:
    """Planned and made steps of the sweep with most points, of many the coarsest lattice."""
    sizes: dict[str, int] = {}
    for attempt in attempts:
        sizes[attempt.sweep.id] = sizes.get(attempt.sweep.id, 0) + len(attempt.made)
    largest = max(sizes, key=lambda name: sizes[name])
    chosen = [attempt for attempt in attempts if attempt.sweep.id == largest]
    sample = Sample(
        chosen[0].sweep,
        *(
            np.concatenate([getattr(attempt, name) for attempt in chosen])
            for name in ("index", "planned", "made")
        ),
    )
    rank = np.argsort(coarse_to_fine(sample.sweep.rows, sample.sweep.columns))
    order = np.argsort(rank[sample.index], kind="stable")[:_MOST_SAMPLES]
    return replace(
        sample,
        index=sample.index[order],
        planned=sample.planned[order],
        made=sample.made[order],
    )


def _sampling_error(sample: Sample) -> float:
    """Relative standard error of the mean share of the planned steps that are made."""
    planned = np.where(sample.planned > 0, sample.planned, np.maximum(sample.made, 1))
    shares = sample.made / planned
    mean = float(shares.mean())
    return float(np.std(shares)) / math.sqrt(len(shares)) / mean if mean > 0 else 1.0
