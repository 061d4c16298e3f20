"""The Jobs that fill a cluster's cache, which the chart makes, and one that reads it whole."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from dataclasses import dataclass
from typing import Any, Final

from fractal_k8s.backends.kube.client import CLAIMS, JOBS, PODS, Cluster, Object
from fractal_k8s.backends.kube.ended import why
from fractal_k8s.errors import ClusterError, ForbiddenError, UsageError
from fractal_k8s.manifest import labels

_VERIFY: Final = "cache-verify"
_ROOT: Final = labels.MODEL_MOUNT.rpartition("/")[0]
# of the name; what follows is the server's to choose
_MOST_NAME: Final = 40
# a finished Job and its pod, with the log, are kept for an hour
_KEEP_S: Final = 3600


@dataclass(frozen=True)
class FillJob:
    """A Job that fills a cache, and how it stands."""

    name: str
    created: str
    # "complete", "running", "waiting for its pod to start", "failed (BackoffLimitExceeded)" ...
    state: str
    # what it fetches, as in "model wandb:TEAM/llm/sft:v7"
    filled: str
    # last line of its newest pod's log, or why that pod has ended; may be empty
    said: str
    claims: tuple[str, ...]


def fill_jobs(cluster: Cluster) -> list[FillJob]:
    """The Jobs that fill a cache in the cluster's namespace, newest first."""
    return [_described(cluster, body) for body in _bodies(cluster)]


def claims(cluster: Cluster, jobs: list[FillJob]) -> dict[str, str]:
    """How the claims of some Jobs stand, by name: "Bound, 500Gi"."""
    names = sorted({claim for job in jobs for claim in job.claims})
    return {name: _claim_state(cluster, name) for name in names}


def _claim_state(cluster: Cluster, name: str) -> str:
    try:
        body = cluster.get(CLAIMS, name)
    except ForbiddenError:
        return "may not be looked at"
    if body is None:
        return "missing"
    status = body.get("status") or {}
    phase = str(status.get("phase", "Pending"))
    size = (status.get("capacity") or {}).get("storage")
    return f"{phase}, {size}" if size else phase


def verify_job(cluster: Cluster) -> str:
    """JSON of a Job that reads the newest fill Job's claims, mounted read-only; nothing is created.

    Raises:
        UsageError: there is no such Job any more to know the claims from.
    """
    bodies = _bodies(cluster)
    if not bodies:
        raise UsageError(
            f"no Job fills a cache in namespace {cluster.namespace}, so that its claims are not "
            "known; helm upgrade makes one, which ends at once if everything is there"
        )
    source = bodies[0]
    template = copy.deepcopy(source["spec"]["template"])
    template["metadata"] = {"labels": _labels()}
    container = template["spec"]["containers"][0]
    container["args"] = ["cache", "verify", "--root", _ROOT]
    # it reads files and needs no key
    container["env"] = [entry for entry in container.get("env") or [] if "value" in entry]
    caches = {f"{_ROOT}/{name}" for name in ("model", "dataset")}
    for mount in container.get("volumeMounts") or []:
        if mount["mountPath"] in caches:
            mount["readOnly"] = True
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": f"{source['metadata']['name'][:_MOST_NAME].rstrip('-')}-verify-",
            "namespace": cluster.namespace,
            "labels": _labels(),
        },
        "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": _KEEP_S, "template": template},
    }
    return json.dumps(job, indent=1) + "\n"


def _labels() -> dict[str, str]:
    return {
        labels.NAME: labels.PROGRAM,
        labels.MANAGED_BY: labels.PROGRAM,
        labels.COMPONENT: _VERIFY,
    }


def _bodies(cluster: Cluster) -> list[Object]:
    found = cluster.list(JOBS, labels=f"{labels.COMPONENT}={labels.CACHE_FILL}")
    return sorted(
        found,
        key=lambda body: (body["metadata"]["creationTimestamp"], body["metadata"]["name"]),
        reverse=True,
    )


def _described(cluster: Cluster, body: Object) -> FillJob:
    name = str(body["metadata"]["name"])
    pod = _newest_pod(cluster, name)
    spec = body["spec"]["template"]["spec"]
    claims_of = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec.get("volumes") or []
        if "persistentVolumeClaim" in volume
    ]
    return FillJob(
        name=name,
        created=str(body["metadata"]["creationTimestamp"]),
        state=_state(body, pod),
        filled=_filled(spec["containers"][0].get("args") or []),
        said=_said(cluster, pod),
        claims=tuple(claims_of),
    )


def _state(body: Object, pod: Object | None) -> str:
    status: dict[str, Any] = body.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["status"] != "True":
            continue
        if condition["type"] == "Complete":
            return f"complete, at {status.get('completionTime') or 'an unknown time'}"
        if condition["type"] == "Failed":
            return f"failed ({condition.get('reason', 'no reason given')})"
    if body["spec"].get("suspend"):
        return "suspended"
    failed = f", {status['failed']} pods failed before" if status.get("failed") else ""
    phase = ((pod or {}).get("status") or {}).get("phase")
    return ("running" if phase == "Running" else "waiting for its pod to start") + failed


def _filled(arguments: list[str]) -> str:
    """What a fill's command line names."""
    pairs = itertools.pairwise(arguments)
    return ", ".join(
        f"{option.removeprefix('--')} {value.replace('$$', '$')}"
        for option, value in pairs
        if option in ("--model", "--dataset")
    )


def _newest_pod(cluster: Cluster, job: str) -> Object | None:
    pods = cluster.list(PODS, labels=f"{labels.JOB_NAME}={job}")
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def _said(cluster: Cluster, pod: Object | None) -> str:
    if pod is None:
        return ""
    if (pod.get("status") or {}).get("phase") == "Failed":
        return why(pod)
    with contextlib.suppress(ClusterError):  # a log is an extra right, and may be gone
        return (cluster.log(pod["metadata"]["name"], tail=1).strip().splitlines() or [""])[-1]
    return ""
