"""What a sweep would take: points, steps, columns that cannot tell, time, cost and resources."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.sweep.axes import WARMUP
from fractal_k8s.sweep.deal import Deal, Dealt, Indexes, representatives
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.footprint import (
    FLUSH_SECONDS_REMOTE,
    api_calls,
    storage,
    store_requests,
    wandb_calls,
)
from fractal_k8s.sweep.memory import Shape, memory
from fractal_k8s.sweep.pace import Pace, expected_steps
from fractal_k8s.sweep.runs import Batching, batching, run_steps
from fractal_k8s.sweep.supply import DataFacts
from fractal_k8s.sweep.training import Training
from fractal_k8s.sweep.walltime import WORKER_COUNTS, Wall, wall

# An interval wider than a factor of 7 each way says nothing; its relative standard error.
_MAX_ERROR: Final = 1.0


@dataclass(frozen=True)
class Terms:
    """On what terms a sweep would run."""

    workers: int = 1
    # what a worker is: "GPU" or "core"
    worker_kind: str = "core"
    # distinct points of a shard; None = the points spread over the workers
    points_per_shard: int | None = None
    # of one worker, in USD
    price_per_hour: float | None = None
    # seconds between two writes of an attempt
    flush_seconds: float = FLUSH_SECONDS_REMOTE


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
    # the same without those after a run has ended early, as earlier runs did
    expected_steps: int | None
    # batch and warmup of a fine-tune; None for other models
    batching: Batching | None
    # what the data hold; None = not known, or made from the seed
    data: DataFacts | None
    # rows and columns whose points make one step, or so few that the window holds the first loss
    one_step_columns: list[int]
    few_step_columns: list[int]
    one_step_rows: list[int]
    few_step_rows: list[int]
    notes: list[str]
    terms: Terms
    # shards on those terms, also the number of pods
    shards: int
    # the timing model; None = unknown
    pace: Pace | None
    # at the chosen number of workers, and at others to compare; empty while the time is unknown
    wall: Wall | None
    walls: list[Wall]
    storage: dict[str, int] | None
    store_requests: dict[str, int]
    api_calls: dict[str, Any]
    memory: dict[str, Any] | None

    @property
    def worker_seconds(self) -> float | None:
        """Time of all workers together, starts included: what is paid for."""
        return None if self.wall is None else self.wall.worker_seconds

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `worker_seconds`; None where too little was measured for one."""
        if self.wall is None or self.pace is None or self.pace.error is None:
            return None
        if self.pace.error > _MAX_ERROR:
            return None
        factor = math.exp(1.96 * self.pace.error)
        return self.wall.worker_seconds / factor, self.wall.worker_seconds * factor

    @property
    def cost(self) -> float | None:
        price = self.terms.price_per_hour
        if self.worker_seconds is None or price is None:
            return None
        return self.worker_seconds / 3600 * price

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the keys of `plan --json`.

        name, points, distinct_points; steps [fewest, most], total_steps and expected_steps (those
        left when runs end early), None where they depend on the data; batch (rows, tokens and
        warmup_steps [fewest, most], part_rows) of a fine-tune, data (`DataFacts.to_dict`);
        one_step_*, few_step_* and notes: what the verdict cannot tell; workers, worker_kind,
        shards (= pods), points_per_index; worker_seconds (start-up included), worker_hours,
        interval (95 %, of worker_seconds), wall_seconds, by_workers (`Wall.to_dict` each),
        cost_usd, price_per_hour; timing (source, points, seconds_per_point, seconds_per_step,
        seconds_between_points, start_seconds, points_at_once, error); memory_bytes (of a worker),
        storage_bytes, store_requests, api_calls, wandb_calls by kind. What is not known is None.
        """
        wall_now = self.wall
        return {
            "name": self.sweep.name,
            "points": self.points,
            "distinct_points": self.distinct,
            "steps": list(self.steps) if self.steps else None,
            "total_steps": self.total_steps,
            "expected_steps": self.expected_steps,
            "batch": None if self.batching is None else asdict(self.batching),
            "data": None if self.data is None else self.data.to_dict(),
            "one_step_columns": self.one_step_columns,
            "few_step_columns": self.few_step_columns,
            "one_step_rows": self.one_step_rows,
            "few_step_rows": self.few_step_rows,
            "separable_values": self.sweep.separable_values(),
            "notes": self.notes,
            "workers": self.terms.workers,
            "worker_kind": self.terms.worker_kind,
            "shards": self.shards,
            "points_per_index": -(-self.distinct // self.shards),
            "worker_seconds": self.worker_seconds,
            "worker_hours": None if wall_now is None else wall_now.worker_seconds / 3600,
            "interval": list(self.interval) if self.interval else None,
            "wall_seconds": None if wall_now is None else wall_now.wall_seconds,
            "by_workers": [entry.to_dict() for entry in self.walls],
            "price_per_hour": self.terms.price_per_hour,
            "cost_usd": self.cost,
            "timing": None if self.pace is None else pace_dict(self.pace),
            "memory_bytes": self.memory,
            "storage_bytes": self.storage,
            "store_requests": self.store_requests,
            "api_calls": self.api_calls,
            "wandb_calls": wandb_calls(),
        }


def pace_dict(pace: Pace) -> dict[str, Any]:
    """The timing model as plain data, without its sample."""
    return {
        "source": pace.source,
        "points": pace.points,
        "seconds_per_point": pace.per_point,
        "seconds_per_step": pace.per_step,
        "seconds_between_points": pace.between,
        "start_seconds": pace.start_seconds,
        "points_at_once": pace.lanes,
        "error": pace.error,
    }


def forecast(
    sweep: Sweep,
    pace: Pace | None = None,
    terms: Terms | None = None,
    *,
    shape: Shape | None = None,
    data: DataFacts | None = None,
) -> Forecast:
    """What the sweep would take.

    Args:
        pace: the timing model; None = not known, and then there are no times.
        shape: the model that is fine-tuned, for the memory of a worker.
        data: what its data hold, for what depends on them.
    """
    terms = terms or Terms()
    owners = representatives(sweep)
    distinct = owners == np.arange(sweep.num_points)
    count = int(distinct.sum())
    grid = run_steps(sweep, data)
    planned = None if grid is None else grid.ravel()
    made = expected_steps(sweep, planned, pace.sample if pace else None)
    walls = _walls(sweep, pace, made, terms, count)
    size = terms.points_per_shard or max(1, -(-count // terms.workers))
    shards = -(-count // size)
    now = walls.get(terms.workers)
    affected = _affected(sweep, grid)
    notes = _notes(sweep, grid, affected) + _warmup_notes(sweep, owners)
    return Forecast(
        sweep=sweep,
        points=sweep.num_points,
        distinct=count,
        steps=None if grid is None else (int(grid.min()), int(grid.max())),
        total_steps=None if planned is None else int(planned[distinct].sum()),
        expected_steps=None if made is None else int(made[distinct].sum()),
        batching=batching(sweep, grid),
        data=data,
        **affected,
        notes=notes + ([] if data is None else data.notes(sweep.training)),
        terms=terms,
        shards=shards,
        pace=pace,
        wall=now,
        walls=[walls[workers] for workers in sorted(walls)],
        storage=storage(
            sweep.num_points, None if made is None else int(made[owners].sum()), shards
        ),
        store_requests=store_requests(
            shards, size, now.worker_seconds / shards if now else None, terms.flush_seconds
        ),
        api_calls=api_calls(shards, now.wall_seconds if now else None),
        memory=memory(_largest_step(sweep), shape, pace.lanes if pace and pace.lanes > 1 else None),
    )


def _walls(
    sweep: Sweep, pace: Pace | None, made: Indexes | None, terms: Terms, count: int
) -> dict[int, Wall]:
    """The sweep at the chosen and at other numbers of workers, by that number."""
    if pace is None or (made is None and pace.per_step):
        return {}
    order = Dealt(sweep, Deal()).order
    dealt = np.ones(len(order), dtype=np.int64) if made is None else made[order]
    numbers = {terms.workers, *(number for number in WORKER_COUNTS if number <= count)}
    return {number: wall(pace, dealt, number, terms.points_per_shard) for number in numbers}


def _largest_step(sweep: Sweep) -> Training:
    """The training config of the run whose steps have most rows."""
    made_of = batching(sweep, None)
    if made_of is None:
        return sweep.training
    return sweep.training.model_copy(update={"batch_size": made_of.rows[1]})


def planned_steps(sweep: Sweep) -> Indexes:
    """Steps of each point that does not end early, shape (points,); 0 if they depend on data."""
    grid = run_steps(sweep)
    if grid is None:
        return np.zeros(sweep.num_points, dtype=np.int64)
    return grid.ravel().astype(np.int64)


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


def _warmup_notes(sweep: Sweep, owners: Indexes) -> list[str]:
    """Rows or columns of a warmup axis that have as many warmup steps as another.

    Args:
        owners: from `representatives`.
    """
    own = (owners == np.arange(sweep.num_points)).reshape(sweep.rows, sweep.columns)
    notes = []
    for kind, knob, across in (("columns", sweep.x_knob, 0), ("rows", sweep.y_knob, 1)):
        differ = own.any(axis=across)
        if knob.affects == WARMUP and not differ.all():
            notes.append(
                f"{differ.sum()} of {len(differ)} {kind} differ: a warmup is made of whole steps"
            )
    return notes
