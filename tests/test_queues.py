"""Jobs without GPUs where Kueue holds every Job that is in no queue, and their priority."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from fractal_k8s.errors import SweepError
from fractal_k8s.manifest import labels
from helm import CHART, Helm, one, pod_specs
from rendering import rendered
from standin.cluster import StandIn
from standin.crons import CronController
from standin.objects import Object, Objects
from test_dispatch import Place, launched, make_place

STORE = ("--set", "store.uri=s3://bucket/runs")
QUEUES = ("--set", "kueue.queue=research", "--set", "kueue.cpuQueue=small")
EVERYTHING = ("-f", CHART / "ci" / "everything-values.yaml")


class Kueue:
    """Its webhook where it manages all Jobs, and the admission of those whose queue is there."""

    def __init__(self, standin: StandIn, *queues: str) -> None:
        self.objects = standin.objects
        self.queues = queues
        for name in queues:
            meta = {"name": name, "namespace": "fractal"}
            self.objects.create("localqueues", {"kind": "LocalQueue", "metadata": meta})
        standin.webhooks.append(self.hold)

    def hold(self, plural: str, item: Object) -> None:
        if plural == "jobs":
            item["spec"]["suspend"] = True

    def admit(self) -> set[str]:
        """Starts what is in a queue; the names of the Jobs that wait on."""
        for job in self.objects.list("jobs"):
            if (job["metadata"].get("labels") or {}).get(labels.QUEUE) in self.queues:
                job["spec"]["suspend"] = False
                self.objects.update("jobs", job)
        jobs = self.objects.list("jobs")
        return {job["metadata"]["name"] for job in jobs if job["spec"].get("suspend")}


@pytest.fixture
def still(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from make_place(run, tmp_path, monkeypatch, run_pods=False)


def test_an_aggregator_that_nobody_would_admit_is_told(still: Place) -> None:
    kueue = Kueue(still.standin, "research")
    facts = still.facts("launch", "small.toml", "--queue", "research", "--job", "aggregator=true")
    name = f"{facts['sweep']}-aggregate"
    (note,) = [note for note in facts["notes"] if name in note]
    assert "is held back, as it is in no queue of Kueue" in note
    assert "--job aggregator_queue=NAME" in note
    assert kueue.admit() == {name}


def test_an_aggregator_in_a_queue_is_admitted(still: Place) -> None:
    kueue = Kueue(still.standin, "research", "small")
    queues = ("--queue", "research", "--job", "aggregator_queue=small")
    facts = still.facts("launch", "small.toml", "--job", "aggregator=true", *queues)
    assert not [note for note in facts["notes"] if "aggregate" in note]
    assert kueue.admit() == set()
    assert len(still.names("jobs")) == 2


def test_a_queue_that_is_not_there_is_a_problem_of_the_launch(still: Place) -> None:
    wish = ("--job", "aggregator=true", "--job", "aggregator_queue=smal")
    said = still.run("launch", "small.toml", *wish, code=2)
    assert "there is no local queue smal of Kueue" in said
    assert still.names("jobs") == []
    assert launched(still, "--job", "aggregator=false", *wish[2:])  # of which nothing is sent


def queue_of(body: Object) -> tuple[Any, Any]:
    found = body["metadata"].get("labels") or {}
    return found.get(labels.QUEUE), found.get(labels.QUEUE_PRIORITY)


def test_each_job_of_a_sweep_is_in_its_own_queue() -> None:
    given = {"queue": "research", "queue_priority": "low", "nodes": "none"}
    plain = rendered(**given)
    assert queue_of(plain.job) == ("research", "low")
    assert plain.aggregator is not None
    assert queue_of(plain.aggregator) == (None, None)
    own = rendered(**given, aggregator_queue="small")
    assert own.aggregator is not None
    assert queue_of(own.aggregator) == ("small", "low")
    assert queue_of(own.aggregator["spec"]["template"]) == (None, None)
    alone = rendered(aggregator_queue="small", queue_priority="low")
    assert "kueue" not in str(alone.job)
    with pytest.raises(SweepError, match="queue_priority"):
        rendered(aggregator_queue="small", queue_priority="z" * 64)


def test_the_chart_s_jobs_are_in_the_queue_for_jobs_without_gpus(helm: Helm) -> None:
    without = helm.objects(*STORE, "--set", "kueue.queue=research")
    assert labels.QUEUE not in str([item for item in without if item["kind"] != "ConfigMap"])
    items = helm.objects(*STORE, *QUEUES, "--set", "kueue.priorityClass=low")
    assert queue_of(one(items, "Job")) == ("small", "low")
    cron = one(items, "CronJob")
    assert queue_of(cron) == (None, None)
    objects = Objects()
    objects.create("cronjobs", cron)
    hour = datetime.now(UTC).replace(minute=0) + timedelta(hours=1)
    (job,) = CronController(objects).sync(hour)
    assert queue_of(job) == ("small", "low")
    assert "aggregator_queue: small" in one(items, "ConfigMap")["data"][labels.SITE_KEY]
    # Kueue lets no Job change its queue while it runs
    assert one(items, "Job")["metadata"]["name"] != one(without, "Job")["metadata"]["name"]


def test_no_pod_of_the_chart_takes_the_place_of_a_sweep_s(helm: Helm) -> None:
    """A CronJob of usual priority would put out sweeps of a low one, pass by pass."""
    for spec in pod_specs(helm.objects(*STORE, "--set", "priorityClass=low")).values():
        assert spec["priorityClassName"] == "low"
    for spec in pod_specs(helm.objects(*STORE)).values():
        assert "priorityClassName" not in spec
