"""Pods of a sweep that wait for a cache, which the Job that fills it has not written yet.

Such a pod runs, and holds its GPUs, until it gives up for now; its index is then tried again after
a pause, however often that takes. Only its log says that it waits, so that a few logs are read, and
only as long as no index of the Job is done.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Final

from fractal_k8s.backends.kube.cachejobs import AGAIN, FillJob, fills_of
from fractal_k8s.backends.kube.client import Cluster, Object
from fractal_k8s.backends.kube.ended import exit_code
from fractal_k8s.backends.kube.jobs import SweepJob
from fractal_k8s.backends.kube.trouble import Cause, Trouble, index_of, job_of
from fractal_k8s.errors import EXIT_NOT_READY, ClusterError
from fractal_k8s.manifest import labels

# what a worker's log ends with while it waits (checkpoints.ready)
_WAITS: Final = re.compile(r"waiting up to \d+ s for a file READY in ")
# running pods whose logs are read; they all wait for the same files
_ASKED: Final = 2
_MOST_EXAMPLES: Final = 4


def gave_up_for_now(pod: Object) -> bool:
    """Whether a pod has ended because its cache was not filled yet."""
    return exit_code(pod) == EXIT_NOT_READY


def waiting_for_cache(cluster: Cluster, job: SweepJob, pods: Sequence[Object]) -> Trouble | None:
    """The pods of a Job that wait for a cache, with what is known of who fills it.

    Args:
        pods: of the Job, and perhaps others.
    """
    claims = _read_only_claims(job)
    if job.completed or job.is_finished or not claims:
        return None
    found = _waiting(cluster, [pod for pod in pods if job_of(pod) == job.name])
    if not found:
        return None
    places = sorted({(job.name, index) for pod in found if (index := index_of(pod)) is not None})
    return Trouble(_cause(cluster, claims), len(found), tuple(places[:_MOST_EXAMPLES]), ())


def _waiting(cluster: Cluster, pods: Sequence[Object]) -> list[Object]:
    """Of some pods those that run and wait, and those of indexes that wait to be tried again."""
    running = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
    running.sort(key=_created, reverse=True)
    asked = running[:_ASKED]
    found = running if asked and all(_says_so(cluster, pod) for pod in asked) else []
    newest: dict[int | None, Object] = {}
    for pod in sorted(pods, key=_created):
        newest[index_of(pod)] = pod
    return found + [pod for pod in newest.values() if gave_up_for_now(pod)]


def _created(pod: Object) -> str:
    return str(pod["metadata"]["creationTimestamp"])


def _says_so(cluster: Cluster, pod: Object) -> bool:
    with contextlib.suppress(ClusterError):  # a log is an extra right
        return _WAITS.search(cluster.log(pod["metadata"]["name"], tail=1)) is not None
    return False


def _read_only_claims(job: SweepJob) -> list[str]:
    volumes = job.spec["template"]["spec"].get("volumes") or []
    claims = [volume.get("persistentVolumeClaim") or {} for volume in volumes]
    return [str(claim["claimName"]) for claim in claims if claim.get("readOnly")]


def _cause(cluster: Cluster, claims: Sequence[str]) -> Cause:
    names = " and ".join(claims)
    what = f"for a cache that is not filled yet (claim {names})"
    try:
        fills = [fill for fill in fills_of(cluster, claims) if not fill.is_complete]
    except ClusterError:
        fills = []
    if not fills:
        advice = f"fill the claim and write {labels.READY} last; they go on by themselves"
        return Cause(what, advice, waits=True, said="no Job is filling it")
    fill = fills[0]
    return Cause(what, advice_on(fill), waits=True, said=f"Job {fill.name}: {summary(fill)}")


def summary(fill: FillJob) -> str:
    """How a Job that fills a cache stands, in a line."""
    said = " ".join(fill.said.split())
    return f"{fill.state}: {said}" if said else fill.state


def advice_on(fill: FillJob) -> str:
    """What to do about a Job that has not filled its cache."""
    if fill.is_failed:
        return f"remove the cause, then fill it again: {AGAIN}; they go on by themselves"
    return "they go on by themselves once it is filled"
