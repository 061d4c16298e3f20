"""Values that the API fills in when an object is created, as far as clients look at them."""

from __future__ import annotations

import uuid
from typing import Final

from standin.objects import Object

_UNLIMITED: Final = 2**31 - 1
_INDEX_LABELS: Final = ("batch.kubernetes.io/", "")


def fill(plural: str, item: Object) -> None:
    """Fills in what was left out; an object gets its uid here."""
    meta = item["metadata"]
    meta["uid"] = str(uuid.uuid4())
    for field in ("resourceVersion", "creationTimestamp", "deletionTimestamp", "selfLink"):
        meta.pop(field, None)
    if plural == "jobs":
        item["status"] = {}
        meta["generation"] = 1
        _job(item)
    elif plural == "pods":
        item["status"] = {"phase": "Pending", "qosClass": "Burstable"}
        _pod(item["spec"])
    elif plural == "namespaces":
        item["status"] = {"phase": "Active"}
        meta.setdefault("labels", {})["kubernetes.io/metadata.name"] = meta["name"]
    elif plural == "persistentvolumeclaims":
        item["status"] = {"phase": "Pending"}
    elif plural == "secrets":
        item.setdefault("type", "Opaque")


def _job(item: Object) -> None:
    spec, meta = item["spec"], item["metadata"]
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("backoffLimit", _UNLIMITED if "backoffLimitPerIndex" in spec else 6)
    spec.setdefault("suspend", False)
    policy = spec.get("podFailurePolicy")
    spec.setdefault("podReplacementPolicy", "Failed" if policy else "TerminatingOrFailed")
    for rule in (policy or {}).get("rules") or []:
        for pattern in rule.get("onPodConditions") or []:
            pattern.setdefault("status", "True")
    template = spec["template"]
    template.setdefault("metadata", {})
    if not spec.setdefault("manualSelector", False):
        _select(spec, meta)
    if not meta.get("labels"):
        meta["labels"] = dict(template["metadata"].get("labels") or {})
    _pod(template["spec"])


def _select(spec: Object, meta: Object) -> None:
    """The selector and the labels of the pods, which both go by the uid of the Job."""
    own = {}
    for prefix in _INDEX_LABELS:
        own[f"{prefix}controller-uid"] = meta["uid"]
        own[f"{prefix}job-name"] = meta["name"]
    labels = spec["template"]["metadata"].get("labels") or {}
    spec["template"]["metadata"]["labels"] = {**labels, **own}
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": meta["uid"]}}


def _pod(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    for container in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        image = str(container.get("image", ""))
        latest = image.endswith(":latest") or ":" not in image.rpartition("/")[2]
        container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
        container.setdefault("resources", {})
