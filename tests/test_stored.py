"""What a cluster's sweep has stored, read by its name alone; and how its map is coming along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from fractal_k8s.backends.kube.aggregators import newest_aggregator
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.cli.cluster_store import see_it
from fractal_k8s.manifest import labels
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from standin.objects import Object
from test_dispatch import Place, launched, small_sweep, still, train_some, write_site

__all__ = ["still"]  # fixtures

WITH = ("--job", "aggregator=true")
FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}


def replace_site(place: Place, **changes: Any) -> None:
    place.objects.delete("configmaps", "fractal", labels.SITE)
    write_site(place.objects, **changes)


def calls(place: Place) -> int:
    return len(place.standin.requests)


# --- where the store is ---


@pytest.mark.parametrize("is_gone", [False, True], ids=["its Job", "the site"])
def test_a_sweep_is_read_by_its_name_and_its_cluster(
    still: Place, tmp_path: Path, is_gone: bool
) -> None:
    name = launched(still)
    train_some(still, name, points=256)
    if is_gone:
        still.run("delete", name)
    drawn = still.facts("aggregate", "small")
    assert (drawn["sweep"], drawn["complete"]) == (name, True)
    assert Path(drawn["written"]["report.html"]).is_relative_to(still.store.uri)
    assert still.facts("analyze", "small")["coverage"] == 1.0
    assert f'name = "{name[:-11]}"' in still.run("show", "small")
    assert "dimension.png" in still.run("report", "small")
    still.run("fetch", "small", "--to", str(tmp_path / "maps"))
    assert (tmp_path / "maps" / name / "summary" / "report.html").is_file()
    assert f"{name}  unchanged" in still.run("aggregate", "--all")
    assert name in still.run("list", "--stored")
    assert (f"{name}  " in still.run("list")) is not is_gone
    if is_gone:
        assert "fractal-k8s list --stored --context standin" in still.run("list")
    assert not (tmp_path / "runs").exists()  # the store of this machine's own sweeps


def test_a_job_with_a_store_of_its_own(still: Place, tmp_path: Path) -> None:
    own = Store(str(tmp_path / "own"))
    name = launched(still, "--store", "/store/own", "--job", f"client_store={own.uri}")
    train_some(still, name, points=256)  # in the site's store, which is not asked
    assert "256 missing" in still.run("aggregate", "small", code=1)
    assert own.sweep(name).read_summary() is not None


def test_a_store_that_only_pods_see_is_said_so(still: Place) -> None:
    name = launched(still, "--job", "client_store=")
    text = still.run("fetch", "small", "--to", "maps", code=2)
    assert f"{name}: its store /store/runs is a folder of a claim, which only pods see" in text
    assert "give --store URI" in text
    replace_site(still)
    assert "ConfigMap fractal/fractal-k8s-site: its store /store/runs" in still.run(
        "aggregate", "--all", code=2
    )


def test_a_cluster_without_a_site_names_no_store(still: Place) -> None:
    still.objects.delete("configmaps", "fractal", labels.SITE)
    text = still.run("analyze", "small", code=2)
    assert "ConfigMap fractal/fractal-k8s-site, where a site names its store, has none" in text


def test_a_store_that_is_given_counts_alone(still: Place, run: Run, tmp_path: Path) -> None:
    """And where no cluster is named none is asked."""
    before = calls(still)
    for command in (("fetch", "--to", "maps"), ("report",), ("analyze",), ("aggregate",)):
        text = still.run(command[0], "small", *command[1:], "--store", "empty", code=2)
        assert f"there are none in {tmp_path / 'empty'}" in text
        run(command[0], "small", *command[1:], code=2)
        text = run(command[0], "small", *command[1:], "--namespace", "n", code=2).output
        assert "--namespace and --kubeconfig need --context NAME" in text
    assert calls(still) == before


def test_a_mask_is_no_sweep_of_a_cluster(still: Place) -> None:
    text = still.run("analyze", "--mask", "map.npy", code=2)
    assert "--context needs a sweep" in text


def test_waiting_for_a_sweep_of_which_nothing_is_stored_yet(still: Place) -> None:
    """Its name is enough: the Job tells the id before the first worker has."""
    name = launched(still)
    still.store.sweep(name).remove()
    still.set_status(name, conditions=[FAILED], failedIndexes="0")
    text = still.run("aggregate", "small", "--until-complete", "--every", "0.1", code=1)
    assert f"{name}: no worker has stored anything in {still.store.uri}" in text


def test_the_command_that_shows_a_map() -> None:
    name = "small-0123456789"
    assert see_it(name, "s3://b/p?region=x", "--context cks") == (
        f"fractal-k8s fetch {name} --context cks --to maps"
    )
    assert see_it(name, "a b", "--context cks") == f"fractal-k8s report {name} --store 'a b' --open"


def test_a_page_of_a_bucket_is_fetched_first(bucket: str, still: Place, run: Run) -> None:
    """Said before anything is drawn."""
    replace_site(still, store=bucket, store_claim=None)
    sweep = small_sweep()
    folder = Store(bucket).sweep(sweep.id)
    folder.write_plan(Plan(sweep, Deal()))
    text = still.run("report", "small", "--open", code=2)
    assert f"fetch it with: fractal-k8s fetch {sweep.id} --context standin --to maps" in text
    text = run("report", "small", "--open", "--store", bucket, code=2).output
    assert f"fractal-k8s fetch {sweep.id} --store '{bucket}' --to maps" in text
    assert folder.read_summary() is None


# --- what a launch says of the map ---


def test_a_launch_says_who_draws_the_map_and_how_to_see_it(still: Place) -> None:
    output = still.run("launch", "small.toml", *WITH)
    name = still.names("jobs")[0]
    assert f"  map by job/{name}-aggregate in /store/runs/{name}/summary/report.html" in output
    assert f"the map     fractal-k8s report {name} --store {still.store.uri} --open" in output
    still.set_status(name, conditions=[{"type": "Complete", "status": "True"}])
    again = still.run("launch", "small.toml", *WITH)
    assert f"the map     fractal-k8s report {name} --store {still.store.uri} --open" in again


def test_a_launch_without_an_aggregator_promises_none(still: Place) -> None:
    assert "map by" not in still.run("launch", "small.toml", "--job", "client_store=")
    assert still.facts("launch", "small.toml", "--name", "other")["aggregator"] is None


# --- how the aggregator stands ---


def plant_pod(place: Place, job: str, number: int, status: Object) -> None:
    meta = {
        "name": f"{job}-{number}",
        "namespace": "fractal",
        "labels": {labels.JOB_NAME: job, labels.COMPONENT: labels.AGGREGATOR},
    }
    spec = {"containers": [{"name": labels.AGGREGATOR, "image": "tune:1"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}
    place.objects.create("pods", body)


def ended(code: int, message: str = "") -> Object:
    state = {"terminated": {"exitCode": code, "reason": "Error", "message": message}}
    return {
        "phase": "Failed",
        "containerStatuses": [{"name": labels.AGGREGATOR, "state": state}],
    }


def waiting(reason: str, message: str) -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "phase": "Pending",
        "containerStatuses": [{"name": labels.AGGREGATOR, "state": state}],
    }


@pytest.mark.parametrize(
    ("status", "pods", "said"),
    [
        pytest.param({}, [], "starting", id="new"),
        pytest.param({"active": 1, "ready": 1}, [], "running", id="running"),
        pytest.param(
            {"active": 1},
            [waiting("ErrImagePull", "not found")],
            "starting: its image cannot be pulled: tune:1: not found",
            id="no image",
        ),
        pytest.param(
            {"active": 1, "ready": 1, "failed": 1},
            [ended(2, "12:00:00  look\nError: s3://b: no such bucket\n")],
            "running: s3://b: no such bucket",
            id="tried again",
        ),
        pytest.param(
            {"failed": 5, "conditions": [FAILED]},
            [ended(2, "Error: the first"), ended(2, "Error: the last")],
            "failed: the last",
            id="failed",
        ),
        pytest.param(
            {"failed": 1, "conditions": [FAILED]},
            [ended(1, "12:00:00  3 of 4 points\n  PARTIAL: 1 points missing, 0 failed")],
            "failed: the map is drawn, points of it are missing or failed",
            id="holes",
        ),
        pytest.param(
            {"failed": 1, "conditions": [FAILED]},
            [],
            "failed: BackoffLimitExceeded: pods failed too often",
            id="pods are gone",
        ),
        pytest.param(
            {"failed": 1, "succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]},
            [ended(2, "Error: a bad start")],
            "complete",
            id="complete",
        ),
    ],
)
def test_status_says_how_the_aggregator_stands(
    still: Place, status: Object, pods: list[Object], said: str
) -> None:
    name = launched(still, *WITH)
    job = f"{name}-aggregate"
    still.set_status(job, **status)
    for number, pod in enumerate(pods):
        plant_pod(still, job, number, pod)
    output = still.run("status", "small")
    assert f"  job/{job}, which draws the map: {said}\n" in output
    draw = f"-> draw it with: fractal-k8s aggregate {name} --context standin"
    assert (draw in output) == (said.startswith("failed") and "is drawn" not in said)
    facts = still.facts("status", "small")["aggregator"]
    assert facts["name"] == job
    assert said.startswith(facts["state"])


def test_pods_of_an_aggregator_that_are_refused(still: Place) -> None:
    name = launched(still, *WITH)
    event = {"reason": "FailedCreate", "message": "exceeded quota: team"}
    found = newest_aggregator(connect("standin"), name, lambda job: [event])
    assert found is not None
    assert (found.state, found.said) == ("starting", "its pods are refused: exceeded quota: team")


def test_a_sweep_without_an_aggregator(still: Place) -> None:
    launched(still)
    assert "draws the map" not in still.run("status", "small")
    assert still.facts("status", "small")["aggregator"] is None


# --- troubles that are over ---


def plant_failed_worker(place: Place, sweep_id: str, job: str) -> None:
    marks = {labels.SWEEP: sweep_id, labels.JOB_NAME: job, labels.INDEX: "0"}
    state = {"terminated": {"exitCode": 65, "message": json.dumps({"error": "a flipped byte"})}}
    meta = {
        "name": f"{job}-0-x",
        "namespace": "fractal",
        "labels": {**marks, labels.COMPONENT: labels.WORKER},
    }
    status = {
        "phase": "Failed",
        "containerStatuses": [{"name": labels.CONTAINER, "state": state}],
    }
    spec = {"containers": [{"name": labels.CONTAINER}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}
    place.objects.create("pods", body)


def test_what_a_resume_has_taken_up_is_no_trouble_any_more(still: Place) -> None:
    name = launched(still)
    failed = {**FAILED, "reason": "PodFailurePolicy"}
    still.set_status(name, conditions=[failed], failed=1, failedIndexes="0")
    plant_failed_worker(still, name, name)
    assert "fill the claim anew (docs/chart.md)" in still.run("status", "small")
    still.run("resume", "small")
    assert "a flipped byte" not in still.run("status", "small")
    plant_failed_worker(still, name, f"{name}-r2")  # and it happens again
    assert "fill the claim anew (docs/chart.md)" in still.run("status", "small")


def test_a_complete_sweep_asks_for_nothing(still: Place) -> None:
    """Pods of it that failed on the way are told of, and nothing more is to be done."""
    name = launched(still)
    train_some(still, name, points=256)
    plant_failed_worker(still, name, name)
    assert "fill the claim anew (docs/chart.md)" in still.run("status", "small")
    completed = still.job(name)["spec"]["completions"]
    done = {"type": "Complete", "status": "True"}
    still.set_status(name, conditions=[done], completedIndexes=f"0-{completed - 1}")
    output = still.run("status", "small")
    assert "a flipped byte" in output
    assert "->" not in output
    assert f"see it with: fractal-k8s report {name} --store {still.store.uri} --open" in output
