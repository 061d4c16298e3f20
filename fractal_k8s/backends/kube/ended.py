"""Why a pod of a sweep ended, in the words of its worker where it has left some."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fractal_k8s.backends.kube.client import PODS, Cluster, Object
from fractal_k8s.backends.kube.jobs import SweepJob
from fractal_k8s.errors import (
    EXIT_CORRUPT,
    EXIT_SETTINGS,
    ClusterError,
    CorruptError,
    FractalError,
    IncompleteError,
    UsageError,
)
from fractal_k8s.manifest import labels

# pods that are looked at for reasons; a Job may have thousands of failed ones
_MOST_PODS: Final = 500
_CONTAINERS: Final = (labels.CONTAINER, labels.FILL_CONTAINER, labels.AGGREGATOR)


def failed_pods(cluster: Cluster, job: SweepJob) -> Iterator[tuple[int, Object]]:
    """Pods that have failed, some hundred at most, each with its index."""
    selector = f"{labels.JOB_NAME}={job.name}"
    found = cluster.list(PODS, labels=selector, fields="status.phase=Failed", limit=_MOST_PODS)
    for pod in found:
        index = (pod["metadata"].get("labels") or {}).get(labels.INDEX)
        if index is not None:
            yield int(index), pod


def why(pod: Object, codes: Mapping[int, str] | None = None) -> str:
    """Why a pod ended, in a few words.

    Args:
        codes: what exit codes mean where the pod has left no sentence.
    """
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"was evicted ({condition.get('reason', 'disruption')})"
    status = pod.get("status", {})
    if status.get("reason") == "Evicted":  # it took more than its share of a disk
        return f"was evicted by its node ({str(status.get('message') or 'no word why').strip()})"
    ended = _terminated(pod)
    if ended is None:
        return str(status.get("reason") or "ended before it started")
    if ended.get("reason") == "OOMKilled":
        return "ran out of memory (OOMKilled)"
    code = int(ended.get("exitCode", 0))
    return _said(ended) or (codes or {}).get(code, f"ended with code {code}")


def exit_code(pod: Object) -> int | None:
    ended = _terminated(pod)
    return None if ended is None else ended.get("exitCode")


def fatal_error(cluster: Cluster, job: SweepJob) -> FractalError:
    """What was wrong for every index of a Job that its own policy has failed."""
    said = (job.condition("Failed") or {}).get("message", "")
    with contextlib.suppress(ClusterError):
        for _, pod in failed_pods(cluster, job):
            code = exit_code(pod)
            if code == EXIT_CORRUPT:
                return CorruptError(why(pod))
            if code == EXIT_SETTINGS:
                return UsageError(why(pod))
    return IncompleteError(f"the Job {job.name} was ended by its failure policy: {said}")


def _terminated(pod: Object) -> dict[str, Any] | None:
    """The end of the container that does the work."""
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status["name"] in _CONTAINERS:
            found: dict[str, Any] | None = (status.get("state") or {}).get("terminated")
            return found
    return None


def _said(ended: dict[str, Any]) -> str:
    """The worker's own sentence: of its termination message, else the error its log ends with."""
    text = str(ended.get("message") or "").strip()
    try:
        content = json.loads(text)
    except ValueError:
        _, marker, sentence = text.rpartition("Error: ")
        return sentence.strip() if marker else ""
    return str(content.get("error") or "") if isinstance(content, dict) else ""
