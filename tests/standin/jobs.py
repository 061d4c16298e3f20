"""The Job controller: what Kubernetes' own does with Indexed Jobs and with Jobs of one pod.

It works on `Objects` alone.

Rules are those of kubernetes 1.36 (pkg/controller/job); the times of back-off are shorter.
Pods that end at once are taken in together, so a Job's status is written once for many of them.
Not there: Jobs of several pods without indexes, successPolicy, pods that are started again on
their node.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from fractal_k8s.sweep.intervals import format_intervals
from standin.deletion import (
    ENDED,
    FOREGROUND,
    JOB_TRACKING,
    collect,
    delete_owner,
    delete_pod,
    edit,
    remove_finalizer,
)
from standin.events import Recorder
from standin.jobpods import (
    failures_of,
    index_of,
    is_active,
    is_indexed,
    is_ready,
    is_terminating,
    is_tracked,
    make_pod,
    phase_of,
    rule_on,
)
from standin.knownjob import KnownJob
from standin.objects import ApiError, Change, Object, Objects, copied, now

# of pods made, and of pods deleted, in one pass over a Job
_MOST_AT_ONCE: Final = 500
_FOREVER: Final = 2**31 - 1
_OWN: Final = "kubernetes.io/job-controller"


class JobController:
    """Makes and counts the pods of Jobs, and lets go what belonged to objects that are gone.

    Args:
        backoff_s: seconds before the pod after a first failure; doubles with every further one.
        backoff_cap_s: the longest such time.
        keep_pods: how many ended pods are kept; older ones go, whatever their Job says.
        admit: what the API does to a pod that is to be created; it may refuse it.
    """

    def __init__(
        self,
        objects: Objects,
        *,
        backoff_s: float = 0.2,
        backoff_cap_s: float = 5.0,
        keep_pods: int = 12_500,
        admit: Callable[[Object], None] = lambda pod: None,
    ) -> None:
        self._objects = objects
        self._events = Recorder(objects, "job-controller", "jobs")
        self._backoff_s, self._backoff_cap_s = backoff_s, backoff_cap_s
        self._keep_pods, self._admit = keep_pods, admit
        self._over: dict[tuple[str, str], None] = {}  # ended pods, oldest first
        self._jobs: dict[str, KnownJob] = {}
        self._dirty: set[str] = set()
        self._version = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-controller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        with self._objects.changed:
            self._objects.changed.notify_all()
        self._thread.join()

    # --- what is known ---

    def _run(self) -> None:
        self._list_all()
        while not self._stopped.is_set():
            try:
                changes = self._objects.since(self._version, self._idle())
            except ApiError:
                self._list_all()
                continue
            for change in changes:
                self._take(change)
                self._version = change.version
            due = {uid for uid, job in self._jobs.items() if _is_due(job.wake)}
            for uid in sorted(self._dirty | due):
                if uid in self._jobs:
                    self._sync(self._jobs[uid])
            self._dirty.clear()
            self._thin_out()

    def _thin_out(self) -> None:
        """Removes the oldest ended pods, as the control plane does with too many."""
        surplus = max(0, len(self._over) - self._keep_pods)
        for namespace, name in list(islice(self._over, surplus)):
            del self._over[namespace, name]
            with suppress(ApiError):
                delete_pod(self._objects, namespace, name)

    def _idle(self) -> float:
        wakes = [job.wake for job in self._jobs.values() if job.wake is not None]
        return max(0.0, min(1.0, min(wakes, default=_FOREVER) - time.monotonic()))

    def _list_all(self) -> None:
        with self._objects.changed:
            self._version = self._objects.version
            jobs, pods = self._objects.peek("jobs"), self._objects.peek("pods")
        self._jobs = {}
        for job in jobs:
            self._learn(job)
        for pod in pods:
            self._take_pod(pod)

    def _learn(self, body: Object) -> None:
        uid, spec = body["metadata"]["uid"], body["spec"]
        if not (is_indexed(body) or spec.get("completions", 1) == 1):
            return
        if spec.get("managedBy", _OWN) != _OWN:
            return
        if uid in self._jobs:
            self._jobs[uid].body = body
        else:
            self._jobs[uid] = KnownJob(body)
        self._dirty.add(uid)

    def _take(self, change: Change) -> None:
        meta = change.object["metadata"]
        if change.type == "DELETED":
            if change.plural == "jobs":
                self._jobs.pop(meta["uid"], None)
            if change.plural in ("jobs", "configmaps", "cronjobs"):
                collect(self._objects, meta["namespace"], meta["uid"])
        elif change.plural == "jobs":
            self._learn(change.object)
        if change.plural == "pods":
            self._take_pod(change.object, gone=change.type == "DELETED")

    def _take_pod(self, pod: Object, *, gone: bool = False) -> None:
        meta, name = pod["metadata"], pod["metadata"]["name"]
        if gone:
            self._over.pop((meta["namespace"], name), None)
        elif phase_of(pod) in ENDED:
            self._over[meta["namespace"], name] = None
        if is_tracked(pod) and not meta.get("ownerReferences") and not gone:
            self._untrack(pod)  # left behind by a Job
        for owner in meta.get("ownerReferences", ()):
            job = self._jobs.get(owner["uid"])
            if job is None:
                continue
            if gone or not (is_tracked(pod) or is_active(pod) or is_terminating(pod)):
                job.pods.pop(name, None)
                job.ended.pop(name, None)
            else:
                job.pods[name] = pod
                if job.has_failed(pod):
                    job.ended.setdefault(name, time.monotonic())
            self._dirty.add(job.uid)

    # --- one pass over a Job ---

    def _sync(self, job: KnownJob) -> None:
        job.wake = None
        if "deletionTimestamp" in job.body["metadata"]:
            self._let_go(job)
            return
        if job.is_finished:
            self._expire(job)
            return
        status = copied(job.body.get("status") or {})
        suspended = bool(job.spec.get("suspend"))
        if "startTime" not in status and not suspended:
            status["startTime"] = now()
        fresh = [pod for pod in job.pods.values() if is_tracked(pod)]
        self._take_indexes(job, fresh)
        target = job.condition("FailureTarget") or job.condition("SuccessCriteriaMet")
        if target is None:
            target = self._judge(job, fresh, status)
            if target is not None:
                _set_condition(status, target)
        if target is not None:
            self._delete(job, _active(job))
        elif suspended:
            self._delete(job, _active(job), untracked=True)
            self._suspend(job, status)
        else:
            self._resume(job, status)
            self._manage(job)
        counted = self._count(job, fresh, target)
        self._report(job, status, target)
        for pod in counted:
            self._untrack(pod)

    def _take_indexes(self, job: KnownJob, fresh: Iterable[Object]) -> None:
        for pod in fresh:
            index = index_of(pod)
            if phase_of(pod) == "Succeeded":
                job.completed.add(index)
                job.in_a_row = 0
            elif job.has_failed(pod) and job.limit_per_index is None:
                job.in_a_row += 1
                job.last_failure = job.ended[pod["metadata"]["name"]]
            elif job.has_failed(pod) and job.ends_index(pod):
                job.failed.add(index)
        job.failed -= job.completed

    def _judge(self, job: KnownJob, fresh: list[Object], status: Object) -> Object | None:
        """The condition that ends the Job, if it is time."""
        policy = job.spec.get("podFailurePolicy")
        bad = [pod for pod in fresh if job.has_failed(pod)]
        rulings = [rule_on(policy, pod) for pod in bad]
        for ruling in rulings:
            if ruling.action == "FailJob":
                return _condition("FailureTarget", "PodFailurePolicy", ruling.message)
        failures = job.failures + sum(ruling.counts for ruling in rulings)
        default = 6 if job.limit_per_index is None else _FOREVER
        if failures > job.spec.get("backoffLimit", default):
            message = "Job has reached the specified backoff limit"
            return _condition("FailureTarget", "BackoffLimitExceeded", message)
        if self._is_late(job, status):
            message = "Job was active longer than specified deadline"
            return _condition("FailureTarget", "DeadlineExceeded", message)
        most = job.spec.get("maxFailedIndexes")
        if most is not None and len(job.failed) > most:
            message = "Job has exceeded the specified maximal number of failed indexes"
            return _condition("FailureTarget", "MaxFailedIndexesExceeded", message)
        if job.failed and len(job.failed) + len(job.completed) >= job.completions:
            return _condition("FailureTarget", "FailedIndexes", "Job has failed indexes")
        if len(job.completed) >= job.completions and not _active(job):
            message = "Reached expected number of succeeded pods"
            return _condition("SuccessCriteriaMet", "CompletionsReached", message)
        return None

    def _is_late(self, job: KnownJob, status: Object) -> bool:
        seconds = job.spec.get("activeDeadlineSeconds")
        if seconds is None or job.spec.get("suspend"):
            return False
        left = seconds - _age(status["startTime"])
        if left > 0:
            job.wake = _sooner(job.wake, left)
        return bool(left <= 0)

    def _suspend(self, job: KnownJob, status: Object) -> None:
        status.pop("startTime", None)
        if _set_condition(status, _condition("Suspended", "JobSuspended", "Job suspended")):
            self._events.say(job.body, "Suspended", "Job suspended")

    def _resume(self, job: KnownJob, status: Object) -> None:
        if job.condition("Suspended"):
            again = _condition("Suspended", "JobResumed", "Job resumed", "False")
            _set_condition(status, again)
            status["startTime"] = now()
            self._events.say(job.body, "Resumed", "Job resumed")

    # --- pods ---

    def _manage(self, job: KnownJob) -> None:
        active = _active(job)
        ending = sum(is_terminating(pod) for pod in job.pods.values())
        wanted = min(job.spec.get("parallelism", 1), job.completions - len(job.completed))
        surplus = len(active) - max(0, wanted)
        if surplus > 0:
            self._delete(job, sorted(active, key=_worth)[:surplus][:_MOST_AT_ONCE], untracked=True)
            return
        missing = wanted - len(active) - (ending if job.replaces_only_failed else 0)
        if missing <= 0:
            return
        busy = [
            pod
            for pod in job.pods.values()
            if is_active(pod) or (job.replaces_only_failed and is_terminating(pod))
        ]
        indexes = job.pending(min(missing, _MOST_AT_ONCE), {index_of(pod) for pod in busy})
        self._create(job, indexes)

    def _create(self, job: KnownJob, indexes: list[int]) -> None:
        """Makes pods for those of some indexes that are not backing off."""
        awaiting = job.awaiting()
        waits = [self._wait(job, awaiting.get(index)) for index in indexes]
        ready = [index for index, wait in zip(indexes, waits, strict=True) if wait <= 0]
        for index in ready:
            failures, ignored = self._next_counts(job, awaiting.get(index))
            wanted = make_pod(job.body, index, failures, ignored)
            try:
                self._admit(wanted)
            except ApiError as error:
                self._events.warn_once(job.body, "FailedCreate", f"Error creating: {error}")
                job.wake = _sooner(job.wake, self._backoff_s)
                return
            pod = self._objects.create("pods", wanted)
            name = pod["metadata"]["name"]
            job.pods[name] = pod
            self._events.say(job.body, "SuccessfulCreate", f"Created pod: {name}")
        if waits and not ready:
            job.wake = _sooner(job.wake, min(waits))

    def _next_counts(self, job: KnownJob, last: Object | None) -> tuple[int, int]:
        if last is None:
            return 0, 0
        failures, ignored = failures_of(last)
        counts = rule_on(job.spec.get("podFailurePolicy"), last).counts
        return (failures + 1, ignored) if counts else (failures, ignored + 1)

    def _wait(self, job: KnownJob, last: Object | None) -> float:
        """Seconds until an index may have its next pod."""
        if job.limit_per_index is not None:
            if last is None:
                return 0.0
            before, since = sum(failures_of(last)), job.ended[last["metadata"]["name"]]
        elif not job.in_a_row:
            return 0.0
        else:
            before, since = job.in_a_row - 1, job.last_failure
        backoff = min(self._backoff_cap_s, self._backoff_s * 2.0 ** min(before, 32))
        return backoff - (time.monotonic() - since)

    def _delete(self, job: KnownJob, pods: Iterable[Object], *, untracked: bool = False) -> None:
        for pod in pods:
            meta = pod["metadata"]
            with suppress(ApiError):
                left = delete_pod(
                    self._objects, meta["namespace"], meta["name"], untracked=untracked
                )
                job.pods[meta["name"]] = left
                message = f"Deleted pod: {meta['name']}"
                self._events.say(job.body, "SuccessfulDelete", message)

    def _untrack(self, pod: Object) -> None:
        meta = pod["metadata"]
        edit(
            self._objects,
            "pods",
            meta["namespace"],
            meta["name"],
            lambda item: remove_finalizer(item, JOB_TRACKING),
        )

    def _count(self, job: KnownJob, fresh: list[Object], target: Object | None) -> list[Object]:
        """Counts pods that have ended; returns those that are done with.

        When a Job fails, what still ran counts as failed.
        """
        is_failing = target is not None and target["type"] == "FailureTarget"
        awaiting = {pod["metadata"]["name"] for pod in job.awaiting().values()}
        done = []
        for pod in fresh:
            name = pod["metadata"]["name"]
            failed = phase_of(pod) != "Succeeded" and (is_failing or job.has_failed(pod))
            if target is None and (name in awaiting or not (failed or phase_of(pod) in ENDED)):
                continue
            if failed and rule_on(job.spec.get("podFailurePolicy"), pod).counts:
                job.failures += 1
            done.append(pod)
        return done

    # --- status ---

    def _report(self, job: KnownJob, status: Object, target: Object | None) -> None:
        active = _active(job)
        ending = sum(is_terminating(pod) for pod in job.pods.values())
        status |= {
            "ready": sum(is_ready(pod) for pod in active),
            "terminating": ending,
            "uncountedTerminatedPods": {},
        }
        counts = {
            "active": len(active),
            "succeeded": len(job.completed),
            "failed": job.failures,
            "completedIndexes": format_intervals(sorted(job.completed)),
        }
        if not is_indexed(job.body):
            del counts["completedIndexes"]
        for field, value in counts.items():
            status.pop(field, None)
            if value:  # as the API: what is zero or empty is left out
                status[field] = value
        if job.limit_per_index is not None:
            status["failedIndexes"] = format_intervals(sorted(job.failed))
        self._write(job, status)
        if target is not None and not active and not ending:
            self._finish(job, status, target)

    def _finish(self, job: KnownJob, status: Object, target: Object) -> None:
        success = target["type"] == "SuccessCriteriaMet"
        kind = "Complete" if success else "Failed"
        _set_condition(status, _condition(kind, target["reason"], target["message"]))
        if success:
            status["completionTime"] = now()
            self._events.say(job.body, "Completed", "Job completed")
        else:
            reason, message = target["reason"], target["message"]
            self._events.warn(job.body, reason, message)
        self._write(job, status)

    def _write(self, job: KnownJob, status: Object) -> None:
        meta = job.body["metadata"]

        def change(item: Object) -> None:
            if item["metadata"]["uid"] == meta["uid"]:
                item["status"] = status

        written = edit(self._objects, "jobs", meta["namespace"], meta["name"], change)
        if written is not None:
            job.body = written

    # --- the end ---

    def _let_go(self, job: KnownJob) -> None:
        """Goes on with the deletion of a Job that waits for its pods."""
        meta = job.body["metadata"]
        if collect(self._objects, meta["namespace"], meta["uid"]) == 0:
            edit(
                self._objects,
                "jobs",
                meta["namespace"],
                meta["name"],
                lambda item: remove_finalizer(item, FOREGROUND),
            )

    def _expire(self, job: KnownJob) -> None:
        for pod in list(job.pods.values()):
            if is_tracked(pod):
                self._untrack(pod)
        keep = job.spec.get("ttlSecondsAfterFinished")
        if keep is None:
            return
        end = job.condition("Complete") or job.condition("Failed")
        assert end is not None
        left = keep - _age(end["lastTransitionTime"])
        if left > 0:
            job.wake = _sooner(job.wake, left)
            return
        meta = job.body["metadata"]
        with suppress(ApiError):
            delete_owner(self._objects, "jobs", meta["namespace"], meta["name"], "Foreground")


def plant(
    objects: Objects, job: Object, completed: Iterable[int] = (), failed: Iterable[int] = ()
) -> Object:
    """Creates a Job that has come so far already; there are no pods of what is over.

    Args:
        completed, failed: indexes that have succeeded, and that have failed for good.
    """
    done, bad = sorted(completed), sorted(failed)
    status: Object = {"uncountedTerminatedPods": {}, "startTime": now()}
    if done:
        status |= {"succeeded": len(done), "completedIndexes": format_intervals(done)}
    if "backoffLimitPerIndex" in job["spec"]:
        status["failedIndexes"] = format_intervals(bad)
    if bad:
        status["failed"] = len(bad) * (1 + job["spec"]["backoffLimitPerIndex"])
    return objects.create("jobs", {**job, "status": status})


def _active(job: KnownJob) -> list[Object]:
    return [pod for pod in job.pods.values() if is_active(pod)]


def _worth(pod: Object) -> tuple[bool, bool, bool, float, int]:
    """Pods that matter least first: not placed, not running, not ready, young, of high index."""
    return (
        bool(pod["spec"].get("nodeName")),
        phase_of(pod) == "Running",
        is_ready(pod),
        -_time(pod["metadata"]["creationTimestamp"]),
        -index_of(pod),
    )


def _condition(kind: str, reason: str, message: str, status: str = "True") -> Object:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastProbeTime": now(),
        "lastTransitionTime": now(),
    }


def _set_condition(status: Object, condition: Object) -> bool:
    """Adds a condition or replaces that of its type; whether it is a new one."""
    conditions = status.setdefault("conditions", [])
    for place, old in enumerate(conditions):
        if old["type"] == condition["type"]:
            if old["status"] == condition["status"]:
                return False
            conditions[place] = condition
            return True
    conditions.append(condition)
    return True


def _age(stamp: str) -> float:
    """Seconds since a time as Kubernetes writes it."""
    return time.time() - _time(stamp)


def _time(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def _sooner(wake: float | None, seconds: float) -> float:
    """The earlier of a time and that in some seconds."""
    then = time.monotonic() + seconds
    return then if wake is None else min(wake, then)


def _is_due(wake: float | None) -> bool:
    return wake is not None and wake <= time.monotonic()
