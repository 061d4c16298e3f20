"""How the Job stands that draws a sweep's map, and what keeps it from doing so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fractal_k8s.backends.kube.client import JOBS, PODS, Cluster, Object
from fractal_k8s.backends.kube.ended import why
from fractal_k8s.backends.kube.jobs import SweepJob, job_state
from fractal_k8s.backends.kube.trouble import Cause, cause_of, refused_pods
from fractal_k8s.errors import EXIT_CORRUPT, IncompleteError
from fractal_k8s.manifest import labels

# what an aggregator means that has drawn a map and still does not end with 0
_ENDS: Final = {
    IncompleteError.exit_code: "the map is drawn, points of it are missing or failed",
    EXIT_CORRUPT: "the map is drawn, objects of the store are damaged or contradict each other",
}


@dataclass(frozen=True)
class AggregatorProgress:
    """The Job that puts a sweep's outcomes together."""

    name: str
    # as of `JobProgress`
    state: str
    # why its pod waits or the last one failed; None = nothing is known to be wrong
    said: str | None

    @property
    def has_failed(self) -> bool:
        """Whether it has ended without a map of all that is stored."""
        return self.state == "failed" and self.said not in _ENDS.values()


def newest_aggregator(
    cluster: Cluster, sweep_id: str, events: Callable[[str], Iterable[Object]]
) -> AggregatorProgress | None:
    """The latest aggregator of a sweep that the cluster still has.

    Args:
        events: what happened to the object of a name.
    """
    selector = f"{labels.SWEEP}={sweep_id},{labels.COMPONENT}={labels.AGGREGATOR}"
    found = [SweepJob(body) for body in cluster.list(JOBS, labels=selector)]
    if not found:
        return None
    job = max(found, key=lambda job: (job.created, job.name))
    state, reason = job_state(job)
    said = None
    if state != "complete" and (job.status.get("failed") or not job.status.get("ready")):
        pods = list(cluster.list(PODS, labels=f"{labels.JOB_NAME}={job.name}"))
        said = _said(pods) or (_refusal(events(job.name)) if not pods else None)
    return AggregatorProgress(job.name, state, said or reason)


def _said(pods: list[Object]) -> str | None:
    """What the newest pod waits for; else how the last of those ended that failed."""
    oldest_first = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
    for pod in reversed(oldest_first):
        phase = (pod.get("status") or {}).get("phase")
        if phase == "Pending" and (cause := cause_of(pod)) is not None:
            return _words(cause)
        if phase == "Failed":
            return why(pod, _ENDS)
    return None


def _refusal(events: Iterable[Object]) -> str | None:
    cause = refused_pods(list(events))
    return None if cause is None else _words(cause)


def _words(cause: Cause) -> str:
    return f"{cause.what}: {cause.said}" if cause.said else cause.what
