"""The CronJob controller, whose clock is whoever calls it: no Job appears by itself in a test."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from standin import defaults, validation
from standin.deletion import delete_owner, edit
from standin.events import Recorder
from standin.objects import RESOURCES, ApiError, Object, Objects, copied

# of minute, hour, day of the month, month, day of the week: the first and the last value
_RANGES: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
# how long ago a start that was missed may be, where no deadline says
_LONGEST: Final = timedelta(days=1)
_SCHEDULED: Final = "batch.kubernetes.io/cronjob-scheduled-timestamp"


class CronController:
    """Makes the Jobs of CronJobs, and removes those that are over and beyond the limits.

    Schedules are those of five numbers, *, ranges, steps and lists. Time zones are not there.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._events = Recorder(objects, "cronjob-controller", "cronjobs")

    def sync(self, now: datetime) -> list[Object]:
        """Does what is to be done at a time; returns the new Jobs."""
        made = []
        for body in self._objects.list("cronjobs"):
            jobs = self._tidied(body)
            due = None if body["spec"].get("suspend") else _due(body, now)
            job = None if due is None else self._started(body, jobs, due)
            if job is not None:
                made.append(job)
        return made

    def _tidied(self, body: Object) -> list[Object]:
        """Jobs of a CronJob, oldest first, without those beyond its history limits."""
        meta, spec = body["metadata"], body["spec"]
        jobs = [
            job
            for job in self._objects.list("jobs", meta["namespace"])
            if any(o["uid"] == meta["uid"] for o in job["metadata"].get("ownerReferences", ()))
        ]
        jobs.sort(key=lambda job: str(job["metadata"]["annotations"][_SCHEDULED]))
        for kind, limit in (
            ("Complete", spec.get("successfulJobsHistoryLimit", 3)),
            ("Failed", spec.get("failedJobsHistoryLimit", 1)),
        ):
            over = [job for job in jobs if _end(job) == kind]
            for job in over[: max(0, len(over) - limit)]:
                jobs.remove(job)
                with suppress(ApiError):
                    delete_owner(self._objects, "jobs", meta["namespace"], job["metadata"]["name"])
        return jobs

    def _started(self, body: Object, jobs: list[Object], due: datetime) -> Object | None:
        """The Job of a time, if none of an earlier time is in its way."""
        meta, spec = body["metadata"], body["spec"]
        active = [job for job in jobs if _end(job) is None]
        policy = spec.get("concurrencyPolicy", "Allow")
        if active and policy == "Forbid":
            self._events.say(body, "JobAlreadyActive", "Not starting job: prior execution runs on")
            return None
        for job in active if policy == "Replace" else ():
            delete_owner(self._objects, "jobs", meta["namespace"], job["metadata"]["name"])
        job = _make_job(body, due)
        validation.check_schema(RESOURCES["jobs"], job)
        defaults.fill("jobs", job)
        validation.check_rules(RESOURCES["jobs"], job)
        made = self._objects.create("jobs", job)
        self._events.say(body, "SuccessfulCreate", f"Created job {made['metadata']['name']}")

        def note(item: Object) -> None:
            item["status"] = {**(item.get("status") or {}), "lastScheduleTime": _stamp(due)}

        edit(self._objects, "cronjobs", meta["namespace"], meta["name"], note)
        return made


def _make_job(body: Object, due: datetime) -> Object:
    meta, template = body["metadata"], copied(body["spec"]["jobTemplate"])
    given: dict[str, Any] = template.get("metadata") or {}
    owner = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{meta['name']}-{int(due.timestamp()) // 60}",
            "namespace": meta["namespace"],
            "labels": given.get("labels") or {},
            "annotations": {**(given.get("annotations") or {}), _SCHEDULED: _stamp(due)},
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }


def _due(body: Object, now: datetime) -> datetime | None:
    """The last time that was to be kept and has not been, unless it is too long ago."""
    seconds = body["spec"].get("startingDeadlineSeconds")
    earliest = now - (_LONGEST if seconds is None else timedelta(seconds=seconds))
    last = (body.get("status") or {}).get("lastScheduleTime")
    last = _time(last or body["metadata"]["creationTimestamp"])
    wanted = [
        _values(text, *limits)
        for text, limits in zip(body["spec"]["schedule"].split(), _RANGES, strict=True)
    ]
    minute = now.replace(second=0, microsecond=0)
    while minute >= earliest and minute > last:
        weekday = minute.isoweekday() % 7
        parts = (minute.minute, minute.hour, minute.day, minute.month, weekday)
        if all(part in values for part, values in zip(parts, wanted, strict=True)):
            return minute
        minute -= timedelta(minutes=1)
    return None


def _values(text: str, first: int, last: int) -> set[int]:
    """What a field of a schedule stands for, such as `*/10`, `1-5` or `0,30`."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        begin, end = (first, last) if span == "*" else (int(low), int(high or low))
        found.update(range(begin, end + 1, int(step or 1)))
    return found


def _end(job: Object) -> str | None:
    """Complete or Failed, once it is."""
    kinds = [each["type"] for each in (job.get("status") or {}).get("conditions") or ()]
    return next((kind for kind in kinds if kind in ("Complete", "Failed")), None)


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
