"""The dimension of the edge with an interval, or the reason why there is none."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from fractal_k8s.analysis import lattice
from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.box_dimension import MIN_DECADES, BoxDimension, windows
from fractal_k8s.analysis.calibration import (
    DISCREPANCY,
    MAX_MISFIT,
    Estimate,
    Statistics,
    estimate,
)
from fractal_k8s.analysis.entropy import UNRESOLVED, Mixing, measure_mixing
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.analysis.uncertainty import Uncertainty, measure_uncertainty
from fractal_k8s.results.grid import MISSING

TITLE: Final = "Edge dimension"

# Exponents along the axes that differ by more mark an edge that is rough along one of them, such as
# the graph of a Brownian motion (0.5). 99 % of the simulated edges stay below 0.20 at 64 points a
# side and 0.09 at 1024.
MAX_ANISOTROPY: Final = 0.25
# Points of the rarer label, in rows of the shorter side: fewer make a strip along the frame, whose
# edge the mirrored boxes see twice.
_MIN_ROWS: Final = 4
# how the straight edge of the smooth baseline lies: along no axis and no diagonal
_TILT: Final = 0.5


def analyse(subject: Subject) -> dict[str, Any]:
    """`measure_dimension` of the map, and where its interval is from.

    With maps of other seeds (note `replicas`) the dimension is their mean, and the interval is that
    of the mean over seeds, widened by what simulated and other edges differ in.

    A map without a dimension because points of it are still to come has a provisional one, under a
    key of its own, where a coarser lattice of it is complete: see `analysis.lattice`.
    """
    result = measure_dimension(subject.labels & subject.known, subject.known)
    result["interval_from"] = None if result["interval"] is None else "simulation"
    result["provisional"] = _provisional(subject, result)
    replicas = subject.notes.get("replicas")
    if result["interval"] is None or not replicas or not replicas["interval"]:
        return result
    low, high = replicas["interval"]
    judged = [value for value in replicas["dimensions"] if value is not None]
    return {
        **result,
        "dimension": sum(judged) / len(judged),
        "interval": [max(1.0, low - DISCREPANCY), min(2.0, high + DISCREPANCY)],
        "interval_from": f"{len(judged)} seeds",
    }


def _provisional(subject: Subject, result: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of the dimension of a map that has too many holes for one."""
    # boxes over the whole range found a reason that more points would not take away
    if result["decades"] >= MIN_DECADES or subject.grid is None:
        return None
    found = lattice.finest_complete(subject.grid.states == MISSING)
    if found is None:
        return None
    known = found.of(subject.known)
    measured = measure_dimension(found.of(subject.labels) & known, known)
    return lattice.as_plain_data(found, subject.known.shape, measured)


def measure_dimension(labels: Mask, known: Mask) -> dict[str, Any]:
    """The calibrated dimension of a map's edge, as plain data; arrays of shape (rows, columns).

    Keys: those of `BoxDimension.to_dict` (`raw_slope` is what the boxes say before calibration,
    also where the number is refused), and

        dimension    calibrated, None when refused
        interval     [low, high] that holds the truth in 95 % of simulated edges, None when refused
        refused      why there is no number
        lag_dimension, agreement    2 - alpha, and the raw slope minus it
        misfit       distance to the nearest simulated edge, see `analysis.calibration`
        baselines    raw slopes of a straight edge (smooth) and of independent labels (noise) with
                     this share of trainable points, None where there is no slope
    """
    box = windows(labels, known)
    lags = measure_uncertainty(labels, known)
    result = {
        **box.to_dict(),
        "dimension": None,
        "lag_dimension": lags.dimension,
        "agreement": None,
        "misfit": None,
        "baselines": _baselines(labels, known),
    }
    if box.slope is not None and lags.dimension is not None:
        result["agreement"] = box.slope - lags.dimension
    result["refused"] = _too_little(labels, known, box) or _refusal_of_map(
        box, lags, measure_mixing(labels, known)
    )
    if result["refused"]:
        return result
    found = estimate(_statistics(box, lags), min(labels.shape))
    result["misfit"] = found.misfit
    if found.misfit > MAX_MISFIT:
        return {**result, "refused": _refusal_of_fit(found, box, lags)}
    return {**result, "dimension": found.dimension, "interval": list(found.interval)}


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    pixels = result["boundary_pixels"]
    is_looked_for = pixels or result["coverage"] > 0
    rows = [("boundary pixels", f"{pixels:,}" if is_looked_for else "not known")]
    if result["raw_slope"] is not None:
        rows += _measured_lines(result)
    if result["dimension"] is None:
        if (text := lattice.text(result.get("provisional"))) is not None:
            rows.insert(0, ("so far", text))
        return [("dimension", f"none: {result['refused']}"), *rows]
    low, high = result["interval"]
    source = result.get("interval_from") or "simulation"
    text = f"{result['dimension']:.3f}, 95 % from {low:.3f} to {high:.3f} (by {source})"
    return [("dimension", text), *rows]


def _measured_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    def text(value: float | None) -> str:
        return "none" if value is None else f"{value:.3f}"

    sizes = ", ".join(str(size) for size in result["box_sizes"])
    rows = [
        ("box sides", f"{sizes} ({result['decades']:.2f} decades)"),
        ("slope before calibration", text(result["raw_slope"])),
    ]
    if result["half_slopes"]:
        small, large = result["half_slopes"]
        rows.append(("of smaller / larger boxes", f"{small:.3f} / {large:.3f}"))
    smooth, noise = (text(result["baselines"][name]) for name in ("smooth", "noise"))
    rows.append(("of a straight edge / of noise", f"{smooth} / {noise}"))
    rows.append(("2 - alpha", text(result["lag_dimension"])))
    return rows


def _statistics(box: BoxDimension, lags: Uncertainty) -> Statistics:
    assert box.slope is not None  # neither was refused
    assert box.half_slopes is not None
    assert lags.dimension is not None
    assert lags.halves is not None
    small, large = box.half_slopes
    short, long = lags.halves
    return Statistics(box.slope, small - large, lags.dimension, long - short)


def statistics_of(labels: Mask) -> Statistics | None:
    """What calibration is made of: the statistics of a map without holes.

    None where one of them cannot be measured.
    """
    known = np.ones(labels.shape, dtype=bool)
    box, lags = windows(labels, known), measure_uncertainty(labels, known)
    if box.refused or lags.refused:
        return None
    return _statistics(box, lags)


def _too_little(labels: Mask, known: Mask, box: BoxDimension) -> str | None:
    """One label that is hardly there: its edge lies at the frame, or is a few points."""
    fewer = min(int(labels[known].sum()), int((~labels)[known].sum()))
    if not box.boundary_pixels or fewer >= _MIN_ROWS * min(labels.shape):
        return None
    return (
        f"too little edge: only {fewer} points have the rarer label, which lie at the frame or are "
        "few; choose a box with more of both"
    )


def _refusal_of_map(box: BoxDimension, lags: Uncertainty, mixing: Mixing) -> str | None:
    """What forbids a number before anything is compared."""
    if box.refused:
        return box.refused
    if mixing.verdict == UNRESOLVED:
        entropy = mixing.boundary_entropy or 0.0
        return (
            f"{UNRESOLVED}: neighbours' labels correlate by {mixing.correlation:.2f}, boxes at the "
            f"edge have an entropy of {entropy:.2f}, and there are {mixing.specks:.2f} isolated "
            "points per cell of edge (independent labels: 0, 0.69 and 0.08; with a trend 0.13); "
            "zoom in, or repeat points with another seed"
        )
    if lags.refused:
        return lags.refused
    if lags.anisotropy > MAX_ANISOTROPY:
        assert lags.exponent_x is not None  # else there is no anisotropy
        assert lags.exponent_y is not None
        return (
            f"the edge differs along the axes: 2 - alpha is {2 - lags.exponent_x:.2f} along x and "
            f"{2 - lags.exponent_y:.2f} along y, so one number does not describe it; zoom in"
        )
    return None


def _refusal_of_fit(found: Estimate, box: BoxDimension, lags: Uncertainty) -> str:
    """What sets the map apart from every simulated edge, in words."""
    assert box.half_slopes is not None
    assert lags.halves is not None
    statistic, deviation = found.oddest
    if statistic == "lag_dimension":
        return (
            f"two ways to measure disagree: boxes have slope {box.slope:.2f}, pairs of points give "
            f"2 - alpha = {lags.dimension:.2f}; {_advice(deviation)}"
        )
    if statistic == "box_bend":
        what, (small, large) = "boxes", box.half_slopes
    else:
        what, (small, large) = "distances", (2 - lags.halves[0], 2 - lags.halves[1])
    return (
        f"the half-ranges disagree: slope {small:.2f} over small {what} and {large:.2f} over large "
        f"ones, which clean edges of this size do not show; {_advice(deviation)}"
    )


def _advice(deviation: float) -> str:
    if deviation > 0:
        return "noise on a smoother edge, or texture at the size of a point, looks so: zoom in"
    return "the map holds edges of different kinds or too little edge: zoom in on one"


def _baselines(labels: Mask, known: Mask) -> dict[str, float | None]:
    if not known.any():
        return {"smooth": None, "noise": None}
    share = float(labels[known].mean())
    i, j = (np.arange(length) for length in labels.shape)
    height = np.add.outer(i.astype(float), _TILT * j)
    smooth = height < np.quantile(height, share)
    noise = np.random.default_rng(0).random(labels.shape) < share
    return {
        name: windows(made & known, known).slope
        for name, made in (("smooth", smooth), ("noise", noise))
    }
