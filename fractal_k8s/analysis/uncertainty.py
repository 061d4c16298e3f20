"""The uncertainty exponent of a map: how fast labels become certain as points come closer.

f(l) is the share of pairs of points l pitches apart, along an axis, whose labels differ. At an edge
of dimension D it grows as l**alpha with alpha = 2 - D (Grebogi et al. 1983, McDonald et al. 1985):
alpha is 1 at a smooth edge and goes to 0 where no closeness makes the outcome certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.box_dimension import sqrt2_steps
from fractal_k8s.analysis.subject import Subject

TITLE: Final = "Uncertainty exponent"

# lags from 1 to this part of the shorter side
_LAGS_PER_SIDE: Final = 16
_MIN_LAGS: Final = 3
# Labels are as good as independent where this share of the differences of independent labels is
# reached: f cannot grow on, and its slope says nothing.
_SATURATED: Final = 0.8
_MIN_CROSSED: Final = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Uncertainty:
    """f(l) of a map and its slopes; the slopes are None where they cannot be read."""

    # why there is no exponent
    refused: str | None
    # share of the pairs of neighbours whose labels are both known
    coverage: float
    # distances in pitches, and share of pairs that differ: both axes, along x, along y
    lags: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    shares_x: tuple[float, ...] = ()
    shares_y: tuple[float, ...] = ()
    # what f would be if labels were independent
    independent: float = 0.0
    # slope of ln f over all lags that are not saturated
    exponent: float | None = None
    exponent_x: float | None = None
    exponent_y: float | None = None
    # slopes over the shorter and the longer half of the lags, which share the middle ones
    halves: tuple[float, float] | None = None

    @property
    def dimension(self) -> float | None:
        return None if self.exponent is None else 2 - self.exponent

    @property
    def anisotropy(self) -> float:
        """Difference of the exponents along the axes.

        0 where one cannot be read, or where the axis with the smaller one crosses the edge less
        than half as often: along a smooth edge that follows an axis a few specks decide.
        """
        if self.exponent_x is None or self.exponent_y is None:
            return 0.0
        rough, other = (self.exponent_x, self.shares_x[0]), (self.exponent_y, self.shares_y[0])
        if rough[0] > other[0]:
            rough, other = other, rough
        return other[0] - rough[0] if rough[1] >= _MIN_CROSSED * other[1] else 0.0


def measure_uncertainty(labels: Mask, known: Mask) -> Uncertainty:
    """The exponent from all pairs of known points, both shape (rows, columns)."""
    lags = sqrt2_steps(1, min(labels.shape) // _LAGS_PER_SIDE)
    if len(lags) < _MIN_LAGS:
        needed = _LAGS_PER_SIDE * _MIN_LAGS
        return Uncertainty(f"an exponent needs {needed} points a side; use a finer map", 0.0)
    counts = np.array([_pairs(labels, known, lag) for lag in lags], dtype=float)
    coverage = counts[0, :, 1].sum() / (2 * labels.size - sum(labels.shape))
    if not known.any():
        return Uncertainty("no point is known", coverage)
    if not counts[..., 1].all():
        lag, axis = np.argwhere(counts[..., 1] == 0)[0]
        side = ("rows", "columns")[axis]
        return Uncertainty(
            f"not measured: no two known points lie {lags[lag]} {side} apart", coverage
        )
    shares = counts[..., 0] / counts[..., 1]
    pooled = counts[..., 0].sum(axis=1) / counts[..., 1].sum(axis=1)
    trainable = float(labels[known].mean())
    independent = 2 * trainable * (1 - trainable)
    found = {
        "coverage": float(coverage),
        "lags": tuple(lags),
        "shares": tuple(pooled.tolist()),
        "shares_x": tuple(shares[:, 1].tolist()),
        "shares_y": tuple(shares[:, 0].tolist()),
        "independent": independent,
    }
    rising = pooled < _SATURATED * independent
    usable = len(lags) if rising.all() else int(np.argmin(rising))
    if reason := _refusal(pooled, independent, usable):
        return Uncertainty(refused=reason, **found)  # type: ignore[arg-type]
    x = np.log(np.array(lags[:usable], dtype=float))
    half = usable // 2 + 1
    return Uncertainty(
        refused=None,
        exponent=_slope(x, pooled[:usable]),
        exponent_x=_slope(x, shares[:usable, 1]),
        exponent_y=_slope(x, shares[:usable, 0]),
        halves=(
            float(np.polyfit(x[:half], np.log(pooled[:half]), 1)[0]),
            float(np.polyfit(x[-half:], np.log(pooled[usable - half : usable]), 1)[0]),
        ),
        **found,  # type: ignore[arg-type]
    )


def analyse(subject: Subject) -> dict[str, Any]:
    """Keys: exponent (alpha), dimension (2 - alpha), exponent_x and exponent_y (either may be
    None), anisotropy, halves, lags, shares, shares_x, shares_y, independent; coverage, refused.
    """
    found = measure_uncertainty(subject.labels & subject.known, subject.known)
    return {
        "exponent": found.exponent,
        "dimension": found.dimension,
        "exponent_x": found.exponent_x,
        "exponent_y": found.exponent_y,
        "anisotropy": found.anisotropy,
        "halves": list(found.halves) if found.halves else None,
        "lags": list(found.lags),
        "shares": list(found.shares),
        "shares_x": list(found.shares_x),
        "shares_y": list(found.shares_y),
        "independent": found.independent,
        "coverage": found.coverage,
        "refused": found.refused,
    }


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    if result["exponent"] is None:
        return [("alpha", f"none: {result['refused']}")]
    along = ", ".join(
        f"{axis} {'none' if value is None else format(value, '.3f')}"
        for axis, value in (("x", result["exponent_x"]), ("y", result["exponent_y"]))
    )
    factor = 10 ** min(1 / max(result["exponent"], 0.01), 99)
    return [
        ("alpha", f"{result['exponent']:.3f}, so that 2 - alpha = {result['dimension']:.3f}"),
        ("along the axes", along),
        ("a tenth of the doubt needs", f"rates set {factor:.3g} times as exactly"),
    ]


def _pairs(labels: Mask, known: Mask, lag: int) -> list[tuple[int, int]]:
    """Pairs that differ and all pairs of known points, along rows (y) and along columns (x)."""
    found = []
    for one, other in (
        (np.s_[lag:], np.s_[:-lag]),
        (np.s_[:, lag:], np.s_[:, :-lag]),
    ):
        both = known[one] & known[other]
        differ = (labels[one] ^ labels[other]) & both
        found.append((int(np.count_nonzero(differ)), int(np.count_nonzero(both))))
    return found


def _refusal(pooled: Floats, independent: float, usable: int) -> str | None:
    if not pooled.all():
        return "no edge: no two points at some distance have different labels"
    if usable < _MIN_LAGS:
        return (
            f"saturated: {pooled[0]:.1%} of all neighbours differ, where independent labels would "
            f"differ in {independent:.1%}; zoom in"
        )
    return None


def _slope(x: Floats, shares: Floats) -> float | None:
    return float(np.polyfit(x, np.log(shares), 1)[0]) if shares.all() else None
