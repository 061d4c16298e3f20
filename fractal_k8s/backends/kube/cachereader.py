"""A Job that reads a cluster's cache whole and compares it, for a person to send."""

from __future__ import annotations

import copy
import json
import secrets
from typing import Any, Final

from fractal_k8s.backends.kube.cachejobs import cache_claims, fill_bodies
from fractal_k8s.backends.kube.client import Cluster, Object
from fractal_k8s.backends.kube.site import read_site
from fractal_k8s.errors import UsageError
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.reader import reading_pod
from fractal_k8s.manifest.settings import make_settings

_COMPONENT: Final = "cache-verify"
_ROOT: Final = labels.MODEL_MOUNT.rpartition("/")[0]
# of the name; what follows tells it from Jobs before it
_MOST_NAME: Final = 40
# a finished Job and its pod, with the log, are kept for an hour
_KEEP_S: Final = 3600
# of reading files, whatever filling them takes
_RESOURCES: Final = {
    "requests": {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "1Gi"},
    "limits": {"memory": "2Gi", "ephemeral-storage": "1Gi"},
}


def verify_job(cluster: Cluster) -> tuple[str, str]:
    """Name and JSON of a Job that reads the caches, mounted read-only; nothing is created.

    Its pod is as that of the newest Job that fills them; where that is gone, as the site's settings
    say.

    Raises:
        UsageError: there is no such Job, and no site, that names the claims.
    """
    bodies = fill_bodies(cluster)
    name, queue, pod = _as_the_fill(bodies[0]) if bodies else _as_the_site(cluster)
    name = f"{name[:_MOST_NAME].rstrip('-')}-verify-{secrets.token_hex(3)}"
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": {**_labels(), **queue},
        },
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": _KEEP_S,
            "template": {"metadata": {"labels": _labels()}, "spec": _reading(pod)},
        },
    }
    return name, json.dumps(job, indent=1) + "\n"


def _as_the_fill(body: Object) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Name, Kueue's labels and pod of a Job that fills a cache."""
    meta = body["metadata"]
    keys = (labels.QUEUE, labels.QUEUE_PRIORITY)
    queue = {key: value for key, value in (meta.get("labels") or {}).items() if key in keys}
    return str(meta["name"]), queue, copy.deepcopy(body["spec"]["template"]["spec"])


def _as_the_site(cluster: Cluster) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The same, made of the site's settings."""
    settings = make_settings(read_site(cluster))
    claims = cache_claims(vars(settings))
    if not claims:
        raise UsageError(
            f"namespace {cluster.namespace} has neither a Job that fills a cache nor settings "
            f"(ConfigMap {labels.SITE}) that name a claim: helm install fractal-cache makes both"
        )
    queue = {} if settings.aggregator_queue is None else {labels.QUEUE: settings.aggregator_queue}
    return "cache", queue, reading_pod(settings, claims)


def _reading(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod that mounts caches, made to compare them; it needs no key."""
    container = pod["containers"][0]
    container["args"] = ["cache", "verify", "--root", _ROOT]
    container["env"] = [entry for entry in container.get("env") or [] if "value" in entry]
    container["resources"] = _RESOURCES
    for mount in container.get("volumeMounts") or []:
        if mount["mountPath"] in labels.CACHE_MOUNTS:
            mount["readOnly"] = True
    return pod


def _labels() -> dict[str, str]:
    return {
        labels.NAME: labels.PROGRAM,
        labels.MANAGED_BY: labels.PROGRAM,
        labels.COMPONENT: _COMPONENT,
    }
