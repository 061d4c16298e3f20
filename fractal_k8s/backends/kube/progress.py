"""How far a sweep on a cluster is: what its Jobs say, what its store holds, what its pods met.

The Jobs' status tells how many indexes are done, however many there are. Pods are looked at only
for what went wrong and for the time they took, and then no more than some hundred of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.backends.kube.aggregators import AggregatorProgress, newest_aggregator
from fractal_k8s.backends.kube.client import EVENTS, JOBS, PODS, Cluster, Object
from fractal_k8s.backends.kube.jobs import SweepJob, job_state, jobs_of, plan_of
from fractal_k8s.backends.kube.trouble import (
    Trouble,
    condition,
    find_troubles,
    index_of,
    job_of,
    refused_pods,
    run_seconds,
    seconds,
)
from fractal_k8s.backends.kube.waiting import gave_up_for_now, waiting_for_cache
from fractal_k8s.errors import ClusterError, ForbiddenError, UsageError
from fractal_k8s.manifest import labels
from fractal_k8s.results.tally import Tally
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Dealt
from fractal_k8s.sweep.definition import Sweep

# pods of one answer
_MOST_PODS: Final = 250
_MOST_EVENTS: Final = 50
# Pods are looked at again after so many seconds.
_PODS_EVERY_S: Final = 10.0
# Points of this many seconds before the last one make the speed: pods write every 30 s.
_RECENT_S: Final = 300.0
# Nothing for so long, and there is no speed to speak of.
_STALE_S: Final = 900.0
# how often pods of an index ended without being at fault
_IGNORED: Final = "batch.kubernetes.io/job-index-ignored-failure-count"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class JobProgress:
    """One Job of a sweep. The counts are of indexes."""

    name: str
    # queued, paused, starting, running, ending, complete, failed
    state: str
    # why it is queued or has failed
    reason: str | None
    indexes: int
    done: int
    # pods that exist, and those of them that run
    active: int
    ready: int
    failed: int
    parallelism: int
    gpus_per_pod: int
    # seconds since 1970; None = not yet
    began: float | None
    ended: float | None
    created: float

    @property
    def pending(self) -> int:
        """Indexes that have no pod and are not settled."""
        return max(0, self.indexes - self.done - self.failed - self.active)

    @property
    def is_finished(self) -> bool:
        return self.state in ("complete", "failed")


@dataclass(frozen=True)
class Use:
    """What the pods of a sweep have held so far: from a node's taking one until it ended.

    Pods that are gone (evicted, or of a Job that was suspended or scaled down) are not counted. Of
    many pods a part is read, and the mean stands for the others.
    """

    pod_hours: float
    gpu_hours: float
    # None = the Jobs name no price
    usd: float | None
    # pods whose times were read, of how many
    read: int
    pods: int
    # there were others, which are gone
    is_least: bool = False

    @property
    def is_exact(self) -> bool:
        return self.read >= self.pods and not self.is_least


@dataclass(frozen=True)
class Progress:
    """How far a sweep is."""

    sweep: Sweep
    context: str
    namespace: str
    # oldest first
    jobs: tuple[JobProgress, ...]
    # from the store; None = it was not read
    tally: Tally | None
    # points with a known verdict, or, without the store, points of indexes that are done
    done: int
    # None = cannot be told
    points_per_s: float | None
    seconds_left: float | None
    use: Use
    # pods that were evicted or preempted, of those looked at; such an index is tried again
    evicted: int
    troubles: tuple[Trouble, ...]
    # what could not be looked at
    notes: tuple[str, ...] = ()
    # None = the cluster has no Job that draws the map
    aggregator: AggregatorProgress | None = None

    @property
    def state(self) -> str:
        """State of the latest Job."""
        return self.jobs[-1].state

    @property
    def is_finished(self) -> bool:
        return all(job.is_finished for job in self.jobs)

    @property
    def is_running(self) -> bool:
        return any(job.state == "running" for job in self.jobs)

    @property
    def missing(self) -> int:
        return self.sweep.num_points - self.done

    def with_tally(self, tally: Tally) -> Progress:
        """The same Jobs with what the store holds now: points, and their recent speed."""
        known = int(tally.known.sum())
        done = max(known, self.done) if tally.unread else known
        newest = tally.newest()
        is_stale = newest is None or time.time() - newest > _STALE_S
        workers = sum(job.ready * max(1, job.gpus_per_pod) for job in self.jobs)
        rate = tally.rate(_RECENT_S, workers) if self.is_running and not is_stale else None
        left = (self.sweep.num_points - done) / rate if rate else None
        return replace(self, tally=tally, done=done, points_per_s=rate, seconds_left=left)


@dataclass
class _Pods:
    """What was learned from pods and of the aggregator, and when."""

    at: float = float("-inf")
    use: Use = field(default_factory=lambda: Use(0.0, 0.0, None, 0, 0))
    evicted: int = 0
    troubles: tuple[Trouble, ...] = ()
    notes: tuple[str, ...] = ()
    aggregator: AggregatorProgress | None = None


class ProgressReader:
    """Looks at a sweep's Jobs again and again; the number of requests does not grow with them."""

    def __init__(self, cluster: Cluster, sweep_id: str) -> None:
        self.cluster = cluster
        self.sweep_id = sweep_id
        self._plans: dict[str, Plan] = {}
        # by the Job's name: how its points are dealt, and how many shards an index has
        self._dealt: dict[str, tuple[Dealt, int]] = {}
        # points of done indexes, by Job, while the Job's string is the same
        self._done: dict[str, tuple[str, Mask]] = {}
        self._pods = _Pods()

    def jobs(self) -> list[SweepJob]:
        """The sweep's Jobs, oldest first.

        Raises:
            UsageError: the cluster has none any more.
            ClusterError: it does not answer.
        """
        found = jobs_of(self.cluster, self.sweep_id)
        if not found:
            raise UsageError(
                f"{self.sweep_id} has no Job on cluster {self.cluster.context!r} any more; what it "
                f"has stored: fractal-k8s status {self.sweep_id} --store URI"
            )
        return found

    def plan(self, job: SweepJob) -> Plan:
        """What the workers of a Job are given; asked for once.

        Raises:
            ClusterError: its ConfigMap is gone.
        """
        if job.uid not in self._plans:
            plan = self._plans[job.uid] = plan_of(self.cluster, job)
            self._dealt[job.name] = Dealt(plan.sweep, plan.deal), max(1, job.gpus_per_pod)
        return self._plans[job.uid]

    def read(self, tally: Tally | None = None, jobs: Sequence[SweepJob] | None = None) -> Progress:
        """How far the sweep is.

        Args:
            tally: what its store holds; None = the Jobs' word is taken.
            jobs: what `jobs` gave just now.

        Raises:
            FractalError: see `jobs` and `plan`.
        """
        found = list(jobs or self.jobs())
        sweep = self.plan(found[-1]).sweep
        now = time.time()
        pods = self._pods = self._look_at_pods(found, now)
        shown = tuple(job_progress(job) for job in found)
        # of a store that has been read in part, too, the Jobs know more
        done = self._done_points(found) if tally is None or tally.unread else 0
        rate = _mean_rate(shown, done, now)
        progress = Progress(
            sweep=sweep,
            context=self.cluster.context,
            namespace=self.cluster.namespace,
            jobs=shown,
            tally=None,
            done=done,
            points_per_s=rate,
            seconds_left=(sweep.num_points - done) / rate if rate else None,
            use=pods.use,
            evicted=pods.evicted,
            troubles=pods.troubles,
            notes=pods.notes,
            aggregator=pods.aggregator,
        )
        return progress if tally is None else progress.with_tally(tally)

    def first_point(self, job: str, index: int) -> tuple[int, int] | None:
        """Row and column of the first point of a Job's index; None if it cannot be told."""
        if job not in self._dealt:
            return None
        dealt, processes = self._dealt[job]
        place = index * processes * dealt.deal.points_per_shard
        if place >= len(dealt.positions):
            return None
        return divmod(int(dealt.order[dealt.positions[place]]), dealt.sweep.columns)

    def _done_points(self, jobs: Iterable[SweepJob]) -> int:
        """Points of the indexes that are done in any of the Jobs."""
        total: Mask | None = None
        for job in jobs:
            text = job.status.get("completedIndexes") or ""
            if self._done.get(job.uid, ("", None))[0] != text or job.uid not in self._done:
                self._done[job.uid] = (text, points_done(self.plan(job), job))
            mask = self._done[job.uid][1]
            total = mask if total is None else total | mask
        return 0 if total is None else int(total.sum())

    # --- pods ---

    def look_at_pods(self, jobs: Sequence[SweepJob]) -> None:
        """Reads what `read` is going to tell of pods; for who waits for the store meanwhile."""
        self._pods = self._look_at_pods(jobs, time.time())

    def _look_at_pods(self, jobs: Sequence[SweepJob], now: float) -> _Pods:
        if time.monotonic() - self._pods.at < _PODS_EVERY_S:
            return self._pods
        try:
            some = self._list("")
            failed, pending, running = (
                [pod for pod in some if pod["status"].get("phase") == phase]
                for phase in ("Failed", "Pending", "Running")
            )
            if len(some) >= _MOST_PODS:  # there are more
                failed, pending = self._list("Failed"), self._list("Pending")
        except ForbiddenError as error:
            note = f"pods cannot be looked at: {error}"
            return _Pods(at=time.monotonic(), notes=(note,))
        # what failed of a Job that has ended is another Job's by now; who waits for a cache has not
        # failed, and is told as long as it lasts
        old = {job.name for job in jobs[:-1] if job.is_finished}
        current = [
            pod
            for pod in (*failed, *pending, *running)
            if job_of(pod) not in old and not gave_up_for_now(pod)
        ]
        found = find_troubles(current, self._events, now=now)
        if (waits := waiting_for_cache(self.cluster, jobs[-1], some)) is not None:
            found = [waits, *found]
        for job in jobs:  # to name the points; an old Job's ConfigMap may be gone
            if any(place[0] == job.name for trouble in found for place in trouble.indexes):
                with contextlib.suppress(ClusterError):
                    self.plan(job)
        refused = [trouble for job in jobs if (trouble := self._refused(job)) is not None]
        return _Pods(
            at=time.monotonic(),
            use=use_of(jobs, some, now, is_all=len(some) < _MOST_PODS),
            evicted=count_evicted(some),
            troubles=(*refused, *found),
            aggregator=newest_aggregator(self.cluster, self.sweep_id, self._events),
        )

    def _list(self, phase: str) -> list[Object]:
        selector = f"{labels.SWEEP}={self.sweep_id},{labels.COMPONENT}={labels.WORKER}"
        fields = f"status.phase={phase}" if phase else ""
        return list(self.cluster.list(PODS, labels=selector, fields=fields, limit=_MOST_PODS))

    def _events(self, name: str) -> list[Object]:
        """Events of an object, oldest first; none where they may not be read."""
        try:
            fields = f"involvedObject.name={name}"
            found = list(self.cluster.list(EVENTS, fields=fields, limit=_MOST_EVENTS))
        except ForbiddenError:
            return []
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or ""))

    def _refused(self, job: SweepJob) -> Trouble | None:
        """A Job that should have more pods than it has: its events say why."""
        shown = job_progress(job)
        wanted = min(shown.parallelism, shown.indexes - shown.done - shown.failed)
        if shown.state not in ("starting", "running") or shown.active >= wanted:
            return None
        cause = refused_pods(self._events(job.name))
        return None if cause is None else Trouble(cause, 0, (), ())


def job_progress(job: SweepJob) -> JobProgress:
    """A Job's own account of itself."""
    status = job.status
    state, reason = job_state(job)
    ended = seconds(status.get("completionTime"))
    if ended is None and (failed := job.condition("Failed")) is not None:
        ended = seconds(failed.get("lastTransitionTime"))
    return JobProgress(
        name=job.name,
        state=state,
        reason=reason,
        indexes=job.completions,
        done=len(job.completed),
        active=int(status.get("active") or 0),
        ready=int(status.get("ready") or 0),
        failed=len(job.failed),
        parallelism=job.parallelism,
        gpus_per_pod=job.gpus_per_pod,
        began=seconds(status.get("startTime")),
        ended=ended,
        created=seconds(job.created) or 0.0,
    )


def sweeps_on(cluster: Cluster) -> dict[str, list[JobProgress]]:
    """The Jobs of every sweep that the cluster has, oldest first, by the sweep's id."""
    selector = f"{labels.SWEEP},{labels.COMPONENT}={labels.WORKER}"
    jobs = [SweepJob(body) for body in cluster.list(JOBS, labels=selector)]
    found: dict[str, list[JobProgress]] = {}
    for job in sorted(jobs, key=lambda job: (job.created, job.name)):
        found.setdefault(job.sweep_id, []).append(job_progress(job))
    return found


def points_done(plan: Plan, job: SweepJob) -> Mask:
    """The points of a Job's indexes that are done, shape (points,)."""
    dealt = Dealt(plan.sweep, plan.deal)
    processes = max(1, job.gpus_per_pod)
    indexes = np.array(sorted(job.completed), dtype=np.int64)
    shards = (indexes[:, None] * processes + np.arange(processes)).ravel()
    return dealt.points_of(shards[shards < dealt.num_shards])


def _mean_rate(jobs: Sequence[JobProgress], done: int, now: float) -> float | None:
    """Points per second since the Job began; None if it cannot be told."""
    if len(jobs) > 1 or jobs[0].state != "running" or not done:
        return None
    began = jobs[0].began
    return None if began is None or now <= began else done / (now - began)


def use_of(jobs: Sequence[SweepJob], pods: Sequence[Object], now: float, *, is_all: bool) -> Use:
    """What the pods of some Jobs have held so far.

    Args:
        pods: all of them, or some.
    """
    hours, gpu_hours, usd, read, total = 0.0, 0.0, 0.0, 0, 0
    prices = [job.annotation(labels.PRICE) for job in jobs]
    for job, price in zip(jobs, prices, strict=True):
        own = [pod for pod in pods if job_of(pod) == job.name]
        held, number = _held_seconds(job, own, now, is_all)
        hours += held / 3600
        gpu_hours += held / 3600 * job.gpus_per_pod
        usd += held / 3600 * job.gpus_per_pod * float(price or 0)
        read, total = read + len(own), total + number
    gone = count_evicted(pods) > sum(condition(pod, "DisruptionTarget") is not None for pod in pods)
    is_least = gone or any(_was_suspended(job) for job in jobs)
    return Use(hours, gpu_hours, usd if any(prices) else None, read, total, is_least)


def _was_suspended(job: SweepJob) -> bool:
    """Whether it was paused once; of a queue's Job, which begins suspended, nobody knows."""
    kinds = [found["type"] for found in job.status.get("conditions") or []]
    return "Suspended" in kinds and job.queue is None


def _held_seconds(
    job: SweepJob, pods: Sequence[Object], now: float, is_all: bool
) -> tuple[float, int]:
    """Seconds that a Job's pods have run, together, and how many pods that is."""
    over = [run_seconds(pod, now) for pod in pods if _is_over(pod)]
    running = [run_seconds(pod, now) for pod in pods if not _is_over(pod)]
    if is_all:
        return sum(over) + sum(running), len(pods)
    status = job.status
    ended = max(len(over), int(status.get("succeeded") or 0) + int(status.get("failed") or 0))
    active = max(len(running), int(status.get("active") or 0))
    return _mean(over) * ended + _mean(running) * active, ended + active


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _is_over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def count_evicted(pods: Iterable[Object]) -> int:
    """How often pods were taken away, as far as some pods tell: such pods are often gone.

    The pod that replaces one carries the count of its index, with those that gave up waiting for a
    cache; these stay, and are taken off.
    """
    counts: dict[tuple[str, int | None], int] = {}
    waits: dict[tuple[str, int | None], int] = {}
    for pod in pods:
        place = (job_of(pod), index_of(pod))
        noted = int((pod["metadata"].get("annotations") or {}).get(_IGNORED, 0))
        gave_up = gave_up_for_now(pod)
        if gave_up or condition(pod, "DisruptionTarget") is not None:
            noted += 1
        counts[place] = max(counts.get(place, 0), noted)
        waits[place] = waits.get(place, 0) + gave_up
    return sum(max(0, count - waits[place]) for place, count in counts.items())
