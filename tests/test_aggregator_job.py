"""The Job that puts outcomes together: what it is, and that it runs beside the one that trains."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.backends.kube.jobs import ended_jobs, jobs_of
from fractal_k8s.environ import WEBHOOK_VARIABLE
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.aggregator import aggregator_name
from fractal_k8s.manifest.render import INTERRUPTIBLE
from rendering import KINDS, docvqa, rendered, validate
from standin.deletion import collect_orphans
from test_dispatch import Place, launched, make_place, train_some, wait_for


def aggregator_of(**values: Any) -> dict[str, Any]:
    body = rendered(**values).aggregator
    assert body is not None
    return body


def pod_of(body: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = body["spec"]["template"]["spec"]
    return spec


def container_of(body: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(body)["containers"]
    return dict(container)


# --- what it is ---


@pytest.mark.parametrize("kind", [*KINDS])
def test_every_kind_of_job_has_one_that_is_valid_and_restricted(kind: str) -> None:
    manifest = rendered(**KINDS[kind])
    validate(manifest, ("1.29", "1.36"))
    assert manifest.aggregator is not None
    spec, container = pod_of(manifest.aggregator), container_of(manifest.aggregator)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert not any("gpu" in name for name in container["resources"]["limits"])
    assert "affinity" not in spec
    assert "activeDeadlineSeconds" not in manifest.aggregator["spec"]
    worker = pod_of(manifest.job)
    for key in ("priorityClassName", "imagePullSecrets", "tolerations"):
        assert spec.get(key) == worker.get(key), key
    assert container["image"] == worker["containers"][0]["image"]


def test_it_is_no_worker_and_belongs_to_the_sweep() -> None:
    body, sweep = aggregator_of(), docvqa()
    for found in (body["metadata"], body["spec"]["template"]["metadata"]):
        assert found["labels"][labels.COMPONENT] == labels.AGGREGATOR
        assert found["labels"][labels.SWEEP] == sweep.id
    assert body["metadata"]["name"] == f"{sweep.id}-aggregate"
    assert rendered(aggregator=False).aggregator is None


def test_it_has_a_token_only_with_an_account_of_its_own() -> None:
    plain = aggregator_of()
    assert pod_of(plain)["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod_of(plain)
    assert "--in-cluster" not in container_of(plain)["args"]
    own = aggregator_of(aggregator_account="fractal-aggregator")
    assert pod_of(own)["automountServiceAccountToken"] is True
    assert pod_of(own)["serviceAccountName"] == "fractal-aggregator"
    assert container_of(own)["args"] == [
        "aggregate",
        docvqa().id,
        *("--store", "s3://bucket/runs", "--until-complete", "--in-cluster"),
    ]


def test_it_reads_secrets_by_name_and_mounts_the_store_alone() -> None:
    values = {
        "store": "/store/runs",
        "store_claim": "outcomes",
        "store_secret": "keys",
        "wandb_project": "maps",
        "wandb_secret": "wandb",
        "notify_secret": "chat",
    }
    body = aggregator_of(**values)
    references = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]
        for entry in container_of(body)["env"]
        if "valueFrom" in entry
    }
    assert references[WEBHOOK_VARIABLE] == {"name": "chat", "key": "url"}
    assert references["AWS_SECRET_ACCESS_KEY"] == {"name": "keys", "key": "AWS_SECRET_ACCESS_KEY"}
    assert references["WANDB_API_KEY"] == {"name": "wandb", "key": "WANDB_API_KEY"}
    claims = [volume for volume in pod_of(body)["volumes"] if "persistentVolumeClaim" in volume]
    assert [volume["name"] for volume in claims] == ["store"]


@pytest.mark.parametrize(
    ("mode", "workers", "own"),
    [("off", False, False), ("summary", False, True), ("shard", True, True), ("point", True, True)],
)
def test_who_gets_the_key_of_w_and_b(mode: str, workers: bool, own: bool) -> None:
    tracked = {"wandb_project": "maps", "wandb_secret": "wandb", "wandb_mode": mode}
    values = {**tracked, "wandb_force": True}
    manifest = rendered(**values)
    assert manifest.aggregator is not None
    for body, expected in ((manifest.job, workers), (manifest.aggregator, own)):
        names = {entry["name"] for entry in container_of(body)["env"]}
        assert ("WANDB_API_KEY" in names) is expected
    assert ("FRACTAL_K8S_WANDB_PROJECT" in names) is own
    alone = rendered(**values, aggregator=False)
    assert ("WANDB_API_KEY" in alone.text) is workers


def test_it_holds_up_no_maintenance_of_its_node() -> None:
    """It runs for days, and may be ended at any moment."""
    for wish in (True, False):
        found = aggregator_of(interruptible=wish)["spec"]["template"]["metadata"]["labels"]
        assert (INTERRUPTIBLE in found) is wish


@pytest.mark.parametrize(
    ("length", "suffix"), [(20, "-aggregate"), (53, "-aggregate"), (54, "-agg"), (61, "-a")]
)
def test_its_name_fits_a_label(length: int, suffix: str) -> None:
    name = aggregator_name("x" * length)
    assert name == "x" * length + suffix
    assert len(name) <= 63


# --- beside the one that trains ---


@pytest.fixture
def busy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from make_place(run, tmp_path, monkeypatch, run_pods=True)


@pytest.fixture
def still(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from make_place(run, tmp_path, monkeypatch, run_pods=False)


WITH = ("--job", "aggregator=true")


def test_a_launch_ends_with_a_map_that_nobody_drew(busy: Place) -> None:
    sweep_id = launched(busy, *WITH, "--points-per-index", "128")
    summary = busy.store.sweep(sweep_id)
    try:
        wait_for(lambda: bool((summary.read_summary() or {}).get("complete")), 120)
    except AssertionError:
        for pod in busy.objects.list("pods"):
            print(pod["metadata"]["name"], pod["status"])
            print(busy.standin.kubelet.log_path("fractal", pod["metadata"]["name"]).read_text())
        raise
    name = f"{sweep_id}-aggregate"

    def complete() -> bool:
        conditions = busy.job(name).get("status", {}).get("conditions") or []
        return any(one["type"] == "Complete" for one in conditions)

    wait_for(complete)
    (owner,) = busy.job(name)["metadata"]["ownerReferences"]
    assert owner["name"] == sweep_id
    assert summary.files.get(summary.key("summary", "manifest.json"))
    assert summary.files.entries(summary.key("running")) == []  # the word of the Job is taken back


def test_it_comes_and_goes_with_the_job(still: Place) -> None:
    sweep_id = launched(still, *WITH)
    assert still.names("jobs") == [sweep_id, f"{sweep_id}-aggregate"]
    again = still.facts("launch", "small.toml", *WITH)
    assert not again["sent"]
    assert still.names("jobs") == [sweep_id, f"{sweep_id}-aggregate"]
    cluster = connect("standin")
    assert [job.name for job in jobs_of(cluster, sweep_id)] == [sweep_id]
    assert f"{sweep_id}-aggregate" not in still.run("list")
    still.run("cancel", sweep_id)
    collect_orphans(still.objects)  # no controller runs here
    assert still.names("jobs") == []
    assert launched(still, *WITH) == sweep_id
    assert still.names("jobs") == [sweep_id, f"{sweep_id}-aggregate"]


def test_cancel_names_the_command_that_draws_what_is_there(still: Place, run: Run) -> None:
    """With its Job goes the one that would have drawn it."""
    sweep_id = launched(still, *WITH)
    train_some(still, sweep_id, points=10)
    output = still.run("cancel", sweep_id)
    (hint,) = re.findall(r"last map +fractal-k8s (.*)", output)
    assert "246 missing" in run(*shlex.split(hint), code=1).output
    summary = still.store.sweep(sweep_id).read_summary()
    assert summary is not None
    assert summary["counts"]["missing"] == 246


def test_cancel_names_no_store_that_only_pods_see(still: Place) -> None:
    launched(still, "--job", "client_store=")
    assert "last map" not in still.run("cancel", "small")


def test_a_resumed_sweep_has_one_more(still: Place) -> None:
    sweep_id = launched(still, *WITH)
    ended = {"type": "Failed", "status": "True", "reason": "FailedIndexes"}
    still.set_status(sweep_id, conditions=[ended], failedIndexes="0")
    still.run("resume", sweep_id, *WITH)
    assert f"{sweep_id}-r2-aggregate" in still.names("jobs")


def test_whether_its_jobs_have_ended(still: Place) -> None:
    cluster = connect("standin")
    sweep_id = launched(still, *WITH)
    assert ended_jobs(cluster, sweep_id) == (False, {})
    ended = {"type": "Failed", "status": "True", "reason": "FailedIndexes"}
    still.set_status(sweep_id, conditions=[ended], failedIndexes="0,2-4")
    over, failed = ended_jobs(cluster, sweep_id)
    assert over
    assert "4 of" in failed[sweep_id]
    # before any index has: a wrong sweep or damaged weights end all of it
    fatal = {**ended, "reason": "PodFailurePolicy", "message": "exit code 65 at index 3"}
    still.set_status(sweep_id, conditions=[fatal], failedIndexes="")
    assert ended_jobs(cluster, sweep_id)[1] == {
        sweep_id: f"the Job {sweep_id} has failed: exit code 65 at index 3"
    }
    still.run("delete", sweep_id)
    assert ended_jobs(cluster, sweep_id) == (True, {})


def test_one_that_cannot_be_created_does_not_stop_the_launch(still: Place) -> None:
    other = {"apiVersion": "batch/v1", "kind": "Job"}
    sweep_id = str(still.facts("launch", "small.toml")["sweep"])
    still.run("delete", sweep_id)
    body = aggregator_of()
    meta = {"name": f"{sweep_id}-aggregate", "namespace": "fractal"}
    still.objects.create("jobs", {**other, "metadata": meta, "spec": body["spec"]})
    facts = still.facts("launch", "small.toml", *WITH)
    assert facts["sent"]
    assert any(f"there is a Job {sweep_id}-aggregate already" in note for note in facts["notes"])
    assert facts["aggregator"] is None
