"""The aggregator as the pod that it is: with its account's token, its rights and nothing else."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kubernetes.config import incluster_config

from conftest import SMALL, Run
from fractal_k8s.aggregate.until import JobsState, Watch, aggregate_until
from fractal_k8s.backends.kube import client
from fractal_k8s.backends.kube.client import CONFIG_MAPS, JOBS, PODS, SECRETS, Cluster
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.backends.kube.jobs import ended_jobs
from fractal_k8s.errors import ClusterError, ForbiddenError
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.aggregator import WEBHOOK_KEY
from fractal_k8s.results.store import Store
from standin.cluster import StandIn
from standin.container import prepare
from standin.objects import Object
from test_aggregate import ALL, PLAN, SWEEP, put
from test_dispatch import wait_for, write_site
from test_notify import Chat, chat
from test_rights import AGGREGATOR, ROLES

__all__ = ["chat"]  # fixtures

ACCOUNT = f"system:serviceaccount:fractal:{AGGREGATOR}"


def plant_roles(standin: StandIn) -> None:
    for item in yaml.safe_load_all(ROLES.read_text()):
        standin.objects.create(f"{item['kind'].lower()}s", item)


def plant_secret(standin: StandIn, name: str, **values: str) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    meta = {"name": name, "namespace": "fractal"}
    standin.objects.create(
        "secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data}
    )


def labels_of(sweep_id: str) -> dict[str, str]:
    return {labels.SWEEP: sweep_id, labels.COMPONENT: labels.WORKER}


def log_of(standin: StandIn, pod: str) -> str:
    return standin.kubelet.log_path("fractal", pod).read_text()


def pods_of(standin: StandIn, job: str) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in standin.objects.list("pods", "fractal")
        if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") == job
    ]


def end_of(standin: StandIn, job: str) -> str | None:
    status = standin.objects.get("jobs", "fractal", job).get("status") or {}
    kinds = [each["type"] for each in status.get("conditions") or ()]
    return next((kind for kind in kinds if kind in ("Complete", "Failed")), None)


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn(tmp_path / "standin") as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        plant_roles(cluster)
        yield cluster


# --- a launch, to its end ---


@pytest.fixture
def site(standin: StandIn, bucket: str, chat: Chat, tmp_path: Path) -> str:
    """A site with a bucket, an account for the aggregator and a chat; the store's URI."""
    uri = bucket.replace("/maps", f"/{tmp_path.name}")
    plant_secret(standin, "keys", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")
    plant_secret(standin, "chat", **{WEBHOOK_KEY: chat.url})
    write_site(
        standin.objects,
        store=uri,
        store_claim=None,
        store_secret="keys",
        notify_secret="chat",
        aggregator=True,
        aggregator_account=AGGREGATOR,
        aggregator_cpu="100m",
        aggregator_memory="1Gi",
    )
    (tmp_path / "small.toml").write_text(SMALL)
    standin.webhooks.append(hasten)
    return uri


def hasten(plural: str, item: Object) -> None:
    """An aggregator looks twice a minute, which is long for a test."""
    if plural == "jobs" and item["metadata"]["name"].endswith("-aggregate"):
        (container,) = item["spec"]["template"]["spec"]["containers"]
        container["args"] += ["--every", "0.3"]


def test_a_launch_ends_with_a_map_and_one_message(
    standin: StandIn, site: str, chat: Chat, run: Run
) -> None:
    launch = ("launch", "small.toml", "--points-per-index", "128", "--context", "standin", "--json")
    sweep_id = json.loads(run(*launch).stdout)["sweep"]
    name = f"{sweep_id}-aggregate"
    try:
        wait_for(lambda: end_of(standin, name) is not None, 120)
    finally:
        (pod,) = pods_of(standin, name)
        log = log_of(standin, pod)
        print(log)
    assert end_of(standin, name) == "Complete"
    folder = Store(site).sweep(sweep_id)
    summary = folder.read_summary()
    assert summary is not None
    assert summary["complete"]
    assert folder.files.get(folder.key("summary", "manifest.json"))
    (text,) = chat.texts
    assert text.startswith(f"{sweep_id}: complete")
    asked = {
        (call.verb, call.resource) for call in standin.requests if call.user.startswith("system:")
    }
    assert asked == {("list", "jobs")}
    assert {call.user for call in standin.requests} == {"standin", ACCOUNT}
    assert "eyJ" not in log
    assert "secret" not in log


# --- what its token is good for ---


@dataclass
class Inside:
    """A pod's folder, which this process sees as its own."""

    standin: StandIn
    pod: Object
    folder: Path

    def connect(self) -> Cluster:
        return connect(None, in_cluster=True)

    def renew(self) -> None:
        """What a kubelet does in time: the token in the folder is another one."""
        (volume,) = prepare(
            self.standin.objects, self.pod, self.folder, {}, self.standin.accounts
        ).projected
        volume.due = 0.0
        volume.renew()


@pytest.fixture
def inside(standin: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Inside:
    standin.controller.stop()
    standin.kubelet.stop()
    pod = standin.objects.create("pods", a_pod(standin))
    launch = prepare(standin.objects, pod, tmp_path / "pod", {}, standin.accounts)
    (volume,) = launch.projected
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.setenv(name, launch.env[name])
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(volume.where / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(volume.where / "ca.crt"))
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "_LONGEST_WAIT_S", 0.02)
    return Inside(standin, pod, tmp_path / "pod")


def a_pod(standin: StandIn, *command: str, **spec: Any) -> Object:
    container = {"name": "c", "image": "any:1", "command": ["fractal-k8s"], "args": [*command]}
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": "fractal", "labels": {}},
        "spec": {
            "serviceAccountName": AGGREGATOR,
            "automountServiceAccountToken": True,
            "restartPolicy": "Never",
            "containers": [container],
            **spec,
        },
        "status": {"phase": "Pending"},
    }
    standin.accounts.admit(pod)
    return pod


def test_the_account_may_look_at_jobs_of_its_namespace_alone(inside: Inside) -> None:
    cluster = inside.connect()
    assert cluster.namespace == "fractal"
    assert list(cluster.list(JOBS)) == []
    assert cluster.get(JOBS, "none") is None
    for kind in (SECRETS, PODS, CONFIG_MAPS):
        with pytest.raises(ForbiddenError, match=f'User "{ACCOUNT}" cannot list'):
            list(cluster.list(kind))
    with pytest.raises(ForbiddenError, match="cannot create"):
        cluster.create(JOBS, {"metadata": {"name": "mine"}})
    with pytest.raises(ForbiddenError, match="cannot delete"):
        cluster.delete(JOBS, "theirs")
    with pytest.raises(ForbiddenError, match='in the namespace "default"'):
        list(connect(None, in_cluster=True, namespace="default").list(JOBS))


def test_a_token_ends_with_its_pod_and_its_account(inside: Inside) -> None:
    cluster = inside.connect()
    assert cluster.version()
    inside.standin.objects.delete("serviceaccounts", "fractal", AGGREGATOR)
    with pytest.raises(ClusterError, match="does not accept"):
        cluster.version()


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client looks at the file of the token once a minute, and that is over."""
    now = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=2)
    clock = SimpleNamespace(now=lambda: now)
    monkeypatch.setattr(
        incluster_config, "datetime", SimpleNamespace(datetime=clock, timedelta=timedelta)
    )


def test_a_token_that_was_replaced_is_read_again(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubelet writes another one long before the old one expires."""
    cluster = inside.connect()
    assert cluster.version()
    inside.standin.accounts.expire()
    with pytest.raises(ClusterError, match="the token of this pod's account"):
        cluster.version()
    token = Path(incluster_config.SERVICE_TOKEN_FILENAME)
    later(monkeypatch)
    for trouble in (lambda: token.write_text(""), token.unlink):
        trouble()
        with pytest.raises(ClusterError, match="does not answer"):
            cluster.version()
    inside.renew()
    assert cluster.version()


def test_an_api_that_is_away_for_a_while_ends_nothing(inside: Inside, tmp_path: Path) -> None:
    """A sweep that waits for its turn has stored nothing for hours when the API goes away."""
    cluster, said = inside.connect(), []
    job = {"metadata": {"name": SWEEP.id, "namespace": "fractal", "labels": labels_of(SWEEP.id)}}
    inside.standin.objects.create("jobs", {**job, "spec": {"completions": 1}})
    folder = Store(str(tmp_path / "runs")).sweep(SWEEP.id)
    asked = 0

    def ask(sweep_id: str) -> JobsState:
        nonlocal asked
        asked += 1
        if asked == 6:  # longer than patience would last without a word
            inside.standin.down()
        elif asked == 8:
            inside.standin.up()
        elif asked == 9:
            folder.write_plan(PLAN)
            put(folder, ALL)
        return JobsState(*ended_jobs(cluster, sweep_id))

    watch = Watch(every_s=0.1, patience_s=0.45, jobs=ask)
    store = Store(str(tmp_path / "runs"))
    done = aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=said.append)[1]
    assert done.summary["complete"]
    assert asked == 9
    (trouble,) = [line for line in said if "does not say" in line]
    assert "cluster 'in-cluster' does not answer" in trouble


# --- the first process of a container ---


@pytest.mark.parametrize("first", [(), ("unshare", "--user", "--pid", "--fork", "--kill-child")])
def test_a_pod_that_is_asked_to_go_goes_at_once(first: tuple[str, ...], tmp_path: Path) -> None:
    """For process 1 the kernel drops a SIGTERM that has no handler, and the grace passes unused."""
    if first and subprocess.run([*first, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a process be the first of its own")
    typed = ("aggregate", "small-0123456789", "--until-complete", "--store", str(tmp_path))
    program = [sys.executable, "-u", "-c", _SAYS_ITS_NUMBER, *typed]
    with subprocess.Popen([*first, *program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{1 if first else process.pid}\n"
        time.sleep(3)  # until it waits for the sweep
        pid = process.pid
        if first:  # the process itself, which has another number out here
            (pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        os.kill(pid, signal.SIGTERM)
        try:
            assert process.wait(10) == 143
        finally:
            process.kill()


_SAYS_ITS_NUMBER = """
import os, sys
from fractal_k8s.__main__ import run
print(os.getpid())
run()
"""
