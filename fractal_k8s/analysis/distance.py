"""How far every point is from the edge: positive where it is trainable, negative elsewhere."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.lines import lines_along
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.results.grid import Grid

TITLE: Final = "Distance to the edge"

Floats = npt.NDArray[np.float64]

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_NEAR: Final = (1.0, 2.0, 4.0, 8.0)


def signed_distance(
    labels: Mask, known: Mask, pitch: tuple[float, float] = (1.0, 1.0)
) -> Floats | None:
    """Distance of every point to the nearest place between two neighbours of different labels.

    Edges towards unknown points are not known, so with holes a distance is an upper bound.

    Args:
        labels: shape (rows, columns), along with where they are known.
        pitch: distance of neighbouring rows and of neighbouring columns.

    Returns:
        Shape (rows, columns), in the pitch's unit, positive where trainable, NaN where unknown;
        None where there is no edge.
    """
    rows, columns = labels.shape
    # a lattice twice as fine: points at even places, the middles between neighbours at odd ones
    away = np.ones((2 * rows - 1, 2 * columns - 1), dtype=bool)
    away[1::2, ::2] = ~((labels[1:] != labels[:-1]) & known[1:] & known[:-1])
    away[::2, 1::2] = ~((labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1])
    if away.all():
        return None
    sampling = (pitch[0] / 2, pitch[1] / 2)
    distance: Floats = distance_transform_edt(away, sampling=sampling)[::2, ::2]
    return np.where(known, np.where(labels, distance, -distance), np.nan)


def pitches(grid: Grid) -> tuple[float, float] | None:
    """Decades between neighbouring rows and columns; None unless both axes are evenly log."""
    found = []
    for side, knob in (("y", grid.sweep.y_knob), ("x", grid.sweep.x_knob)):
        axis = getattr(grid.sweep.spec.axes, side)
        lines = lines_along(grid, "y" if side == "y" else "x")
        if axis.spacing(knob) != "log" or not (lines.values > 0).all():
            return None
        steps = np.diff(lines.decades)
        # token counts are whole numbers, so their steps differ a little
        if not len(steps) or not np.allclose(steps, steps.mean(), rtol=0.05, atol=0):
            return None
        found.append(float(steps.mean()))
    return found[0], found[1]


def analyse(subject: Subject) -> dict[str, Any]:
    """Quantiles of the distance by side, in cells and decades, and the point deepest inside.

    Keys: coverage, refused, cells and decades ({trainable, other: [5, 25, 50, 75, 95 %]}; decades
    None unless both axes are log), near ({cells: share of points within}), deepest.
    """
    cells = signed_distance(subject.labels, subject.known)
    if cells is None:
        reason = "no edge between known neighbours"
        return {"coverage": subject.coverage, "refused": reason}
    decades = None
    pitch = pitches(subject.grid) if subject.grid is not None else None
    if pitch is not None:
        decades = signed_distance(subject.labels, subject.known, pitch)
    magnitude = np.abs(cells[subject.known])
    return {
        "coverage": subject.coverage,
        "refused": None,
        "quantiles": list(QUANTILES),
        "cells": _quantiles(cells),
        "decades": None if decades is None else _quantiles(decades),
        "near": {f"{limit:g}": float((magnitude <= limit).mean()) for limit in _NEAR},
        "deepest": _deepest(
            subject, cells if decades is None else decades, pitch or (1.0, 1.0), cells
        ),
    }


def _quantiles(distance: Floats) -> dict[str, list[float]]:
    return {
        "trainable": np.quantile(distance[distance > 0], QUANTILES).tolist(),
        "other": np.quantile(-distance[distance < 0], QUANTILES).tolist(),
    }


def _deepest(
    subject: Subject, distance: Floats, pitch: tuple[float, float], cells: Floats
) -> dict[str, Any]:
    """The trainable point with the most room around it that is known to be trainable.

    Beyond the frame and in a hole anything may be, so they bound the room as the edge does.
    """
    inside = np.pad(subject.known, 1)
    explored = distance_transform_edt(inside, sampling=pitch)[1:-1, 1:-1]
    room = np.where(subject.known, np.fmin(distance, explored), -np.inf)
    i, j = np.unravel_index(np.argmax(room), room.shape)
    place: dict[str, Any] = {"i": int(i), "j": int(j), "cells": float(cells[i, j])}
    if subject.grid is not None:
        sweep = subject.grid.sweep
        place["values"] = {
            sweep.y_knob.name: sweep.y_values[int(i)],
            sweep.x_knob.name: sweep.x_values[int(j)],
        }
        if distance is not cells:
            place["decades"] = float(distance[i, j])
    return place


# --- for people ---


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    if result["refused"]:
        return [("distance to the edge", f"none: {result['refused']}")]
    rows = []
    for side, text in (("trainable", "of trainable points"), ("other", "of the others")):
        parts = [f"{result['cells'][side][2]:.1f} cells"]
        if result["decades"]:
            parts.append(f"{result['decades'][side][2]:.2f} decades")
        rows.append((f"median {text}", ", ".join(parts)))
    near = result["near"]
    rows.append(("points within 2 / 8 cells", f"{near['2']:.1%} / {near['8']:.1%}"))
    deepest = result["deepest"]
    values = deepest.get("values", {})
    where = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    room = f"{deepest['decades']:.2f} decades" if "decades" in deepest else ""
    room = room or f"{deepest['cells']:.1f} cells"
    point = f"({deepest['i']}, {deepest['j']}) {where}".strip()
    rows.append(("trainable with most room around", f"{point}: {room} from the edge"))
    return rows
