"""What `repro` does with a cluster: a Job of its own trains points again. repro.py's twin.

Its pods write into a store of their own below the sweep, with what was asked for as a note:

    <store>/<sweep-id>/repro/<place>/<sweep-id>/...

Nothing there is ever read as an outcome of the sweep. The Job's name follows from what was asked
for, so that the same command finds the Job that it has sent before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from fractal_k8s.aggregate import read_grid
from fractal_k8s.backends.kube.jobs import SweepJob, jobs_of, plan_of
from fractal_k8s.backends.kube.preflight import preflight
from fractal_k8s.backends.kube.send import kubectl, send
from fractal_k8s.backends.kube.steer import cancel
from fractal_k8s.buckets import below
from fractal_k8s.dispatch import Found, read_map
from fractal_k8s.errors import (
    ClusterError,
    CorruptError,
    FractalError,
    StoreError,
    SweepError,
    UnrepeatableError,
)
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.limits import MOST_CHARACTERS
from fractal_k8s.manifest.render import Manifest, render
from fractal_k8s.manifest.settings import JobSettings
from fractal_k8s.repro import (
    Order,
    chosen_points,
    first_places,
    lay_down_classes,
    ranks,
    repeat_of,
    sample_points,
)
from fractal_k8s.results.certificate import Repeat
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.intervals import format_intervals

_FOLDER: Final = "repro"
# kind of the note with what was asked for
_NOTE: Final = "repro"
# points of a shard, where there are enough: a pod loads the weights for them
_FEWEST: Final = 8
# shards that are one or two points larger may move more points
_SIZES: Final = 3
# nodes that a Job names
_MOST_NODES: Final = 100
# of a pod's host name, behind the name of its Job
_INDEX_CHARACTERS: Final = 7
_ORDERS: Final[tuple[Order, ...]] = ("row-major", "coarse")


@dataclass(frozen=True)
class Wish:
    """What is asked for: the same wish finds its Job."""

    # how many random points, and which sample of them
    sample: int
    seed: int
    # these points (i, j) instead, if there are any
    places: tuple[tuple[int, int], ...]
    # None = chosen from the number of workers
    points_per_index: int | None
    # what options say of the Job, as plain data
    options: Mapping[str, Any]

    def job_name(self, sweep_id: str) -> str:
        """As much of the sweep's id as fits, and a hash of the whole."""
        text = json.dumps([sweep_id, asdict(self)], sort_keys=True, default=str)
        end = f"-{labels.REPRO}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return sweep_id[: MOST_CHARACTERS - _INDEX_CHARACTERS - len(end)].rstrip("-") + end


@dataclass(frozen=True)
class Rerun:
    """Points of a map, and the Job that trains them again."""

    # the sweep's own, and its map
    folder: SweepStore
    grid: Grid
    # where the Job writes, and what its workers are given
    place: SweepStore
    plan: Plan
    job: SweepJob
    # False = it was there already
    is_new: bool
    points: tuple[int, ...]
    # where each was trained first, as `repro.first_places` tells
    first: Mapping[int, int]
    notes: tuple[str, ...] = ()


# --- the Job ---


def take_up(found: Found, wish: Wish) -> Rerun:
    """The Job that trains the points again: that of an earlier call, or a new one.

    A Job that has failed is followed by another one in its place, which trains what is left.

    Raises:
        FractalError: the map cannot be read from here, a point cannot be compared, or a cluster
            could not run the Job; nothing was created.
    """
    folder, grid = read_map(found)
    name = wish.job_name(folder.sweep_id)
    standing = [
        job
        for job in jobs_of(found.cluster, folder.sweep_id, component=labels.REPRO)
        if job.name == name and not job.is_going
    ]
    if not standing:
        return _send_new(found, wish, folder, grid)
    if standing[0].condition("Failed") is None:
        return _taken_up(found, standing[0], folder, grid)
    return _send_again(found, wish, standing[0], folder, grid)


def _send_new(found: Found, wish: Wish, folder: SweepStore, grid: Grid) -> Rerun:
    sweep, settings = found.plan.sweep, found.settings
    points = (
        chosen_points(grid, wish.places)
        if wish.places
        else sample_points(grid, wish.sample, wish.seed)
    )
    first = first_places(folder, sweep, points)
    slots = settings.parallelism * settings.processes
    deal = deal_elsewhere(sweep, points, first, slots=slots, size=wish.points_per_index)
    plan, name = Plan(sweep, deal), wish.job_name(sweep.id)
    below_sweep = (sweep.id, _FOLDER, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}")
    own = settings.model_copy(
        update={
            "store": settings.store and below(settings.store, *below_sweep),
            "client_store": below(folder.files.uri, *below_sweep),
            # what is compared is shown nowhere else
            "aggregator": False,
            "wandb_mode": "off",
        }
    )
    manifest, notes = _checked(found, plan, own, name, _nodes(grid, points))
    place = _place(own.client_store, sweep.id)
    try:
        lay_down_classes(place, grid, points)
        if claimed := folder.claimed_files():
            place.claim_files(claimed)
        firsts = [first.get(point) for point in points]
        place.put_note(_NOTE, {"points": points, "first_places": firsts})
        sent = send(found.cluster, manifest)
        if sent.is_new:
            notes += sent.notes
            return Rerun(folder, grid, place, plan, sent.job, True, tuple(points), first, notes)
    except FractalError:
        with contextlib.suppress(StoreError):  # the first error counts
            folder.files.remove("/".join(below_sweep))
        raise
    # somebody else has given the same command at the same time
    folder.files.remove("/".join(below_sweep))
    return _taken_up(found, sent.job, folder, grid)


def _send_again(found: Found, wish: Wish, job: SweepJob, folder: SweepStore, grid: Grid) -> Rerun:
    """Another Job in the place of one that has failed."""
    try:
        failed = _taken_up(found, job, folder, grid)
    except (ClusterError, CorruptError):  # its ConfigMap or its place is gone
        cancel(found.cluster, [job])
        return _send_new(found, wish, folder, grid)
    update = {
        "store": job.annotation(labels.STORE),
        "client_store": job.annotation(labels.CLIENT_STORE),
        "aggregator": False,
        "wandb_mode": "off",
    }
    settings = found.settings.model_copy(update=update)
    avoid = _nodes(grid, failed.points)
    manifest, notes = _checked(found, failed.plan, settings, job.name, avoid)
    cancel(found.cluster, [job])
    sent = send(found.cluster, manifest)
    return replace(failed, job=sent.job, is_new=sent.is_new, notes=(*notes, *sent.notes))


def _taken_up(found: Found, job: SweepJob, folder: SweepStore, grid: Grid) -> Rerun:
    """A Job of an earlier call.

    Raises:
        ClusterError: its ConfigMap is gone.
        CorruptError: what was asked for is not in its place any more.
    """
    plan = plan_of(found.cluster, job)
    place = _place(job.annotation(labels.CLIENT_STORE), folder.sweep_id)
    note = place.notes([]).get(_NOTE, {})
    try:
        points = tuple(int(point) for point in note["points"])
        firsts = zip(points, note["first_places"], strict=True)
        first = {point: int(turn) for point, turn in firsts if turn is not None}
    except (KeyError, TypeError, ValueError):
        raise CorruptError(
            f"{place.where('notes')}: what the Job {job.name} was sent for is gone; delete it: "
            f"{kubectl(found.cluster)} delete job {job.name}"
        ) from None
    return Rerun(folder, grid, place, plan, job, False, points, first)


def _place(uri: str | None, sweep_id: str) -> SweepStore:
    """Where a Job writes, as this machine reaches it."""
    return Store(uri or "").sweep(sweep_id)


def _checked(
    found: Found, plan: Plan, settings: JobSettings, name: str, avoid: Mapping[str, int]
) -> tuple[Manifest, tuple[str, ...]]:
    """What is sent, after a look at everything that it needs; and what is to be said of it.

    Raises:
        SweepError: everything that a cluster, and this one, would not accept.
    """
    problems: list[str] = []
    manifest: Manifest | None = None
    try:
        manifest = render(plan, settings, name=name, component=labels.REPRO, avoid=avoid)
    except SweepError as error:
        problems += error.problems
    looked = preflight(found.cluster, settings, plan.sweep, command="repro")
    problems += looked.problems
    if problems or manifest is None:
        where = f"points of {plan.sweep.id} cannot be trained again on {found.cluster.context}"
        raise SweepError(problems, source=where)
    return manifest, tuple(looked.notes)


# --- which shard and place ---


def deal_elsewhere(
    sweep: Sweep,
    points: Sequence[int],
    first: Mapping[int, int],
    *,
    slots: int,
    size: int | None = None,
) -> Deal:
    """Some points as shards, so that as many as possible have another place than the first time.

    Row by row, if that is as good as the usual order: then they have other neighbours as well.

    Args:
        first: place where each was trained first, as far as it is known.
        slots: shards that are trained at once.
        size: points of a shard; None = enough to be worth a pod, and two shards at least.
    """
    half = -(-len(points) // 2)
    least = size or min(half, max(_FEWEST, -(-len(points) // slots)))
    sizes = [size] if size else range(least, min(half, least + _SIZES - 1) + 1)
    ways = []
    for order in _ORDERS:
        only = format_intervals(np.unique(ranks(sweep, order)[list(points)]))
        ways += [Deal(order=order, points_per_shard=count, only=only) for count in sizes]

    def moved(deal: Deal) -> int:
        turns = turns_of(Plan(sweep, deal), points)
        return sum(first.get(turn.point, turn.place) != turn.place for turn in turns)

    return max(ways, key=moved)


@dataclass(frozen=True)
class Turn:
    """When a point is trained: in which shard, of how many experiments, at which place."""

    point: int
    shard: int
    size: int
    place: int


def turns_of(plan: Plan, points: Sequence[int]) -> Iterator[Turn]:
    """When each of some points, or what stands for it, is trained; in that order."""
    dealt = Dealt(plan.sweep, plan.deal)
    asked: dict[int, list[int]] = {}
    for point in points:
        asked.setdefault(int(dealt.representatives[point]), []).append(point)
    for shard in range(dealt.num_shards):
        trained = dealt.shard(shard).trained
        for place, experiment in enumerate(trained):
            for point in asked.get(experiment, ()):
                yield Turn(point, shard, len(trained), place)


def _nodes(grid: Grid, points: Sequence[int]) -> dict[str, int]:
    """Nodes where points were trained first, with weights from 1 to 100: where most were, 100."""
    records = (grid.record(*divmod(point, grid.sweep.columns)) for point in points)
    counts = Counter(record["node"] for record in records if record and record["node"])
    found = counts.most_common(_MOST_NODES)
    return {node: max(1, 100 * count // found[0][1]) for node, count in found}


# --- what came of it ---


def compared(rerun: Rerun) -> list[Repeat]:
    """Every point with what it gave the first time, in the order of the shards.

    Raises:
        IncompleteError: a point was not trained, or failed.
        UnrepeatableError: two attempts at one shard contradict each other.
    """
    again = read_grid(rerun.place, rerun.plan, allow_mixed=True)
    if again.problems:
        raise UnrepeatableError(
            f"what the Job {rerun.job.name} has stored cannot be trusted: "
            f"{'; '.join(again.problems)}"
        )
    return [
        repeat_of(
            rerun.grid,
            again,
            turn.point,
            shard=turn.shard,
            size=turn.size,
            place=turn.place,
            moved=rerun.first[turn.point] != turn.place if turn.point in rerun.first else None,
            cold=False,
        )
        for turn in turns_of(rerun.plan, rerun.points)
    ]
