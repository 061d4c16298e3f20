"""How objects go away: grace periods, finalizers, owners.

A pod that is asked to go gets a `deletionTimestamp`. The kubelet ends its containers and sets
`deletionGracePeriodSeconds` to 0; the object goes when, besides, no finalizer is left.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from standin.objects import ApiError, Object, Objects

JOB_TRACKING: Final = "batch.kubernetes.io/job-tracking"
FOREGROUND: Final = "foregroundDeletion"
ENDED: Final = ("Succeeded", "Failed")

# kinds whose objects may be owned here
_OWNED: Final = ("pods", "configmaps", "jobs")


def edit(
    objects: Objects, plural: str, namespace: str, name: str, change: Callable[[Object], None]
) -> Object | None:
    """Changes an object in place, whoever else changes it; None if it is gone.

    An object that is being deleted and has nothing left to wait for goes away.
    """
    with objects.changed:
        try:
            item = objects.get(plural, namespace, name)
        except ApiError:
            return None
        change(item)
        if is_due(item):
            objects.update(plural, item)
            return objects.delete(plural, namespace, name)
        return objects.update(plural, item)


def is_due(item: Object) -> bool:
    """Whether an object that is being deleted has nothing left to wait for."""
    meta = item["metadata"]
    return (
        "deletionTimestamp" in meta
        and not meta.get("finalizers")
        and not meta.get("deletionGracePeriodSeconds")
    )


def delete_pod(
    objects: Objects,
    namespace: str,
    name: str,
    grace: int | None = None,
    *,
    untracked: bool = False,
) -> Object:
    """Asks a pod to go within a grace period in seconds; None = its own.

    Args:
        untracked: whether its Job no longer counts it.

    Raises:
        ApiError: 404, there is no such pod.
    """

    def mark(pod: Object) -> None:
        meta = pod["metadata"]
        if untracked:
            remove_finalizer(pod, JOB_TRACKING)
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        if pod["status"].get("phase") in ENDED or not pod["spec"].get("nodeName"):
            seconds = 0  # nothing runs that would need it
        if "deletionTimestamp" in meta and seconds >= meta.get("deletionGracePeriodSeconds", 0):
            return  # asked again; only a shorter time would change anything
        gone = datetime.now(UTC) + timedelta(seconds=seconds)
        meta["deletionTimestamp"] = gone.strftime("%Y-%m-%dT%H:%M:%SZ")
        meta["deletionGracePeriodSeconds"] = seconds

    with objects.changed:
        objects.get("pods", namespace, name)
        done = edit(objects, "pods", namespace, name, mark)
    assert done is not None
    return done


def remove_finalizer(item: Object, finalizer: str) -> None:
    meta = item["metadata"]
    left = [name for name in meta.get("finalizers", ()) if name != finalizer]
    meta.pop("finalizers", None)
    if left:
        meta["finalizers"] = left


def delete_owner(
    objects: Objects, plural: str, namespace: str, name: str, propagation: str = "Background"
) -> Object:
    """Deletes an object that others may belong to.

    Args:
        propagation: "Background": it goes, what it owns follows; "Foreground": it goes when that
            has gone; "Orphan": what it owns stays and belongs to nobody.

    Raises:
        ApiError: 404, there is no such object.
    """
    with objects.changed:
        item = objects.get(plural, namespace, name)
        uid = item["metadata"]["uid"]
        if propagation == "Foreground" and owned_by(objects, namespace, uid):
            meta = item["metadata"]
            meta.setdefault("deletionTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            meta["finalizers"] = [*meta.get("finalizers", ()), FOREGROUND]
            return objects.update(plural, item)
        if propagation == "Orphan":
            for kind, owned in owned_by(objects, namespace, uid):
                edit(objects, kind, namespace, owned["metadata"]["name"], _disown(uid))
        return objects.delete(plural, namespace, name)


def owned_by(objects: Objects, namespace: str, uid: str) -> list[tuple[str, Object]]:
    """What belongs to the object of a uid, each with its kind's plural; not to be changed."""
    return [
        (plural, item)
        for plural in _OWNED
        for item in objects.peek(plural, namespace)
        if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))
    ]


def collect(objects: Objects, namespace: str, uid: str) -> int:
    """Lets go what the object of a uid owned; tells how much is still there."""
    left = 0
    for plural, item in owned_by(objects, namespace, uid):
        name = item["metadata"]["name"]
        with suppress(ApiError):
            if plural == "pods":
                gone = delete_pod(objects, namespace, name, untracked=True)
                left += not is_due(gone)
            else:
                delete_owner(objects, plural, namespace, name)
    return left


def collect_orphans(objects: Objects) -> None:
    """Lets go what names an owner that is no longer there."""
    uids = {
        item["metadata"]["uid"]
        for plural in ("pods", "configmaps", "jobs", "cronjobs", "secrets", "nodes")
        for item in objects.peek(plural)
    }
    for plural in _OWNED:
        for item in objects.peek(plural):
            owners = item["metadata"].get("ownerReferences", ())
            if owners and not any(owner["uid"] in uids for owner in owners):
                for owner in owners:
                    collect(objects, item["metadata"].get("namespace", ""), owner["uid"])


def _disown(uid: str) -> Callable[[Object], None]:
    def change(item: Object) -> None:
        meta = item["metadata"]
        meta["ownerReferences"] = [
            owner for owner in meta.get("ownerReferences", ()) if owner["uid"] != uid
        ]
        if not meta["ownerReferences"]:
            del meta["ownerReferences"]
        remove_finalizer(item, JOB_TRACKING)

    return change
