"""All numbers of a map in one table: what `analyze --json` prints and `analysis.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.box_dimension import METHODS
from fractal_k8s.analysis.registry import run_analyses
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.errors import UsageError
from fractal_k8s.results.grid import NOT_TRAINABLE, TRAINABLE, Grid
from fractal_k8s.results.holes import holes_of
from fractal_k8s.results.problems import in_summary
from fractal_k8s.results.verdict import window_holds_first_loss
from fractal_k8s.sweep.deal import representatives

DEFAULT_METHOD: Final = "windows"
# the analyses that need no map
_OF_SCATTERED: Final = ("ledger", "pilot")


def summarise(
    grid: Grid,
    *,
    notes: Mapping[str, Any] | None = None,
    method: str = DEFAULT_METHOD,
    only: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The numbers of a sweep's map, as plain data without NaN.

    Keys: sweep, resolution, verdict, counts (points by state), coverage (share of points whose
    verdict is known), trainable_fraction (of those), holes (points without a verdict by name, see
    `results.holes`), those of `analysis.dimension` (with `provisional`, what an incomplete map says
    of the dimension already, see `analysis.lattice`), and what the reader must know: biased_points,
    problems (the first ones, see `results.problems`), numerics_classes, timing; `analyses` holds
    the results of all analyses by name, and `notes` what other commands found out about the sweep.

    Args:
        method: how the edge's dimension is measured, from METHODS.
        only: names of the analyses to make; all unless given.
    """
    known = grid.known
    finished = grid.states >= NOT_TRAINABLE
    biased = window_holds_first_loss(grid.rule, grid.num_losses) & finished
    return {
        "version": 2,
        "sweep": grid.sweep.id,
        "resolution": [grid.sweep.rows, grid.sweep.columns],
        "verdict": grid.rule.model_dump(mode="json"),
        "counts": grid.counts(),
        "trainable_fraction": _share(grid.states == TRAINABLE, known),
        **_measured(Subject.of(grid, notes), method, only),
        "coverage": grid.coverage,
        "complete": bool(known.all()),
        "holes": holes_of(grid),
        "biased_points": int(biased.sum()),
        **in_summary(grid.problems),
        "numerics_classes": grid.classes,
        "timing": _timing(grid),
        "notes": dict(notes or {}),
    }


def summarise_mask(
    labels: Mask, known: Mask, *, method: str = DEFAULT_METHOD, only: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The numbers of a bare picture: a boolean map, True = trainable."""
    subject = Subject(labels & known, known)
    return {
        "resolution": list(labels.shape),
        "trainable_fraction": _share(labels, known),
        **_measured(subject, method, only),
        "coverage": subject.coverage,
    }


def _measured(subject: Subject, method: str, only: tuple[str, ...]) -> dict[str, Any]:
    """The edge's dimension, whose keys stand at the top, and every analysis under its name."""
    if subject.grid is not None and subject.grid.sweep.is_scattered:
        return _scattered(subject, subject.grid.sweep.id, method, only)
    results = run_analyses(subject, only)
    if method == DEFAULT_METHOD:
        edge = results.get("dimension", {})
    else:
        edge = METHODS[method](subject.labels, subject.known).to_dict()
        results.pop("dimension", None)  # one number is enough
    exponent = results.get("uncertainty", {}).get("exponent")
    return {**edge, "uncertainty_exponent": exponent, "analyses": results}


def _scattered(
    subject: Subject, sweep_id: str, method: str, only: tuple[str, ...]
) -> dict[str, Any]:
    """What can be said of points that are not a map.

    Raises:
        UsageError: something was asked for that needs a map.
    """
    reason = f"the points of {sweep_id} are scattered and not a map"
    if method != DEFAULT_METHOD or set(only) - set(_OF_SCATTERED):
        raise UsageError(f"{reason}; its analyses are {' and '.join(_OF_SCATTERED)}")
    return {
        "dimension": None,
        "refused": reason,
        "uncertainty_exponent": None,
        "analyses": run_analyses(subject, only or _OF_SCATTERED),
    }


def _share(labels: Mask, known: Mask) -> float | None:
    return float(labels[known].mean()) if known.any() else None


def _timing(grid: Grid) -> dict[str, Any]:
    """What a forecast of a similar sweep needs: training time of the distinct points."""
    distinct = representatives(grid.sweep) == np.arange(grid.sweep.num_points)
    trained = distinct & grid.known.ravel()
    return {
        "points": int(trained.sum()),
        "seconds": float(grid.seconds.ravel()[trained].sum()),
        "steps": int(grid.steps.ravel()[trained].sum()),
        "nodes": sorted(str(node) for node in grid.table.column("node").unique().to_pylist()),
    }
