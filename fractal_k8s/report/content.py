"""What the page's script reads: axes, colours, and the packed records of all points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.measure import convergence_measure, rank_colours, steps_to_divergence
from fractal_k8s.report.colours import SCHEMES, Scheme, colour_table
from fractal_k8s.report.colours import trainability_values as trainability
from fractal_k8s.report.payload import NEVER, Curves, packed, rounded, shares
from fractal_k8s.report.view import AxisView, axis_views
from fractal_k8s.results.grid import DIVERGED, STATE_NAMES, TRAINABLE, Grid
from fractal_k8s.sweep.axes import Axis, Knob

# 40 k + 1 colours hold every stop of the trainability scale exactly
_TRAINABILITY_COLOURS: Final = 201
_COLOURS: Final = 128


def page_content(
    grid: Grid, summary: Mapping[str, Any], curves: Curves, colours: str
) -> tuple[dict[str, Any], str]:
    """The page's data as JSON, and its records as deflated text."""
    lost_at = steps_to_divergence(grid)
    records = packed(_records(grid, summary, lost_at))
    y, x = axis_views(grid.sweep)
    content = {
        "id": grid.sweep.id,
        # whether a point alone is the same run: an mlp's data stay the sweep's whatever the seed
        "repeatable": grid.sweep.spec.seed_policy == "shared" or grid.sweep.model == "gpt",
        "rows": grid.sweep.rows,
        "columns": grid.sweep.columns,
        "axes": {
            "y": _axis(y, grid.sweep.y_knob, grid.sweep.spec.axes.y, grid.sweep.y_values),
            "x": _axis(x, grid.sweep.x_knob, grid.sweep.spec.axes.x, grid.sweep.x_values),
        },
        "verdict": summary["verdict"],
        "stateNames": STATE_NAMES,
        "schemes": {name: _scheme(scheme) for name, scheme in SCHEMES.items()},
        "scheme": colours,
        "lossRange": _span(rounded(grid.final_loss[grid.states == TRAINABLE]), (0.0, 1.0)),
        "stepsRange": _span(np.maximum(lost_at[_lost(grid, lost_at)], 1), (1, 1)),
        "arrays": records["arrays"],
        "curves": {key: value for key, value in curves.to_dict().items() if key != "text"},
        "errors": _errors(grid),
        "children": _children(summary),
    }
    return content, records["text"]


def _lost(grid: Grid, lost_at: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Diverged points whose stored losses show when."""
    return np.equal(grid.states, DIVERGED) & (lost_at >= 0)


def _records(
    grid: Grid, summary: Mapping[str, Any], lost_at: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """One array per fact, points in row-major order."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "states": grid.states.astype(np.uint8),
        "trainability": shares(trainability(grid), -1.0, 1.0),
        "measure": shares(rank_colours(convergence_measure(grid)), -1.0, 1.0),
        "firstLoss": rounded(grid.first_loss),
        "finalLoss": rounded(grid.final_loss),
        "ratio": rounded(grid.ratio),
        "seconds": rounded(grid.seconds),
        "steps": grid.steps.astype(np.uint32),
        "lossCount": grid.num_losses.astype(np.uint32),
        "lostAt": np.where(_lost(grid, lost_at), lost_at, NEVER).astype(np.uint32),
    }
    if np.isfinite(grid.probe_ratio).any():
        arrays["probeRatio"] = rounded(grid.probe_ratio)
    if grid.sweep.spec.seed_policy != "shared":
        seeds = np.zeros(grid.sweep.num_points)
        seeds[grid.point_indexes()] = grid.table.column("run_seed").to_numpy()
        arrays["runSeed"] = seeds
    replicas = replica_share(grid, summary)
    if replicas is not None:
        arrays["replicaShare"] = shares(replicas, 0.0, 1.0)
    return arrays


def replica_share(grid: Grid, summary: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    """Share of the replicas that train at each point, NaN where none is known; None without any."""
    note = summary.get("notes", {}).get("replicas")
    if not note:
        return None
    trainable, known = (np.array(note[key], dtype=float) for key in ("trainable", "known"))
    if trainable.shape != grid.states.shape or known.shape != grid.states.shape:
        return None  # of the sweep before it was made anew at another resolution
    share = np.full(known.shape, np.nan)
    some = known > 0
    share[some] = trainable[some] / known[some]
    return share


def _axis(view: AxisView, knob: Knob, axis: Axis, values: tuple[float, ...]) -> dict[str, Any]:
    return {
        "listed": axis.values is not None,
        "name": view.name,
        "label": knob.label,
        "log": view.is_log,
        "centres": view.centres.tolist(),
        "edges": view.edges.tolist(),
        "values": list(values),
    }


def _scheme(scheme: Scheme) -> dict[str, Any]:
    return {
        "title": scheme.title,
        "failed": scheme.failed,
        "marginal": scheme.marginal,
        "tables": {
            "trainability": colour_table(scheme.trainability(), _TRAINABILITY_COLOURS),
            "binary": "".join(colour[1:] for colour in scheme.binary),
            "loss": colour_table(scheme.loss, _COLOURS),
            "measure": colour_table(scheme.measure, _COLOURS),
            "steps": colour_table(scheme.steps, _COLOURS),
            "share": colour_table(scheme.share, _COLOURS),
        },
    }


def _span(values: npt.NDArray[Any], empty: tuple[float, float]) -> list[float]:
    """Lowest and highest value."""
    if not values.size:
        return list(empty)
    return [values.min().item(), values.max().item()]


def _errors(grid: Grid) -> dict[str, str]:
    """What the failed points said, by point index."""
    said = zip(grid.point_indexes(), grid.table.column("error").to_pylist(), strict=True)
    return {str(index): text for index, text in said if text}


def _children(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Zooms into this map, whose boxes are drawn on it."""
    found = (summary.get("family") or {}).get("children", [])
    return [{"id": child["id"], "box": child["box"]} for child in found if child.get("box")]
