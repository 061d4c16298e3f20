"""The chart's CronJob as a cluster runs it: passes over a store by pods with an account."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.aggregator import WEBHOOK_KEY
from fractal_k8s.results import schema
from fractal_k8s.results.outcome import Environment
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from helm import Helm
from standin.cluster import StandIn
from test_aggregate import SWEEP, outcome
from test_aggregator_pod import end_of, log_of, plant_secret, pods_of
from test_chart_install import OUTCOMES, install, job_ended, standin, values, volumes
from test_notify import Chat, chat

__all__ = ["chat", "standin", "values", "volumes"]  # fixtures

CRON = "fractal-cache-aggregator"
ACCOUNT = "system:serviceaccount:fractal:fractal-cache-aggregator"


@pytest.fixture
def store(volumes: dict[str, Path]) -> Store:
    return Store(str(volumes[OUTCOMES] / "runs"))


def stored(store: Store, name: str, points: range) -> SweepStore:
    """A sweep of which some points are known. All are alike but for their names."""
    sweep = named(name)
    folder = store.sweep(sweep.id)
    folder.write_plan(Plan(sweep, Deal()))
    put(folder, sweep, points)
    return folder


def named(name: str) -> Sweep:
    return mlp_sweep(name=name, verdict={"window": 1})


def put(folder: SweepStore, sweep: Sweep, points: range) -> None:
    outcomes = [outcome(index) for index in points]
    times = [datetime(2026, 1, 1, tzinfo=UTC)] * len(points)
    table = schema.to_table(sweep, outcomes, times, Environment(numerics_class="test"))
    folder.files.put(folder.outcome_key(f"from{points[0]}", "1"), schema.to_bytes(table))


def written(store: Store, sweep_id: str) -> dict[str, int]:
    """When each file of a sweep was written, nanoseconds."""
    folder = Path(store.files.uri) / sweep_id
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def plant_failed_job(standin: StandIn, sweep_id: str) -> None:
    """What is left of a Job of which an index has failed."""
    own = {labels.SWEEP: sweep_id, labels.COMPONENT: labels.WORKER}
    ended = {"type": "Failed", "status": "True", "reason": "FailedIndexes"}
    standin.objects.create(
        "jobs",
        {
            "metadata": {"name": sweep_id, "namespace": "fractal", "labels": own},
            "spec": {"completions": 8, "completionMode": "Indexed"},
            "status": {"conditions": [ended], "failedIndexes": "3"},
        },
    )


@pytest.fixture
def clock() -> Iterator[datetime]:
    """Times that the chart's schedule, every ten minutes, is due at."""
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return (first + timedelta(minutes=10 * number) for number in range(100))


def test_passes_keep_active_sweeps_up_to_date_and_leave_finished_ones_alone(
    helm: Helm,
    run: Run,
    standin: StandIn,
    values: Path,
    store: Store,
    chat: Chat,
    clock: Iterator[datetime],
) -> None:
    whole = range(SWEEP.num_points)
    first, second = (stored(store, name, range(9)) for name in ("first", "second"))
    finished = stored(store, "finished", whole)
    run("aggregate", finished.sweep_id, "--store", store.files.uri)
    before = written(store, finished.sweep_id)
    plant_secret(standin, "chat", **{WEBHOOK_KEY: chat.url})
    install(helm, standin, values, "--set", "notify.existingSecret=chat")
    plant_failed_job(standin, first.sweep_id)

    jobs = []
    for known in (9, 18):
        (job,) = standin.crons.sync(next(clock))
        jobs.append(job["metadata"]["name"])
        assert standin.crons.sync(next(clock)) == []  # Forbid
        assert job_ended(standin, jobs[-1]) == "Complete", [
            log_of(standin, pod) for pod in pods_of(standin, jobs[-1])
        ]
        for folder in (first, second):
            summary = folder.read_summary()
            assert summary is not None
            assert summary["counts"]["missing"] == SWEEP.num_points - known
        assert written(store, finished.sweep_id) == before
        put(first, named("first"), range(known, known + 9))
        put(second, named("second"), range(known, known + 9))
    (log,) = [log_of(standin, pod) for pod in pods_of(standin, jobs[0])]
    assert f"{finished.sweep_id}  unchanged" in log
    assert f"{first.sweep_id}  partial" in log
    assert [text for text in chat.texts if "1 of 8 indexes" in text] == [
        f"{first.sweep_id}: 1 of 8 indexes of the Job {first.sweep_id} have failed for good"
    ]
    assert len([text for text in chat.texts if text.startswith(finished.sweep_id)]) == 1
    assert {(c.verb, c.resource) for c in standin.requests if c.user == ACCOUNT} == {
        ("list", "jobs")
    }

    standin.crons.sync(next(clock))
    owned = [job["metadata"]["name"] for job in standin.objects.list("jobs")]
    assert jobs[0] not in owned  # one that is over is kept
    assert jobs[1] in owned
    helm.on_cluster("uninstall", "fractal-cache")
    assert end_of(standin, first.sweep_id) == "Failed"
