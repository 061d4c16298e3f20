"""What `launch` and `resume` do with a cluster: check everything, send a Job. controller.py's twin.

Nothing is trained here, and nothing is needed of this machine: neither weights nor data, nor a key
of the store. What it has of them makes the checks better.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from fractal_k8s.backends import Listener, Status
from fractal_k8s.backends.k8s import K8sRun
from fractal_k8s.backends.kube.client import PODS, Cluster
from fractal_k8s.backends.kube.jobs import SweepJob, find_jobs, free_name, jobs_of, plan_of
from fractal_k8s.backends.kube.preflight import preflight
from fractal_k8s.backends.kube.send import Sent, check_same, send, send_beside
from fractal_k8s.backends.kube.site import read_site
from fractal_k8s.environ import prepare_environment
from fractal_k8s.errors import (
    ClusterError,
    ConflictError,
    CorruptError,
    ForbiddenError,
    FractalError,
    IncompleteError,
    StoreError,
    SweepError,
    UsageError,
)
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.blocks import choose
from fractal_k8s.manifest.pod import reads_data, reads_model
from fractal_k8s.manifest.render import Manifest, render
from fractal_k8s.manifest.settings import JobSettings, make_settings
from fractal_k8s.references import is_moving, parse_reference
from fractal_k8s.results.lease import forget_job, launcher_of, leave_word
from fractal_k8s.results.ledger import NOTE, for_share, predict, record_launch
from fractal_k8s.results.reach import are_keys_wrong, why_unreadable
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.results.tally import TallyReader
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.plan import Terms
from fractal_k8s.sweep.supply import refuse_repeats

if TYPE_CHECKING:
    from fractal_k8s.aggregate import Aggregation
    from fractal_k8s.results.grid import Grid

T = TypeVar("T")
Mask = npt.NDArray[np.bool_]

# A forecast reads earlier sweeps of the store; one that takes longer is done without.
_FORECAST_S: Final = 15.0


# Characters of the list of points in a plan; a ConfigMap holds a million.
_LONGEST_LIST: Final = 900_000
# between two looks at pods that are ending
_POLL_S: Final = 1.0


@dataclass(frozen=True)
class Order:
    """A Job that was checked and may be sent."""

    cluster: Cluster
    settings: JobSettings
    plan: Plan
    manifest: Manifest
    # the sweep's folder, if its store can be read from here
    folder: SweepStore | None
    # what is to be said of it: what was found out, and what could not be
    notes: tuple[str, ...]
    # experiments that it trains
    experiments: int
    # what it is forecast to take (`results.ledger.predicted`); None = not known
    prediction: dict[str, Any] | None

    @property
    def job(self) -> SweepJob:
        return SweepJob(self.manifest.job)


@dataclass(frozen=True)
class Known:
    """What is known of a sweep's outcomes before a Job is sent."""

    # shape (points,), True where there is a result; None = nothing is known
    points: Mask | None
    folder: SweepStore | None
    # why the store tells nothing
    why: str = ""
    notes: tuple[str, ...] = ()


# --- what is there ---


def standing_jobs(cluster: Cluster, sweep: Sweep) -> list[SweepJob]:
    """The Jobs of a sweep that the cluster still has, oldest first.

    Raises:
        UsageError: there is one of the same name that trains something else.
    """
    found = jobs_of(cluster, sweep.id)
    digest = hashlib.sha256(sweep.canonical_json().encode()).hexdigest()
    for job in found:
        check_same(cluster, job, digest)
    return found


def how_it_stands(job: SweepJob) -> str:
    """A Job in a few words, such as "running, 3 of 64 indexes done"."""
    if job.is_going:
        state = "being deleted"
    elif (failed := job.condition("Failed")) is not None:
        state = f"failed ({failed.get('reason', 'no reason given')})"
    elif job.condition("Complete") is not None:
        state = "complete"
    elif job.is_suspended:
        waits = job.queue is not None and not job.is_paused
        state = f"waiting in the queue {job.queue}" if waits else "paused"
    elif job.status.get("active"):
        state = "running"
    else:
        state = "not started yet"
    text = f"{state}, {len(job.completed):,} of {job.completions:,} indexes done"
    return text + (f", {len(job.failed):,} failed" if job.failed else "")


def inherited(job: SweepJob) -> tuple[str, dict[str, Any]]:
    """The settings of an earlier Job of a sweep, as a layer for the next one."""
    source = f"Job {job.name}"
    try:
        content = json.loads(job.annotation(labels.SETTINGS) or "{}")
    except ValueError:
        raise CorruptError(f"{source}: its annotation {labels.SETTINGS} is not JSON") from None
    return source, dict(content)


def client_store(settings: JobSettings) -> str | None:
    """URI of the sweep's store for this machine; None = it is a folder that only pods see."""
    if settings.client_store is not None:
        return settings.client_store
    return None if settings.store is None or settings.store_claim is not None else settings.store


def open_client_store(settings: JobSettings) -> tuple[Store | None, str]:
    """The store if it can be read from here; else why not. Never an error."""
    uri = client_store(settings)
    if uri is None:
        return None, f"{settings.store} lies in a claim that only pods see"
    if "://" in uri and (why := why_unreadable(uri)) is not None:
        return None, f"{uri.partition('?')[0]} cannot be read from this machine ({why})"
    return Store(uri), ""


def open_folder(settings: JobSettings, sweep_id: str) -> SweepStore | None:
    """The sweep's folder, if its store can be read from here."""
    store, _ = open_client_store(settings)
    return None if store is None else store.sweep(sweep_id)


def settings_of(cluster: Cluster, jobs: list[SweepJob], store_uri: str | None) -> JobSettings:
    """The settings under which Jobs of a sweep run; of the site if there are none."""
    layers = [read_site(cluster), *([inherited(jobs[-1])] if jobs else [])]
    if store_uri is not None:
        # as this machine sees it
        layers.append(("--store", {"store": store_uri, "client_store": store_uri}))
    return make_settings(*layers)


def pods_left(cluster: Cluster, sweep_id: str) -> bool:
    """Whether pods of a sweep still run or end; no where they may not be looked at."""
    selector = f"{labels.SWEEP}={sweep_id},{labels.COMPONENT}={labels.WORKER}"
    running = "status.phase!=Succeeded,status.phase!=Failed"
    try:
        found = cluster.list(PODS, labels=selector, fields=running, limit=1)
        return any(True for _ in found)
    except ForbiddenError:
        return False


def wait_for_last_pods(
    cluster: Cluster, sweep_id: str, settings: JobSettings, tell: Callable[[str], None]
) -> None:
    """Waits, as long as their grace, for pods whose Job has ended or is gone.

    They are writing what they have: what is missing can only be told when they have.
    """
    if not pods_left(cluster, sweep_id):
        return
    tell(f"{sweep_id}: pods of an earlier Job are ending; waiting until they have written")
    deadline = time.monotonic() + settings.grace_seconds
    while pods_left(cluster, sweep_id) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


# --- what to train ---


def tie(sweep: Sweep) -> tuple[Sweep, tuple[str, ...]]:
    """The sweep tied to the content of its files if they are here; and what is to be said of it.

    Raises:
        FractalError: files are here, but damaged, or they do not fit together.
    """
    notes: tuple[str, ...] = ()
    if sweep.spec.origin is not None:
        notes = ("points that other maps of its family have are trained again on a cluster",)
    if not (reads_model(sweep) or reads_data(sweep)):
        return sweep, notes
    if not sweep.unknown_files:
        return sweep, notes
    sweep, moving = _resolved(sweep)
    notes += moving
    if not _files_are_here(sweep):
        text = (
            "weights and data are those of the cluster, not of this machine: the first worker "
            "notes their content in the store, and every other one must have the same"
        )
        return sweep, (*notes, text, *_claims_note(sweep))
    prepare_environment()
    from fractal_k8s.train.depth import verified

    tied, data = verified(sweep)
    refuse_repeats(tied, data)
    return tied, notes


def _resolved(sweep: Sweep) -> tuple[Sweep, tuple[str, ...]]:
    """The sweep with what its checkpoint means now, if that can be asked from here."""
    text = sweep.spec.checkpoint or ""
    if not is_moving(text):
        return sweep, ()
    if sweep.depths:
        raise UsageError(
            f"checkpoint {text!r}: models of several depths need a reference that stays the same"
        )
    from fractal_k8s.checkpoints.sources import list_source

    try:
        exact = list_source(text).exact
    except FractalError as error:
        return sweep, (f"{error}; which one {text} is, the cluster's claim decides",)
    return sweep.from_checkpoint(exact), (f"{text} is {exact} now, and stays that for this sweep",)


def _claims_note(sweep: Sweep) -> tuple[str, ...]:
    text = sweep.spec.checkpoint or ""
    if parse_reference(text) is None:
        return ()
    return (f"the model's claim must hold {text}: workers compare it with what filled the claim",)


def _files_are_here(sweep: Sweep) -> bool:
    members = [sweep.at_depth(depth) for depth in sweep.depths] or [sweep]
    if not all(_checkpoint_is_here(member.spec.checkpoint or "") for member in members):
        return False
    from fractal_k8s.train.materials import has_dataset

    return has_dataset(sweep)


def _checkpoint_is_here(text: str) -> bool:
    reference = parse_reference(text)
    if reference is None:
        return bool(text) and Path(text).expanduser().exists()
    from fractal_k8s.checkpoints.fetched import is_fetched

    return is_fetched(reference)


def known_points(sweep: Sweep, settings: JobSettings) -> Known:
    """What the store has of a sweep, if it can be read from here.

    Raises:
        FractalError: the store holds something else under the sweep's id, or contradicts itself.
    """
    store, why = open_client_store(settings)
    if store is None:
        note = f"{why}: every point is dealt, workers skip what is stored"
        return Known(None, None, why, (note,))
    folder = store.sweep(sweep.id)
    stored = folder.read_plan()
    if stored is not None and stored.sweep.canonical_json() != sweep.canonical_json():
        raise UsageError(
            f"{folder.where('sweep.json')} holds another sweep under the same id; choose another "
            "--name or another store"
        )
    if owner := launcher_of(folder):
        raise ConflictError(
            f"{sweep.id} is being trained by {owner}; stop that first, or let it finish"
        )
    if stored is None:
        return Known(np.zeros(sweep.num_points, dtype=bool), folder)
    return Known(TallyReader(folder, sweep).refresh().known.ravel(), folder)


def completed_points(cluster: Cluster, sweep: Sweep, jobs: list[SweepJob]) -> Mask:
    """Points of the indexes that Jobs of a sweep have completed, shape (points,).

    A Job whose ConfigMap is gone tells nothing.
    """
    found = np.zeros(sweep.num_points, dtype=bool)
    for job in jobs:
        try:
            plan = plan_of(cluster, job)
        except ClusterError:
            continue
        dealt = Dealt(plan.sweep, plan.deal)
        size = plan.deal.points_per_shard * max(1, job.gpus_per_pod)
        index = np.arange(len(dealt.positions)) // size
        done = np.isin(index, np.fromiter(job.completed, dtype=np.int64))
        trained = dealt.order[dealt.positions[done]]
        found |= np.isin(dealt.representatives, trained)
    return found


# --- the order ---


def order(
    cluster: Cluster,
    sweep: Sweep,
    settings: JobSettings,
    known: Known,
    *,
    points_per_index: int | None,
    name: str | None = None,
) -> Order:
    """A Job over what is missing of a sweep, checked; nothing is sent yet.

    Args:
        points_per_index: None = chosen from what is known of the pace.
        name: of the Job; None = the sweep's id.

    Raises:
        SweepError: everything that a cluster, and this one, would not accept.
    """
    dealt = Dealt(sweep, Deal())
    missing = np.ones(sweep.num_points, dtype=bool) if known.points is None else ~known.points
    experiments = int(np.unique(dealt.representatives[missing]).size)
    slots = settings.parallelism * settings.processes
    prediction = _prediction(sweep, known.folder, settings, slots, experiments)
    only = dealt.only_missing(missing) if experiments < dealt.num_distinct else None
    notes = known.notes
    if only is not None and len(only) > _LONGEST_LIST:
        only = None
        text = "what is missing is scattered too widely to be listed: every point is dealt"
        notes += (f"{text}, workers skip what is stored",)
    if points_per_index is None:
        pace = None
        if prediction is not None:
            pace = prediction["training_seconds"] / prediction["distinct_points"]
        dealing = dealt.num_distinct if only is None else experiments
        points_per_index = choose(sweep, dealing, slots, pace)
    plan = Plan(sweep, Deal(points_per_shard=points_per_index, only=only))
    problems: list[str] = []
    if are_keys_wrong(known.why):
        problems.append(
            f"{known.why}; whoever launches needs no keys, but wrong ones are a mistake: unset or "
            "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    manifest: Manifest | None = None
    try:
        manifest = render(plan, settings, name=name)
    except SweepError as error:
        problems += error.problems
    found = preflight(cluster, settings, sweep, command="launch")
    problems += found.problems
    if problems or manifest is None:
        raise SweepError(problems, source=f"{sweep.id} cannot be launched on {cluster.context}")
    return Order(
        cluster=cluster,
        settings=settings,
        plan=plan,
        manifest=manifest,
        folder=known.folder,
        notes=(*notes, *found.notes),
        experiments=experiments,
        prediction=prediction,
    )


@dataclass(frozen=True)
class Found:
    """A sweep that was launched before."""

    cluster: Cluster
    # oldest first; none if the cluster has forgotten them
    jobs: list[SweepJob]
    plan: Plan
    settings: JobSettings


def find(
    cluster: Cluster,
    text: str,
    make: Callable[[Cluster, tuple[str, dict[str, Any]] | None], JobSettings],
) -> Found:
    """The sweep whose id, name or start of an id is `text`: of a Job, else of a store.

    Args:
        make: the settings of its next Job, given those of its last one, if there is one.

    Raises:
        UsageError: there is no such sweep, or there are several.
    """
    try:
        sweep_id, jobs = find_jobs(cluster, text)
    except UsageError as error:
        settings = make(cluster, None)
        return Found(cluster, [], _stored_plan(settings, text, error), settings)
    settings = make(cluster, inherited(jobs[-1]))
    try:
        plan = plan_of(cluster, jobs[-1])
    except ClusterError as error:  # its ConfigMap was deleted
        plan = _stored_plan(settings, sweep_id, error)
    return Found(cluster, jobs, plan, settings)


def _stored_plan(settings: JobSettings, text: str, error: FractalError) -> Plan:
    """The plan that the store has; raises the error if there is none to be had."""
    store, why = open_client_store(settings)
    if store is None:
        raise UsageError(
            f"{error}, and {why}: launch the same sweep again instead, workers skip what is stored"
        )
    try:
        return store.plan(text)[1]
    except UsageError:
        raise UsageError(
            f"{error}, and its store has nothing of it; launch it again from its sweep file"
        ) from None


def read_map(found: Found) -> tuple[SweepStore, Grid]:
    """A sweep's folder and its map, for what is chosen and compared on this machine.

    Raises:
        UsageError: its store cannot be read from here.
        FractalError: what it holds is not one map.
    """
    from fractal_k8s.aggregate import read_grid

    sweep, settings = found.plan.sweep, found.settings
    store, why = open_client_store(settings)
    if store is None:
        raise UsageError(
            f"{why}; points are chosen and compared here: give --store URI if this machine has it"
        )
    folder = store.sweep(sweep.id)
    return folder, read_grid(folder, Plan(sweep, Deal()), allow_mixed=settings.allow_mixed)


def order_rest(found: Found, *, points_per_index: int | None) -> Order | None:
    """A Job over what is missing or failed of a sweep; None if nothing is.

    Where the store cannot be read from here, the indexes that earlier Jobs have completed tell.

    Raises:
        FractalError: see `order`.
    """
    sweep, jobs = found.plan.sweep, found.jobs
    known = known_points(sweep, found.settings)
    if known.points is None and jobs:
        note = (
            f"{known.why}: what is missing is told by the indexes of its Jobs, so that points of "
            "indexes that were begun may be trained again"
        )
        known = Known(completed_points(found.cluster, sweep, jobs), None, known.why, (note,))
    if known.points is not None and known.points.all():
        return None
    name = free_name(jobs, sweep.id)
    return order(
        found.cluster, sweep, found.settings, known, points_per_index=points_per_index, name=name
    )


def _prediction(
    sweep: Sweep,
    folder: SweepStore | None,
    settings: JobSettings,
    slots: int,
    experiments: int,
) -> dict[str, Any] | None:
    """What the missing points will probably take, if the store has seen such steps."""
    if folder is None or not experiments:
        return None
    store = Store(folder.files.uri)
    terms = Terms(
        workers=slots,
        worker_kind="GPU" if settings.gpus_per_pod else "core",
        price_per_hour=settings.usd_per_gpu_hour,
    )
    whole = _within(_FORECAST_S, lambda: predict(sweep, store, terms))
    return None if whole is None else for_share(whole, experiments / whole["distinct_points"])


def _within(seconds: float, function: Callable[[], T]) -> T | None:
    """What a function gives; None if it fails on purpose, or takes longer and is left alone."""
    found: list[T] = []

    def work() -> None:
        with contextlib.suppress(FractalError):
            found.append(function())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def dispatch(made: Order) -> Sent:
    """Sends the Job, unless somebody was faster, and notes the launch in the store's ledger."""
    sent = send(made.cluster, made.manifest)
    if sent.is_new and made.manifest.aggregator is not None:
        body = made.manifest.aggregator
        notes = send_beside(made.cluster, sent.job, body)
        name = None if notes else str(body["metadata"]["name"])
        sent = replace(sent, notes=(*sent.notes, *notes), aggregator=name)
    if sent.is_new and made.folder is not None:
        _within(_FORECAST_S, lambda: _record(made))  # no ledger is no reason to fail
    return sent


def _record(made: Order) -> None:
    assert made.folder is not None
    # before any worker does, so that the sweep can be resumed when its Job has gone
    made.folder.write_plan(made.plan)
    leave_word(
        made.folder,
        job=made.job.name,
        namespace=made.cluster.namespace,
        context=made.cluster.context,
    )
    first = NOTE not in made.folder.notes([])
    record_launch(
        made.folder,
        made.prediction if first else None,
        workers=made.job.parallelism * made.settings.processes,
        shards=made.job.completions,
        price_per_hour=made.settings.usd_per_gpu_hour,
    )


def forget(cluster: Cluster, sweep_id: str, jobs: list[SweepJob]) -> None:
    """Takes back the word that Jobs of a sweep were sent, if its store is open from here."""

    def work() -> None:
        if (folder := open_folder(settings_of(cluster, jobs, None), sweep_id)) is not None:
            forget_job(folder)

    _within(_FORECAST_S, work)


# --- waiting ---


@dataclass(frozen=True)
class Attached:
    """A Job that somebody waits for."""

    plan: Plan
    folder: SweepStore | None
    run: K8sRun

    def states(self) -> npt.NDArray[np.uint8]:
        """Codes of the points' states as the store has them now, shape (rows, columns)."""
        assert self.folder is not None  # nothing is drawn where the store cannot be read
        return TallyReader(self.folder, self.plan.sweep).refresh().states

    def finish(self, status: Status, *, allow_mixed: bool) -> Aggregation | None:
        """The picture of what is there now; None if it cannot be drawn from here.

        Raises:
            ConflictError: the points are not one map.
            IncompleteError: points are missing or failed.
        """
        from fractal_k8s.aggregate import aggregate

        done = None
        if self.folder is not None:
            # where it can be read but not be written to, others draw the picture
            whole = Plan(self.plan.sweep, Deal())
            try:
                done = aggregate(self.folder, whole, allow_mixed=allow_mixed)
            except ConflictError:
                raise  # nobody draws it
            except StoreError:
                pass
        if done is not None and not done.summary["complete"]:
            counts = done.summary["counts"]
            text = f"{counts['missing']} points are missing and {counts['failed']} failed"
        elif done is None and (status.failed or status.pending or status.running):
            left = status.pending + status.running
            text = f"{left} shards were not trained and {len(status.failed)} failed"
        else:
            return done
        gone = "its Job was deleted, " * self.run.is_gone
        reasons = sorted(set(status.failed.values()))
        if not reasons and (ended := self.run.job.condition("Failed")) is not None:
            reasons = [f"{ended.get('reason')}: {ended.get('message')}"]
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise IncompleteError(f"{self.plan.sweep.id}: {gone}{text}{why}")


def attach(
    cluster: Cluster, job: SweepJob, plan: Plan, folder: SweepStore | None, listener: Listener
) -> Attached:
    """Takes up a Job, to wait for its end.

    Args:
        folder: where its outcomes can be read from here; None = they cannot.
        listener: is told of points as their outcomes are stored.
    """
    return Attached(plan, folder, K8sRun(cluster, job, plan, folder, listener))
