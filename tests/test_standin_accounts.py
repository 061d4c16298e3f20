"""The stand-in's service accounts, tokens and CronJobs do what Kubernetes' do (tests/standin)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from standin.accounts import FOLDER, has_token
from standin.cluster import NAMESPACE, StandIn
from standin.crons import CronController
from standin.objects import ApiError, Object, Objects


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(tmp_path / "standin") as running:
        yield running


def plant_account(cluster: StandIn, name: str, **content: Any) -> None:
    meta = {"name": name, "namespace": NAMESPACE}
    kind = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    cluster.objects.create("serviceaccounts", {**kind, **content})


def run(cluster: StandIn, command: str, **pod: Any) -> str:
    """Creates a Job of a shell command; its name."""
    container = {"name": "c", "image": "any:1", "command": ["sh", "-c", command]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], **pod}}
    meta = {"name": "job", "namespace": NAMESPACE}
    body = {"metadata": meta, "spec": {"completions": 1, "template": template}}
    cluster.objects.create("jobs", body)
    return "job"


def log(cluster: StandIn) -> str:
    pods = cluster.objects.list("pods", NAMESPACE)
    paths = [cluster.kubelet.log_path(NAMESPACE, pod["metadata"]["name"]) for pod in pods]
    return "".join(path.read_text() for path in paths if path.exists())


def until(look: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return found


SHOWN = f"cat {FOLDER}/namespace && grep -c BEGIN {FOLDER}/ca.crt && cut -c1-3 {FOLDER}/token"


def test_a_pod_has_a_token_unless_it_or_its_account_says_no(cluster: StandIn) -> None:
    plant_account(cluster, "quiet", automountServiceAccountToken=False)
    for account, wish, expected in (
        ("default", None, True),
        ("default", False, False),
        ("quiet", None, False),
        ("quiet", True, True),
    ):
        spec: Object = {"serviceAccountName": account, "containers": [{"name": "c"}]}
        if wish is not None:
            spec["automountServiceAccountToken"] = wish
        pod = {"metadata": {"name": "x", "namespace": NAMESPACE}, "spec": spec}
        cluster.accounts.admit(pod)
        assert has_token(pod) is expected, (account, wish)


def test_what_lies_beside_a_token(cluster: StandIn) -> None:
    run(cluster, f'{SHOWN}; echo " $KUBERNETES_SERVICE_HOST"')
    assert until(lambda: re.search(r"fractal1\neyJ\n 127.0.0.1\n", log(cluster)))


def test_the_program_without_a_token_is_told_so(cluster: StandIn) -> None:
    container = {"name": "c", "image": "any:1", "args": ["list", "--in-cluster"]}
    run(cluster, "", automountServiceAccountToken=False, containers=[container])
    assert "no pod with a service account's token" in until(lambda: log(cluster))


def test_an_account_that_is_not_there_gives_no_pods(cluster: StandIn) -> None:
    run(cluster, "true", serviceAccountName="late")
    said = until(lambda: [e for e in cluster.objects.list("events") if "late" in e["message"]])
    assert said[0]["reason"] == "FailedCreate"
    assert "serviceaccount" in said[0]["message"]
    assert not cluster.objects.list("pods")
    plant_account(cluster, "late")
    until(lambda: cluster.objects.list("pods"))


def test_a_token_is_replaced_before_it_expires_and_ends_with_its_pod(cluster: StandIn) -> None:
    cluster.accounts.lifetime_s = 0.5
    run(cluster, f"for k in 1 2 3 4 5 6; do cat {FOLDER}/token; echo; sleep 0.2; done; sleep 60")
    tokens = until(lambda: len(found := list(dict.fromkeys(log(cluster).split()))) > 2 and found)
    assert cluster.accounts.user_of(tokens[0]) is None
    (pod,) = cluster.objects.list("pods", NAMESPACE)
    cluster.accounts.lifetime_s = 60
    token = cluster.accounts.issue(pod)
    user = cluster.accounts.user_of(token)
    assert user is not None
    assert user.name == "system:serviceaccount:fractal:default"
    assert "system:serviceaccounts:fractal" in user.groups
    cluster.objects.delete("pods", NAMESPACE, pod["metadata"]["name"])
    assert cluster.accounts.user_of(token) is None


# --- CronJobs ---

BEGAN = datetime(2030, 1, 1, 11, 59, tzinfo=UTC)


def a_cron(objects: Objects, schedule: str = "*/10 * * * *", **spec: Any) -> None:
    container = {"name": "c", "image": "any:1"}
    pod = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"metadata": {"labels": {"a": "b"}}, "spec": {"template": pod}}
    body = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "cron", "namespace": NAMESPACE},
        "spec": {"schedule": schedule, "jobTemplate": job, **spec},
        "status": {"lastScheduleTime": BEGAN.strftime("%Y-%m-%dT%H:%M:%SZ")},
    }
    objects.create("cronjobs", body)


def end(objects: Objects, job: Object, kind: str = "Complete") -> None:
    body = objects.get("jobs", NAMESPACE, job["metadata"]["name"])
    body["status"] = {"conditions": [{"type": kind, "status": "True"}]}
    objects.update("jobs", body)


@pytest.mark.parametrize(
    ("schedule", "minutes"),
    [
        ("*/10 * * * *", [1, 11, 21, 31]),
        ("0,30 * * * *", [1, 31]),
        ("5-7 12 * * *", [6, 7, 8]),
        ("0 12 1 1 2", [1]),
        ("0 12 * * 3", []),
    ],
)
def test_a_schedule(schedule: str, minutes: list[int]) -> None:
    objects = Objects()
    a_cron(objects, schedule)
    made = {m: CronController(objects).sync(BEGAN + timedelta(minutes=m)) for m in range(40)}
    assert [minute for minute, jobs in made.items() if jobs] == minutes


def test_the_job_of_a_cron_job() -> None:
    objects = Objects()
    a_cron(objects)
    (job,) = CronController(objects).sync(BEGAN + timedelta(minutes=1, seconds=20))
    meta = job["metadata"]
    assert meta["name"] == f"cron-{int((BEGAN + timedelta(minutes=1)).timestamp()) // 60}"
    assert meta["labels"] == {"a": "b"}
    assert meta["ownerReferences"][0]["kind"] == "CronJob"
    assert CronController(objects).sync(BEGAN + timedelta(minutes=1, seconds=40)) == []


def test_one_at_a_time_and_not_too_late() -> None:
    objects = Objects()
    a_cron(objects, concurrencyPolicy="Forbid", startingDeadlineSeconds=120)
    controller = CronController(objects)
    (first,) = controller.sync(BEGAN + timedelta(minutes=2))
    assert controller.sync(BEGAN + timedelta(minutes=11)) == []
    end(objects, first)
    assert len(controller.sync(BEGAN + timedelta(minutes=12))) == 1  # it is not too late
    assert controller.sync(BEGAN + timedelta(minutes=25)) == []  # by four minutes


def test_old_jobs_go_and_a_stopped_one_makes_none() -> None:
    objects = Objects()
    a_cron(objects, successfulJobsHistoryLimit=1, failedJobsHistoryLimit=1)
    controller, made = CronController(objects), []
    for number, kind in enumerate(("Failed", "Complete", "Complete", "Failed", "Complete")):
        (job,) = controller.sync(BEGAN + timedelta(minutes=1 + 10 * number))
        made.append(job["metadata"]["name"])
        end(objects, job, kind)
    body = objects.get("cronjobs", NAMESPACE, "cron")
    body["spec"]["suspend"] = True
    objects.update("cronjobs", body)
    assert controller.sync(BEGAN + timedelta(minutes=60)) == []
    left = [job["metadata"]["name"] for job in objects.list("jobs")]
    assert left == [made[3], made[4]]


def test_a_template_that_the_api_would_refuse_is_refused() -> None:
    objects = Objects()
    a_cron(objects)
    body = objects.get("cronjobs", NAMESPACE, "cron")
    body["spec"]["jobTemplate"]["spec"]["completion"] = 1
    objects.update("cronjobs", body)
    with pytest.raises(ApiError, match="unknown field"):
        CronController(objects).sync(BEGAN + timedelta(minutes=1))
