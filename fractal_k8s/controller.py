"""What `launch` and `resume` do: check everything, train what is missing, make the picture.

And what `plan --probe` does: train a few points to see how long they take.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fractal_k8s.aggregate import Aggregation, aggregate, read_grid
from fractal_k8s.backends import Backend, Run, Status, Work
from fractal_k8s.backends.local import LocalBackend
from fractal_k8s.environ import prepare_environment
from fractal_k8s.errors import IncompleteError, RetryError, StoreError, UsageError
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.ledger import NOTE, for_share, predict, record_launch
from fractal_k8s.results.lock import SweepLock
from fractal_k8s.results.reuse import adopt_outcomes
from fractal_k8s.results.sources import check_sources
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.results.timings import read_attempts
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import (
    Deal,
    Dealt,
    Indexes,
    coarse_to_fine,
    representatives,
)
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.footprint import upper_bytes
from fractal_k8s.sweep.intervals import format_intervals
from fractal_k8s.sweep.pace import Measured, Pace, fit
from fractal_k8s.sweep.plan import Terms
from fractal_k8s.sweep.supply import DataFacts, refuse_repeats
from fractal_k8s.worker import PointEvent


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
    # what it is forecast to take (`results.ledger.predicted`), and a worker's price, for the ledger
    prediction: dict[str, Any] | None = None
    price_per_hour: float | None = None
    # train although pods of a cluster seem to train it
    beside_pods: bool = False
    # take over what other members of the sweep's family have stored of it
    reuse: bool = True
    # what its data hold; None where they are made from its seed
    data: DataFacts | None = None
    # the sweep with its files where they lie here, if it is not tied to their content
    placed: Sweep | None = None

    @property
    def plan(self) -> Plan:
        return Plan(self.sweep, Deal())


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pin(sweep: Sweep, tell: Callable[[str], None] = _to_stderr) -> tuple[Sweep, DataFacts | None]:
    """The sweep tied to the content of its files, after checking that it can be trained with them.

    Also what its data hold; None where they are made from its seed. A model that this machine does
    not have is made or fetched first, if the sweep says how (`train.pretrained.provide_for`).

    Args:
        tell: gets lines of progress of that.

    Raises:
        FractalError: files are missing, damaged, or do not fit together.
    """
    if sweep.model != "gpt":
        return sweep, None
    prepare_environment()  # a model's bytes must not depend on the shell that launched
    from fractal_k8s.train.depth import verified
    from fractal_k8s.train.environment import training_device
    from fractal_k8s.train.gpt import check_execution
    from fractal_k8s.train.pretrained import provide_for

    check_execution(sweep, training_device())
    return verified(provide_for(sweep, tell))


def prepare(
    sweep: Sweep,
    store: Store,
    *,
    workers: int,
    points_per_shard: int | None = None,
    allow_mixed: bool = False,
    launched: Sweep | None = None,
) -> Launch:
    """Checks a sweep against its files and the store. Writes nothing.

    Args:
        launched: the stored sweep that this one is, with its files where they lie here. One that
            was launched without knowing their content keeps its id.

    Raises:
        FractalError: anything that would make the launch fail.
    """
    placed = None
    tied, data = pin(sweep)
    if launched is not None and launched.unknown_files:
        spec = tied.spec
        own = {"checkpoint": spec.checkpoint_digest or "", "dataset": spec.dataset_digest or ""}
        check_sources(store.sweep(launched.id), launched, sweep, own)
        sweep, placed = launched, sweep
    else:
        sweep = tied
    folder = store.sweep(sweep.id)
    stored = folder.read_plan()  # a damaged or foreign sweep.json is refused here
    if stored is not None and not allow_mixed:
        _refuse_other_ways(sweep, stored.sweep)
    grid = read_grid(folder, Plan(sweep, Deal()), allow_mixed=allow_mixed)
    missing = ~grid.known.ravel()
    _check_space(store, sweep, int(missing.sum()))
    left = _experiments(sweep, missing)
    return Launch(
        folder,
        sweep,
        workers,
        points_per_shard,
        allow_mixed,
        left,
        data=data,
        placed=placed,
    )


def _refuse_other_ways(asked: Sweep, stored: Sweep) -> None:
    """Refuses what would run the steps of a stored sweep in another way: two numerics classes."""
    for key in ("packing", "execution"):
        ours, theirs = (getattr(sweep.training, key, None) for sweep in (asked, stored))
        if ours != theirs:
            raise UsageError(
                f"{stored.id} is stored with training.{key} = {theirs!r} and this asks for "
                f"{ours!r}, which is another numerics class; choose another --store or --name, or "
                f"give --set training.{key}={theirs}"
            )


def _experiments(sweep: Sweep, points: npt.NDArray[np.bool_]) -> int:
    """How many different experiments some points are."""
    return int(np.unique(representatives(sweep)[points.ravel()]).size)


def check_supply(launch: Launch) -> None:
    """Refuses a new sweep some of whose runs would see rows of the data again, unless it says so.

    What is stored already, and what is made from that, may go on as it began.

    Raises:
        UsageError: with how often the rows would be seen.
    """
    if launch.data is not None and launch.folder.read_plan() is None:
        refuse_repeats(launch.sweep, launch.data)


def foretell(launch: Launch, store: Store, price_per_hour: float | None) -> Launch:
    """The launch with what it will probably take, unless the ledger has a forecast already."""
    if NOTE in launch.folder.notes([]):
        return replace(launch, price_per_hour=price_per_hour)
    terms = Terms(workers=launch.workers, points_per_shard=launch.points_per_shard)
    prediction = predict(launch.sweep, store, terms)
    return replace(launch, prediction=prediction, price_per_hour=price_per_hour)


def deal_missing(launch: Launch, grid: Grid) -> Deal:
    """The shards of what a grid lacks; of everything if it lacks everything."""
    dealt = Dealt(launch.sweep, Deal())
    missing = ~grid.known.ravel()
    count = _experiments(launch.sweep, missing)
    size = launch.points_per_shard or max(1, -(-count // launch.workers))
    partial = count < dealt.num_distinct
    return Deal(points_per_shard=size, only=dealt.only_missing(missing) if partial else None)


def _check_space(store: Store, sweep: Sweep, points: int) -> None:
    """Refuses to start what the disk cannot hold."""
    if not isinstance(store.files, LocalFiles):
        return
    corners = (0, sweep.columns - 1, sweep.num_points - 1)
    steps = max(sweep.training_at(sweep.point(index)).num_steps() or 0 for index in corners)
    needed = upper_bytes(points, steps)
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
    if launch.data is not None:
        folder.put_note("data", launch.data.to_dict())
    with SweepLock(folder, None if launch.beside_pods else sweep) as lock:
        if isinstance(folder.files, LocalFiles):
            folder.files.remove_leftovers(folder.key())
        # read again under the lock: what another launch has finished meanwhile is not trained twice
        grid = read_grid(folder, launch.plan, allow_mixed=launch.allow_mixed)
        share = 1.0
        asked = Work(folder, launch.plan, placed=launch.placed)
        if launch.reuse and adopt_outcomes(
            folder, launch.plan, ~grid.known, lambda: backend.numerics_class(asked)
        ):
            before = _experiments(sweep, ~grid.known)
            grid = read_grid(folder, launch.plan, allow_mixed=launch.allow_mixed)
            share = _experiments(sweep, ~grid.known) / before
        plan = Plan(sweep, deal_missing(launch, grid))
        inherited = () if lock.handle is None else (lock.handle,)
        work = Work(
            folder,
            plan,
            allow_mixed=launch.allow_mixed,
            inherited=inherited,
            placed=launch.placed,
        )
        record_launch(
            folder,
            for_share(launch.prediction, share),
            workers=launch.workers,
            shards=work.num_shards,
            price_per_hour=launch.price_per_hour,
        )
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


# --- probe ---


def probe(sweep: Sweep, store: Store | None, points: int) -> Pace:
    """Times a few points of a sweep in a child process of this machine, as a launch would run them.

    Where many points are trained as one program, as many as fill it are timed instead: a point
    costs its share of a full chunk, and a chunk with one point in it takes as long as a full one.

    Args:
        store: where the outcomes are kept as ordinary outcomes; None = nowhere.
        points: how many; never more than the sweep has.

    Raises:
        FractalError: the sweep cannot be trained here.
    """
    sweep, _ = pin(sweep)
    with tempfile.TemporaryDirectory(prefix="fractal-k8s-probe-") as place:
        folder = (store or Store(place)).sweep(sweep.id)
        folder.read_plan()  # a damaged or foreign sweep.json is refused here
        with SweepLock(folder) as lock:
            inherited = () if lock.handle is None else (lock.handle,)
            measured = _time_points(folder, sweep, points, inherited)
            if measured and measured.lanes > 1:
                measured = _time_points(folder, sweep, measured.lanes, inherited) or measured
    pace = fit([measured], "a probe of this machine") if measured else None
    if pace is None:
        raise UsageError(
            f"{sweep.id}: every point is stored already, none is left to probe; plan without "
            "--probe uses their times"
        )
    return pace


def _time_points(
    folder: SweepStore, sweep: Sweep, points: int, inherited: tuple[int, ...]
) -> Measured | None:
    """Trains the first `points` of the probe points that are missing; None if none is.

    What the child process did besides training counts as start-up.
    """
    order, missing = probe_points(sweep), ~read_grid(folder, Plan(sweep, Deal())).known.ravel()
    chosen = order[missing[order]][:points]
    if not len(chosen):
        return None
    positions = np.flatnonzero(np.isin(Dealt(sweep, Deal()).order, chosen))
    deal = Deal(points_per_shard=len(chosen), only=format_intervals(positions))
    before = {entry.key for entry in folder.outcome_entries()}
    began = time.monotonic()
    run = LocalBackend(workers=1).submit(
        Work(folder, Plan(sweep, deal), inherited=inherited), lambda event: None
    )
    status = run.wait()
    seconds = time.monotonic() - began
    if status.failed:
        raise RetryError(f"{sweep.id}: the probe could not train: {status.failed[0]}")
    entries = [entry for entry in folder.outcome_entries() if entry.key not in before]
    _, timed = read_attempts(folder, sweep, entries)[0]
    training = max(timed.span_seconds, float(timed.seconds.sum()))
    return replace(timed, start_seconds=max(0.0, seconds - training))


def probe_points(sweep: Sweep) -> Indexes:
    """Distinct experiments in the order in which a probe takes them, shape (experiments,).

    Corners, centre and middles of the sides come first, then ever finer lattices.
    """
    rows = np.array([0, sweep.rows - 1, (sweep.rows - 1) // 2])
    columns = np.array([0, sweep.columns - 1, (sweep.columns - 1) // 2])
    frame = (rows[:, None] * sweep.columns + columns[None, :])[
        [2, 0, 0, 1, 1, 0, 1, 2, 2], [2, 0, 1, 0, 1, 2, 2, 0, 1]
    ]
    order = np.concatenate([frame, coarse_to_fine(sweep.rows, sweep.columns)])
    owners = representatives(sweep)[order]
    _, first = np.unique(owners, return_index=True)
    distinct: Indexes = owners[np.sort(first)]
    return distinct
