"""The Jobs that fill a cluster's cache, which the chart makes, and how they stand."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fractal_k8s.backends.kube.client import CLAIMS, JOBS, PODS, Cluster, Object
from fractal_k8s.backends.kube.ended import why
from fractal_k8s.backends.kube.trouble import cause_of
from fractal_k8s.errors import ClusterError, ForbiddenError
from fractal_k8s.manifest import labels

# how a cache is filled again where the chart has made the Job; see docs/chart.md
AGAIN: Final = "helm upgrade ... --set fill.again=WORD (another word each time)"

_COMPLETE: Final = "complete"
_FAILED: Final = "failed"
_SOURCES: Final = ("--model", "--dataset")


@dataclass(frozen=True)
class FillJob:
    """A Job that fills a cache, and how it stands."""

    name: str
    created: str
    # "complete", "failed", "running" or "waiting"
    stage: str
    # the same in words, with when or why: "failed (BackoffLimitExceeded)"
    state: str
    # what it fetches, as in "model wandb:TEAM/llm/sft:v7"
    filled: str
    # last lines of its newest pod's log, or why that pod has ended or does not start; may be empty
    said: str
    # that it fills
    claims: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        return self.stage == _COMPLETE

    @property
    def is_failed(self) -> bool:
        return self.stage == _FAILED


def fill_jobs(cluster: Cluster) -> list[FillJob]:
    """The Jobs that fill a cache in the cluster's namespace, newest first."""
    return [_described(cluster, body) for body in fill_bodies(cluster)]


def newest_of(jobs: Iterable[FillJob]) -> list[FillJob]:
    """Of Jobs, newest first, those that are the newest of a claim."""
    known: set[str] = set()
    found = []
    for job in jobs:
        if not known.issuperset(job.claims):
            found.append(job)
            known.update(job.claims)
    return found


def fills_of(cluster: Cluster, claims: Iterable[str]) -> list[FillJob]:
    """The newest Job that fills each of some claims, without repeats; none for some, perhaps."""
    wanted = set(claims)
    return [job for job in newest_of(fill_jobs(cluster)) if wanted.intersection(job.claims)]


def fill_bodies(cluster: Cluster) -> list[Object]:
    """Those Jobs as the cluster has them, newest first."""
    found = cluster.list(JOBS, labels=f"{labels.COMPONENT}={labels.CACHE_FILL}")
    return sorted(
        found,
        key=lambda body: (body["metadata"]["creationTimestamp"], body["metadata"]["name"]),
        reverse=True,
    )


def cache_claims(settings: Mapping[str, Any]) -> dict[str, str]:
    """Claim by part of the cache (model, dataset), as a site's settings name them."""
    named = {part: settings.get(f"{part}_claim") for part in ("model", "dataset")}
    return {part: str(claim) for part, claim in named.items() if claim}


def claim_states(cluster: Cluster, names: Iterable[str]) -> dict[str, str]:
    """How some claims stand, by name: "Bound, 500Gi"."""
    return {name: _claim_state(cluster, name) for name in sorted({*names})}


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


def _described(cluster: Cluster, body: Object) -> FillJob:
    name = str(body["metadata"]["name"])
    pod = _newest_pod(cluster, name)
    stage, state = _state(body, pod)
    sources = _sources(body["spec"]["template"]["spec"]["containers"][0].get("args") or [])
    # the last thing that a fill says is a line for each source, with its version and digest
    said = _said(cluster, pod, lines=len(sources) if stage == _COMPLETE else 1)
    return FillJob(
        name=name,
        created=str(body["metadata"]["creationTimestamp"]),
        stage=stage,
        state=state,
        filled=", ".join(sources),
        said=said,
        claims=_claims_of(body),
    )


def _claims_of(body: Object) -> tuple[str, ...]:
    """The claims that a Job fills, in the order of its mounts; not those that it only reads."""
    pod = body["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in pod.get("volumes") or []}
    mounts = pod["containers"][0].get("volumeMounts") or []
    claims = (
        volumes[mount["name"]].get("persistentVolumeClaim")
        for mount in mounts
        if mount["mountPath"] in labels.CACHE_MOUNTS
    )
    return tuple(str(claim["claimName"]) for claim in claims if claim)


def _state(body: Object, pod: Object | None) -> tuple[str, str]:
    """Stage of a Job, and the same in words."""
    status: dict[str, Any] = body.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["status"] != "True":
            continue
        if condition["type"] == "Complete":
            return _COMPLETE, f"complete, at {status.get('completionTime') or 'an unknown time'}"
        if condition["type"] == "Failed":
            return _FAILED, f"failed ({condition.get('reason', 'no reason given')})"
    if body["spec"].get("suspend"):
        queue = (body["metadata"].get("labels") or {}).get(labels.QUEUE)
        return "waiting", f"suspended, in queue {queue}" if queue else "suspended"
    failed = f", {status['failed']} pods failed before" if status.get("failed") else ""
    if ((pod or {}).get("status") or {}).get("phase") == "Running":
        return "running", f"running{failed}"
    return "waiting", f"waiting for its pod to start{failed}"


def _sources(arguments: list[str]) -> list[str]:
    """What a fill's command line names."""
    return [
        f"{option.removeprefix('--')} {value.replace('$$', '$')}"
        for option, value in itertools.pairwise(arguments)
        if option in _SOURCES
    ]


def _newest_pod(cluster: Cluster, job: str) -> Object | None:
    pods = cluster.list(PODS, labels=f"{labels.JOB_NAME}={job}")
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def _said(cluster: Cluster, pod: Object | None, lines: int) -> str:
    """Why a pod ended or does not start, else the last lines of its log."""
    if pod is None:
        return ""
    phase = (pod.get("status") or {}).get("phase")
    if phase == "Failed":
        return why(pod)
    if phase == "Pending":
        cause = cause_of(pod)
        words = [cause.what, cause.said, cause.advice] if cause else []
        return "; ".join(word for word in words if word)
    with contextlib.suppress(ClusterError):  # a log is an extra right, and may be gone
        return cluster.log(pod["metadata"]["name"], tail=max(1, lines)).strip()
    return ""
