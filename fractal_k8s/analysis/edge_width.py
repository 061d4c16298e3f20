"""How wide the mixed zone around an edge is: the scale of a logistic curve, in decades."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from fractal_k8s.analysis.lines import Lines, Splits
from fractal_k8s.analysis.trend import running_median, theil_sen

Floats = npt.NDArray[np.float64]

MIN_LINES: Final = 5
_BINS_PER_PITCH: Final = 10
_WINDOW: Final = 9


@dataclass(frozen=True)
class Width:
    """Scale w of the probability of being trainable, 1 / (1 + exp(d / w)).

    d is how far a rate lies above the edge; both in decades.
    """

    decades: float
    # False: no mixture is seen, and `decades` is what the map's pitch leaves open
    resolved: bool


def edge_width(lines: Lines, lower: Splits, upper: Splits) -> Width | None:
    """Maximum likelihood width of the upper edge, around a curve that follows the edge.

    The curve is the lines' critical value smoothed over a few neighbours: roughness finer than
    that, and points that differ from their neighbours, are the mixture that is measured. Islands
    far from the edge are given a probability of their own, so that they do not widen it.
    None with fewer than 5 lines that have the edge inside the map.
    """
    used = upper.inside & lines.distinct
    if used.sum() < MIN_LINES:
        return None
    x, pitch = lines.decades, lines.pitch
    curve = smooth_curve(lines.places[used], upper.positions(x)[used])
    middle = (lower.positions(x)[used] + curve) / 2
    # what lies below the middle of the trainable range belongs to the other edge
    counted = lines.known[used] & (x[None, :] >= middle[:, None])
    distance = (x[None, :] - curve[:, None])[counted]
    fitted = _fit(distance, lines.trainable[used][counted], pitch)
    # an edge known to lie somewhere in one pitch has the spread of a logistic of scale pitch / 2 pi
    floor = pitch / (2 * math.pi)
    return Width(max(fitted, floor), resolved=fitted > floor)


def smooth_curve(places: Floats, values: Floats) -> Floats:
    """The values (m,) at the places (m,), smoothed around their trend."""
    if len(np.unique(places)) < 2:
        return values
    slope, intercept = theil_sen(places, values)
    trend = slope * places + intercept
    window = min(_WINDOW, len(values) // 4 * 2 + 1)
    return trend + running_median(values - trend, window)


def _fit(distance: Floats, trainable: npt.NDArray[np.bool_], pitch: float) -> float:
    """The width; points are counted in bins much finer than the pitch, which keeps it fast."""
    size = pitch / _BINS_PER_PITCH
    places, inverse = np.unique(np.round(distance / size), return_inverse=True)
    good = np.bincount(inverse, weights=trainable)
    bad = np.bincount(inverse, weights=~trainable)
    centres = places * size

    def cost(parameters: Floats) -> float:
        log_width, shift, lapse = parameters
        curve = expit(-(centres - shift) / math.exp(log_width))
        p = lapse / 2 + (1 - lapse) * curve
        tiny = 1e-300
        return -float(good @ np.log(p + tiny) + bad @ np.log(1 - p + tiny))

    reach = float(np.ptp(centres)) + pitch
    bounds = [
        (math.log(size / 10), math.log(reach)),
        (-reach / 4, reach / 4),
        (1e-6, 0.2),
    ]
    starts = (pitch / 4, pitch * 2)
    found = [
        minimize(cost, np.array([math.log(width), 0.0, 1e-3]), method="L-BFGS-B", bounds=bounds)
        for width in starts
    ]
    return math.exp(float(min(found, key=lambda result: float(result.fun)).x[0]))
