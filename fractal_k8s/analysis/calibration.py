"""From what is measured on a map to the dimension of its edge, by simulation.

The slope of box counts is biased on maps of this size, and the standard error of its fit is some
three times too small. So the measurement was made on thousands of simulated edges of known
dimension at 64 to 1024 points a side (scripts/calibrate), and a map is compared with those:

- Four statistics: the slope of the box counts, 2 - alpha, and how both bend between small and large
  scales. A rough edge bends one way, a smooth edge with noise on it the other way.
- Families of edges with different biases: level sets of fractional Brownian surfaces (D 1 to 1.95),
  filled loops of planar fractional Brownian motion (1.2 to 1.55) and smooth edges (1). Their
  disagreement at the same dimension is part of the interval.
- Every dimension of every family is as likely beforehand as any other, with an extra weight on
  exactly 1. Given a normal likelihood, the dimension is the posterior mean, and the interval the
  shortest that holds 95 % of the posterior.
- An edge that is unlike all of them has no calibrated dimension; `misfit` says how unlike.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DATA: Final = Path(__file__).with_name("calibration.json")

# Other edges than the simulated ones differ from them by about this much in each statistic.
DISCREPANCY: Final = 0.04
# 99 % of normal statistics (chi-square with four degrees of freedom) misfit less.
MAX_MISFIT: Final = 13.3
# No interval ends closer to its dimension than this, save at 1 and 2.
FINEST: Final = 0.02

_GRID: Final = np.linspace(1, 2, 201)
# Rougher edges were not simulated: an interval that comes this close to them ends at 2.
_ROUGHEST: Final = 1.94
# Exactly 1 weighs as much as this length of the scale of dimensions.
_SMOOTH_WEIGHT: Final = 0.02
_LEVEL: Final = 0.95


@dataclass(frozen=True)
class Statistics:
    """What is measured on a map."""

    # slope of box counts, and that of its smaller half of sizes minus that of the larger half
    box_slope: float
    box_bend: float
    # 2 - alpha, and that of the shorter half of lags minus that of the longer half
    lag_dimension: float
    lag_bend: float

    def vector(self) -> Floats:
        return np.array([self.box_slope, self.box_bend, self.lag_dimension, self.lag_bend])


@dataclass(frozen=True)
class Estimate:
    """A dimension that edges with these statistics have."""

    dimension: float
    interval: tuple[float, float]
    # squared distance to the nearest simulated edge, in standard deviations
    misfit: float
    # what sets the map apart from that edge, in standard deviations: the statistic's name and sign
    oddest: tuple[str, float]


@dataclass(frozen=True)
class _Family:
    """Mean (n, 4) and covariance (n, 4, 4) of the statistics at n dimensions."""

    dimensions: Floats
    means: Floats
    covariances: Floats

    def on(self, dimensions: Floats) -> tuple[Floats, Floats]:
        """Means and covariances at other dimensions, between those of the family."""
        means, covariances = (
            np.stack(
                [np.interp(dimensions, self.dimensions, column) for column in flat.T], axis=-1
            ).reshape(len(dimensions), *array.shape[1:])
            for array in (self.means, self.covariances)
            for flat in (array.reshape(len(array), -1),)
        )
        return means, covariances


def estimate(statistics: Statistics, side: int) -> Estimate:
    """The dimension of the edge of a map of `side` points on its shorter side.

    Above 1024 points the intervals are those of 1024.
    """
    vector = statistics.vector()
    log_posterior = np.full(len(_GRID), -np.inf)
    nearest: tuple[float, tuple[str, float]] = (math.inf, ("", 0.0))
    for family in _families(side):
        inside = (family.dimensions[0] <= _GRID) & (family.dimensions[-1] >= _GRID)
        means, covariances = family.on(_GRID[inside])
        covariances = covariances + DISCREPANCY**2 * np.eye(means.shape[1])
        residuals = vector - means
        distances = np.einsum("gi,gij,gj->g", residuals, np.linalg.inv(covariances), residuals)
        logs = -0.5 * (distances + np.linalg.slogdet(covariances)[1])
        if inside.sum() == 1:
            logs += math.log(_SMOOTH_WEIGHT / (_GRID[1] - _GRID[0]))
        log_posterior[inside] = np.logaddexp(log_posterior[inside], logs)
        best = int(distances.argmin())
        if distances[best] < nearest[0]:
            oddest = _oddest(residuals[best], covariances[best])
            nearest = (float(distances[best]), oddest)
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()
    dimension = float(posterior @ _GRID)
    return Estimate(dimension, _interval(posterior, dimension), *nearest)


def _interval(posterior: Floats, dimension: float) -> tuple[float, float]:
    """Ends of the shortest set with 95 % of the posterior."""
    order = np.argsort(-posterior)
    count = int(np.searchsorted(np.cumsum(posterior[order]), _LEVEL)) + 1
    chosen = _GRID[order[:count]]
    low, high = min(chosen.min(), dimension - FINEST), max(chosen.max(), dimension + FINEST)
    return float(max(low, 1.0)), float(min(high, 2.0)) if high < _ROUGHEST else 2.0


def _oddest(residual: Floats, covariance: Floats) -> tuple[str, float]:
    """Which of three contrasts deviates most: the bends, or boxes against lags."""
    contrasts = {
        "box_bend": np.array([0.0, 1.0, 0.0, 0.0]),
        "lag_bend": np.array([0.0, 0.0, 0.0, 1.0]),
        "lag_dimension": np.array([-1.0, 0.0, 1.0, 0.0]),
    }
    scores = {
        name: float(contrast @ residual / math.sqrt(contrast @ covariance @ contrast))
        for name, contrast in contrasts.items()
    }
    name = max(scores, key=lambda name: abs(scores[name]))
    return name, scores[name]


@cache
def _families(side: int) -> tuple[_Family, ...]:
    """The calibration at a side, between those of the simulated sides by the side's logarithm."""
    low, high, weight = _between(side)
    first, second = _tables()[low], _tables()[high]
    return tuple(
        _Family(
            np.array(first[name]["dimensions"]),
            *(
                (1 - weight) * np.array(first[name][key]) + weight * np.array(second[name][key])
                for key in ("means", "covariances")
            ),
        )
        for name in first
    )


def _between(side: int) -> tuple[str, str, float]:
    """The simulated sides around a side, and the weight of the larger one."""
    sides = sorted(int(name) for name in _tables())
    side = min(max(side, sides[0]), sides[-1])
    above = next(index for index, candidate in enumerate(sides) if candidate >= side)
    low, high = sides[max(0, above - 1)], sides[above]
    weight = 1.0 if high == low else math.log(side / low) / math.log(high / low)
    return str(low), str(high), weight


@cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(DATA.read_text())["sides"]
    return tables
