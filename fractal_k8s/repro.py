"""What `repro` does: random points of a map are trained again elsewhere and compared bit for bit.

Elsewhere means in real worker processes, in shards of other sizes, in other places and with other
neighbours than the first time, in a folder that is thrown away afterwards. The sweep's own store
is only read.
"""

from __future__ import annotations

import json
import queue
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from fractal_k8s.aggregate import read_grid
from fractal_k8s.backends import Run, Work, open_backend
from fractal_k8s.backends.local import LocalBackend
from fractal_k8s.errors import IncompleteError, UsageError
from fractal_k8s.results.certificate import Repeat, compare
from fractal_k8s.results.golden import Golden, put_golden
from fractal_k8s.results.grid import FAILED, Grid
from fractal_k8s.results.outcome import State
from fractal_k8s.results.store import Store, SweepStore, is_copy
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt, Indexes, representatives
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.intervals import format_intervals

Order = Literal["coarse", "row-major"]

_STREAM: Final = 8
_READERS: Final = 32
# Ways of mixing the points that are tried; the one that moves most of them is taken.
_SHUFFLES: Final = 16


# --- which points ---


def sample_points(grid: Grid, number: int, seed: int) -> list[int]:
    """Indexes of at most `number` points that have a result, drawn at random.

    Diverged points are results; failed and missing ones are none. Points that share one experiment
    count as one.

    Raises:
        UsageError: there is none.
    """
    random = np.random.RandomState([seed, _STREAM])
    known = random.permutation(np.flatnonzero(grid.known))
    if not len(known):
        raise UsageError(f"{grid.sweep.id}: no point has a result to compare with")
    _, first = np.unique(representatives(grid.sweep)[known], return_index=True)
    return [int(index) for index in known[np.sort(first)][:number]]


def chosen_points(grid: Grid, places: Sequence[tuple[int, int]]) -> list[int]:
    """Indexes of the points (i, j) that were asked for.

    Raises:
        UsageError: the sweep does not have one, or it has no result; all of them are named.
    """
    sweep = grid.sweep
    problems: list[str] = []
    indexes: list[int] = []
    for i, j in dict.fromkeys(places):
        if not (0 <= i < sweep.rows and 0 <= j < sweep.columns):
            problems.append(f"({i}, {j}) is outside {sweep.rows} x {sweep.columns} points")
        elif not grid.known[i, j]:
            state = "has failed" if grid.states[i, j] == FAILED else "is missing"
            problems.append(f"({i}, {j}) {state} and cannot be compared")
        else:
            indexes.append(i * sweep.columns + j)
    if problems:
        raise UsageError(f"{sweep.id}: {'; '.join(problems)}")
    return indexes


# --- where they are trained again ---


@dataclass(frozen=True)
class Batch:
    """Points that one worker process trains again, in this order, as a shard of its own."""

    points: tuple[int, ...]
    order: Order = "coarse"
    # one point alone, besides the shards
    is_cold: bool = False
    # whether each point has another place than the first time; None = that is not known
    moved: tuple[bool | None, ...] = ()


def first_places(folder: SweepStore, sweep: Sweep, points: Sequence[int]) -> dict[int, int]:
    """Place of each point among the experiments of the attempt that trained it first.

    Points whose outcome was copied from another sweep have none.
    """
    owners, wanted = representatives(sweep), set(points)
    entries = [entry for entry in folder.outcome_entries() if not is_copy(entry)]

    def places(number: int) -> dict[int, int]:
        table = folder.read_outcomes(sweep, [entries[number]]).table
        i, j = (table.column(name).to_numpy().astype(np.int64) for name in ("i", "j"))
        order: dict[int, int] = {}
        return {
            int(index): order.setdefault(int(owners[index]), len(order))
            for index in i * sweep.columns + j
        }

    found: dict[int, int] = {}
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        for attempt in readers.map(places, range(len(entries))):
            for index in wanted & attempt.keys():
                found.setdefault(index, attempt[index])
    return found


def compose(
    sweep: Sweep, points: Sequence[int], first: Mapping[int, int], *, seed: int, cold: bool = False
) -> list[Batch]:
    """Two shards of unequal size, mixed so that as many points as possible change their place.

    One is trained in the sweep's own order and the other row by row, so that the points have other
    neighbours as well.

    Args:
        first: place where each point was trained first, as far as it is known.
        cold: add each point alone.
    """
    random = np.random.RandomState([seed, _STREAM, 1])
    small = len(points) * 2 // 5
    orders: tuple[Order, ...] = ("coarse", "row-major")
    turn_of = {order: ranks(sweep, order) for order in orders}

    def batch(part: Sequence[int], order: Order) -> Batch:
        turns = sorted(part, key=lambda point: int(turn_of[order][point]))
        moved = [first[p] != k if p in first else None for k, p in enumerate(turns)]
        return Batch(tuple(turns), order, moved=tuple(moved))

    def shards(mixed: list[int]) -> list[Batch]:
        parts = [batch(mixed[:small], "row-major"), batch(mixed[small:], "coarse")]
        return [part for part in parts if part.points]

    ways = [shards([int(p) for p in random.permutation(points)]) for _ in range(_SHUFFLES)]
    best = max(ways, key=lambda way: sum(part.moved.count(True) for part in way))
    return best + [Batch((point,), is_cold=True, moved=(None,)) for point in points if cold]


def ranks(sweep: Sweep, order: Order) -> Indexes:
    """When each point's experiment has its turn in that order, shape (points,)."""
    dealt = Dealt(sweep, Deal(order=order))
    turns = np.zeros(sweep.num_points, dtype=np.int64)
    turns[dealt.order] = np.arange(len(dealt.order))
    found: Indexes = turns[dealt.representatives]
    return found


def _plan_of(sweep: Sweep, batch: Batch) -> Plan:
    """The batch as the only shard of a deal."""
    positions = np.unique(ranks(sweep, batch.order)[list(batch.points)])
    only = format_intervals(positions)
    return Plan(sweep, Deal(order=batch.order, points_per_shard=len(positions), only=only))


def lay_down_classes(folder: SweepStore, grid: Grid, points: Sequence[int]) -> None:
    """What makes a worker compare its machine with the one that trained the points first."""
    for point in points:
        record = grid.record(*divmod(point, grid.sweep.columns))
        assert record is not None  # only points with a result are chosen
        numerics_class, text = record["numerics_class"], record["fingerprint"] or "{}"
        folder.claim_class(numerics_class)
        if golden := json.loads(text).get("golden"):
            put_golden(folder, numerics_class, Golden(golden, text))


def repeat_of(grid: Grid, again: Grid, point: int, **where: Any) -> Repeat:
    """What came of a point that was trained again.

    Args:
        where: the fields of `Repeat` that say where that was, but for the point itself.

    Raises:
        IncompleteError: it was not, or it failed.
    """
    i, j = divmod(point, grid.sweep.columns)
    before, after = grid.record(i, j), again.record(i, j)
    assert before is not None  # only points with a result are chosen
    if after is None or after["state"] == State.FAILED.value:
        reason = "stopped" if after is None else f"failed, {after['error']}"
        raise IncompleteError(f"point ({i}, {j}) was not trained again ({reason}); try again")
    return compare(before, after, i=i, j=j, **where)


class Retraining:
    """Batches of a map's points in worker processes of this machine.

    A worker whose numerics class is not that of the points refuses to train them, as does one that
    computes other bits in the golden steps.

    Args:
        grid: the map whose points they are.
        backend: "local", or "inline" to debug in this process.
        workers: how many processes at once; None = one per GPU, else one per core.
    """

    def __init__(
        self,
        grid: Grid,
        sweep: Sweep,
        batches: Sequence[Batch],
        *,
        backend: str = "local",
        workers: int | None = None,
        allow_mixed: bool = False,
    ) -> None:
        self.grid = grid
        self.sweep = sweep
        self.batches = batches
        self.allow_mixed = allow_mixed
        # is told which batch is done
        self.tell: Callable[[str], None] = lambda text: None
        self.backend = backend
        # the inline backend trains in this process, one point after another
        devices = [None] if backend == "inline" else LocalBackend(workers).devices[: len(batches)]
        self.workers = len(devices)
        self._free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for device in devices:
            self._free.put(device)
        self._runs: list[Run] = []
        self._cancelled = False

    def run(self) -> list[Repeat]:
        """Trains and compares everything; a `Repeat` per point and batch, in their order.

        Raises:
            UsageError: the workers could not or would not train here.
            IncompleteError: a point failed, or the run was cancelled.
        """
        with (
            tempfile.TemporaryDirectory(prefix="fractal-k8s-repro-") as place,
            ThreadPoolExecutor(max_workers=self.workers) as pool,
        ):
            futures = [
                pool.submit(self._train, number, batch, f"{place}/{number}")
                for number, batch in enumerate(self.batches)
            ]
            try:
                return [repeat for future in futures for repeat in future.result()]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if not self._cancelled:
                    self.cancel()
                raise

    def cancel(self) -> None:
        """Stops all workers; a second call does not wait for the points in work."""
        self._cancelled = True
        for run in list(self._runs):
            run.cancel()

    def _train(self, number: int, batch: Batch, place: str) -> list[Repeat]:
        folder, plan = Store(place).sweep(self.sweep.id), _plan_of(self.sweep, batch)
        lay_down_classes(folder, self.grid, batch.points)
        device = self._free.get()
        try:
            gpus = () if device is None else (device,)
            backend = open_backend(self.backend, workers=1, gpus=gpus)
            run = backend.submit(Work(folder, plan, allow_mixed=self.allow_mixed), lambda _: None)
            self._runs.append(run)
            if self._cancelled:  # while it was being submitted, when it could not be told yet
                run.cancel()
            status = run.wait()
        finally:
            self._free.put(device)
        again = read_grid(folder, plan, allow_mixed=True)
        if not len(again.table) and not self._cancelled:
            reason = status.failed.get(0, "the worker stored nothing")
            raise UsageError(f"the points cannot be trained again here: {reason}")
        repeats = [
            repeat_of(
                self.grid,
                again,
                point,
                shard=number,
                size=len(batch.points),
                place=turn,
                moved=batch.moved[turn],
                cold=batch.is_cold,
            )
            for turn, point in enumerate(batch.points)
        ]
        self.tell(f"shard {number} of {len(self.batches)}: {len(repeats)} trained again")
        return repeats
