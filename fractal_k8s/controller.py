"""What `launch` and `resume` do: check everything, train what is missing, make the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fractal_k8s.aggregate import Aggregation, aggregate, read_grid
from fractal_k8s.backends import Backend, Run, Status, Work
from fractal_k8s.errors import IncompleteError, StoreError
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.lock import SweepLock
from fractal_k8s.results.store import Plan, Store, SweepStore
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.worker import PointEvent

# A row without its losses, roughly, and the log line that goes with it.
_ROW_BYTES: Final = 420
_LOSS_BYTES: Final = 4


class Display(Protocol):
    """What shows a sweep's progress to a person."""

    def begin(self, sweep: Sweep, states: npt.NDArray[np.uint8], workers: int) -> None: ...
    def point(self, event: PointEvent) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Launch:
    """A launch that was checked and may start."""

    folder: SweepStore
    sweep: Sweep
    # how many shards run at once
    workers: int
    # distinct points of a shard; None = the missing ones spread over the workers
    points_per_shard: int | None
    # accept points of several numerics classes as one map
    allow_mixed: bool
    # how many experiments were missing when it was checked
    missing: int

    @property
    def plan(self) -> Plan:
        return Plan(self.sweep, Deal())


def pin(sweep: Sweep) -> Sweep:
    """The sweep tied to the content of its files, after checking that it can be trained with them.

    Raises:
        FractalError: files are missing, damaged, or do not fit together.
    """
    if sweep.model == "mlp":
        return sweep
    from fractal_k8s.train.gpt import load_materials

    materials = load_materials(sweep)
    return sweep.pinned(
        checkpoint_digest=materials.checkpoint_digest, dataset_digest=materials.dataset_digest
    )


def prepare(
    sweep: Sweep,
    store: Store,
    *,
    workers: int,
    points_per_shard: int | None = None,
    allow_mixed: bool = False,
) -> Launch:
    """Checks a sweep against its files and the store. Writes nothing.

    Raises:
        FractalError: anything that would make the launch fail.
    """
    sweep = pin(sweep)
    folder = store.sweep(sweep.id)
    folder.read_plan()  # a damaged or foreign sweep.json is refused here
    grid = read_grid(folder, Plan(sweep, Deal()), allow_mixed=allow_mixed)
    missing = ~grid.known.ravel()
    _check_space(store, sweep, int(missing.sum()))
    experiments = np.unique(Dealt(sweep, Deal()).representatives[missing]).size
    return Launch(folder, sweep, workers, points_per_shard, allow_mixed, int(experiments))


def deal_missing(launch: Launch, grid: Grid) -> Deal:
    """The shards of what a grid lacks; of everything if it lacks everything."""
    dealt = Dealt(launch.sweep, Deal())
    missing = ~grid.known.ravel()
    count = np.unique(dealt.representatives[missing]).size
    size = launch.points_per_shard or max(1, -(-count // launch.workers))
    partial = count < dealt.num_distinct
    return Deal(points_per_shard=size, only=dealt.only_missing(missing) if partial else None)


def _check_space(store: Store, sweep: Sweep, points: int) -> None:
    """Refuses to start what the disk cannot hold."""
    if not isinstance(store.files, LocalFiles):
        return
    corners = (0, sweep.columns - 1, sweep.num_points - 1)
    steps = max(sweep.training_at(sweep.point(index)).num_steps() or 0 for index in corners)
    needed = points * (_ROW_BYTES + _LOSS_BYTES * steps)
    free = store.files.free_bytes()
    if needed > free:
        raise StoreError(
            f"{sweep.id} needs about {needed / 1e6:,.1f} MB in {store.uri}, "
            f"where {free / 1e6:,.1f} MB are free; free some space or choose another --store"
        )


def train(
    launch: Launch,
    backend: Backend,
    display: Display,
    *,
    started: Callable[[Run], None] = lambda run: None,
) -> Status:
    """Trains what is missing; returns when every shard has ended.

    Args:
        started: is given the run, for a signal handler that may want to cancel it.

    Raises:
        ConflictError: another process trains this sweep, or the store holds another one.
        FractalError: something that is wrong for every shard.
    """
    folder, sweep = launch.folder, launch.sweep
    folder.write_plan(launch.plan)
    with SweepLock(folder) as lock:
        if isinstance(folder.files, LocalFiles):
            folder.files.remove_leftovers(folder.key())
        # read again under the lock: what another launch has finished meanwhile is not trained twice
        grid = read_grid(folder, launch.plan, allow_mixed=launch.allow_mixed)
        plan = Plan(sweep, deal_missing(launch, grid))
        inherited = () if lock.handle is None else (lock.handle,)
        work = Work(folder, plan, allow_mixed=launch.allow_mixed, inherited=inherited)
        run = backend.submit(work, display.point)
        display.begin(sweep, grid.states, launch.workers)
        try:
            started(run)
            return run.wait()
        finally:
            display.end()


def finish(launch: Launch, status: Status) -> Aggregation:
    """The picture of what is there now.

    Raises:
        StoreError: the store cannot be written any more.
        IncompleteError: points are missing or failed; the summary was written all the same.
    """
    done = aggregate(launch.folder, launch.plan, allow_mixed=launch.allow_mixed)
    if done.summary["complete"]:
        return done
    counts = done.summary["counts"]
    reasons = "; ".join(sorted(set(status.failed.values())))
    raise IncompleteError(
        f"{launch.sweep.id}: {counts['missing']} points are missing and {counts['failed']} failed"
        + (f" ({reasons})" if reasons else "")
        + f"; continue with: {launch.folder.command('resume')}"
    )
