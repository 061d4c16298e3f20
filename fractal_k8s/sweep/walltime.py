"""How long shards take on workers of which each takes the next shard when it is free."""

from __future__ import annotations

import heapq
import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fractal_k8s.sweep.deal import Indexes
from fractal_k8s.sweep.pace import Floats, Pace, chunk_steps

# Numbers of workers that a forecast compares, as far as there are points for them.
WORKER_COUNTS: Final = (1, 8, 64, 128, 512)


@dataclass(frozen=True)
class Wall:
    """A sweep on some number of workers."""

    workers: int
    # also the number of pods: each shard is one
    shards: int
    points_per_shard: int
    # how many shards the busiest worker trains
    rounds: int
    # until the last shard has ended, starts of the workers included
    wall_seconds: float
    # of all shards together: what is paid for
    worker_seconds: float
    # share of worker_seconds that goes into starting
    start_share: float
    # share of workers x wall_seconds in which a worker is at work; the rest is the last round's
    busy_share: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def shard_seconds(pace: Pace, made: Indexes, points_per_shard: int) -> Floats:
    """Seconds of each shard, its start included, shape (shards,).

    Args:
        made: steps of each experiment in the order in which they are dealt, shape (experiments,).
    """
    starts = np.arange(0, len(made), points_per_shard)
    counts = np.diff(np.append(starts, len(made)))
    seconds = pace.start_seconds + (pace.between + pace.per_point) * counts
    if pace.per_step:
        seconds = seconds + pace.per_step * chunk_steps(np.maximum(made, 1), starts, pace.lanes)
    return np.asarray(seconds, dtype=np.float64)


def makespan(seconds: Floats, workers: int) -> float:
    """When the last shard ends, if shards start in order and each worker takes the next one."""
    if len(seconds) <= workers:
        return float(seconds.max(initial=0.0))
    if np.ptp(seconds) == 0:
        return math.ceil(len(seconds) / workers) * float(seconds[0])
    free = seconds[:workers].tolist()
    heapq.heapify(free)
    for duration in seconds[workers:].tolist():
        heapq.heapreplace(free, free[0] + duration)
    return float(max(free))


def wall(pace: Pace, made: Indexes, workers: int, points_per_shard: int | None) -> Wall:
    """The sweep on so many workers; without a size of shards each worker gets one shard."""
    size = points_per_shard or max(1, -(-len(made) // workers))
    seconds = shard_seconds(pace, made, size)
    span, total = makespan(seconds, workers), float(seconds.sum())
    used = min(workers, len(seconds))
    return Wall(
        workers=workers,
        shards=len(seconds),
        points_per_shard=size,
        rounds=-(-len(seconds) // workers),
        wall_seconds=span,
        worker_seconds=total,
        start_share=len(seconds) * pace.start_seconds / total if total else 0.0,
        busy_share=total / (used * span) if span else 1.0,
    )
