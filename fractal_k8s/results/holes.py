"""Points of a map that have no verdict, by name: without an outcome, or failed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from fractal_k8s.results.grid import FAILED, MISSING, Grid

# runs of missing points, and different causes of failures, that are named
_MOST_RUNS: Final = 100
_MOST_CAUSES: Final = 20
# of them in a line for people
_SHOWN: Final = 5
_MOST_CHARACTERS: Final = 160


def holes_of(grid: Grid) -> dict[str, Any]:
    """The holes of a map as plain data.

    Keys: missing: {runs: [{from: [i, j], to: [i, j], points}] of points one after another in rows,
    at most 100 of them, unnamed: points that are in no listed run}; failed: [{error, points, first:
    [i, j]}], the most frequent first, at most 20.
    """
    missing = np.flatnonzero(grid.states.ravel() == MISSING)
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else []
    named: list[dict[str, Any]] = [
        {"from": _cell(grid, run[0]), "to": _cell(grid, run[-1]), "points": len(run)}
        for run in runs[:_MOST_RUNS]
    ]
    return {
        "missing": {
            "runs": named,
            "unnamed": len(missing) - sum(run["points"] for run in named),
        },
        "failed": _causes(grid)[:_MOST_CAUSES],
    }


def _causes(grid: Grid) -> list[dict[str, Any]]:
    """Failed points by what was said of them."""
    index = grid.point_indexes()
    rows = np.flatnonzero(grid.states.ravel()[index] == FAILED)
    errors = grid.table.column("error").take(pa.array(rows)).to_pylist()
    found: dict[str, list[int]] = {}
    for point, error in zip(index[rows].tolist(), errors, strict=True):
        found.setdefault(str(error or "no reason was given"), []).append(point)
    causes = [
        {"error": error, "points": len(points), "first": _cell(grid, min(points))}
        for error, points in found.items()
    ]
    return sorted(causes, key=lambda cause: (-int(cause["points"]), cause["first"]))


def _cell(grid: Grid, point: Any) -> list[int]:
    return [*divmod(int(point), grid.sweep.columns)]


def lines(holes: dict[str, Any]) -> list[str]:
    """The holes for people: a line for what is missing, one for each of the first causes."""
    runs = holes["missing"]["runs"]
    texts = [_run(run) for run in runs[:_SHOWN]]
    hidden = sum(run["points"] for run in runs[_SHOWN:]) + holes["missing"]["unnamed"]
    if hidden:
        texts.append(f"and {hidden:,} more points")
    said = [f"missing: {', '.join(texts)}"] if texts else []
    for cause in holes["failed"][:_SHOWN]:
        first = tuple(cause["first"])
        what = f"point {first}"
        if cause["points"] > 1:
            what = f"{cause['points']:,} points, the first {first}"
        said.append(f"failed: {what}: {_short(cause['error'])}")
    if (others := len(holes["failed"]) - _SHOWN) > 0:
        said.append(f"failed: for {others} other reasons, see analysis.json")
    return said


def _run(run: dict[str, Any]) -> str:
    first, last = tuple(run["from"]), tuple(run["to"])
    return f"{first}" if first == last else f"{first} to {last}"


def _short(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
