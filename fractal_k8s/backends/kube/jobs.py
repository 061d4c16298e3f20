"""The Jobs of a sweep as a cluster has them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fractal_k8s.backends.kube.client import CONFIG_MAPS, JOBS, Cluster, Object
from fractal_k8s.errors import ClusterError, UsageError
from fractal_k8s.manifest import labels
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.axes import near
from fractal_k8s.sweep.checks import ID_DIGITS
from fractal_k8s.sweep.intervals import parse_intervals

_MOST_NAMES = 8
# reason of a Job's condition -> what it means
_REASONS: Final = {
    "FailedIndexes": "some indexes failed for good",
    "MaxFailedIndexesExceeded": "more indexes failed than it stands",
    "PodFailurePolicy": "a pod met what is wrong for all of them",
    "BackoffLimitExceeded": "pods failed too often",
    "DeadlineExceeded": "it is over its deadline",
}
_ID = re.compile(rf"[a-z0-9-]+-[0-9a-f]{{{ID_DIGITS}}}")


class NoJobError(UsageError):
    """A cluster has no Job of a sweep: there never was one, or it has been deleted."""


@dataclass(frozen=True)
class SweepJob:
    """A Job that trains a sweep, or what an earlier Job left of it."""

    body: Object

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.body["metadata"]["uid"])

    @property
    def created(self) -> str:
        """When it was created, such as "2026-11-21T08:30:00Z"."""
        return str(self.body["metadata"]["creationTimestamp"])

    @property
    def sweep_id(self) -> str:
        return str(self.body["metadata"]["labels"][labels.SWEEP])

    def annotation(self, key: str) -> str | None:
        value = (self.body["metadata"].get("annotations") or {}).get(key)
        return None if value is None else str(value)

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.body["spec"]
        return spec

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.body.get("status") or {}
        return status

    @property
    def completions(self) -> int:
        return int(self.spec["completions"])

    @property
    def parallelism(self) -> int:
        return int(self.spec.get("parallelism", 1))

    @property
    def gpus_per_pod(self) -> int:
        return int(self.annotation(labels.GPUS) or 0)

    @property
    def is_suspended(self) -> bool:
        return bool(self.spec.get("suspend"))

    @property
    def is_paused(self) -> bool:
        """Whether a person has suspended it with `pause`; a queue suspends too."""
        return self.annotation(labels.PAUSED) is not None

    @property
    def is_going(self) -> bool:
        """Whether it is being deleted."""
        return "deletionTimestamp" in self.body["metadata"]

    @property
    def queue(self) -> str | None:
        """Kueue's queue that it waits in, or was admitted from."""
        found = (self.body["metadata"].get("labels") or {}).get(labels.QUEUE)
        return None if found is None else str(found)

    @property
    def min_parallelism(self) -> int | None:
        """How many pods its queue may reduce it to."""
        found = self.annotation(labels.MIN_PARALLELISM)
        return None if found is None else int(found)

    def condition(self, kind: str) -> dict[str, Any] | None:
        """The condition of that type, if it is true now."""
        for condition in self.status.get("conditions") or []:
            if condition["type"] == kind and condition["status"] == "True":
                found: dict[str, Any] = condition
                return found
        return None

    @property
    def is_finished(self) -> bool:
        """Whether all its pods have ended. One that "Failed" may still have most of its points."""
        return self.condition("Complete") is not None or self.condition("Failed") is not None

    @cached_property
    def completed(self) -> frozenset[int]:
        """Indexes that have succeeded."""
        return frozenset(parse_intervals(self.status.get("completedIndexes") or "").tolist())

    @cached_property
    def failed(self) -> frozenset[int]:
        """Indexes that have failed for good."""
        return frozenset(parse_intervals(self.status.get("failedIndexes") or "").tolist())


def jobs_of(cluster: Cluster, sweep_id: str, *, component: str = labels.WORKER) -> list[SweepJob]:
    """The Jobs of a sweep that the cluster still has, oldest first.

    Args:
        component: what they are for; of those that train it unless given.
    """
    selector = f"{labels.SWEEP}={sweep_id},{labels.COMPONENT}={component}"
    found = [SweepJob(body) for body in cluster.list(JOBS, labels=selector)]
    return sorted(found, key=lambda job: (job.created, job.name))


def is_id(text: str) -> bool:
    """Whether a text is a whole id of a sweep, not a part of one."""
    return _ID.fullmatch(text) is not None


def free_name(jobs: list[SweepJob], sweep_id: str) -> str:
    """The name of a sweep's next Job: its id, then `<id>-r2`, `<id>-r3` and so on."""
    names = [job.name for job in jobs]
    if not names:
        return sweep_id
    numbers = [name.removeprefix(f"{sweep_id}-r") for name in names]
    return f"{sweep_id}-r{max([1, *(int(text) for text in numbers if text.isdigit())]) + 1}"


def sweep_and_jobs(cluster: Cluster, text: str) -> tuple[str, list[SweepJob]]:
    """As `find_jobs`, but a whole id need not have Jobs: what was done to them may be done twice.

    Raises:
        UsageError: a part of an id stands for no sweep with a Job, or for several.
    """
    return (text, jobs_of(cluster, text)) if is_id(text) else find_jobs(cluster, text)


def find_jobs(cluster: Cluster, text: str) -> tuple[str, list[SweepJob]]:
    """The sweep that `find_sweep` finds, and its Jobs, oldest first.

    Raises:
        UsageError: no sweep with a Job, or several.
    """
    if is_id(text) and (jobs := jobs_of(cluster, text)):
        return text, jobs
    sweep_id = find_sweep(cluster, text)
    return sweep_id, jobs_of(cluster, sweep_id)


def find_sweep(cluster: Cluster, text: str) -> str:
    """The id of the sweep whose id is `text`, or whose name is, or, if only one does, starts so.

    Raises:
        NoJobError: no sweep with a Job.
        UsageError: several.
    """
    selector = f"{labels.COMPONENT}={labels.WORKER},{labels.SWEEP}"
    ids = sorted({SweepJob(body).sweep_id for body in cluster.list(JOBS, labels=selector)})
    if text in ids:
        return text
    named = [name for name in ids if name.rpartition("-")[0] == text]
    matches = named or [name for name in ids if text and name.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    place = f"cluster {cluster.context!r}, namespace {cluster.namespace}"
    if matches:
        raise UsageError(f"{text!r} stands for several sweeps: {', '.join(matches)}")
    shown = near(text, ids) if ids and len(ids) <= _MOST_NAMES else ""
    raise NoJobError(f"no Job of a sweep {text!r} in {place}{shown}")


def plan_of(cluster: Cluster, job: SweepJob) -> Plan:
    """What the workers of a Job are given.

    Raises:
        ClusterError: its ConfigMap is gone.
    """
    found = cluster.get(CONFIG_MAPS, job.name)
    if found is None:
        raise ClusterError(
            f"the ConfigMap {job.name} of the Job is gone; its pods cannot start: cancel the "
            "sweep, then launch or resume it"
        )
    source = f"ConfigMap {cluster.namespace}/{job.name}"
    return Plan.from_json(found["data"][labels.PLAN_FILE], source=source)


def ended_jobs(cluster: Cluster, sweep_id: str) -> tuple[bool, dict[str, str]]:
    """Whether all indexes of a sweep have ended; and what failed for good, by the Job's name.

    A sweep whose Jobs are all gone has ended: nobody trains it any more. A part of an id stands for
    none.
    """
    jobs = jobs_of(cluster, sweep_id)
    failed = {job.name: text for job in jobs if (text := _failure(job)) is not None}
    return all(job.is_finished for job in jobs), failed


def _failure(job: SweepJob) -> str | None:
    """What has failed of a Job for good, if anything: indexes, or the Job before any did."""
    if job.failed:
        return (
            f"{len(job.failed):,} of {job.completions:,} indexes of the Job {job.name} have "
            "failed for good"
        )
    condition = job.condition("Failed")
    if condition is None:
        return None
    reason = condition.get("message") or condition.get("reason") or "no reason is given"
    return f"the Job {job.name} has failed: {reason}"


def job_state(job: SweepJob) -> tuple[str, str | None]:
    """A Job's state (queued, paused, starting, running, ending, complete, failed), and why."""
    if job.condition("Complete") is not None:
        return "complete", None
    for kind, state in (("Failed", "failed"), ("FailureTarget", "ending")):
        if (found := job.condition(kind)) is not None:
            return state, _reason(found)
    if job.condition("SuccessCriteriaMet") is not None:
        return "ending", None
    if job.is_suspended:
        queue = job.queue
        return ("queued", f"in queue {queue}") if queue else ("paused", None)
    if any(job.status.get(count) for count in ("ready", "succeeded", "failed")) or job.completed:
        return "running", None
    return "starting", None


def _reason(found: dict[str, Any]) -> str:
    reason = str(found.get("reason") or "Failed")
    words = _REASONS.get(reason)
    text = reason if words is None else f"{reason}: {words}"
    # of a policy the message names the pod and its exit code, of the others it repeats the reason
    if reason == "PodFailurePolicy" and found.get("message"):
        text += f"; {found['message']}"
    return text
