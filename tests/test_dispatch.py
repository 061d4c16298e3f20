"""Sweeps on a cluster: launch, resume and what changes a Job, against the stand-in."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from conftest import SMALL, Run, mlp_sweep
from fractal_k8s import cli, dispatch
from fractal_k8s.aggregate import read_grid
from fractal_k8s.backends import Work
from fractal_k8s.backends.inline import InlineBackend
from fractal_k8s.backends.k8s import K8sRun
from fractal_k8s.backends.kube import client, send, steer
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.backends.kube.jobs import SweepJob, free_name, is_id, jobs_of
from fractal_k8s.cli.training import WANDB_MODES
from fractal_k8s.errors import ClusterError, ForbiddenError, UsageError
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.render import Manifest, render
from fractal_k8s.manifest.settings import JobSettings, make_settings
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.derive import pilot_of
from fractal_k8s.sweep.intervals import format_intervals
from fractal_k8s.sweep.load import parse_text, resolve
from fractal_k8s.tracking import modes
from standin.cluster import StandIn
from standin.objects import Object
from sweeps import fine_tune_text

SITE: dict[str, Any] = {
    "store": "/store/runs",
    "store_claim": "fractal-store",
    "gpus": 2,
    "gpus_per_pod": 0,
    "cpu": "500m",
    "memory": "1Gi",
    "ephemeral_storage": "1Gi",
    "aggregator": False,  # tests/test_aggregator_job.py
}


class Place:
    """A stand-in, a command line on it, and the folder of its store."""

    def __init__(self, standin: StandIn, run: Run, store: Path) -> None:
        self.standin = standin
        self.objects = standin.objects
        self.store = Store(str(store / "runs"))
        self._run = run

    def run(self, *arguments: str, code: int = 0) -> str:
        return self._run(*arguments, "--context", "standin", code=code).output

    def facts(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self._run(*arguments, "--context", "standin", "--json").stdout
        )
        return found

    def calls(self, *verbs: str) -> list[str]:
        """Requests with these verbs so far, as "create jobs"."""
        return [
            f"{call.verb} {call.resource}"
            for call in self.standin.requests
            if call.verb in verbs and "reviews" not in call.resource
        ]

    def names(self, plural: str) -> list[str]:
        found = [item["metadata"]["name"] for item in self.objects.list(plural, "fractal")]
        return [name for name in found if name != labels.SITE]

    def job(self, name: str) -> Object:
        return self.objects.get("jobs", "fractal", name)

    def config_map(self, name: str) -> Object:
        return self.objects.get("configmaps", "fractal", name)

    def set_status(self, name: str, **status: Any) -> None:
        """What a Job controller would say of a Job."""
        job = self.job(name)
        job["status"] = status
        self.objects.update("jobs", job)


def write_site(objects: Any, **changes: Any) -> None:
    values = {key: value for key, value in {**SITE, **changes}.items() if value is not None}
    meta = {"name": labels.SITE, "namespace": "fractal"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
    objects.create("configmaps", {**body, "data": {labels.SITE_KEY: yaml.safe_dump(values)}})


def make_place(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, run_pods: bool
) -> Iterator[Place]:
    claim = tmp_path / "claim"
    claim.mkdir()
    (tmp_path / "small.toml").write_text(SMALL)
    with StandIn(
        tmp_path / "standin", claims={"fractal-store": claim}, run_pods=run_pods
    ) as standin:
        monkeypatch.setenv("KUBECONFIG", str(standin.kubeconfig))
        write_site(standin.objects, client_store=str(claim / "runs"))
        yield Place(standin, run, claim)


@pytest.fixture
def still(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A cluster on which no pod runs."""
    yield from make_place(run, tmp_path, monkeypatch, run_pods=False)


@pytest.fixture
def busy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A cluster that runs pods."""
    yield from make_place(run, tmp_path, monkeypatch, run_pods=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(send, "_SETTLE_S", 0.4)


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def launched(place: Place, *arguments: str) -> str:
    """Launches the small sweep; its id."""
    facts = place.facts("launch", "small.toml", *arguments)
    assert facts["sent"]
    return str(facts["sweep"])


def settings(**changes: Any) -> JobSettings:
    return make_settings(("test", {**SITE, **changes}))


def small_manifest(points: int = 7, **changes: Any) -> Manifest:
    return render(Plan(mlp_sweep(), Deal(points_per_shard=points)), settings(**changes))


# --- launch ---


def test_a_launch_creates_a_job_and_the_sweep_it_reads(still: Place) -> None:
    output = still.run("launch", "small.toml", "--points-per-index", "16")
    [name] = still.names("jobs")
    assert still.names("configmaps") == [name]
    job, plan = still.job(name), still.config_map(name)
    assert job["spec"]["completions"] == 16
    assert job["spec"]["parallelism"] == 2
    assert Plan.from_json(plan["data"]["sweep.json"], source="test").sweep.id == name
    [owner] = plan["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Job", job["metadata"]["uid"])
    assert f"{name}: Job {name} in namespace fractal" in output
    assert "16 indexes of 16 points, 256 experiments, 2 pods at once" in output
    assert f"fractal-k8s status {name} --context standin --watch" in output
    assert f"kubectl --context standin -n fractal logs -f job/{name}" in output
    assert f"fractal-k8s cancel {name} --context standin" in output
    assert still.calls("create") == ["create configmaps", "create jobs"]


def test_launch_sends_what_render_prints(still: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--points-per-index", "16", "--gpus", "4")
    printed = still.run("render", "small.toml", *options)
    sent: list[Object] = []
    create = client.Cluster.create

    def record(self: client.Cluster, kind: client.Kind, body: Object) -> Object:
        sent.append(body)
        return create(self, kind, body)

    monkeypatch.setattr(client.Cluster, "create", record)
    still.run("launch", "small.toml", *options)
    assert sent == list(yaml.safe_load_all(printed))


def test_a_launch_into_another_store_than_the_site_s_trains_everything(still: Place) -> None:
    name = launched(still)
    train_some(still, name, points=250)
    still.run("delete", name)
    facts = still.facts("launch", "small.toml", "--store", "/store/other")
    assert facts["experiments"] == 256
    assert labels.CLIENT_STORE not in still.job(name)["metadata"]["annotations"]


def test_a_second_launch_sends_nothing_and_says_so(still: Place) -> None:
    name = launched(still)
    before = len(still.standin.requests)
    output = still.run("launch", "small.toml")
    assert re.search(rf"{name} was launched at 20.*Z \(Job {name}: not started yet, ", output)
    assert "nothing was sent" in output
    assert [f"{call.verb} {call.resource}" for call in still.standin.requests[before:]] == [
        "list jobs"
    ]
    assert still.facts("launch", "small.toml")["sent"] is False


def test_a_launch_of_what_has_ended_says_how_to_go_on(still: Place) -> None:
    name = launched(still, "--points-per-index", "64")
    failed = {"type": "Failed", "status": "True", "reason": "FailedIndexes"}
    still.set_status(name, completedIndexes="0-2", failedIndexes="3", conditions=[failed])
    output = still.run("launch", "small.toml")
    assert "failed (FailedIndexes), 3 of 4 indexes done, 1 failed); nothing was sent" in output
    assert f"go on       fractal-k8s resume {name} --context standin" in output


def test_another_sweep_under_the_same_name_is_refused(still: Place) -> None:
    name = launched(still)
    job = still.job(name)
    job["metadata"]["annotations"][labels.DIGEST] = "0" * 64
    still.objects.update("jobs", job)
    before = still.calls("create", "delete", "patch")
    output = still.run("launch", "small.toml", code=2)
    assert f"the Job {name} in namespace fractal is that of another sweep" in output
    assert still.calls("create", "delete", "patch") == before


def test_a_job_that_is_no_sweeps_is_refused_and_nothing_is_left(still: Place) -> None:
    manifest = small_manifest()
    body = {**manifest.job, "metadata": {**manifest.job["metadata"], "labels": {}}}
    body["metadata"] = {**body["metadata"], "annotations": {}}
    still.objects.create("jobs", body)
    with pytest.raises(UsageError, match="is that of another sweep"):
        send.send(connect("standin"), manifest)
    assert still.names("configmaps") == []


def test_a_foreign_config_map_is_left_alone(still: Place) -> None:
    manifest = small_manifest()
    name = manifest.job["metadata"]["name"]
    meta = {"name": name, "namespace": "fractal"}
    still.objects.create(
        "configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {}}
    )
    with pytest.raises(UsageError, match="that is no sweep's"):
        send.send(connect("standin"), manifest)
    assert still.names("jobs") == []
    assert still.names("configmaps") == [name]


def test_without_a_context_no_cluster_is_touched(still: Place, run: Run) -> None:
    before = len(still.standin.requests)
    run("launch", "small.toml", "--backend", "inline", "--res", "3")
    output = run("launch", "small.toml", "--queue", "research", code=2).output
    assert "--queue needs --context NAME" in output
    assert "--wait needs --context" in run("launch", "small.toml", "--wait", code=2).output
    output = run("launch", "small.toml", "--namespace", "x", code=2).output
    assert "need --context NAME" in output
    assert len(still.standin.requests) == before


def test_options_of_this_machine_are_refused_with_a_context(still: Place) -> None:
    output = still.run("launch", "small.toml", "--workers", "2", code=2)
    assert "--workers say how this machine trains" in output
    output = still.run("launch", "small.toml", "--gpus", "0,1", code=2)
    assert "on a cluster this is how many GPUs to use in total" in output
    assert still.names("jobs") == []


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_sent(
    still: Place,
) -> None:
    output = still.run(
        *("launch", "small.toml", "--job", "store_claim=nowhere", "--job", "store_secret=keys"),
        *("--job", "wandb_mode=point", "--job", "wandb_project=x", "--res", "40"),
        code=2,
    )
    for part in ("nowhere", "keys", "wandb_mode: point"):
        assert part in output
    assert still.names("jobs") == still.names("configmaps") == []


def test_what_is_stored_is_not_dealt_again(still: Place, run: Run) -> None:
    run("launch", "small.toml", "--backend", "inline", "--store", still.store.uri)
    facts = still.facts("launch", "small.toml")
    assert facts["state"] == "every point is stored"
    assert still.names("jobs") == []


def test_only_what_is_missing_is_dealt(still: Place, run: Run) -> None:
    name = launched(still)
    still.run("cancel", name)
    still.objects.delete("configmaps", "fractal", name)
    train_some(still, name, points=200)
    facts = still.facts("launch", "small.toml")
    assert facts["experiments"] == 56
    plan = Plan.from_json(still.config_map(name)["data"]["sweep.json"], source="test")
    assert sum(Dealt(plan.sweep, plan.deal).positions >= 200) == 56


def small_sweep() -> Sweep:
    return resolve(parse_text(SMALL, source="small"), source="small")


def train_some(place: Place, name: str, *, points: int) -> None:
    """Stores the outcomes of the first points of the usual order, as a laptop would."""
    sweep = small_sweep()
    assert sweep.id == name
    only = format_intervals(range(points))  # type: ignore[arg-type]
    plan = Plan(sweep, Deal(points_per_shard=points, only=only))
    folder = place.store.sweep(name)
    folder.write_plan(Plan(sweep, Deal()))
    InlineBackend().submit(Work(folder, plan), lambda event: None).wait()


def test_a_forecast_comes_from_what_the_store_has_seen(still: Place) -> None:
    name = launched(still)
    still.run("delete", name)
    train_some(still, name, points=200)
    still.objects.delete("configmaps", "fractal", labels.SITE)
    write_site(still.objects, client_store=still.store.uri, gpus_per_pod=1, memory="8Gi")
    output = still.run("launch", "small.toml", "--price", "2.5", "--gpus", "1")
    assert re.search(rf"about .* s once pods run, 0\.0 GPU-hours, 0\.00 USD \(from {name}", output)
    ledger = still.store.sweep(name).notes([])["forecast"]
    assert ledger["price_per_hour"] == 2.5
    shards = still.job(name)["spec"]["completions"]
    assert [entry["shards"] for entry in ledger["launches"]] == [4, shards]


def test_a_pilot_can_be_sent(still: Place) -> None:
    facts = still.facts("launch", "small.toml", "--pairs", "20")
    plan = Plan.from_json(still.config_map(facts["job"])["data"]["sweep.json"], source="test")
    assert plan.sweep == pilot_of(small_sweep(), 20)


FINE_TUNE = fine_tune_text("tuned", (4, 4), checkpoint="weights", dataset="rows.jsonl")


def test_a_fine_tune_whose_files_are_not_here_is_sent(still: Place, tmp_path: Path) -> None:
    (tmp_path / "tuned.toml").write_text(FINE_TUNE)
    claim = {"phase": "Bound"}
    for name in ("weights", "rows"):
        body = still.objects.get("persistentvolumeclaims", "fractal", "fractal-store")
        body["metadata"] = {"name": name, "namespace": "fractal"}
        still.objects.create("persistentvolumeclaims", {**body, "status": claim})
    options = ("--job", "model_claim=weights", "--job", "dataset_claim=rows")
    output = still.run("launch", "tuned.toml", *options)
    assert "weights and data are those of the cluster, not of this machine" in output
    [name] = still.names("jobs")
    [container] = still.job(name)["spec"]["template"]["spec"]["containers"]
    assert "--checkpoint" in container["args"]
    plan = Plan.from_json(still.config_map(name)["data"]["sweep.json"], source="test")
    assert plan.sweep.unknown_files == ("checkpoint", "dataset")


def test_a_fine_tune_whose_files_are_here_is_tied_to_them(
    still: Place, golden: Path, tmp_path: Path
) -> None:
    text = FINE_TUNE.replace('"weights"', f'"{golden}"')
    text = text.replace("rows.jsonl", f"{golden}/conversations.jsonl")
    (tmp_path / "tuned.toml").write_text(text)
    output = still.run("launch", "tuned.toml", code=2)
    assert "model_claim: the weights lie in a claim of the cluster" in output
    assert "dataset_claim: the data lie in a claim" in output
    for name in ("fractal-model", "fractal-data"):
        body = still.objects.get("persistentvolumeclaims", "fractal", "fractal-store")
        body["metadata"] = {"name": name, "namespace": "fractal"}
        still.objects.create("persistentvolumeclaims", body)
    options = ("--job", "model_claim=fractal-model", "--job", "dataset_claim=fractal-data")
    facts = still.facts("launch", "tuned.toml", *options, "--allow-repeats")
    plan = Plan.from_json(still.config_map(facts["job"])["data"]["sweep.json"], source="test")
    assert plan.sweep.unknown_files == ()
    assert facts["notes"] == []


def test_tracking_is_a_setting_of_the_job(still: Place) -> None:
    name = launched(still, "--wandb", "edges", "--wandb-mode", "shard")
    [container] = still.job(name)["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert variables["FRACTAL_K8S_WANDB_PROJECT"] == "edges"
    assert variables["FRACTAL_K8S_WANDB_MODE"] == "shard"
    assert WANDB_MODES == modes.MODES


def test_a_zoom_is_sent_with_the_settings_of_the_site(still: Place) -> None:
    name = launched(still)
    train_some(still, name, points=256)
    facts = still.facts("zoom", name, "--box", "2:5,3:6", "--res", "8")
    [zoom] = facts["zooms"]
    assert zoom["parent"] == name
    assert zoom["job"] == zoom["sweep"] == zoom["id"]
    [note] = zoom["notes"]
    assert note == "points that other maps of its family have are trained again on a cluster"
    assert still.job(zoom["job"])["spec"]["completions"] == zoom["indexes"]
    output = still.run("zoom", name, "--auto", "--depth", "2", code=2)
    assert "zoom once more when it is done" in output


# --- several launchers, lost connections, refusals ---


def test_of_two_launchers_at_once_one_wins_and_the_other_is_told(
    still: Place, impatient: None
) -> None:
    manifests = [small_manifest(points) for points in (7, 14, 7, 21)]
    sent: list[send.Sent] = []
    start = threading.Barrier(len(manifests))

    def work(manifest: Manifest) -> None:
        cluster = connect("standin")
        start.wait()
        sent.append(send.send(cluster, manifest))

    threads = [threading.Thread(target=work, args=(manifest,)) for manifest in manifests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 4
    [won] = [one for one in sent if one.is_new]
    assert {one.job.uid for one in sent} == {won.job.uid}
    assert still.names("jobs") == still.names("configmaps") == [won.job.name]
    plan = still.config_map(won.job.name)
    [owner] = plan["metadata"]["ownerReferences"]
    assert owner["uid"] == won.job.uid
    dealt = Plan.from_json(plan["data"]["sweep.json"], source="test")
    assert Dealt(dealt.sweep, dealt.deal).num_shards == won.job.completions


def test_a_refused_job_leaves_no_config_map(still: Place, impatient: None) -> None:
    allowed = [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get", "delete"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]},
    ]
    still.standin.add_user("half", allowed)
    with pytest.raises(ForbiddenError, match=r"jobs\.batch is forbidden.*nothing was left behind"):
        send.send(connect("half"), small_manifest())
    assert still.names("configmaps") == []


@pytest.mark.parametrize("resource", ["configmaps", "jobs"])
def test_an_answer_that_got_lost_is_not_sent_twice(
    resource: str, still: Place, impatient: None
) -> None:
    still.standin.fail(code=504, done=True, verb="create", resource=resource)
    sent = send.send(connect("standin"), small_manifest())
    assert sent.is_new
    assert sent.notes == ()
    assert still.names("jobs") == still.names("configmaps") == [sent.job.name]
    assert still.config_map(sent.job.name)["metadata"]["ownerReferences"]


@pytest.mark.parametrize("resource", ["configmaps", "jobs"])
def test_a_cluster_that_stops_answering_half_way_keeps_nothing(
    resource: str, still: Place, impatient: None
) -> None:
    still.standin.fail(5, code=503, verb="create", resource=resource)
    with pytest.raises(ClusterError, match="nothing was left behind"):
        send.send(connect("standin"), small_manifest())
    assert still.names("jobs") == still.names("configmaps") == []


def test_a_job_that_was_created_although_no_answer_came_counts(
    still: Place, impatient: None
) -> None:
    still.standin.fail(5, code=504, done=True, verb="create", resource="jobs")
    sent = send.send(connect("standin"), small_manifest())
    assert sent.is_new
    assert still.config_map(sent.job.name)["metadata"]["ownerReferences"]


def test_what_cannot_be_taken_back_is_named(still: Place, impatient: None) -> None:
    cluster, manifest = connect("standin"), small_manifest()
    create = client.Cluster.create

    class Failing(client.Cluster):
        """Is away from the creation of the Job on."""

        def create(self, kind: client.Kind, body: Object) -> Object:
            if kind is client.JOBS:
                still.standin.fail(10, code=503)
            return create(self, kind, body)

    failing = Failing(cluster._api, context="standin", namespace="fractal")
    with pytest.raises(ClusterError) as caught:
        send.send(failing, manifest)
    name = manifest.job["metadata"]["name"]
    assert f"the ConfigMap and perhaps the Job {name} are left in namespace" in str(caught.value)
    assert not still.standin.faults
    sent = send.send(cluster, manifest)  # as the message says
    assert sent.is_new
    assert still.names("jobs") == still.names("configmaps") == [name]


def test_a_leftover_of_a_killed_launcher_is_taken_over(still: Place, impatient: None) -> None:
    for left in (small_manifest(14), small_manifest(7)):
        still.objects.create("configmaps", left.config_map)
        sent = send.send(connect("standin"), small_manifest(7))
        assert sent.is_new
        data = still.config_map(sent.job.name)["data"]
        assert data == small_manifest(7).config_map["data"]
        still.objects.delete("jobs", "fractal", sent.job.name)
        still.objects.delete("configmaps", "fractal", sent.job.name)


def test_a_config_map_that_goes_with_its_old_job_is_made_anew(
    still: Place, impatient: None
) -> None:
    manifest = small_manifest()
    body = {**manifest.config_map, "metadata": {**manifest.config_map["metadata"]}}
    gone = {"apiVersion": "batch/v1", "kind": "Job", "name": "x", "uid": "gone"}
    body["metadata"]["ownerReferences"] = [gone]
    old = still.objects.create("configmaps", body)
    sent = send.send(connect("standin"), manifest)
    new = still.config_map(sent.job.name)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert [owner["uid"] for owner in new["metadata"]["ownerReferences"]] == [sent.job.uid]


# --- what changes a Job ---


def test_scale_changes_how_many_pods_run(still: Place) -> None:
    name = launched(still, "--points-per-index", "16")
    output = still.run("scale", "small", "--gpus", "8")
    assert f"{name}: 8 pods at once, instead of 2" in output
    assert still.job(name)["spec"]["parallelism"] == 8
    output = still.run("scale", name, "--gpus", "99")
    assert "16 pods at once, instead of 8" in output
    assert "16 indexes are left, and no more pods than that run" in output
    assert "16 pods at once, already" in still.run("scale", name, "--gpus", "16")
    facts = still.facts("scale", name, "--gpus", "1")
    assert (facts["before"], facts["parallelism"]) == (16, 1)


def add_queue(place: Place) -> None:
    meta = {"name": "research", "namespace": "fractal"}
    body = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue", "metadata": meta}
    place.objects.create("localqueues", body)


def test_scale_of_what_a_queue_has_admitted_warns(still: Place) -> None:
    add_queue(still)
    name = launched(
        still, "--points-per-index", "16", "--queue", "research", "--job", "min_parallelism=1"
    )
    output = still.run("scale", name, "--gpus", "4")
    assert "the queue research has admitted it and may have admitted fewer pods" in output


def test_gpus_are_counted_in_pods(still: Place) -> None:
    name = launched(still, "--points-per-index", "4", "--gpus", "8", "--gpus-per-pod", "8")
    assert still.job(name)["spec"]["parallelism"] == 1
    output = still.run("scale", name, "--gpus", "16")
    assert "2 pods of 8 GPUs at once, instead of 1" in output


def test_a_pause_can_be_made_twice_and_undone(still: Place) -> None:
    name = launched(still)
    assert "is paused, its pods write what they have" in still.run("pause", "small")
    assert still.job(name)["spec"]["suspend"] is True
    assert "is paused already" in still.run("pause", "small")
    output = still.run("launch", "small.toml")
    assert (
        f"paused, 0 of 4 indexes done); nothing was sent\ngo on       fractal-k8s resume {name}"
        in output
    )
    assert "goes on where it was paused" in still.run("resume", "small")
    job = still.job(name)
    assert job["spec"]["suspend"] is False
    assert labels.PAUSED not in job["metadata"]["annotations"]
    output = still.run("resume", "small", code=2)
    assert f"{name} is being trained by the Job {name} (not started yet" in output


def test_a_paused_job_goes_on_with_more_gpus_but_not_otherwise(still: Place) -> None:
    name = launched(still, "--points-per-index", "16")
    still.run("pause", name)
    output = still.run("resume", name, "--image", "other:1", "--queue", "x", code=2)
    assert "--image, --queue cannot change it: cancel it first" in output
    assert still.job(name)["spec"]["suspend"] is True
    still.run("resume", name, "--gpus", "5")
    spec = still.job(name)["spec"]
    assert (spec["suspend"], spec["parallelism"]) == (False, 5)


def test_a_queue_that_suspends_is_not_overridden(still: Place) -> None:
    add_queue(still)
    name = launched(still, "--queue", "research")
    job = still.job(name)
    job["spec"]["suspend"] = True
    still.objects.update("jobs", job)
    assert f"{name} waits for its turn in the queue research" in still.run("resume", name, code=2)
    assert "waiting in the queue research" in still.run("launch", "small.toml")


def test_cancel_keeps_outcomes_and_can_be_made_twice(still: Place, run: Run) -> None:
    name = launched(still)
    train_some(still, name, points=10)
    output = still.run("cancel", "small")
    assert f"{name}: deleted {name}; pods write what they have and end, outcomes stay" in output
    assert still.names("jobs") == []
    output = still.run("cancel", name)
    assert f"{name}: no Job in namespace fractal, nothing to cancel" in output
    assert still.store.sweep(name).outcome_entries()
    assert "no Job of a sweep 'smal'" in still.run("cancel", "smal", code=2)
    assert f"every Job of {name} has ended" in finished(still, name)


def finished(place: Place, name: str) -> str:
    """What scale says of a Job that has ended."""
    launched(place)
    complete = {"type": "Complete", "status": "True"}
    place.set_status(name, conditions=[complete])
    return place.run("scale", name, "--gpus", "4", code=2)


def test_delete_takes_jobs_and_config_maps_and_results_only_if_told(still: Place) -> None:
    name = launched(still)
    train_some(still, name, points=10)
    output = still.run("delete", "small")
    assert f"{name}: deleted {name}\nits results stay" in output
    assert still.names("jobs") == still.names("configmaps") == []
    assert "nothing of it is on the cluster" in still.run("delete", name)
    folder = still.store.sweep(name)
    output = still.run("delete", name, "--results", "--confirm", "small", code=2)
    assert f"'small' is not {name}; nothing was deleted" in output
    assert folder.outcome_entries()
    assert "--confirm" in still.run("delete", name, "--confirm", name, code=2)
    result = CliRunner().invoke(
        cli.main, ["delete", name, "--results", "--context", "standin"], input=f"{name}\n"
    )
    assert result.exit_code == 0, result.output
    assert "holds outcomes of 1 attempts" in result.output
    assert folder.read_plan() is None
    assert still.store.sweep_ids() == []


def test_results_are_not_deleted_under_pods_that_still_write(
    still: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = launched(still)
    train_some(still, name, points=10)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "left", "namespace": "fractal", "labels": {labels.SWEEP: name}},
        "spec": {"containers": [{"name": "worker", "image": "x:1"}]},
    }
    still.objects.create("pods", pod)
    monkeypatch.setattr(steer, "_EXTRA_S", -119.5)
    output = still.run("delete", name, "--results", "--confirm", name, code=2)
    assert f"1 pods of {name} have not ended and may still write" in output
    assert still.store.sweep(name).outcome_entries()


# --- resume ---


def test_a_resume_makes_another_job_over_what_is_missing(still: Place) -> None:
    name = launched(still, "--points-per-index", "64", "--job", "keep_seconds=99")
    train_some(still, name, points=192)
    failed = {"type": "Failed", "status": "True", "reason": "FailedIndexes"}
    still.set_status(name, completedIndexes="0-2", failedIndexes="3", conditions=[failed])
    output = still.run("resume", "small")
    assert f"{name}: Job {name}-r2 in namespace fractal" in output
    assert "64 experiments" in output
    plan = Plan.from_json(still.config_map(f"{name}-r2")["data"]["sweep.json"], source="test")
    assert Dealt(plan.sweep, plan.deal).positions.tolist() == [*range(192, 256)]
    # with the settings of the first
    assert still.job(f"{name}-r2")["spec"]["ttlSecondsAfterFinished"] == 99
    assert "is being trained by the Job" in still.run("resume", "small", code=2)
    assert f"(Job {name}-r2: " in still.run("launch", "small.toml")
    still.set_status(f"{name}-r2", conditions=[failed], failedIndexes="0")
    assert still.facts("resume", name)["job"] == f"{name}-r3"


def test_a_resume_without_the_store_goes_by_the_indexes(still: Place) -> None:
    still.objects.delete("configmaps", "fractal", labels.SITE)
    write_site(still.objects)
    output = still.run("launch", "small.toml", "--points-per-index", "64")
    assert "lies in a claim that only pods see: every point is dealt" in output
    [name] = still.names("jobs")
    failed = {"type": "Failed", "status": "True", "reason": "FailedIndexes"}
    still.set_status(name, completedIndexes="0,2,3", failedIndexes="1", conditions=[failed])
    output = still.run("resume", "small")
    assert "what is missing is told by the indexes of its Jobs" in output
    assert "64 experiments" in output
    plan = Plan.from_json(still.config_map(f"{name}-r2")["data"]["sweep.json"], source="test")
    assert Dealt(plan.sweep, plan.deal).positions.tolist() == [*range(64, 128)]


def test_what_was_sent_to_a_cluster_is_not_trained_here(still: Place, run: Run) -> None:
    name = launched(still)
    for verb in (("launch", "small.toml"), ("resume", name)):
        output = run(*verb, "--store", still.store.uri, "--backend", "inline", code=2).output
        assert f"was sent to a cluster as Job {name} in namespace fractal of standin" in output
        assert f"fractal-k8s cancel {name} --context standin" in output
    assert still.store.sweep(name).outcome_entries() == []
    still.run("cancel", name)
    run("resume", name, "--store", still.store.uri, "--backend", "inline")
    assert len(still.store.sweep(name).outcome_entries()) == 1


def test_what_another_machine_trains_is_not_sent(still: Place) -> None:
    name = launched(still)
    still.run("cancel", name)
    folder = still.store.sweep(name)
    owner = {"state": "holds", "host": "laptop", "process": 7}
    folder.files.put(folder.key("running", "a.json"), json.dumps(owner).encode())
    output = still.run("launch", "small.toml", code=2)
    assert "is being trained by process 7 on laptop; stop that first" in output
    assert still.names("jobs") == []
    folder.files.remove(folder.key("running"))
    still.run("launch", "small.toml")
    assert still.names("jobs") == [name]


def test_a_resume_of_what_the_cluster_has_forgotten_asks_the_store(still: Place) -> None:
    name = launched(still)
    train_some(still, name, points=250)
    still.run("delete", name)
    facts = still.facts("resume", "small")
    assert (facts["job"], facts["experiments"]) == (name, 6)
    still.run("delete", name)
    other = still.run("resume", "other", code=2)
    assert "no Job of a sweep 'other'" in other
    assert "its store has nothing of it; launch it again from its sweep file" in other


def test_what_cancel_says_goes_on_before_any_worker_began(still: Place) -> None:
    name = launched(still)
    [hint] = re.findall(r"go on +fractal-k8s (resume .*) --context", still.run("cancel", name))
    facts = still.facts(*hint.split())
    assert (facts["job"], facts["experiments"]) == (name, 256)


def test_status_and_logs_of_a_job_that_has_gone_name_the_store(still: Place) -> None:
    name = launched(still)
    still.run("cancel", name)
    for command in ("status", "logs"):
        output = still.run(command, name, code=2)
        assert f"no Job of a sweep '{name}'" in output
        hint = output.rpartition("see: fractal-k8s ")[2]
        assert shlex.split(hint) == [command, name, "--store", still.store.uri]


def test_a_resume_of_what_is_complete_says_so(still: Place, run: Run) -> None:
    name = launched(still)
    still.set_status(name, conditions=[{"type": "Complete", "status": "True"}])
    train_some(still, name, points=256)
    assert "every point is stored, nothing to train; nothing was sent" in still.run(
        "resume", "small"
    )
    assert still.names("jobs") == [name]


def test_a_resume_that_can_know_nothing_says_what_to_do(still: Place) -> None:
    still.objects.delete("configmaps", "fractal", labels.SITE)
    write_site(still.objects)
    output = still.run("resume", "small-0123456789", code=2)
    assert "no Job of a sweep 'small-0123456789'" in output
    assert "only pods see: launch the same sweep again instead" in output


def test_names_of_later_jobs_count_up() -> None:
    def named(*names: str) -> list[SweepJob]:
        return [SweepJob({"metadata": {"name": name}}) for name in names]

    assert free_name([], "a-0123456789") == "a-0123456789"
    assert free_name(named("a-0123456789"), "a-0123456789") == "a-0123456789-r2"
    assert free_name(named("a-0123456789-r3"), "a-0123456789") == "a-0123456789-r4"
    assert is_id("a-b-0123456789")
    assert not is_id("a-b")


# --- pods that really run ---


# A connection that the API breaks in its handshake may be left to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
def test_wait_shows_the_sweep_until_its_map_is_drawn(busy: Place) -> None:
    def disturb() -> None:
        """The API goes away for a while, as pods begin."""
        wait_for(lambda: bool(busy.objects.list("pods", "fractal")))
        busy.standin.down()
        time.sleep(1.5)
        busy.standin.up()

    thread = threading.Thread(target=disturb)
    thread.start()
    output = busy.run("launch", "small.toml", "--wait")
    thread.join()
    assert "256/256 points" in output
    assert "16 x 16 points, 100.0% with a verdict" in output
    assert "report.html" in output
    [name] = busy.names("jobs")
    folder = busy.store.sweep(name)
    plan = folder.read_plan()
    assert plan is not None
    assert folder.read_outcomes(plan.sweep).table.num_rows == 256
    assert "every point is stored" in busy.run("resume", name)


def test_what_has_failed_is_said_and_a_resume_trains_just_that(busy: Place) -> None:
    options = ("--points-per-index", "128", "--job", "retries_per_index=0")
    name = launched(busy, *options)

    def first_pod() -> str | None:
        for pod in busy.objects.list("pods", "fractal"):
            running = pod.get("status", {}).get("phase") == "Running"
            if running and pod["metadata"]["labels"][labels.INDEX] == "0":
                return str(pod["metadata"]["name"])
        return None

    wait_for(lambda: first_pod() is not None)
    busy.standin.kubelet.oom_kill("fractal", str(first_pod()))
    output = busy.run("launch", "small.toml", "--wait", code=1)
    assert "128 points are missing and 0 failed (ran out of memory (OOMKilled))" in output
    assert f"fractal-k8s resume {name} --context standin" in output
    output = busy.run("resume", "small", "--wait")
    assert "128 experiments" in output
    folder = busy.store.sweep(name)
    plan = folder.read_plan()
    assert plan is not None
    assert read_grid(folder, plan).known.all()
    assert folder.read_outcomes(plan.sweep).table.num_rows == 256  # none was trained twice


def test_an_index_of_several_gpus_stands_for_a_shard_of_each(still: Place) -> None:
    manifest = small_manifest(7, gpus_per_pod=4, gpus=8)
    plan = Plan(mlp_sweep(), Deal(points_per_shard=7))
    cluster = connect("standin")
    sent = send.send(cluster, manifest)
    assert sent.job.completions == 2  # of 6 shards
    run = K8sRun(cluster, sent.job, plan, None, lambda event: None)
    assert (run.status().pending, run.status().done) == (6, 0)
    failed = {"type": "Failed", "status": "True", "reason": "FailedIndexes", "message": ""}
    still.set_status(sent.job.name, completedIndexes="0", failedIndexes="1", conditions=[failed])
    status = run.wait()
    assert (status.pending, status.running, status.done) == (0, 0, 4)
    assert status.failed == {4: "failed", 5: "failed"}


def test_a_stop_leaves_the_job_alone(still: Place) -> None:
    def stop() -> None:
        wait_for(lambda: still.calls("get").count("get jobs") > 1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    output = still.run("launch", "small.toml", "--wait", code=130)
    thread.join()
    [name] = still.names("jobs")
    assert f"not watched any more; the Job {name} goes on" in output


def test_a_job_that_ends_without_failed_indexes_says_why(still: Place) -> None:
    name = launched(still)
    late = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too late"}

    def expire() -> None:
        wait_for(lambda: still.calls("get").count("get jobs") > 1)
        still.set_status(name, conditions=[late])

    thread = threading.Thread(target=expire)
    thread.start()
    output = still.run("launch", "small.toml", "--wait", code=1)
    thread.join()
    assert "256 points are missing and 0 failed (DeadlineExceeded: too late)" in output


def test_a_job_that_is_deleted_meanwhile_ends_the_waiting(still: Place) -> None:
    name = launched(still)

    def delete() -> None:
        wait_for(lambda: still.calls("get").count("get jobs") > 1)
        still.objects.delete("jobs", "fractal", name)

    thread = threading.Thread(target=delete)
    thread.start()
    output = still.run("launch", "small.toml", "--wait", code=1)
    thread.join()
    assert f"{name}: its Job was deleted, 256 points are missing" in output


def test_jobs_of_a_sweep_are_listed_oldest_first(still: Place) -> None:
    name = launched(still)
    assert [job.name for job in jobs_of(connect("standin"), name)] == [name]


def test_what_is_missing_is_told_after_the_last_pods_have_written(
    still: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a cancel and a resume the pods of the cancelled Job still write."""
    name = launched(still, "--points-per-index", "64")
    still.run("cancel", name)
    meta = {"name": f"{name}-0-abcde", "namespace": "fractal"}
    meta["labels"] = {labels.SWEEP: name, labels.COMPONENT: labels.WORKER}  # type: ignore[assignment]
    spec = {"containers": [{"name": "worker", "image": "x:1"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    still.objects.create("pods", {**pod, "status": {"phase": "Running"}})
    monkeypatch.setattr("fractal_k8s.dispatch._POLL_S", 0.05)
    looks: list[bool] = []
    look = dispatch.pods_left

    def pods_left(cluster: client.Cluster, sweep_id: str) -> bool:
        looks.append(look(cluster, sweep_id))
        if len(looks) == 3:  # it has written what it had, and is gone
            train_some(still, name, points=200)
            still.objects.delete("pods", "fractal", meta["name"])
        return looks[-1]

    monkeypatch.setattr(dispatch, "pods_left", pods_left)
    output = still.run("launch", "small.toml")
    assert "waiting until they have written" in output
    assert "56 experiments" in output
    assert looks[-1] is False


def test_a_list_of_points_that_is_too_long_is_left_to_the_workers(
    still: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = launched(still, "--points-per-index", "64")
    train_some(still, name, points=192)
    still.set_status(name, conditions=[{"type": "Failed", "status": "True", "reason": "x"}])
    monkeypatch.setattr(dispatch, "_LONGEST_LIST", 3)
    output = still.run("resume", name)
    assert "64 experiments" in output
    assert "every point is dealt, workers skip what is stored" in output
    plan = Plan.from_json(still.config_map(f"{name}-r2")["data"]["sweep.json"], source="test")
    assert plan.deal.only is None
