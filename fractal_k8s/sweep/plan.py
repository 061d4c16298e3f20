"""What a sweep would take: points, steps, columns that cannot tell, time and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_k8s.sweep.axes import STEPS
from fractal_k8s.sweep.deal import representatives
from fractal_k8s.sweep.definition import Sweep


@dataclass(frozen=True)
class Forecast:
    """The forecast of one sweep."""

    sweep: Sweep
    points: int
    # experiments that differ: what is trained
    distinct: int
    # fewest and most steps of a point; None where they depend on the data
    steps: tuple[int, int] | None
    # steps of all distinct points together
    total_steps: int | None
    # rows and columns whose points make one step, or so few that the window holds the first loss
    one_step_columns: list[int]
    few_step_columns: list[int]
    one_step_rows: list[int]
    few_step_rows: list[int]
    notes: list[str]
    # training time of one worker doing everything, seconds; None if unknown
    worker_seconds: float | None
    workers: int
    cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the keys of `plan --json`."""
        return {
            "name": self.sweep.name,
            "points": self.points,
            "distinct_points": self.distinct,
            "steps": list(self.steps) if self.steps else None,
            "total_steps": self.total_steps,
            "one_step_columns": self.one_step_columns,
            "few_step_columns": self.few_step_columns,
            "one_step_rows": self.one_step_rows,
            "few_step_rows": self.few_step_rows,
            "notes": self.notes,
            "worker_seconds": self.worker_seconds,
            "wall_seconds": self.worker_seconds / self.workers if self.worker_seconds else None,
            "workers": self.workers,
            "cost_usd": self.cost,
        }


def forecast(
    sweep: Sweep,
    *,
    seconds_per_point: float | None = None,
    seconds_per_step: float | None = None,
    workers: int = 1,
    price_per_hour: float | None = None,
) -> Forecast:
    """What the sweep would take.

    Args:
        seconds_per_point: training time of a point, whatever its steps.
        seconds_per_step: training time of a step; used without `seconds_per_point`.
        workers: GPUs or cores that train at once.
        price_per_hour: of one worker, in USD.
    """
    owners = representatives(sweep)
    distinct = owners == np.arange(sweep.num_points)
    grid = _steps(sweep)
    total = None if grid is None else int(grid.ravel()[distinct].sum())
    seconds = None
    if seconds_per_point is not None:
        seconds = seconds_per_point * int(distinct.sum())
    elif seconds_per_step is not None and total is not None:
        seconds = seconds_per_step * total
    affected = _affected(sweep, grid)
    return Forecast(
        sweep=sweep,
        points=sweep.num_points,
        distinct=int(distinct.sum()),
        steps=None if grid is None else (int(grid.min()), int(grid.max())),
        total_steps=total,
        **affected,
        notes=_notes(sweep, grid, affected),
        worker_seconds=seconds,
        workers=workers,
        cost=None if seconds is None or price_per_hour is None else seconds / 3600 * price_per_hour,
    )


def _steps(sweep: Sweep) -> npt.NDArray[np.int64] | None:
    """Steps of each point, shape (rows, columns); None where they depend on the data."""
    if sweep.training.num_steps() is None:
        return None
    by_row = [_count(sweep, sweep.y_knob.turn(sweep.training, value)) for value in sweep.y_values]
    by_column = [
        _count(sweep, sweep.x_knob.turn(sweep.training, value)) for value in sweep.x_values
    ]
    if sweep.x_knob.affects == STEPS:
        return np.broadcast_to(np.array(by_column), (sweep.rows, sweep.columns))
    return np.broadcast_to(np.array(by_row)[:, None], (sweep.rows, sweep.columns))


def _count(sweep: Sweep, training: Any) -> int:
    steps = training.num_steps()
    assert steps is not None  # the sweep's own config has a number of steps, so has this one
    return int(steps)


def _affected(sweep: Sweep, grid: npt.NDArray[np.int64] | None) -> dict[str, list[int]]:
    """Rows and columns all of whose points make one step, or at most the window's."""
    empty = np.zeros((sweep.rows, sweep.columns), dtype=bool)
    window = sweep.verdict.window if sweep.verdict.rule == "ratio" else 0
    one = empty if grid is None else (grid == 1) & (window > 0)
    few = empty if grid is None else grid <= window
    return {
        "one_step_columns": np.flatnonzero(one.all(axis=0)).tolist(),
        "few_step_columns": np.flatnonzero(few.all(axis=0)).tolist(),
        "one_step_rows": np.flatnonzero(one.all(axis=1)).tolist(),
        "few_step_rows": np.flatnonzero(few.all(axis=1)).tolist(),
    }


def _notes(
    sweep: Sweep, grid: npt.NDArray[np.int64] | None, affected: dict[str, list[int]]
) -> list[str]:
    if grid is None:
        return []
    window = sweep.verdict.window
    notes = []
    for kind, total in (("columns", sweep.columns), ("rows", sweep.rows)):
        one, few = affected[f"one_step_{kind}"], affected[f"few_step_{kind}"]
        if one:
            notes.append(
                f"{len(one)} of {total} {kind} make a single step: their ratio is exactly 1 and "
                "their verdict always 'not trainable'"
            )
        if few:
            notes.append(
                f"{len(few)} of {total} {kind} make at most {window} steps, so the verdict's "
                f"window of {window} losses holds the first loss; give more tokens or a smaller "
                "verdict.window"
            )
        if len(few) == total:
            break  # the other direction would say the same
    return notes
