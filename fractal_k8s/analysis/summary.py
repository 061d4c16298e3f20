"""All numbers of a map in one table: what `analyze --json` prints and `analysis.json` holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.box_dimension import METHODS
from fractal_k8s.results.grid import NOT_TRAINABLE, TRAINABLE, Grid
from fractal_k8s.results.verdict import window_holds_first_loss
from fractal_k8s.sweep.deal import representatives


def summarise(grid: Grid, *, method: str = "windows") -> dict[str, Any]:
    """The numbers of a sweep's map, as plain data without NaN.

    Keys: sweep, resolution, verdict, counts (points by state), coverage (share of points whose
    verdict is known), trainable_fraction (of those), the keys of `BoxDimension.to_dict`, and what
    the reader must know: biased_points, problems, numerics_classes, timing.
    """
    known = grid.known
    finished = grid.states >= NOT_TRAINABLE
    biased = window_holds_first_loss(grid.rule, grid.num_losses) & finished
    return {
        "version": 1,
        "sweep": grid.sweep.id,
        "resolution": [grid.sweep.rows, grid.sweep.columns],
        "verdict": grid.rule.model_dump(mode="json"),
        "counts": grid.counts(),
        "trainable_fraction": _share(grid.states == TRAINABLE, known),
        **METHODS[method](grid.trainable, known).to_dict(),
        "coverage": grid.coverage,
        "complete": bool(known.all()),
        "biased_points": int(biased.sum()),
        "problems": grid.problems,
        "numerics_classes": grid.classes,
        "timing": _timing(grid),
    }


def summarise_mask(labels: Mask, known: Mask, *, method: str = "windows") -> dict[str, Any]:
    """The numbers of a bare picture: a boolean map, True = trainable."""
    return {
        "resolution": list(labels.shape),
        "trainable_fraction": _share(labels, known),
        **METHODS[method](labels & known, known).to_dict(),
        "coverage": float(known.mean()),
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
