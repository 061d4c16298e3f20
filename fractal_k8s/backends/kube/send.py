"""Creates the ConfigMap and the Job of a sweep: of several launchers one wins, and nothing is left.

The Job is the lock: who creates it owns the ConfigMap of the same name too, and puts its own plan
there whatever others have left in it. Who does not, removes only what it has created itself.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fractal_k8s.backends.kube.client import CONFIG_MAPS, IN_CLUSTER, JOBS, Cluster, Object
from fractal_k8s.backends.kube.jobs import SweepJob
from fractal_k8s.errors import ClusterError, ExistsError, UsageError
from fractal_k8s.manifest import labels

if TYPE_CHECKING:
    from fractal_k8s.manifest.render import Manifest

# how long another launcher may take between its ConfigMap and its Job
_SETTLE_S: Final = 5.0
# how long an object that is being deleted may take
_GONE_S: Final = 30.0
_POLL_S: Final = 0.2
_TRIES: Final = 5


@dataclass(frozen=True)
class Sent:
    """The Job of that name on the cluster."""

    job: SweepJob
    # False = it stood there already: nothing of this call is left
    is_new: bool
    notes: tuple[str, ...] = ()
    # name of the Job that draws its map; None = it has none, or the notes say why not
    aggregator: str | None = None


@dataclass(frozen=True)
class _Placed:
    """The ConfigMap that a Job is going to be created for."""

    body: Object
    is_own: bool


def send(cluster: Cluster, manifest: Manifest) -> Sent:
    """Creates what a manifest describes, unless its Job is there.

    Raises:
        UsageError: an object of that name belongs to another sweep, or to no sweep.
        ClusterError: it could not be created; the message says what is left, if anything.
    """
    wanted = SweepJob(manifest.job)
    if (standing := _standing(cluster, wanted)) is not None:
        return Sent(standing, is_new=False)
    placed = _place(cluster, manifest)
    if isinstance(placed, SweepJob):
        return Sent(placed, is_new=False)
    try:
        job = SweepJob(cluster.create(JOBS, manifest.job))
    except ExistsError as error:
        there = _standing(cluster, wanted)
        if there is None or not (error.perhaps_ours and _is_as_sent(there, wanted)):
            _take_back(cluster, placed)
            if there is None:
                raise ClusterError(f"{error}, but it is gone now; launch again") from None
            return Sent(there, is_new=False)
        job = there
    except ClusterError as error:
        job = _after_failure(cluster, wanted, placed, error)
    except BaseException:
        _take_back(cluster, placed)
        raise
    return Sent(job, is_new=True, notes=_own(cluster, manifest, job))


def _standing(cluster: Cluster, wanted: SweepJob) -> SweepJob | None:
    """The Job of that name, waiting for the end of one that is being deleted.

    Raises:
        UsageError: it is no Job of this sweep.
    """
    deadline = time.monotonic() + _GONE_S
    while (body := cluster.get(JOBS, wanted.name)) is not None:
        found = SweepJob(body)
        if not found.is_going:
            check_same(cluster, found, wanted.annotation(labels.DIGEST))
            return found
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the Job {wanted.name} is still being deleted; launch again when it is gone: "
                f"{kubectl(cluster)} get job {wanted.name}"
            )
        time.sleep(_POLL_S)
    return None


def check_same(cluster: Cluster, job: SweepJob, digest: str | None) -> None:
    """Refuses a Job that trains something else.

    Raises:
        UsageError: it does.
    """
    if job.annotation(labels.DIGEST) != digest:
        raise UsageError(
            f"the Job {job.name} in namespace {cluster.namespace} is that of another sweep; "
            "choose another --name or another --namespace"
        )


def kubectl(cluster: Cluster) -> str:
    """How `kubectl` is told the same cluster and namespace."""
    context = "" if cluster.context == IN_CLUSTER else f" --context {cluster.context}"
    return f"kubectl{context} -n {cluster.namespace}"


# --- the ConfigMap ---


def _place(cluster: Cluster, manifest: Manifest) -> _Placed | SweepJob:
    """The ConfigMap in its place; or the Job of a launcher that was faster.

    Raises:
        UsageError: the ConfigMap of that name is no sweep's.
    """
    wanted, name = SweepJob(manifest.job), str(manifest.config_map["metadata"]["name"])
    for _ in range(_TRIES):
        try:
            return _Placed(cluster.create(CONFIG_MAPS, manifest.config_map), is_own=True)
        except ExistsError as error:
            perhaps_ours = error.perhaps_ours
        except ClusterError as error:
            raise _unplaced(cluster, manifest, error) from None
        found = cluster.get(CONFIG_MAPS, name)
        if found is None:
            continue
        if labels.SWEEP not in (found["metadata"].get("labels") or {}):
            raise UsageError(
                f"there is a ConfigMap {name} in namespace {cluster.namespace} that is no sweep's; "
                "choose another --name or another --namespace"
            )
        has_owner = bool(found["metadata"].get("ownerReferences"))
        if not has_owner and found.get("data") == manifest.config_map["data"]:
            return _Placed(found, is_own=perhaps_ours)
        # of a launcher at work, which will have its Job in a moment; or a leftover
        faster = _wait_for_job(cluster, wanted, 0.0 if has_owner else _SETTLE_S)
        if faster is not None:
            return faster
        cluster.delete(CONFIG_MAPS, name, uid=found["metadata"]["uid"])
    raise ClusterError(f"the ConfigMap {name} comes and goes; is somebody else launching?")


def _wait_for_job(cluster: Cluster, wanted: SweepJob, seconds: float) -> SweepJob | None:
    deadline = time.monotonic() + seconds
    while (found := _standing(cluster, wanted)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found


def _take_back(cluster: Cluster, placed: _Placed) -> str:
    """Removes the ConfigMap if this call has created it; what is left of it, in words, or ""."""
    meta = placed.body["metadata"]
    if not placed.is_own:
        return ""
    try:
        # at this version: somebody who uses it in the meantime has changed it
        cluster.delete(
            CONFIG_MAPS, meta["name"], uid=meta["uid"], version=meta.get("resourceVersion")
        )
    except ClusterError:
        return f"the ConfigMap {meta['name']} is left in namespace {cluster.namespace}"
    return ""


def _unplaced(cluster: Cluster, manifest: Manifest, error: ClusterError) -> ClusterError:
    """The error, after removing a ConfigMap that was created although no answer came."""
    name = str(manifest.config_map["metadata"]["name"])
    try:
        found = cluster.get(CONFIG_MAPS, name)
    except ClusterError:
        text = f"a ConfigMap {name} may be left in namespace {cluster.namespace}"
        return type(error)(f"{error}; {text}, which the next launch takes over")
    if found is not None and found.get("data") == manifest.config_map["data"]:
        _take_back(cluster, _Placed(found, is_own=not found["metadata"].get("ownerReferences")))
    return type(error)(f"{error}; nothing was left behind")


# --- the Job ---


def _is_as_sent(found: SweepJob, wanted: SweepJob) -> bool:
    """Whether a Job is what would have been created, as far as the server does not rewrite it."""
    same_numbers = (found.completions, found.parallelism) == (
        wanted.completions,
        wanted.parallelism,
    )
    given = wanted.body["metadata"].get("annotations") or {}
    same_notes = all(found.annotation(key) == value for key, value in given.items())
    return same_numbers and same_notes and _container(found) == _container(wanted)


def _container(job: SweepJob) -> tuple[Any, ...]:
    container = job.spec["template"]["spec"]["containers"][0]
    return container.get("image"), container.get("command"), container.get("args")


def _after_failure(
    cluster: Cluster, wanted: SweepJob, placed: _Placed, error: ClusterError
) -> SweepJob:
    """The Job if it was created all the same.

    Raises:
        ClusterError: it was not, or that cannot be told.
    """
    try:
        found = _standing(cluster, wanted)
    except UsageError:
        found = None
    except ClusterError:
        raise type(error)(
            f"{error}; the ConfigMap and perhaps the Job {wanted.name} are left in namespace "
            f"{cluster.namespace}: launch again when the cluster answers, what is there is not "
            "sent twice"
        ) from None
    if found is not None and _is_as_sent(found, wanted):
        return found
    left = _take_back(cluster, placed)
    raise type(error)(f"{error}; {left or 'nothing was left behind'}") from None


def _own(cluster: Cluster, manifest: Manifest, job: SweepJob) -> tuple[str, ...]:
    """Gives the ConfigMap of a new Job its plan and its owner, so that it goes when the Job goes.

    Returns:
        What did not work.
    """
    name = str(manifest.config_map["metadata"]["name"])
    for number in range(_TRIES):
        try:
            if _is_owned(cluster, manifest, job):
                return ()
        except ClusterError:  # changed or gone meanwhile, or the cluster is busy
            time.sleep(_POLL_S * (number > 0))
    text = (
        f"the ConfigMap {name} could not be tied to its Job: fractal-k8s delete removes it, a "
        "deletion of the Job alone does not"
    )
    return (text,)


def send_beside(cluster: Cluster, job: SweepJob, body: Object) -> tuple[str, ...]:
    """Creates a second Job that goes when the first one goes; the first one runs without it too.

    Returns:
        What did not work.
    """
    wanted = copy.deepcopy(body)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid}
    wanted["metadata"]["ownerReferences"] = [owner]
    name = str(wanted["metadata"]["name"])
    deadline = time.monotonic() + _GONE_S
    while True:
        try:
            made = cluster.create(JOBS, wanted)
        except ExistsError:
            there = cluster.get(JOBS, name)
            owners = ((there or {}).get("metadata") or {}).get("ownerReferences") or []
            if any(found.get("uid") == job.uid for found in owners):
                return ()
            if time.monotonic() < deadline and (there is None or not _stays(there)):
                time.sleep(_POLL_S)  # that of an earlier Job of this name is being deleted
                continue
            return (f"there is a Job {name} already: outcomes are put together by hand{_HOW}",)
        except ClusterError as error:
            return (f"the Job {name} was not created ({error}){_HOW}",)
        return _held(made)


_HOW: Final = "; do it with fractal-k8s aggregate ID, or by the site's CronJob"


def _held(body: Object) -> tuple[str, ...]:
    """A word about a Job without a queue that Kueue suspends: nobody would admit it."""
    meta = body["metadata"]
    if not body["spec"].get("suspend") or labels.QUEUE in (meta.get("labels") or {}):
        return ()
    text = (
        f"the Job {meta['name']} is held back, as it is in no queue of Kueue (--job "
        f"aggregator_queue=NAME names one): outcomes are put together by hand{_HOW}"
    )
    return (text,)


def _stays(body: Object) -> bool:
    """Whether nothing deletes an object that is in the way: it has no owner that may be gone."""
    meta = body["metadata"]
    return "deletionTimestamp" not in meta and not meta.get("ownerReferences")


def _is_owned(cluster: Cluster, manifest: Manifest, job: SweepJob) -> bool:
    """One step towards it. True = done."""
    wanted = manifest.config_map
    name = str(wanted["metadata"]["name"])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid}
    found = cluster.get(CONFIG_MAPS, name)
    if found is None:  # another launcher, which has lost, took it with it
        body = copy.deepcopy(wanted)
        body["metadata"]["ownerReferences"] = [owner]
        cluster.create(CONFIG_MAPS, body)
        return True
    meta = found["metadata"]
    owners = [reference["uid"] for reference in meta.get("ownerReferences") or []]
    if found.get("data") != wanted["data"] or owners not in ([], [job.uid]):
        cluster.delete(CONFIG_MAPS, name, uid=meta["uid"])
        return False
    if not owners:
        version = meta["resourceVersion"]
        change = {"metadata": {"resourceVersion": version, "ownerReferences": [owner]}}
        cluster.patch(CONFIG_MAPS, name, change)
    return True
